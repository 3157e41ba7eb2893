//! The Lock service.

use std::sync::Arc;

use bytes::Bytes;
use metastore_proto::etcdserverpb::{RangeRequest, ResponseHeader, TxnRequest, range_request};
use metastore_proto::v3lockpb::lock_server::Lock;
use metastore_proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use tonic::{Request, Response, Status};

use super::concurrency::{self, Session, Withdrawal};
use super::services::BaseServices;
use super::{OnLearner, check_call};
use crate::node::Node;

/// The Lock service of a member.
#[derive(Clone)]
pub struct LockService {
    node: Arc<Node>,
    services: BaseServices,
}

impl LockService {
    /// The service of `node`, on top of its other services.
    pub fn new(node: Arc<Node>, services: BaseServices) -> Self {
        Self { node, services }
    }
}

/// Queues up for the lock and waits until it is the caller's.
async fn acquire(session: &Session, name: &[u8], lease: i64) -> Result<LockResponse, Status> {
    let lease = session.lease(lease).await?;
    let prefix = concurrency::prefix_of(name);
    let key = concurrency::waiter_key(&prefix, lease);
    let owner = concurrency::get(concurrency::edge_of(
        &prefix,
        range_request::SortOrder::Ascend,
    ));
    let queued = session
        .txn(TxnRequest {
            compare: vec![concurrency::created_at(&key, 0)],
            success: vec![concurrency::put(&key, Bytes::new(), lease), owner.clone()],
            failure: vec![concurrency::get_key(&key), owner],
        })
        .await?;
    let created = if queued.succeeded {
        queued.header.as_ref().map_or(0, |header| header.revision)
    } else {
        // The same lease queued up before.
        concurrency::found(&queued, 0)?.map_or(0, |own| own.create_revision)
    };
    let owns = concurrency::found(&queued, 1)?.is_none_or(|owner| owner.create_revision == created);
    let header = if owns {
        queued.header
    } else {
        wait_for_turn(session, &prefix, &key, created).await?
    };
    Ok(LockResponse { header, key })
}

async fn wait_for_turn(
    session: &Session,
    prefix: &Bytes,
    key: &Bytes,
    created: i64,
) -> Result<Option<ResponseHeader>, Status> {
    let withdrawal = Withdrawal::armed(
        session,
        TxnRequest {
            success: vec![concurrency::delete(key)],
            ..Default::default()
        },
    );
    let waited = async {
        session.wait_for_older(prefix, created - 1).await?;
        // The lease may have ended during the wait, and the key with it.
        session
            .range(RangeRequest {
                key: key.clone(),
                ..Default::default()
            })
            .await
    };
    match waited.await {
        Ok(own) => {
            withdrawal.disarm();
            if own.kvs.is_empty() {
                return Err(concurrency::plain_error("mutex: session is expired"));
            }
            Ok(own.header)
        }
        Err(status) => {
            withdrawal.now().await;
            Err(status)
        }
    }
}

#[tonic::async_trait]
impl Lock for LockService {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        check_call(&self.node, request.metadata().as_ref(), OnLearner::Refused)?;
        let session = Session::new(self.services.clone(), &request);
        let request = request.into_inner();
        let response = acquire(&session, &request.name, request.lease).await?;
        Ok(Response::new(response))
    }

    async fn unlock(
        &self,
        request: Request<UnlockRequest>,
    ) -> Result<Response<UnlockResponse>, Status> {
        check_call(&self.node, request.metadata().as_ref(), OnLearner::Refused)?;
        let session = Session::new(self.services.clone(), &request);
        let deleted = session.delete(request.into_inner().key).await?;
        Ok(Response::new(UnlockResponse {
            header: deleted.header,
        }))
    }
}
