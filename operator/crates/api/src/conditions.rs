//! Types and reasons of conditions. They are API: scripts compare them.

/// The spec, its overlay and its references are usable.
pub const ACCEPTED: &str = "Accepted";
/// Linearizable reads and writes are answered now.
pub const AVAILABLE: &str = "Available";
/// An operation runs and advances.
pub const PROGRESSING: &str = "Progressing";
/// Redundancy or function is reduced.
pub const DEGRADED: &str = "Degraded";
/// Every member is ready.
pub const ALL_MEMBERS_READY: &str = "AllMembersReady";
/// Every member runs the wanted template.
pub const ALL_MEMBERS_UPDATED: &str = "AllMembersUpdated";
/// All members that answer are of the one cluster that was formed.
pub const CLUSTER_ID_CONSISTENT: &str = "ClusterIDConsistent";
/// No alarm is raised and there is head-room.
pub const STORAGE_HEALTHY: &str = "StorageHealthy";
/// The last backup is recent and verified.
pub const BACKUP_HEALTHY: &str = "BackupHealthy";
/// Handshakes succeed and no certificate expires soon.
pub const CERTIFICATES_READY: &str = "CertificatesReady";
/// Reconciling is suspended.
pub const PAUSED: &str = "Paused";
/// A backup: the artifact and its manifest are in the store.
pub const COMPLETE: &str = "Complete";
/// A backup: it was restored, and the restored data has the hash of the live data.
pub const VERIFIED: &str = "Verified";
/// A schedule: it is valid and runs.
pub const READY: &str = "Ready";

/// Every condition of a cluster, in the order in which people read them. All of them are always there.
pub const CLUSTER_CONDITIONS: [&str; 11] = [
    ACCEPTED,
    AVAILABLE,
    PROGRESSING,
    DEGRADED,
    ALL_MEMBERS_READY,
    ALL_MEMBERS_UPDATED,
    CLUSTER_ID_CONSISTENT,
    STORAGE_HEALTHY,
    BACKUP_HEALTHY,
    CERTIFICATES_READY,
    PAUSED,
];

/// Reasons, each a word that does not change.
pub mod reasons {
    /// All is as the condition's type says.
    pub const AS_EXPECTED: &str = "AsExpected";
    /// Not known yet.
    pub const UNKNOWN: &str = "Unknown";
    /// `spec.podOverlay` does not fit a Pod.
    pub const INVALID_OVERLAY: &str = "InvalidOverlay";
    /// A value that the schema could not check is not usable.
    pub const INVALID_SPEC: &str = "InvalidSpec";
    /// A Secret that the spec names is missing or lacks a key.
    pub const SECRET_NOT_FOUND: &str = "SecretNotFound";
    /// `spec.version` is not reachable from the running version.
    pub const VERSION_JUMP_REFUSED: &str = "VersionJumpRefused";
    /// The operator lacks a permission.
    pub const FORBIDDEN_BY_RBAC: &str = "ForbiddenByRBAC";
    /// The spec asks for cert-manager and its API is not there.
    pub const CERT_MANAGER_MISSING: &str = "CertManagerMissing";
    /// Fewer than a majority of the voters answer.
    pub const QUORUM_LOST: &str = "QuorumLost";
    /// A majority answers, and none of them knows a leader.
    pub const NO_LEADER: &str = "NoLeader";
    /// The first member has not served yet.
    pub const FORMING: &str = "Forming";
    /// `spec.hibernated` is set.
    pub const HIBERNATED: &str = "Hibernated";
    /// Pods are ready, and the operator reaches none of them.
    pub const UNREACHABLE: &str = "Unreachable";
    /// A member is added.
    pub const SCALING_OUT: &str = "ScalingOut";
    /// A member is removed.
    pub const SCALING_IN: &str = "ScalingIn";
    /// Members restart with a new template, one by one.
    pub const ROLLING: &str = "Rolling";
    /// A member is replaced by a new one.
    pub const REPLACING_MEMBER: &str = "ReplacingMember";
    /// A volume grows.
    pub const GROWING_STORAGE: &str = "GrowingStorage";
    /// Space is reclaimed after an alarm, or by schedule.
    pub const RECLAIMING_SPACE: &str = "ReclaimingSpace";
    /// Users and authentication are set up.
    pub const ENABLING_AUTH: &str = "EnablingAuth";
    /// Authentication is being switched off.
    pub const DISABLING_AUTH: &str = "DisablingAuth";
    /// The operation took longer than `spec.progressDeadline`; it goes on.
    pub const PROGRESS_DEADLINE_EXCEEDED: &str = "ProgressDeadlineExceeded";
    /// Kubernetes or a member has failed the step that is due; it is tried again.
    pub const STEP_FAILED: &str = "StepFailed";
    /// Kubernetes does not let itself be looked at, so that nothing is decided; it is tried again.
    pub const LOOK_FAILED: &str = "LookFailed";
    /// Nothing is to be done.
    pub const IDLE: &str = "Idle";
    /// A member does not answer.
    pub const MEMBER_DOWN: &str = "MemberDown";
    /// A member has served slowly for longer than `unhealthyAfter`.
    pub const MEMBER_SLOW: &str = "MemberSlow";
    /// The node of a member that does not vote yet does not react; the member is removed, and another added.
    pub const NODE_LOST: &str = "NodeLost";
    /// A learner does not catch up.
    pub const LEARNER_STUCK: &str = "LearnerStuck";
    /// An alarm says that the store is full.
    pub const NOSPACE: &str = "Nospace";
    /// An alarm says that a member's data differs.
    pub const CORRUPT: &str = "Corrupt";
    /// A member should be replaced, and the limit per hour forbids it now.
    pub const REPLACEMENT_RATE_LIMITED: &str = "ReplacementRateLimited";
    /// Members answer with more than one cluster id, or with one that is not ours.
    pub const SPLIT_BRAIN_SUSPECTED: &str = "SplitBrainSuspected";
    /// The store is larger than nine tenths of its quota.
    pub const QUOTA_NEAR: &str = "QuotaNear";
    /// A volume is asked to grow and has not.
    pub const GROW_PENDING: &str = "GrowPending";
    /// There is no schedule for backups.
    pub const NO_SCHEDULE: &str = "NoSchedule";
    /// The last backup is too old.
    pub const TOO_OLD: &str = "TooOld";
    /// The last backup could not be restored, or has other data.
    pub const VERIFICATION_FAILED: &str = "VerificationFailed";
    /// The last backup failed.
    pub const BACKUP_FAILED: &str = "BackupFailed";
    /// TLS is off.
    pub const DISABLED: &str = "Disabled";
    /// A certificate expires soon and was not renewed.
    pub const RENEWAL_FAILED: &str = "RenewalFailed";
    /// A certificate is not there yet.
    pub const ISSUING: &str = "Issuing";
    /// Suspended by `spec.paused`.
    pub const SPEC: &str = "Spec";
    /// Suspended by the annotation `metastore.io/paused`.
    pub const ANNOTATION: &str = "Annotation";
    /// Members are not ready.
    pub const MEMBERS_NOT_READY: &str = "MembersNotReady";
    /// Members run an older template.
    pub const MEMBERS_OUTDATED: &str = "MembersOutdated";
}
