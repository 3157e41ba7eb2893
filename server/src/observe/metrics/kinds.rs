//! Durations by the kind of a request, with one handle for each kind and outcome.

use std::sync::OnceLock;

use metastore_proto::internal::command::Request;
use prometheus::{Histogram, HistogramVec};

/// What etcd calls the kinds; positions are what [`request_kind`] answers.
const KINDS: &[&str] = &[
    "Range",
    "ReadonlyTxn",
    "Put",
    "DeleteRange",
    "Txn",
    "Compaction",
    "LeaseGrant",
    "LeaseRevoke",
    "LeaseCheckpoint",
    "Alarm",
    "ClusterMemberAttrSet",
    "ClusterVersionSet",
    "DowngradeInfoSet",
    "Authenticate",
    "AuthEnable",
    "AuthDisable",
    "AuthUserAdd",
    "AuthUserDelete",
    "AuthUserChangePassword",
    "AuthUserGrantRole",
    "AuthUserRevokeRole",
    "AuthRoleAdd",
    "AuthRoleGrantPermission",
    "AuthRoleRevokePermission",
    "AuthRoleDelete",
    "AuthStatus",
    "AuthUserGet",
    "AuthUserList",
    "AuthRoleGet",
    "AuthRoleList",
    "Other",
];

/// The kind of a linearizable or serializable Range.
pub const RANGE: usize = 0;
/// The kind of a transaction that only reads.
pub const READ_ONLY_TXN: usize = 1;
/// The kind of a request about alarms.
pub const ALARM: usize = 9;
/// The kind of AuthStatus.
pub const AUTH_STATUS: usize = 25;
/// The kind of UserGet.
pub const AUTH_USER_GET: usize = 26;
/// The kind of UserList.
pub const AUTH_USER_LIST: usize = 27;
/// The kind of RoleGet.
pub const AUTH_ROLE_GET: usize = 28;
/// The kind of RoleList.
pub const AUTH_ROLE_LIST: usize = 29;

/// The kind of a replicated request.
#[must_use]
pub fn request_kind(request: &Request) -> usize {
    match request {
        Request::Put(_) => 2,
        Request::DeleteRange(_) => 3,
        Request::Txn(_) => 4,
        Request::Compaction(_) => 5,
        Request::LeaseGrant(_) => 6,
        Request::LeaseRevoke(_) => 7,
        Request::LeaseCheckpoint(_) => 8,
        Request::Alarm(_) => ALARM,
        Request::MemberPublish(_) | Request::MemberUpdate(_) => 10,
        Request::ClusterVersionSet(_) => 11,
        Request::DowngradeInfoSet(_) => 12,
        Request::Authenticate(_) => 13,
        Request::AuthEnable(_) => 14,
        Request::AuthDisable(_) => 15,
        Request::AuthUserAdd(_) => 16,
        Request::AuthUserDelete(_) => 17,
        Request::AuthUserChangePassword(_) => 18,
        Request::AuthUserGrantRole(_) => 19,
        Request::AuthUserRevokeRole(_) => 20,
        Request::AuthRoleAdd(_) => 21,
        Request::AuthRoleGrantPermission(_) => 22,
        Request::AuthRoleRevokePermission(_) => 23,
        Request::AuthRoleDelete(_) => 24,
        _ => KINDS.len() - 1,
    }
}

/// Histograms of one metric by kind and success. Each is made when it is first observed, so that
/// only what happened is shown.
pub struct Durations {
    vector: HistogramVec,
    child: fn(&HistogramVec, &str, &str) -> Histogram,
    children: [[OnceLock<Histogram>; 2]; KINDS.len()],
}

impl Durations {
    pub(super) fn new(
        vector: HistogramVec,
        child: fn(&HistogramVec, &str, &str) -> Histogram,
    ) -> Self {
        Self {
            vector,
            child,
            children: [const { [const { OnceLock::new() }; 2] }; KINDS.len()],
        }
    }

    /// Adds one.
    pub fn observe(&self, kind: usize, success: bool, seconds: f64) {
        self.children[kind][usize::from(success)]
            .get_or_init(|| {
                let success = if success { "true" } else { "false" };
                (self.child)(&self.vector, KINDS[kind], success)
            })
            .observe(seconds);
    }
}
