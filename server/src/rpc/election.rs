//! The Election service.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use metastore_proto::EncodedKeyValue;
use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::{ResponseHeader, TxnRequest, range_request};
use metastore_proto::mvccpb::event::EventType;
use metastore_proto::v3electionpb::election_server::Election;
use metastore_proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse,
};
use tonic::{Request, Response, Status};

use super::concurrency::{self, Session, Withdrawal};
use super::services::BaseServices;
use super::{OnLearner, check_call, check_stream, leader_lost};
use crate::node::Node;

/// The Election service of a member.
#[derive(Clone)]
pub struct ElectionService {
    node: Arc<Node>,
    services: BaseServices,
}

fn missing_leader_key() -> Status {
    concurrency::plain_error(r#""leader" field must be provided"#)
}

fn not_leader() -> Status {
    concurrency::plain_error("election: not leader")
}

/// Takes the candidate `leader` back, if it still stands.
fn resignation(key: &Bytes, created: i64) -> TxnRequest {
    TxnRequest {
        compare: vec![concurrency::created_at(key, created)],
        success: vec![concurrency::delete(key)],
        ..Default::default()
    }
}

async fn proclaim(
    session: &Session,
    key: &Bytes,
    created: i64,
    lease: i64,
    value: Bytes,
) -> Result<Option<ResponseHeader>, Status> {
    let written = session
        .txn(TxnRequest {
            compare: vec![concurrency::created_at(key, created)],
            success: vec![concurrency::put(key, value, lease)],
            ..Default::default()
        })
        .await?;
    if !written.succeeded {
        return Err(not_leader());
    }
    Ok(written.header)
}

/// Stands for election and waits until it is won.
async fn campaign(session: &Session, request: CampaignRequest) -> Result<CampaignResponse, Status> {
    let lease = session.lease(request.lease).await?;
    let prefix = concurrency::prefix_of(&request.name);
    let key = concurrency::waiter_key(&prefix, lease);
    let stood = session
        .txn(TxnRequest {
            compare: vec![concurrency::created_at(&key, 0)],
            success: vec![concurrency::put(&key, request.value.clone(), lease)],
            failure: vec![concurrency::get_key(&key)],
        })
        .await?;
    let mut created = stood.header.as_ref().map_or(0, |header| header.revision);
    if let Some(own) = concurrency::found(&stood, 0)? {
        // The same lease stood before.
        created = own.create_revision;
        if own.value != request.value
            && let Err(status) = proclaim(session, &key, created, lease, request.value).await
        {
            let _ = session.txn(resignation(&key, created)).await;
            return Err(status);
        }
    }
    let withdrawal = Withdrawal::armed(session, resignation(&key, created));
    let waited = session.wait_for_older(&prefix, created - 1).await;
    // etcd withdraws only a candidate whose client went away; any other failure leaves it standing.
    withdrawal.disarm();
    waited?;
    Ok(CampaignResponse {
        header: stood.header,
        leader: Some(LeaderKey {
            name: request.name,
            key,
            rev: created,
            lease,
        }),
    })
}

type Leaders = Pin<Box<dyn Stream<Item = Result<LeaderResponse, Status>> + Send>>;

/// Who leads, again and again; ends without an error where etcd's observer ends.
fn observe(session: Session, prefix: Bytes) -> impl Stream<Item = LeaderResponse> + Send {
    let first = concurrency::edge_of(&prefix, range_request::SortOrder::Ascend);
    async_stream::stream! {
        loop {
            let Ok(found) = session.range(first.clone()).await else { return };
            let leader = match found.kvs.first() {
                Some(pair) => Some((found.header, pair.clone())),
                None => first_put(&session, &prefix, found.header.as_ref()).await,
            };
            let Some((header, pair)) = leader else { return };
            let Ok(key) = concurrency::decode(&pair).map(|pair| pair.key) else { return };
            let revision = header.as_ref().map_or(0, |header| header.revision);
            yield LeaderResponse { header, kv: Some(pair) };
            let Ok(mut watch) = session.watch(key, Bytes::new(), revision + 1).await else { return };
            'leads: loop {
                let Ok(Some(response)) = watch.next().await else { return };
                for event in response.events {
                    if event.r#type == EventType::Delete as i32 {
                        break 'leads;
                    }
                    yield LeaderResponse { header: response.header, kv: event.kv };
                }
            }
        }
    }
}

/// Waits for somebody to stand for an election in which nobody does.
async fn first_put(
    session: &Session,
    prefix: &Bytes,
    seen: Option<&ResponseHeader>,
) -> Option<(Option<ResponseHeader>, EncodedKeyValue)> {
    let revision = seen.map_or(0, |header| header.revision);
    let mut watch = session
        .watch(prefix.clone(), concurrency::prefix_end(prefix), revision)
        .await
        .ok()?;
    loop {
        let response = watch.next().await.ok()??;
        // A deletion makes the observer look again, as etcd's does.
        let put = response
            .events
            .into_iter()
            .find(|event| event.r#type == EventType::Put as i32);
        if let Some(pair) = put.and_then(|event| event.kv) {
            let revision = concurrency::decode(&pair).ok()?.mod_revision;
            let header = response
                .header
                .map(|header| ResponseHeader { revision, ..header });
            return Some((header, pair));
        }
    }
}

impl ElectionService {
    /// The service of `node`, on top of its other services.
    pub fn new(node: Arc<Node>, services: BaseServices) -> Self {
        Self { node, services }
    }

    fn begin<T>(&self, request: &Request<T>) -> Result<Session, Status> {
        check_call(&self.node, request.metadata().as_ref(), OnLearner::Refused)?;
        Ok(Session::new(self.services.clone(), request))
    }
}

#[tonic::async_trait]
impl Election for ElectionService {
    async fn campaign(
        &self,
        request: Request<CampaignRequest>,
    ) -> Result<Response<CampaignResponse>, Status> {
        let session = self.begin(&request)?;
        Ok(Response::new(
            campaign(&session, request.into_inner()).await?,
        ))
    }

    async fn proclaim(
        &self,
        request: Request<ProclaimRequest>,
    ) -> Result<Response<ProclaimResponse>, Status> {
        let session = self.begin(&request)?;
        let request = request.into_inner();
        let leader = request.leader.ok_or_else(missing_leader_key)?;
        let lease = session.lease(leader.lease).await?;
        let header = proclaim(&session, &leader.key, leader.rev, lease, request.value).await?;
        Ok(Response::new(ProclaimResponse { header }))
    }

    async fn leader(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<LeaderResponse>, Status> {
        let session = self.begin(&request)?;
        let prefix = concurrency::prefix_of(&request.into_inner().name);
        let found = session
            .range(concurrency::edge_of(
                &prefix,
                range_request::SortOrder::Ascend,
            ))
            .await?;
        let kv = found
            .kvs
            .into_iter()
            .next()
            .ok_or_else(|| concurrency::plain_error("election: no leader"))?;
        Ok(Response::new(LeaderResponse {
            header: found.header,
            kv: Some(kv),
        }))
    }

    type ObserveStream = Leaders;

    async fn observe(&self, request: Request<LeaderRequest>) -> Result<Response<Leaders>, Status> {
        let requires_leader =
            check_stream(&self.node, request.metadata().as_ref(), OnLearner::Refused)?;
        let session = Session::new(self.services.clone(), &request);
        let prefix = concurrency::prefix_of(&request.into_inner().name);
        let node = Arc::clone(&self.node);
        let leaders = async_stream::stream! {
            let lost = async {
                if requires_leader {
                    leader_lost(Arc::clone(&node)).await;
                } else {
                    std::future::pending::<()>().await;
                }
            };
            let stopped = node.stopped();
            let leaders = observe(session, prefix);
            tokio::pin!(lost, stopped, leaders);
            loop {
                tokio::select! {
                    leader = futures::StreamExt::next(&mut leaders) => match leader {
                        Some(leader) => yield Ok(leader),
                        None => return,
                    },
                    () = &mut lost => {
                        yield Err(EtcdError::NoLeader.into());
                        return;
                    }
                    () = &mut stopped => {
                        yield Err(EtcdError::Stopped.into());
                        return;
                    }
                }
            }
        };
        Ok(Response::new(Box::pin(leaders)))
    }

    async fn resign(
        &self,
        request: Request<ResignRequest>,
    ) -> Result<Response<ResignResponse>, Status> {
        let session = self.begin(&request)?;
        let leader = request.into_inner().leader.ok_or_else(missing_leader_key)?;
        let resigned = session.txn(resignation(&leader.key, leader.rev)).await?;
        Ok(Response::new(ResignResponse {
            header: resigned.header,
        }))
    }
}
