//! Every error of etcd's gRPC API: its code and its exact text.
//!
//! clientv3 and other clients recognise an error by its text, so the text is part of the API.
//! Source: `api/v3rpc/rpctypes/error.go` of etcd 3.7.

/// A gRPC status code, with gRPC's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
#[allow(missing_docs)]
pub enum Code {
    Canceled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

macro_rules! etcd_errors {
    ($($(#[$doc:meta])* $name:ident = $code:ident, $text:literal;)*) => {
        /// An error of etcd's API.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum EtcdError {
            $($(#[$doc])* $name,)*
        }

        impl EtcdError {
            /// Every error, for tests and the reference page.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The gRPC code that etcd sends with it.
            pub const fn code(self) -> Code {
                match self {
                    $(Self::$name => Code::$code,)*
                }
            }

            /// The exact text that etcd sends with it.
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

etcd_errors! {
    /// Range/Put/DeleteRange/compare/txn op with empty key.
    EmptyKey = InvalidArgument, "etcdserver: key is not provided";
    /// Ignore_value / ignore_lease on a missing key; nil op in txn.
    KeyNotFound = InvalidArgument, "etcdserver: key not found";
    /// Ignore_value together with a value.
    ValueProvided = InvalidArgument, "etcdserver: value is provided";
    /// Ignore_lease together with a lease.
    LeaseProvided = InvalidArgument, "etcdserver: lease is provided";
    /// Txn over --max-txn-ops.
    TooManyOps = InvalidArgument, "etcdserver: too many operations in txn request";
    /// Put/put or put/delete overlap in a txn branch.
    DuplicateKey = InvalidArgument, "etcdserver: duplicate key given in txn request";
    /// Metadata client-api-version not UTF-8.
    InvalidClientAPIVersion = InvalidArgument, "etcdserver: invalid client api version";
    /// Sort order/target enum out of range.
    InvalidSortOption = InvalidArgument, "etcdserver: invalid sort option";
    /// Read/watch/compact below the compact revision.
    Compacted = OutOfRange, "etcdserver: mvcc: required revision has been compacted";
    /// Read/compact/hash above the current revision.
    FutureRev = OutOfRange, "etcdserver: mvcc: required revision is a future revision";
    /// NOSPACE alarm or quota check.
    NoSpace = ResourceExhausted, "etcdserver: mvcc: database space exceeded";
    /// Revoke / put with unknown lease.
    LeaseNotFound = NotFound, "etcdserver: requested lease not found";
    /// Grant with an ID in use.
    LeaseExist = FailedPrecondition, "etcdserver: lease already exists";
    /// TTL > 9,000,000,000.
    LeaseTTLTooLarge = OutOfRange, "etcdserver: too large lease TTL";
    /// Watch stream ended by the client side.
    WatchCanceled = Canceled, "etcdserver: watch canceled";
    /// Computed member ID already there.
    MemberExist = FailedPrecondition, "etcdserver: member ID already exist";
    /// Add/update with a peer URL in use.
    PeerURLExist = FailedPrecondition, "etcdserver: Peer URLs already exists";
    /// Strict reconfig check (see quirk: arrives as Unknown).
    ///
    /// etcd means FailedPrecondition, but sends Unknown: its server maps the error to a value that
    /// carries no status (`v3rpc/util.go`).
    MemberNotEnoughStarted = Unknown, "etcdserver: re-configuration failed due to not enough started members";
    /// Unparsable peer URL in add/update.
    MemberBadURLs = InvalidArgument, "etcdserver: given member URLs are invalid";
    /// Remove/update/promote unknown or removed ID.
    MemberNotFound = NotFound, "etcdserver: member not found";
    /// Promote of a voter.
    MemberNotLearner = FailedPrecondition, "etcdserver: can only promote a learner member";
    /// Promote before the learner caught up.
    LearnerNotReady = FailedPrecondition, "etcdserver: can only promote a learner member which is in sync with leader";
    /// More than --max-learners.
    TooManyLearners = FailedPrecondition, "etcdserver: too many learner members in cluster";
    /// Peer traffic of another cluster (not produced by client RPCs).
    ClusterIDMismatch = FailedPrecondition, "etcdserver: cluster ID mismatch";
    /// Request > --max-request-bytes.
    RequestTooLarge = InvalidArgument, "etcdserver: request is too large";
    /// Apply backlog > 5000 (see quirk: arrives as Unknown).
    ///
    /// etcd means ResourceExhausted, but sends Unknown: its server maps the error to a value that
    /// carries no status (`v3rpc/util.go`).
    RequestTooManyRequests = Unknown, "etcdserver: too many requests";
    /// AuthEnable without user root.
    RootUserNotExist = FailedPrecondition, "etcdserver: root user does not exist";
    /// AuthEnable, root lacks role root.
    RootRoleNotExist = FailedPrecondition, "etcdserver: root user does not have root role";
    /// UserAdd duplicate.
    UserAlreadyExist = FailedPrecondition, "etcdserver: user name already exists";
    /// Empty user name, or auth on and no token.
    UserEmpty = InvalidArgument, "etcdserver: user name is empty";
    /// User ops, IsAdmin of a deleted user.
    UserNotFound = FailedPrecondition, "etcdserver: user name not found";
    /// RoleAdd duplicate.
    RoleAlreadyExist = FailedPrecondition, "etcdserver: role name already exists";
    /// Role ops, grant of unknown role.
    RoleNotFound = FailedPrecondition, "etcdserver: role name not found";
    /// RoleAdd with empty name.
    RoleEmpty = InvalidArgument, "etcdserver: role name is empty";
    /// Authenticate wrong user/password.
    AuthFailed = InvalidArgument, "etcdserver: authentication failed, invalid user ID or password";
    /// RoleGrantPermission without perm.
    PermissionNotGiven = InvalidArgument, "etcdserver: permission not given";
    /// Any denied request.
    PermissionDenied = PermissionDenied, "etcdserver: permission denied";
    /// UserRevokeRole of a role not held.
    RoleNotGranted = FailedPrecondition, "etcdserver: role is not granted to the user";
    /// RoleRevokePermission of a missing permission.
    PermissionNotGranted = FailedPrecondition, "etcdserver: permission is not granted to the role";
    /// Authenticate while auth is off.
    AuthNotEnabled = FailedPrecondition, "etcdserver: authentication is not enabled";
    /// Unknown/expired token.
    InvalidAuthToken = Unauthenticated, "etcdserver: invalid auth token";
    /// Touching root while enabled; invalid permission range.
    InvalidAuthMgmt = InvalidArgument, "etcdserver: invalid auth management";
    /// Token issued at an older auth revision.
    AuthOldRevision = InvalidArgument, "etcdserver: revision of auth store is old";
    /// Hasleader metadata / no leader known.
    NoLeader = Unavailable, "etcdserver: no leader";
    /// MoveLeader on a follower.
    NotLeader = FailedPrecondition, "etcdserver: not leader";
    /// ReadIndex or lease op interrupted by leader change.
    LeaderChanged = Unavailable, "etcdserver: leader changed";
    /// Capability (cluster version) gate.
    NotCapable = FailedPrecondition, "etcdserver: not capable";
    /// Server shutting down.
    Stopped = Unavailable, "etcdserver: server stopped";
    /// Request timed out.
    Timeout = Unavailable, "etcdserver: request timed out";
    /// Timeout, leader lost within the window.
    TimeoutDueToLeaderFail = Unavailable, "etcdserver: request timed out, possibly due to previous leader failure";
    /// Timeout, connection to quorum lost.
    TimeoutDueToConnectionLost = Unavailable, "etcdserver: request timed out, possibly due to connection lost";
    /// Lease keepalive waiting for apply.
    TimeoutWaitAppliedIndex = Unavailable, "etcdserver: request timed out, waiting for the applied index took too long";
    /// Strict reconfig: quorum not connected ≥5 s.
    Unhealthy = Unavailable, "etcdserver: unhealthy cluster";
    /// CORRUPT alarm.
    Corrupt = DataLoss, "etcdserver: corrupt cluster";
    /// RPC on a learner.
    NotSupportedForLearner = FailedPrecondition, "etcdserver: rpc not supported for learner";
    /// MoveLeader to unknown/learner.
    BadLeaderTransferee = FailedPrecondition, "etcdserver: bad leader transferee";
    /// Downgrade version unparsable.
    WrongDowngradeVersionFormat = InvalidArgument, "etcdserver: wrong downgrade target version format";
    /// Not exactly one minor lower.
    InvalidDowngradeTargetVersion = InvalidArgument, "etcdserver: invalid downgrade target version";
    /// Cluster version not decided.
    ClusterVersionUnavailable = FailedPrecondition, "etcdserver: cluster version not found during downgrade";
    /// Second ENABLE.
    DowngradeInProcess = FailedPrecondition, "etcdserver: cluster has a downgrade job in progress";
    /// CANCEL without job.
    NoInflightDowngrade = FailedPrecondition, "etcdserver: no inflight downgrade job";
    /// Request context cancelled inside the server.
    Canceled = Canceled, "etcdserver: request canceled";
    /// Request deadline inside the server.
    DeadlineExceeded = DeadlineExceeded, "etcdserver: context deadline exceeded";
}

impl std::fmt::Display for EtcdError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.text())
    }
}

impl std::error::Error for EtcdError {}

#[cfg(feature = "services")]
impl From<EtcdError> for tonic::Status {
    fn from(error: EtcdError) -> Self {
        tonic::Status::new(tonic::Code::from(error.code() as i32), error.text())
    }
}
