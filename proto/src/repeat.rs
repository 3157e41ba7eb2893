//! Which calls are sent once more when the member that had them is lost, and what tells that it was.
//!
//! Nobody knows whether a write was done, so only what changes nothing is repeated. clientv3 does so, too.

use tonic::{Code, Status};

/// The calls that may be sent twice.
const REPEATABLE: [&str; 14] = [
    "/etcdserverpb.KV/Range",
    "/etcdserverpb.Lease/LeaseTimeToLive",
    "/etcdserverpb.Lease/LeaseLeases",
    "/etcdserverpb.Cluster/MemberList",
    "/etcdserverpb.Maintenance/Status",
    "/etcdserverpb.Maintenance/Hash",
    "/etcdserverpb.Maintenance/HashKV",
    "/etcdserverpb.Auth/AuthStatus",
    "/etcdserverpb.Auth/Authenticate",
    "/etcdserverpb.Auth/UserGet",
    "/etcdserverpb.Auth/UserList",
    "/etcdserverpb.Auth/RoleGet",
    "/etcdserverpb.Auth/RoleList",
    "/v3electionpb.Election/Leader",
];

/// What tonic and hyper say of a connection that broke in the middle of a call.
const BROKEN: [&str; 4] = [
    "h2 protocol error",
    "transport error",
    "error reading a body",
    "the call ended without",
];

/// Whether the call with this path may be sent twice.
pub fn is_repeatable(path: &str) -> bool {
    REPEATABLE.contains(&path)
}

/// Whether a call failed because its member was lost, stops or has no leader, and not because of what it asked
/// for.
pub fn is_lost(status: &Status) -> bool {
    status.code() == Code::Unavailable || is_broken(status)
}

/// Whether a call failed because its connection broke.
pub fn is_broken(status: &Status) -> bool {
    let may_be = matches!(
        status.code(),
        Code::Unknown | Code::Internal | Code::Cancelled
    );
    may_be && BROKEN.iter().any(|text| status.message().contains(text))
}
