//! The limit on the size of the store (`--quota-backend-bytes`).
//!
//! What counts is the logical size, so that a compaction makes room without a defragmentation. The
//! costs of requests are etcd's.

use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::alarm_request::AlarmAction;
use metastore_proto::etcdserverpb::{
    AlarmRequest, AlarmType, PutRequest, RequestOp, TxnRequest, request_op,
};
use metastore_proto::internal::command::Request;

use crate::error::RequestError;
use crate::node::Node;

/// What a grant costs; etcd's estimate of a stored lease.
pub const LEASE_COST: u64 = 64;
/// What a put costs beside its key and value; etcd's estimate of a key's metadata.
const PUT_OVERHEAD: u64 = 256;

/// What a put costs.
pub fn put_cost(put: &PutRequest) -> u64 {
    PUT_OVERHEAD + put.key.len() as u64 + put.value.len() as u64
}

/// What a transaction costs: its larger branch, nested transactions included. 0: it writes nothing.
pub fn txn_cost(txn: &TxnRequest) -> u64 {
    let branch = |operations: &[RequestOp]| operations.iter().map(operation_cost).sum::<u64>();
    branch(&txn.success).max(branch(&txn.failure))
}

fn operation_cost(operation: &RequestOp) -> u64 {
    match &operation.request {
        Some(request_op::Request::RequestPut(put)) => put_cost(put),
        Some(request_op::Request::RequestTxn(txn)) => txn_cost(txn),
        _ => 0,
    }
}

impl Node {
    /// Refuses a request for which there is no room, and raises the alarm then.
    ///
    /// # Errors
    /// `database space exceeded`.
    pub async fn check_quota(&self, cost: u64) -> Result<(), RequestError> {
        if cost == 0 || self.application.space.has_room_for(cost) {
            return Ok(());
        }
        // The client hears of the lack of space either way.
        if let Err(error) = Box::pin(self.raise_no_space()).await {
            tracing::warn!(%error, "failed to raise the alarm NOSPACE");
        }
        Err(EtcdError::NoSpace.into())
    }

    /// Raises the alarm NOSPACE for this member unless it is raised.
    ///
    /// # Errors
    /// As [`Node::propose`].
    pub async fn raise_no_space(&self) -> Result<(), RequestError> {
        self.raise_alarm(AlarmType::Nospace, self.member_id).await
    }

    /// Raises an alarm for a member (0: the whole cluster) unless it is raised.
    ///
    /// # Errors
    /// As [`Node::propose`].
    pub async fn raise_alarm(&self, alarm: AlarmType, member: u64) -> Result<(), RequestError> {
        if self.application.alarms.is_raised(alarm, member) {
            return Ok(());
        }
        let request = AlarmRequest {
            action: AlarmAction::Activate as i32,
            member_id: member,
            alarm: alarm as i32,
        };
        self.propose(Request::Alarm(request)).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use metastore_proto::etcdserverpb::RangeRequest;

    use super::*;

    fn operation(request: request_op::Request) -> RequestOp {
        RequestOp {
            request: Some(request),
        }
    }

    #[test]
    fn costs_are_etcds() {
        let put = PutRequest {
            key: "key".into(),
            value: "value".into(),
            ..PutRequest::default()
        };
        assert_eq!(put_cost(&put), 264);
        assert_eq!(txn_cost(&TxnRequest::default()), 0);
        let read = operation(request_op::Request::RequestRange(RangeRequest::default()));
        let write = operation(request_op::Request::RequestPut(put));
        let nested = TxnRequest {
            success: vec![write.clone(), read.clone()],
            failure: vec![write.clone(), write.clone(), write.clone()],
            ..TxnRequest::default()
        };
        assert_eq!(txn_cost(&nested), 3 * 264, "the larger branch");
        let outer = TxnRequest {
            success: vec![operation(request_op::Request::RequestTxn(nested)), write],
            failure: vec![read],
            ..TxnRequest::default()
        };
        assert_eq!(txn_cost(&outer), 4 * 264);
    }
}
