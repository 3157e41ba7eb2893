//! The gRPC services, one file each. A handler validates in etcd's order, asks the node, and fills
//! the header; it decides nothing else.

pub mod auth;
pub mod cluster;
pub mod compression;
pub mod concurrency;
pub mod election;
pub mod health;
pub mod in_process;
pub mod key_value;
pub mod lease;
pub mod lock;
pub mod maintenance;
pub mod services;
pub mod snapshot;
pub mod unary;
pub mod watch;

#[cfg(feature = "fuzzing")]
pub use unary::fuzzing;

use std::sync::Arc;

use http::{Extensions, HeaderMap};
use metastore_proto::error_text::EtcdError;
use tonic::Status;

use crate::auth::Credentials;
use crate::node::Node;
use crate::observe::metrics::client_versions;
use crate::observe::metrics::grpc::CallType;

/// Metadata key by which a client asks for an immediate error without a leader.
const REQUIRE_LEADER_KEY: &str = "hasleader";
const REQUIRE_LEADER_VALUE: &str = "true";
const CLIENT_API_VERSION_KEY: &str = "client-api-version";

/// Whether a call works on a learner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnLearner {
    /// It does: serializable reads, status.
    Allowed,
    /// It does not.
    Refused,
}

/// The checks that etcd's interceptors make before every call. Returns whether the client asked
/// for a leader.
///
/// # Errors
/// `rpc not supported for learner`, `invalid client api version`, `no leader`.
pub fn check_call(
    node: &Arc<Node>,
    headers: &HeaderMap,
    on_learner: OnLearner,
) -> Result<bool, Status> {
    check(node, headers, on_learner, CallType::Unary)
}

/// [`check_call`] for streams.
///
/// # Errors
/// As [`check_call`].
pub fn check_stream(
    node: &Arc<Node>,
    headers: &HeaderMap,
    on_learner: OnLearner,
) -> Result<bool, Status> {
    check(node, headers, on_learner, CallType::BidiStream)
}

fn check(
    node: &Arc<Node>,
    headers: &HeaderMap,
    on_learner: OnLearner,
    call_type: CallType,
) -> Result<bool, Status> {
    if on_learner == OnLearner::Refused && node.is_learner() {
        return Err(EtcdError::NotSupportedForLearner.into());
    }
    let version = headers
        .get(CLIENT_API_VERSION_KEY)
        .map(|version| std::str::from_utf8(version.as_bytes()))
        .transpose()
        .map_err(|_| EtcdError::InvalidClientAPIVersion)?;
    client_versions::count(call_type, version);
    let requires_leader = headers
        .get(REQUIRE_LEADER_KEY)
        .is_some_and(|value| value.as_bytes() == REQUIRE_LEADER_VALUE.as_bytes());
    if requires_leader && node.leader().is_none() {
        return Err(EtcdError::NoLeader.into());
    }
    Ok(requires_leader)
}

/// What a request says about who sends it; nothing while authentication is off, which costs one load.
/// A stream outlives that and reads its credentials in any case, with [`Credentials::read`].
pub fn credentials(node: &Node, headers: &HeaderMap, extensions: &Extensions) -> Credentials {
    match node.auth().is_enabled() {
        true => Credentials::read(headers, extensions),
        false => Credentials::None,
    }
}

/// [`credentials`] of a request of tonic.
pub fn credentials_of<T>(node: &Node, request: &tonic::Request<T>) -> Credentials {
    credentials(node, request.metadata().as_ref(), request.extensions())
}

/// Election time-outs without a leader after which streams that asked for one are ended; etcd's
/// `maxNoLeaderCnt`.
const LEADERLESS_ELECTIONS_MAX: u32 = 3;

/// Ends when the member has had no leader for about three election time-outs, or never.
pub async fn leader_lost(node: Arc<Node>) {
    let mut misses = 0;
    while misses < LEADERLESS_ELECTIONS_MAX {
        tokio::time::sleep(node.config.election_timeout).await;
        if node.leader().is_none() {
            misses += 1;
        } else {
            misses = 0;
        }
    }
}
