//! A language of one-line requests, and the clients that send them with one token or another.
//!
//! `who: command arguments`. `who` is the name under which a token was kept (`login`), or `none`,
//! `bad` (no token at all ever looked so), `old` (well-formed and unknown), `bearer-NAME` and
//! `authorization-NAME` (the same token in the other header). `cn-NAME` has a certificate with this
//! common name and no token, `cn-NAME/who` a token as well. `''` is nothing and `\0` the byte.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use metastore_proto::authpb::{Permission, UserAddOptions};
use metastore_proto::etcdserverpb::alarm_request::AlarmAction;
use metastore_proto::etcdserverpb::auth_client::AuthClient;
use metastore_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use metastore_proto::etcdserverpb::downgrade_request::DowngradeAction;
use metastore_proto::etcdserverpb::request_op::Request as Op;
use metastore_proto::etcdserverpb::watch_request::RequestUnion;
use metastore_proto::etcdserverpb::*;
use metastore_proto::v3electionpb::election_client::ElectionClient;
use metastore_proto::v3electionpb::{
    CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest,
};
use metastore_proto::v3lockpb::lock_client::LockClient;
use metastore_proto::v3lockpb::{LockRequest, UnlockRequest};
use metastore_tests::Client;
use metastore_tests::client::decode;
use rustls::ClientConfig;
use tonic::transport::Channel;
use tonic::{Request, Status};

/// How long a stream may be silent before a step takes it that nothing comes.
const STREAM_LIMIT: Duration = Duration::from_secs(20);

/// Clients of one store and the tokens that it gave.
#[derive(Clone)]
pub struct Session {
    client: Client,
    auth: AuthClient<Channel>,
    lock: LockClient<Channel>,
    election: ElectionClient<Channel>,
    /// Tokens by name.
    pub tokens: HashMap<String, String>,
    /// What campaigns gave, by name of the election.
    leaders: HashMap<String, LeaderKey>,
    /// Connections with a certificate, by its common name.
    pub by_certificate: HashMap<String, Session>,
}

type Answer = Result<String, Status>;

fn words(text: &str) -> Vec<String> {
    text.split_whitespace()
        .map(|word| match word {
            "''" => String::new(),
            other => other.replace("\\0", "\0"),
        })
        .collect()
}

fn bytes(words: &[String], at: usize) -> Bytes {
    Bytes::from(words.get(at).cloned().unwrap_or_default())
}

fn text(words: &[String], at: usize) -> String {
    words.get(at).cloned().unwrap_or_default()
}

fn number(words: &[String], at: usize) -> i64 {
    words.get(at).map_or(0, |word| word.parse().unwrap())
}

fn shown(pairs: &[metastore_proto::EncodedKeyValue]) -> String {
    let pairs: Vec<String> = pairs
        .iter()
        .map(decode)
        .map(|pair| {
            format!(
                "{}={}",
                String::from_utf8_lossy(&pair.key),
                String::from_utf8_lossy(&pair.value)
            )
        })
        .collect();
    format!("[{}]", pairs.join(" "))
}

/// Fails unless a header names cluster, member and term.
fn check_header(header: Option<ResponseHeader>) -> Result<ResponseHeader, Status> {
    let header = header.ok_or_else(|| Status::unknown("no header"))?;
    match header {
        ResponseHeader { cluster_id: 0, .. }
        | ResponseHeader { member_id: 0, .. }
        | ResponseHeader { raft_term: 0, .. } => Err(Status::unknown(format!("header {header:?}"))),
        header => Ok(header),
    }
}

fn range_op(key: Bytes) -> RequestOp {
    op(Op::RequestRange(RangeRequest {
        key,
        ..RangeRequest::default()
    }))
}

fn put_op(key: Bytes) -> RequestOp {
    op(Op::RequestPut(PutRequest {
        key,
        value: Bytes::from_static(b"txn"),
        ..PutRequest::default()
    }))
}

fn op(request: Op) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}

fn exists(key: Bytes) -> Compare {
    Compare {
        result: CompareResult::Greater as i32,
        target: CompareTarget::Version as i32,
        key,
        range_end: Bytes::new(),
        target_union: Some(TargetUnion::Version(0)),
    }
}

fn nested(txn: TxnRequest) -> TxnRequest {
    TxnRequest {
        // The branch that is not taken counts as well.
        failure: vec![op(Op::RequestTxn(txn))],
        ..TxnRequest::default()
    }
}

impl Session {
    /// Clients for one member.
    pub fn new(endpoint: &str) -> Self {
        Self::with_client(Client::new(endpoint))
    }

    /// Clients for one member that speak TLS to it.
    pub fn secure(address: &str, config: Arc<ClientConfig>) -> Self {
        Self::with_client(Client::secure(address, config))
    }

    fn with_client(client: Client) -> Self {
        Self {
            auth: AuthClient::new(client.channel.clone()),
            lock: LockClient::new(client.channel.clone()),
            election: ElectionClient::new(client.channel.clone()),
            client,
            tokens: HashMap::new(),
            leaders: HashMap::new(),
            by_certificate: HashMap::new(),
        }
    }

    fn request<T>(&self, who: &str, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let (header, name, prefix) = match who.split_once('-') {
            Some(("bearer", name)) => ("token", name, "Bearer "),
            Some(("authorization", name)) => ("authorization", name, "Bearer "),
            _ => ("token", who, ""),
        };
        let token = match name {
            "none" => return request,
            "bad" => "nonsense",
            "old" => "abcdefghijklmnop.1",
            name => self
                .tokens
                .get(name)
                .map_or("not-logged-in", String::as_str),
        };
        let value = format!("{prefix}{token}").parse().unwrap();
        request.metadata_mut().insert(header, value);
        request
    }

    /// Opens a watch stream, with a token or (`cn-NAME`) with a certificate.
    pub async fn watch_stream(
        &mut self,
        who: &str,
        requests: impl futures::Stream<Item = WatchRequest> + Send + 'static,
    ) -> Result<tonic::Streaming<WatchResponse>, Status> {
        let request = match who.strip_prefix("cn-") {
            Some(_) => Request::new(requests),
            None => self.request(who, requests),
        };
        let client = match who.strip_prefix("cn-") {
            Some(name) => &mut self.by_certificate.get_mut(name).unwrap().client,
            None => &mut self.client,
        };
        Ok(client.watch.watch(request).await?.into_inner())
    }

    /// Sends the request of one line; what came back in one line.
    pub async fn run(&mut self, line: &str) -> String {
        let (who, command) = line.split_once(':').unwrap_or_else(|| panic!("{line}"));
        if let Some(certificate) = who.strip_prefix("cn-") {
            let (name, who) = certificate.split_once('/').unwrap_or((certificate, "none"));
            let mut holder = self.by_certificate[name].clone();
            holder.tokens.clone_from(&self.tokens);
            return Box::pin(holder.run(&format!("{who}:{command}"))).await;
        }
        let words = words(command);
        let (name, words) = words.split_first().unwrap_or_else(|| panic!("{line}"));
        let answer = match name.as_str() {
            "login" => self.login(words).await,
            name => {
                if let Some(answer) = self.administration(who, name, words).await {
                    answer
                } else if let Some(answer) = self.keys(who, name, words).await {
                    answer
                } else if let Some(answer) = self.leases(who, name, words).await {
                    answer
                } else if let Some(answer) = self.members(who, name, words).await {
                    answer
                } else if let Some(answer) = self.locks(who, name, words).await {
                    answer
                } else {
                    panic!("no such command: {line}")
                }
            }
        };
        match answer {
            Ok(text) => text,
            Err(status) => format!("{:?}: {}", status.code(), status.message()),
        }
    }

    /// `login [KEPT-AS@]NAME PASSWORD`
    async fn login(&mut self, words: &[String]) -> Answer {
        let kept_as = text(words, 0);
        let name = kept_as.rsplit('@').next().unwrap_or_default().to_owned();
        let request = AuthenticateRequest {
            name,
            password: text(words, 1),
        };
        let answer = self.auth.authenticate(request).await?.into_inner();
        check_header(answer.header)?;
        if answer.token.is_empty() {
            return Ok("ok without token".to_owned());
        }
        self.tokens.insert(kept_as, answer.token);
        Ok("ok token".to_owned())
    }

    async fn administration(&mut self, who: &str, name: &str, words: &[String]) -> Option<Answer> {
        macro_rules! call {
            ($method:ident, $message:expr) => {{
                let request = self.request(who, $message);
                match self.auth.$method(request).await {
                    Ok(answer) => answer.into_inner(),
                    Err(status) => return Some(Err(status)),
                }
            }};
        }
        macro_rules! done {
            ($method:ident, $message:expr) => {
                check_header(call!($method, $message).header).map(|_| "ok".to_owned())
            };
        }
        let first = text(words, 0);
        let second = text(words, 1);
        Some(match name {
            "enable" => done!(auth_enable, AuthEnableRequest {}),
            "disable" => done!(auth_disable, AuthDisableRequest {}),
            "status" => {
                let answer = call!(auth_status, AuthStatusRequest {});
                check_header(answer.header)
                    .map(|_| format!("ok {} {}", answer.enabled, answer.auth_revision))
            }
            "user-add" => done!(
                user_add,
                AuthUserAddRequest {
                    name: first,
                    password: second,
                    ..AuthUserAddRequest::default()
                }
            ),
            "user-add-without-password" => done!(
                user_add,
                AuthUserAddRequest {
                    name: first,
                    options: Some(UserAddOptions { no_password: true }),
                    ..AuthUserAddRequest::default()
                }
            ),
            "user-delete" => done!(user_delete, AuthUserDeleteRequest { name: first }),
            "user-passwd" => done!(
                user_change_password,
                AuthUserChangePasswordRequest {
                    name: first,
                    password: second,
                    ..AuthUserChangePasswordRequest::default()
                }
            ),
            "user-passwd-hash" => done!(
                user_change_password,
                AuthUserChangePasswordRequest {
                    name: first,
                    hashed_password: second,
                    ..AuthUserChangePasswordRequest::default()
                }
            ),
            "user-get" => {
                let answer = call!(user_get, AuthUserGetRequest { name: first });
                check_header(answer.header).map(|_| format!("ok roles {:?}", answer.roles))
            }
            "user-list" => {
                let answer = call!(user_list, AuthUserListRequest {});
                check_header(answer.header).map(|_| format!("ok {:?}", answer.users))
            }
            "user-grant" => done!(
                user_grant_role,
                AuthUserGrantRoleRequest {
                    user: first,
                    role: second,
                }
            ),
            "user-revoke" => done!(
                user_revoke_role,
                AuthUserRevokeRoleRequest {
                    name: first,
                    role: second,
                }
            ),
            "role-add" => done!(role_add, AuthRoleAddRequest { name: first }),
            "role-delete" => done!(role_delete, AuthRoleDeleteRequest { role: first }),
            "role-list" => {
                let answer = call!(role_list, AuthRoleListRequest {});
                check_header(answer.header).map(|_| format!("ok {:?}", answer.roles))
            }
            "role-get" => {
                let answer = call!(role_get, AuthRoleGetRequest { role: first });
                let permissions: Vec<_> = answer
                    .perm
                    .iter()
                    .map(|one| (one.perm_type, one.key.clone(), one.range_end.clone()))
                    .collect();
                check_header(answer.header).map(|_| format!("ok {permissions:?}"))
            }
            "permit" => {
                let perm_type = match second.as_str() {
                    "none" => None,
                    "read" => Some(0),
                    "write" => Some(1),
                    "readwrite" => Some(2),
                    other => Some(other.parse().unwrap()),
                };
                let perm = perm_type.map(|perm_type| Permission {
                    perm_type,
                    key: bytes(words, 2),
                    range_end: bytes(words, 3),
                });
                done!(
                    role_grant_permission,
                    AuthRoleGrantPermissionRequest { name: first, perm }
                )
            }
            "forbid" => done!(
                role_revoke_permission,
                AuthRoleRevokePermissionRequest {
                    role: first,
                    key: bytes(words, 1),
                    range_end: bytes(words, 2),
                }
            ),
            _ => return None,
        })
    }

    async fn keys(&mut self, who: &str, name: &str, words: &[String]) -> Option<Answer> {
        let key = bytes(words, 0);
        let second = bytes(words, 1);
        Some(match name {
            "get" | "get-serializable" => {
                let request = RangeRequest {
                    key,
                    range_end: second,
                    serializable: name == "get-serializable",
                    ..RangeRequest::default()
                };
                self.get(who, request).await
            }
            "stream" => self.stream(who, key, second).await,
            "put" | "put-previous" | "put-lease" => {
                let mut request = PutRequest {
                    key,
                    value: Bytes::from_static(b"v"),
                    prev_kv: name == "put-previous",
                    ..PutRequest::default()
                };
                if name == "put-lease" {
                    request.lease = number(words, 1);
                }
                let request = self.request(who, request);
                match self.client.kv.put(request).await {
                    Ok(_) => Ok("ok".to_owned()),
                    Err(status) => Err(status),
                }
            }
            "delete" | "delete-previous" => {
                let request = DeleteRangeRequest {
                    key,
                    range_end: second,
                    prev_kv: name == "delete-previous",
                };
                let request = self.request(who, request);
                match self.client.kv.delete_range(request).await {
                    Ok(answer) => Ok(format!("ok {}", answer.get_ref().deleted)),
                    Err(status) => Err(status),
                }
            }
            "compact" => {
                let request = CompactionRequest {
                    revision: number(words, 0),
                    physical: false,
                };
                let request = self.request(who, request);
                match self.client.kv.compact(request).await {
                    Ok(_) => Ok("ok".to_owned()),
                    Err(status) => Err(status),
                }
            }
            "watch" => self.watch(who, key, second, 0).await,
            "watch-from" => self.watch(who, key, Bytes::new(), number(words, 1)).await,
            name => {
                let request = transaction(name, key, second)?;
                let request = self.request(who, request);
                match self.client.kv.txn(request).await {
                    Ok(answer) => Ok(format!("ok {}", answer.get_ref().succeeded)),
                    Err(status) => Err(status),
                }
            }
        })
    }

    async fn get(&mut self, who: &str, request: RangeRequest) -> Answer {
        let request = self.request(who, request);
        let answer = self.client.kv.range(request).await?.into_inner();
        check_header(answer.header)?;
        Ok(format!("ok {} {}", shown(&answer.kvs), answer.count))
    }

    async fn stream(&mut self, who: &str, key: Bytes, range_end: Bytes) -> Answer {
        let request = RangeRequest {
            key,
            range_end,
            ..RangeRequest::default()
        };
        let request = self.request(who, request);
        let mut answers = self.client.kv.range_stream(request).await?.into_inner();
        let mut all = String::from("ok");
        while let Some(part) = answers.next().await {
            let part = part?.range_response.unwrap_or_default();
            all += &format!(" {} {}", shown(&part.kvs), part.count);
        }
        Ok(all)
    }

    async fn watch(
        &mut self,
        who: &str,
        key: Bytes,
        range_end: Bytes,
        start_revision: i64,
    ) -> Answer {
        let create = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest {
                key,
                range_end,
                start_revision,
                ..WatchCreateRequest::default()
            })),
        };
        // The stream stays open behind its only request.
        let requests = futures::stream::iter([create]).chain(futures::stream::pending());
        let request = self.request(who, requests);
        let mut answers = self.client.watch.watch(request).await?.into_inner();
        let first = tokio::time::timeout(STREAM_LIMIT, answers.next()).await;
        let Ok(Some(first)) = first else {
            return Ok("no answer".to_owned());
        };
        let first = first?;
        check_header(first.header)?;
        Ok(format!(
            "id {} created {} canceled {} {:?}",
            first.watch_id, first.created, first.canceled, first.cancel_reason
        ))
    }

    async fn leases(&mut self, who: &str, name: &str, words: &[String]) -> Option<Answer> {
        let id = number_or_zero(words, 0);
        Some(match name {
            "lease-grant" => {
                let ttl = number(words, 1);
                let request = self.request(who, LeaseGrantRequest { ttl, id });
                match self.client.lease.lease_grant(request).await {
                    Ok(answer) => Ok(format!("ok {}", answer.get_ref().ttl)),
                    Err(status) => Err(status),
                }
            }
            "lease-revoke" => {
                let request = self.request(who, LeaseRevokeRequest { id });
                match self.client.lease.lease_revoke(request).await {
                    Ok(_) => Ok("ok".to_owned()),
                    Err(status) => Err(status),
                }
            }
            "lease-ttl" | "lease-ttl-keys" => {
                let keys = name == "lease-ttl-keys";
                let request = self.request(who, LeaseTimeToLiveRequest { id, keys });
                match self.client.lease.lease_time_to_live(request).await {
                    Ok(answer) => {
                        let answer = answer.into_inner();
                        Ok(format!("ok {} {:?}", answer.granted_ttl, answer.keys))
                    }
                    Err(status) => Err(status),
                }
            }
            "lease-keep-alive" => {
                let requests = futures::stream::iter([LeaseKeepAliveRequest { id }])
                    .chain(futures::stream::pending());
                let request = self.request(who, requests);
                self.keep_alive(request).await
            }
            "leases" => {
                let request = self.request(who, LeaseLeasesRequest {});
                match self.client.lease.lease_leases(request).await {
                    Ok(answer) => {
                        let mut ids: Vec<i64> =
                            answer.get_ref().leases.iter().map(|one| one.id).collect();
                        ids.sort_unstable();
                        Ok(format!("ok {ids:?}"))
                    }
                    Err(status) => Err(status),
                }
            }
            _ => return None,
        })
    }

    async fn keep_alive(
        &mut self,
        request: Request<impl futures::Stream<Item = LeaseKeepAliveRequest> + Send + 'static>,
    ) -> Answer {
        let mut answers = self
            .client
            .lease
            .lease_keep_alive(request)
            .await?
            .into_inner();
        match tokio::time::timeout(STREAM_LIMIT, answers.next()).await {
            Ok(Some(answer)) => Ok(format!("ok {}", answer?.ttl)),
            _ => Ok("no answer".to_owned()),
        }
    }

    async fn members(&mut self, who: &str, name: &str, words: &[String]) -> Option<Answer> {
        macro_rules! call {
            ($service:ident . $method:ident, $message:expr) => {{
                let request = self.request(who, $message);
                match self.client.$service.$method(request).await {
                    Ok(_) => Ok("ok".to_owned()),
                    Err(status) => Err(status),
                }
            }};
        }
        let id = || number_or_zero(words, 0).cast_unsigned();
        Some(match name {
            "member-list" | "member-list-linearizable" => {
                let linearizable = name.ends_with("linearizable");
                call!(cluster.member_list, MemberListRequest { linearizable })
            }
            "member-add" => call!(
                cluster.member_add,
                MemberAddRequest {
                    peer_ur_ls: vec![text(words, 0)],
                    is_learner: false,
                }
            ),
            "member-remove" => call!(cluster.member_remove, MemberRemoveRequest { id: id() }),
            "member-update" => call!(
                cluster.member_update,
                MemberUpdateRequest {
                    id: id(),
                    peer_ur_ls: vec!["http://127.0.0.1:1".to_owned()],
                }
            ),
            "member-promote" => call!(cluster.member_promote, MemberPromoteRequest { id: id() }),
            "status-of-member" => call!(maintenance.status, StatusRequest {}),
            "alarm-list" => call!(maintenance.alarm, AlarmRequest::default()),
            "alarm-clear" => call!(
                maintenance.alarm,
                AlarmRequest {
                    action: AlarmAction::Deactivate as i32,
                    ..AlarmRequest::default()
                }
            ),
            "hash" => call!(maintenance.hash, HashRequest {}),
            "hash-kv" => call!(maintenance.hash_kv, HashKvRequest { revision: 0 }),
            "move-leader" => {
                call!(
                    maintenance.move_leader,
                    MoveLeaderRequest { target_id: id() }
                )
            }
            "defragment" => call!(maintenance.defragment, DefragmentRequest {}),
            "snapshot" => {
                let request = self.request(who, SnapshotRequest {});
                match self.client.maintenance.snapshot(request).await {
                    Ok(answer) => match answer.into_inner().next().await {
                        Some(Err(status)) => Err(status),
                        _ => Ok("ok".to_owned()),
                    },
                    Err(status) => Err(status),
                }
            }
            "downgrade-cancel" => call!(
                maintenance.downgrade,
                DowngradeRequest {
                    action: DowngradeAction::Cancel as i32,
                    version: String::new(),
                }
            ),
            _ => return None,
        })
    }
}

impl Session {
    /// `lock NAME LEASE`, `unlock KEY`, `campaign NAME LEASE`, `proclaim NAME`, `leader NAME`,
    /// `observe NAME`, `resign NAME`, `health`. Who has won no election proclaims in one of its own.
    async fn locks(&mut self, who: &str, name: &str, words: &[String]) -> Option<Answer> {
        macro_rules! call {
            ($client:ident . $method:ident, $message:expr) => {{
                let request = self.request(who, $message);
                let call = self.$client.$method(request);
                match tokio::time::timeout(STREAM_LIMIT, call).await {
                    Ok(Ok(answer)) => answer.into_inner(),
                    Ok(Err(status)) => return Some(Err(status)),
                    Err(_) => return Some(Ok("no answer".to_owned())),
                }
            }};
        }
        let first = bytes(words, 0);
        let lease = number_or_zero(words, 1);
        let leader = self.leaders.get(&text(words, 0)).cloned();
        let leader = Some(leader.unwrap_or_else(|| LeaderKey {
            name: first.clone(),
            key: Bytes::from([&first[..], b"/404"].concat()),
            rev: 1,
            lease: 0x404,
        }));
        let ok = |key: &[u8], given: bool| match given {
            true => format!("ok {}", key.escape_ascii()),
            // The server chose the lease.
            false => "ok".to_owned(),
        };
        Some(Ok(match name {
            "lock" => {
                let answer = call!(lock.lock, LockRequest { name: first, lease });
                ok(&answer.key, lease != 0)
            }
            "unlock" => {
                call!(lock.unlock, UnlockRequest { key: first });
                "ok".to_owned()
            }
            "campaign" => {
                let request = CampaignRequest {
                    name: first,
                    lease,
                    value: Bytes::from_static(b"value"),
                };
                let leader = call!(election.campaign, request).leader.unwrap_or_default();
                let shown = ok(&leader.key, lease != 0);
                self.leaders.insert(text(words, 0), leader);
                shown
            }
            "proclaim" => {
                let value = Bytes::from_static(b"other");
                call!(election.proclaim, ProclaimRequest { leader, value });
                "ok".to_owned()
            }
            "leader" => {
                let answer = call!(election.leader, LeaderRequest { name: first });
                format!("ok {}", answer.kv.is_some())
            }
            "observe" => {
                let mut answers = call!(election.observe, LeaderRequest { name: first });
                match tokio::time::timeout(STREAM_LIMIT, answers.next()).await {
                    Ok(Some(Ok(answer))) => format!("ok {}", answer.kv.is_some()),
                    Ok(Some(Err(status))) => return Some(Err(status)),
                    Ok(None) => "the end".to_owned(),
                    Err(_) => "no answer".to_owned(),
                }
            }
            "resign" => {
                call!(election.resign, ResignRequest { leader });
                "ok".to_owned()
            }
            "health" => return Some(self.health(who).await),
            _ => return None,
        }))
    }

    /// The health service. Its answer has a number as its first field, as a `LeaseStatus` has.
    async fn health(&self, who: &str) -> Answer {
        let mut grpc = tonic::client::Grpc::new(self.client.channel.clone());
        grpc.ready()
            .await
            .map_err(|error| Status::unknown(error.to_string()))?;
        let codec =
            metastore_proto::codec::SmallBufferCodec::<AuthStatusRequest, LeaseStatus>::default();
        let path = "/grpc.health.v1.Health/Check".parse().unwrap();
        let request = self.request(who, AuthStatusRequest {});
        let answer: tonic::Response<LeaseStatus> = grpc.unary(request, path, codec).await?;
        Ok(format!("ok {}", answer.get_ref().id))
    }
}

fn number_or_zero(words: &[String], at: usize) -> i64 {
    words
        .get(at)
        .and_then(|word| word.parse().ok())
        .unwrap_or_default()
}

fn transaction(name: &str, key: Bytes, second: Bytes) -> Option<TxnRequest> {
    let branches = |success, failure| TxnRequest {
        compare: Vec::new(),
        success,
        failure,
    };
    Some(match name {
        "txn-compare" => TxnRequest {
            compare: vec![exists(key)],
            ..TxnRequest::default()
        },
        "txn-get" => branches(vec![range_op(key)], vec![range_op(second)]),
        "txn-put" => branches(vec![put_op(key)], vec![put_op(second)]),
        "txn-delete" => branches(
            vec![op(Op::RequestDeleteRange(DeleteRangeRequest {
                key,
                range_end: second,
                prev_kv: true,
            }))],
            Vec::new(),
        ),
        "txn-nested-get" => nested(branches(vec![range_op(key)], Vec::new())),
        "txn-nested-put" => nested(branches(Vec::new(), vec![put_op(key)])),
        "txn-nested-compare" => nested(TxnRequest {
            compare: vec![exists(key)],
            ..TxnRequest::default()
        }),
        "txn-read-only-nested" => branches(
            vec![
                range_op(Bytes::from_static(b"r1")),
                op(Op::RequestTxn(branches(vec![range_op(key)], Vec::new()))),
            ],
            Vec::new(),
        ),
        _ => return None,
    })
}
