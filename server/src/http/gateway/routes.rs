//! The paths of etcd's gateway and the gRPC methods behind them.

use std::collections::HashMap;
use std::sync::LazyLock;

use metastore_proto::FILE_DESCRIPTOR_SET;
use prost_reflect::{DescriptorPool, MessageDescriptor};

/// Path, service, method: every route of etcd 3.7, all of them POST. RangeStream has none.
const ROUTES: &[(&str, &str, &str)] = &[
    ("/v3/kv/range", "etcdserverpb.KV", "Range"),
    ("/v3/kv/put", "etcdserverpb.KV", "Put"),
    ("/v3/kv/deleterange", "etcdserverpb.KV", "DeleteRange"),
    ("/v3/kv/txn", "etcdserverpb.KV", "Txn"),
    ("/v3/kv/compaction", "etcdserverpb.KV", "Compact"),
    ("/v3/watch", "etcdserverpb.Watch", "Watch"),
    ("/v3/lease/grant", "etcdserverpb.Lease", "LeaseGrant"),
    ("/v3/lease/revoke", "etcdserverpb.Lease", "LeaseRevoke"),
    ("/v3/kv/lease/revoke", "etcdserverpb.Lease", "LeaseRevoke"),
    (
        "/v3/lease/keepalive",
        "etcdserverpb.Lease",
        "LeaseKeepAlive",
    ),
    (
        "/v3/lease/timetolive",
        "etcdserverpb.Lease",
        "LeaseTimeToLive",
    ),
    (
        "/v3/kv/lease/timetolive",
        "etcdserverpb.Lease",
        "LeaseTimeToLive",
    ),
    ("/v3/lease/leases", "etcdserverpb.Lease", "LeaseLeases"),
    ("/v3/kv/lease/leases", "etcdserverpb.Lease", "LeaseLeases"),
    (
        "/v3/cluster/member/add",
        "etcdserverpb.Cluster",
        "MemberAdd",
    ),
    (
        "/v3/cluster/member/remove",
        "etcdserverpb.Cluster",
        "MemberRemove",
    ),
    (
        "/v3/cluster/member/update",
        "etcdserverpb.Cluster",
        "MemberUpdate",
    ),
    (
        "/v3/cluster/member/list",
        "etcdserverpb.Cluster",
        "MemberList",
    ),
    (
        "/v3/cluster/member/promote",
        "etcdserverpb.Cluster",
        "MemberPromote",
    ),
    ("/v3/maintenance/alarm", "etcdserverpb.Maintenance", "Alarm"),
    (
        "/v3/maintenance/status",
        "etcdserverpb.Maintenance",
        "Status",
    ),
    (
        "/v3/maintenance/defragment",
        "etcdserverpb.Maintenance",
        "Defragment",
    ),
    ("/v3/maintenance/hash", "etcdserverpb.Maintenance", "Hash"),
    (
        "/v3/maintenance/hashkv",
        "etcdserverpb.Maintenance",
        "HashKV",
    ),
    (
        "/v3/maintenance/snapshot",
        "etcdserverpb.Maintenance",
        "Snapshot",
    ),
    (
        "/v3/maintenance/transfer-leadership",
        "etcdserverpb.Maintenance",
        "MoveLeader",
    ),
    (
        "/v3/maintenance/downgrade",
        "etcdserverpb.Maintenance",
        "Downgrade",
    ),
    ("/v3/auth/enable", "etcdserverpb.Auth", "AuthEnable"),
    ("/v3/auth/disable", "etcdserverpb.Auth", "AuthDisable"),
    ("/v3/auth/status", "etcdserverpb.Auth", "AuthStatus"),
    ("/v3/auth/authenticate", "etcdserverpb.Auth", "Authenticate"),
    ("/v3/auth/user/add", "etcdserverpb.Auth", "UserAdd"),
    ("/v3/auth/user/get", "etcdserverpb.Auth", "UserGet"),
    ("/v3/auth/user/list", "etcdserverpb.Auth", "UserList"),
    ("/v3/auth/user/delete", "etcdserverpb.Auth", "UserDelete"),
    (
        "/v3/auth/user/changepw",
        "etcdserverpb.Auth",
        "UserChangePassword",
    ),
    ("/v3/auth/user/grant", "etcdserverpb.Auth", "UserGrantRole"),
    (
        "/v3/auth/user/revoke",
        "etcdserverpb.Auth",
        "UserRevokeRole",
    ),
    ("/v3/auth/role/add", "etcdserverpb.Auth", "RoleAdd"),
    ("/v3/auth/role/get", "etcdserverpb.Auth", "RoleGet"),
    ("/v3/auth/role/list", "etcdserverpb.Auth", "RoleList"),
    ("/v3/auth/role/delete", "etcdserverpb.Auth", "RoleDelete"),
    (
        "/v3/auth/role/grant",
        "etcdserverpb.Auth",
        "RoleGrantPermission",
    ),
    (
        "/v3/auth/role/revoke",
        "etcdserverpb.Auth",
        "RoleRevokePermission",
    ),
    ("/v3/lock/lock", "v3lockpb.Lock", "Lock"),
    ("/v3/lock/unlock", "v3lockpb.Lock", "Unlock"),
    ("/v3/election/campaign", "v3electionpb.Election", "Campaign"),
    ("/v3/election/proclaim", "v3electionpb.Election", "Proclaim"),
    ("/v3/election/leader", "v3electionpb.Election", "Leader"),
    ("/v3/election/observe", "v3electionpb.Election", "Observe"),
    ("/v3/election/resign", "v3electionpb.Election", "Resign"),
];

/// The form of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One message in, one out.
    Unary,
    /// One message in, lines out.
    ServerStream,
    /// Any number of messages in, lines out.
    Bidirectional,
}

/// What a path leads to.
#[derive(Clone, Debug)]
pub struct Route {
    /// `/service/method`.
    pub grpc_path: String,
    /// The request.
    pub input: MessageDescriptor,
    /// The answer.
    pub output: MessageDescriptor,
    /// How they come.
    pub form: Form,
}

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(FILE_DESCRIPTOR_SET)
        .expect("the descriptors are generated with the code")
});

static TABLE: LazyLock<HashMap<&'static str, Route>> = LazyLock::new(|| {
    ROUTES
        .iter()
        .filter_map(|(path, service, method)| Some((*path, route(service, method)?)))
        .collect()
});

fn route(service: &str, method: &str) -> Option<Route> {
    let method = POOL
        .get_service_by_name(service)?
        .methods()
        .find(|candidate| candidate.name() == method)?;
    let form = match (method.is_client_streaming(), method.is_server_streaming()) {
        (false, false) => Form::Unary,
        (false, true) => Form::ServerStream,
        (true, _) => Form::Bidirectional,
    };
    Some(Route {
        grpc_path: format!("/{service}/{}", method.name()),
        input: method.input(),
        output: method.output(),
        form,
    })
}

/// The messages of the method with this path in gRPC: what it is asked, what it answers.
pub fn messages_of(grpc_path: &str) -> Option<(MessageDescriptor, MessageDescriptor)> {
    let (service, name) = grpc_path.strip_prefix('/')?.split_once('/')?;
    let service = POOL.get_service_by_name(service)?;
    let method = service.methods().find(|method| method.name() == name)?;
    Some((method.input(), method.output()))
}

/// What `path` leads to.
pub fn find(path: &str) -> Option<&'static Route> {
    TABLE.get(path)
}

#[cfg(test)]
pub fn message(name: &str) -> MessageDescriptor {
    POOL.get_message_by_name(name)
        .unwrap_or_else(|| panic!("{name} is no message of the API"))
}

/// The request of the route with this number, counted round and round.
#[cfg(feature = "fuzzing")]
pub fn numbered_input(number: usize) -> &'static MessageDescriptor {
    let (path, ..) = ROUTES[number % ROUTES.len()];
    &find(path).expect("every route leads to a method").input
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_leads_to_a_method() {
        assert_eq!(TABLE.len(), ROUTES.len());
        for (path, service, method) in ROUTES {
            let grpc_path = format!("/{service}/{method}");
            assert_eq!(
                find(path).map(|route| route.grpc_path.clone()),
                Some(grpc_path)
            );
        }
    }
}
