//! Members that are played: etcd's API on addresses of this machine. What they know and have is one value for all of
//! them, so that a change is told from a call that found everything done.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, header};
use http_body_util::{BodyExt, Full};
use metastore_proto::etcdserverpb::{self as pb, alarm_request::AlarmAction};
use prost::Message;
use tokio::task::AbortHandle;
use tonic::Code;

use super::*;

/// The id of the cluster, whoever forms it.
const CLUSTER_ID: u64 = 0x7777;
const TOKEN: &str = "token-of-root";
/// Size of a store that nobody has defragmented, and of what is in it.
pub(super) const DB_SIZE: i64 = 64 << 20;
pub(super) const DB_IN_USE: i64 = 8 << 20;

/// What the members have agreed upon, and what each of them has.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Facts {
    pub(super) list: Vec<pb::Member>,
    pub(super) leader: u64,
    last_id: u64,
    pub(super) alarms: Vec<pb::AlarmMember>,
    pub(super) sizes: BTreeMap<u64, i64>,
    pub(super) revision: i64,
    pub(super) compacted: i64,
    pub(super) auth: Auth,
    /// How often a cluster was formed.
    pub(super) formed: u32,
    /// Volumes with data, and whose.
    pub(super) volumes: BTreeMap<String, u64>,
    /// What must never happen, and did.
    pub(super) violations: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Auth {
    pub(super) is_on: bool,
    password: Option<String>,
    has_role: bool,
    is_granted: bool,
}

type Answer = Result<Vec<u8>, (Code, &'static str)>;

const UNKNOWN_MEMBER: (Code, &str) = (Code::NotFound, "etcdserver: member not found");

/// A member that runs.
pub(super) struct Running {
    pub(super) id: u64,
    pub(super) address: IpAddr,
    server: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Addresses of one stage: two hundred at a time are more than anything here uses.
pub(super) struct Addresses {
    network: [u8; 2],
    last: u8,
    pub(super) port: u16,
}

impl Default for Addresses {
    fn default() -> Self {
        static LAST: AtomicU16 = AtomicU16::new(0);
        let network = LAST.fetch_add(1, Ordering::Relaxed) % 50_000;
        let any = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Self {
            // Not those of other tests, 127.0 and 127.77.
            network: [
                100 + u8::try_from(network / 256 % 150).unwrap(),
                network.to_be_bytes()[1],
            ],
            last: 0,
            port: any.local_addr().unwrap().port(),
        }
    }
}

impl Addresses {
    fn listen(&mut self) -> std::net::TcpListener {
        for _ in 0..u8::MAX {
            self.last = self.last % 250 + 1;
            let [a, b] = self.network;
            let address = SocketAddr::from((Ipv4Addr::new(127, a, b, self.last), self.port));
            if let Ok(listener) = std::net::TcpListener::bind(address) {
                listener.set_nonblocking(true).unwrap();
                return listener;
            }
        }
        panic!("no address is free");
    }
}

/// Starts to listen as a member.
pub(super) fn start(server: &Arc<Server>, addresses: &mut Addresses, id: u64) -> Running {
    let listener = addresses.listen();
    let address = listener.local_addr().unwrap().ip();
    let router = axum::Router::new()
        .fallback(serve)
        .with_state((server.clone(), id, address));
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    Running {
        id,
        address,
        server: task.abort_handle(),
    }
}

async fn serve(
    State((server, id, address)): State<(Arc<Server>, u64, IpAddr)>,
    request: Request,
) -> Response {
    let method = request.uri().path().rsplit('/').next().unwrap().to_owned();
    let has_token = request.headers().get("token").is_some_and(|t| t == TOKEN);
    let body = axum::body::to_bytes(request.into_body(), BODY_BYTES_MAX)
        .await
        .unwrap();
    let (answer, change) = {
        let mut world = server.world.lock();
        // It has ended, or another one has its address.
        if !world
            .running
            .values()
            .any(|m| m.id == id && m.address == address)
        {
            return refused((Code::Unavailable, "it has ended"));
        }
        let before = world.facts.clone();
        // Five bytes of gRPC are before the message.
        let answer = world.answer(id, &method, &body[5..], has_token);
        let change = (world.facts != before).then(|| format!("{method} of {id:x}"));
        server.play(&mut world);
        (answer, change)
    };
    if let Some(change) = change
        && server.is_deadly_change(change)
    {
        std::future::pending::<()>().await;
    }
    let message = match answer {
        Ok(message) => message,
        Err(refusal) => return refused(refusal),
    };
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    bytes.extend(message);
    let trailers = HeaderMap::from_iter([(
        header::HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    )]);
    let body =
        Full::new(axum::body::Bytes::from(bytes)).with_trailers(async { Some(Ok(trailers)) });
    (
        [(header::CONTENT_TYPE, "application/grpc")],
        Body::new(body),
    )
        .into_response()
}

fn refused((code, text): (Code, &'static str)) -> Response {
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/grpc"),
        ),
        (
            header::HeaderName::from_static("grpc-status"),
            HeaderValue::from(code as i32),
        ),
        (
            header::HeaderName::from_static("grpc-message"),
            HeaderValue::from_static(text),
        ),
    ];
    (headers, Body::empty()).into_response()
}

impl World {
    /// Does this member run?
    pub(super) fn runs(&self, id: u64) -> bool {
        self.running.values().any(|member| member.id == id)
    }

    fn running_voters(&self) -> usize {
        let voters = self.facts.list.iter().filter(|member| !member.is_learner);
        voters.filter(|member| self.runs(member.id)).count()
    }

    pub(super) fn has_majority(&self) -> bool {
        let voters = self
            .facts
            .list
            .iter()
            .filter(|member| !member.is_learner)
            .count();
        self.running_voters() > voters / 2
    }

    /// The member of a volume that starts: it goes on with its data, or does what its configuration lets it do.
    pub(super) fn start_with(&mut self, name: &str, claim: &str, config: &str) -> Option<u64> {
        let is_listed = |facts: &Facts, id: u64| facts.list.iter().any(|member| member.id == id);
        if let Some(id) = self.facts.volumes.get(claim).copied() {
            return is_listed(&self.facts, id).then_some(id);
        }
        let facts = &mut self.facts;
        if config.contains("initial-cluster-state: \"new\"") {
            facts.formed += 1;
            if facts.formed > 1 {
                facts
                    .violations
                    .push(format!("{name} formed a second cluster"));
            }
            facts.last_id += 1;
            let id = facts.last_id;
            facts.list = vec![pb::Member {
                id,
                name: name.to_owned(),
                peer_ur_ls: metastore_operator_resources::join_list(config)
                    .into_iter()
                    .map(|(_, url)| url)
                    .collect(),
                ..pb::Member::default()
            }];
            facts.leader = id;
            facts.revision = 1000;
            facts.sizes.insert(id, DB_SIZE);
            facts.volumes.insert(claim.to_owned(), id);
            return Some(id);
        }
        let told = metastore_operator_resources::join_list(config);
        if told.len() != facts.list.len() {
            return None;
        }
        let own_url = told.into_iter().find(|(other, _)| other == name)?.1;
        let member = facts
            .list
            .iter_mut()
            .find(|member| member.name.is_empty() && member.peer_ur_ls == [own_url.as_str()])?;
        member.name = name.to_owned();
        facts.sizes.insert(member.id, DB_SIZE);
        facts.volumes.insert(claim.to_owned(), member.id);
        Some(member.id)
    }

    /// Nobody leads who does not run.
    pub(super) fn elect(&mut self) {
        if !self.has_majority() {
            self.facts.leader = 0;
            return;
        }
        let can_lead = |id: u64| {
            let member = self.facts.list.iter().find(|member| member.id == id);
            member.is_some_and(|member| !member.is_learner) && self.runs(id)
        };
        if !can_lead(self.facts.leader) {
            let mut ids = self.facts.list.iter().map(|member| member.id);
            self.facts.leader = ids.find(|id| can_lead(*id)).unwrap_or(0);
        }
    }

    fn header(&self, id: u64) -> Option<pb::ResponseHeader> {
        Some(pb::ResponseHeader {
            cluster_id: CLUSTER_ID,
            member_id: id,
            revision: self.facts.revision,
            raft_term: 1,
        })
    }

    fn answer(&mut self, id: u64, method: &str, body: &[u8], has_token: bool) -> Answer {
        let is_open = matches!(method, "Status" | "Authenticate");
        if !is_open && self.facts.leader == 0 {
            return Err((Code::Unavailable, "etcdserver: no leader"));
        }
        if !is_open && self.facts.auth.is_on && !has_token {
            return Err((Code::InvalidArgument, "etcdserver: user name is empty"));
        }
        match method {
            "Status" => Ok(self.status(id).encode_to_vec()),
            "MemberList" => Ok(pb::MemberListResponse {
                header: self.header(id),
                members: self.facts.list.clone(),
            }
            .encode_to_vec()),
            "MemberAdd" => self.add(&read(body)),
            "MemberPromote" => self.promote(&read(body)),
            "MemberRemove" => self.remove(&read(body)),
            "MemberUpdate" => self.update(&read(body)),
            "MoveLeader" => self.move_leader(id, &read(body)),
            "Defragment" => {
                self.facts.sizes.insert(id, DB_IN_USE);
                Ok(pb::DefragmentResponse::default().encode_to_vec())
            }
            "Alarm" => Ok(self.alarm(&read(body)).encode_to_vec()),
            "HashKV" => Ok(pb::HashKvResponse {
                header: self.header(id),
                hash: 1,
                hash_revision: read::<pb::HashKvRequest>(body).revision,
                ..pb::HashKvResponse::default()
            }
            .encode_to_vec()),
            "Compact" => self.compact(&read(body)),
            "Authenticate" => self.authenticate(&read(body)),
            "UserAdd" => match &self.facts.auth.password {
                Some(_) => Err((
                    Code::FailedPrecondition,
                    "etcdserver: user name already exists",
                )),
                None => {
                    self.facts.auth.password = Some(read::<pb::AuthUserAddRequest>(body).password);
                    Ok(Vec::new())
                }
            },
            "UserChangePassword" => {
                let password = read::<pb::AuthUserChangePasswordRequest>(body).password;
                self.facts.auth.password = Some(password);
                Ok(Vec::new())
            }
            "RoleAdd" => match std::mem::replace(&mut self.facts.auth.has_role, true) {
                true => Err((
                    Code::FailedPrecondition,
                    "etcdserver: role name already exists",
                )),
                false => Ok(Vec::new()),
            },
            "UserGrantRole" => {
                self.facts.auth.is_granted = true;
                Ok(Vec::new())
            }
            "AuthEnable" => match self.facts.auth.is_granted {
                true => {
                    self.facts.auth.is_on = true;
                    Ok(Vec::new())
                }
                false => Err((
                    Code::FailedPrecondition,
                    "etcdserver: root user does not exist",
                )),
            },
            "AuthDisable" => {
                self.facts.auth.is_on = false;
                Ok(Vec::new())
            }
            _ => Err((Code::Unimplemented, "nobody plays this")),
        }
    }

    fn status(&self, id: u64) -> pb::StatusResponse {
        let member = self.facts.list.iter().find(|member| member.id == id);
        pb::StatusResponse {
            header: self.header(id),
            version: "3.7.0".into(),
            storage_version: "3.7.0".into(),
            db_size: self.facts.sizes.get(&id).copied().unwrap_or(0),
            db_size_in_use: DB_IN_USE,
            leader: self.facts.leader,
            raft_index: 100,
            raft_applied_index: 100,
            raft_term: 1,
            is_learner: member.is_some_and(|member| member.is_learner),
            ..pb::StatusResponse::default()
        }
    }

    fn add(&mut self, request: &pb::MemberAddRequest) -> Answer {
        let facts = &mut self.facts;
        if facts
            .list
            .iter()
            .any(|member| member.peer_ur_ls == request.peer_ur_ls)
        {
            return Err((
                Code::FailedPrecondition,
                "etcdserver: Peer URLs already exists",
            ));
        }
        if !request.is_learner {
            facts
                .violations
                .push("a member was added that votes at once".into());
        }
        if facts.list.iter().any(|member| member.is_learner) {
            return Err((
                Code::FailedPrecondition,
                "etcdserver: too many learner members in cluster",
            ));
        }
        facts.last_id += 1;
        facts.list.push(pb::Member {
            id: facts.last_id,
            peer_ur_ls: request.peer_ur_ls.clone(),
            is_learner: true,
            ..pb::Member::default()
        });
        Ok(pb::MemberAddResponse::default().encode_to_vec())
    }

    fn promote(&mut self, request: &pb::MemberPromoteRequest) -> Answer {
        let is_ready = self.runs(request.id);
        let mut list = self.facts.list.iter_mut();
        let member = list
            .find(|member| member.id == request.id)
            .ok_or(UNKNOWN_MEMBER)?;
        if !is_ready || !member.is_learner {
            let text = "etcdserver: can only promote a learner member which is in sync with leader";
            return Err((Code::FailedPrecondition, text));
        }
        member.is_learner = false;
        Ok(pb::MemberPromoteResponse::default().encode_to_vec())
    }

    fn remove(&mut self, request: &pb::MemberRemoveRequest) -> Answer {
        let position = self
            .facts
            .list
            .iter()
            .position(|member| member.id == request.id);
        let removed = self.facts.list.remove(position.ok_or(UNKNOWN_MEMBER)?);
        if !removed.is_learner && self.facts.leader == request.id && self.facts.list.len() > 1 {
            self.facts
                .violations
                .push(format!("the leader {:x} was removed", request.id));
        }
        if !self.has_majority() {
            self.facts
                .violations
                .push(format!("no majority without {:x}", request.id));
        }
        Ok(pb::MemberRemoveResponse::default().encode_to_vec())
    }

    fn update(&mut self, request: &pb::MemberUpdateRequest) -> Answer {
        let mut list = self.facts.list.iter_mut();
        let member = list
            .find(|member| member.id == request.id)
            .ok_or(UNKNOWN_MEMBER)?;
        member.peer_ur_ls.clone_from(&request.peer_ur_ls);
        Ok(pb::MemberUpdateResponse::default().encode_to_vec())
    }

    fn move_leader(&mut self, id: u64, request: &pb::MoveLeaderRequest) -> Answer {
        if self.facts.leader != id {
            return Err((Code::FailedPrecondition, "etcdserver: not leader"));
        }
        let is_voter = |member: &pb::Member| member.id == request.target_id && !member.is_learner;
        if !self.facts.list.iter().any(is_voter) || !self.runs(request.target_id) {
            return Err((
                Code::FailedPrecondition,
                "etcdserver: bad leader transferee",
            ));
        }
        self.facts.leader = request.target_id;
        Ok(pb::MoveLeaderResponse::default().encode_to_vec())
    }

    fn alarm(&mut self, request: &pb::AlarmRequest) -> pb::AlarmResponse {
        let is_meant = |alarm: &pb::AlarmMember| {
            alarm.alarm == request.alarm && alarm.member_id == request.member_id
        };
        if request.action == AlarmAction::Deactivate as i32 {
            self.facts.alarms.retain(|alarm| !is_meant(alarm));
        }
        pb::AlarmResponse {
            alarms: self.facts.alarms.clone(),
            ..pb::AlarmResponse::default()
        }
    }

    fn compact(&mut self, request: &pb::CompactionRequest) -> Answer {
        if request.revision <= self.facts.compacted {
            let text = "etcdserver: mvcc: required revision has been compacted";
            return Err((Code::OutOfRange, text));
        }
        self.facts.compacted = request.revision;
        Ok(pb::CompactionResponse::default().encode_to_vec())
    }

    fn authenticate(&self, request: &pb::AuthenticateRequest) -> Answer {
        if !self.facts.auth.is_on {
            let text = "etcdserver: authentication is not enabled";
            return Err((Code::FailedPrecondition, text));
        }
        if self.facts.auth.password.as_deref() != Some(&request.password) {
            let text = "etcdserver: authentication failed, invalid user ID or password";
            return Err((Code::InvalidArgument, text));
        }
        Ok(pb::AuthenticateResponse {
            token: TOKEN.into(),
            ..pb::AuthenticateResponse::default()
        }
        .encode_to_vec())
    }
}

fn read<M: Message + Default>(body: &[u8]) -> M {
    M::decode(body).unwrap()
}
