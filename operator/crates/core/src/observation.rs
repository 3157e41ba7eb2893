//! What the operator sees. Nothing in it is an error: a member that does not answer is a fact.

use std::time::Duration;

use jiff::Timestamp;
use metastore_operator_api::{ClusterStatus, TaskSpec, TaskStatus};

/// Everything that is seen of one cluster in one pass.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    /// Name of the cluster.
    pub cluster: String,
    /// Its namespace.
    pub namespace: String,
    /// Generation of the spec.
    pub generation: i64,
    /// The object is being deleted.
    pub is_deleting: bool,
    /// The object has the operator's finalizer.
    pub has_finalizer: bool,
    /// The annotation that pauses is set.
    pub is_paused_by_annotation: bool,
    /// Why the spec cannot be followed: reason and message.
    pub rejection: Option<(String, String)>,
    /// What must never be forgotten; absent before the cluster is formed.
    pub identity: Option<Identity>,
    /// Names of Services, budgets and the like that differ from what is wanted.
    pub stale_objects: Vec<String>,
    /// The certificates.
    pub certificates: CertificatesObservation,
    /// Every StatefulSet of a member, in order of their names.
    pub members: Vec<MemberObservation>,
    /// Members whose volume claim exists and whose StatefulSet does not, unless they were retired.
    pub orphan_claims: Vec<String>,
    /// The members as the cluster itself knows them: a linearizable answer, later than `members`.
    pub list: Option<Vec<ListedMember>>,
    /// Alarms that are raised.
    pub alarms: Vec<Alarm>,
    /// Is authentication on? `None`: not known.
    pub is_auth_enabled: Option<bool>,
    /// Hash of the template that members should have.
    pub wanted_template_hash: String,
    /// Bytes that volumes should have.
    pub wanted_storage_bytes: u64,
    /// The quota in bytes.
    pub quota_bytes: u64,
    /// A name for the next member, never used before.
    pub fresh_name: String,
    /// The status that was written last.
    pub previous: ClusterStatus,
    /// Tasks that are not finished, oldest first.
    pub tasks: Vec<TaskObservation>,
    /// Backups of the cluster.
    pub backups: BackupsObservation,
}

impl Observation {
    /// Name of the member that leads, if those that answer agree about it.
    pub fn leader_name(&self) -> Option<String> {
        let leader = crate::decide::leader_id(self)?;
        let mut members = self.members.iter();
        let member = members.find(|member| member.recorded_id == Some(leader))?;
        Some(member.name.clone())
    }
}

/// What is kept in the ConfigMap `<cluster>-identity`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Identity {
    /// The member that formed the cluster.
    pub seed: String,
    /// The token that makes the cluster's id unlike any other's.
    pub token: String,
    /// The id, once the seed has served.
    pub cluster_id: Option<u64>,
    /// The member that is being added: recorded before the cluster is told.
    pub pending: Option<String>,
    /// A healthy member that should be replaced: a new one is added first.
    pub replacing: Option<String>,
    /// Which members were replaced, and when; newest last.
    pub replacements: Vec<(String, Timestamp)>,
    /// The member to go on with after a majority was lost.
    pub recovering: Option<String>,
    /// When space was last reclaimed because of an alarm.
    pub reclaim_started: Option<Timestamp>,
}

/// A member as Kubernetes and itself show it.
#[derive(Clone, Debug, Default)]
pub struct MemberObservation {
    /// Name of the StatefulSet.
    pub name: String,
    /// Replicas that the StatefulSet asks for: 0 or 1.
    pub wanted_replicas: i32,
    /// Hash of the template it was made from.
    pub template_hash: String,
    /// How far the member has come.
    pub phase: MemberPhase,
    /// The member id that was recorded.
    pub recorded_id: Option<u64>,
    /// It is kept at zero replicas until it is replaced.
    pub is_fenced: bool,
    /// The StatefulSet is being deleted.
    pub is_deleting: bool,
    /// Names and URLs with which it was told to join; empty unless it is joining.
    pub join_list: Vec<(String, String)>,
    /// Its configuration is gone, or was changed by somebody else.
    pub lacks_config: bool,
    /// When its space was last reclaimed.
    pub defragmented_at: Option<Timestamp>,
    /// Its Pod.
    pub pod: Option<PodObservation>,
    /// Its volume claim.
    pub claim: Option<ClaimObservation>,
    /// What it answered.
    pub probe: Probe,
}

/// How far a member has come.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum MemberPhase {
    /// It may form the cluster.
    Forming,
    /// It may join the cluster.
    Joining,
    /// It was a member: it may start only with its data.
    #[default]
    Running,
    /// It goes on alone, without those that are lost.
    Recovering,
}

impl MemberPhase {
    /// The value of the annotation.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Forming => "forming",
            Self::Joining => "joining",
            Self::Running => "running",
            Self::Recovering => "recovering",
        }
    }

    /// Reads the annotation. Unknown values are `Running`, which may do the least.
    pub fn parse(text: &str) -> Self {
        match text {
            "forming" => Self::Forming,
            "joining" => Self::Joining,
            "recovering" => Self::Recovering,
            _ => Self::Running,
        }
    }
}

/// A Pod.
#[derive(Clone, Debug, Default)]
pub struct PodObservation {
    /// Kubernetes calls it ready.
    pub is_ready: bool,
    /// It is being deleted.
    pub is_terminating: bool,
    /// Its node.
    pub node: Option<String>,
    /// The tag of the server's image; nothing when a digest names it.
    pub image_tag: Option<String>,
    /// Hash of the template it runs.
    pub template_hash: String,
    /// Why it does not run, if Kubernetes says so.
    pub waiting_reason: Option<String>,
    /// Since when its node should have taken it up, or ended it, and has not. Lies ahead while it still has time
    /// to end.
    pub unattended_since: Option<Timestamp>,
}

/// A volume claim.
#[derive(Clone, Debug, Default)]
pub struct ClaimObservation {
    /// Bytes that it asks for.
    pub requested_bytes: u64,
    /// Bytes that it has; 0 when it is not bound.
    pub capacity_bytes: u64,
    /// Its volume is gone for good.
    pub is_lost: bool,
    /// It is being deleted.
    pub is_deleting: bool,
}

/// What a member answered.
#[derive(Clone, Debug, Default)]
pub enum Probe {
    /// Nobody asked, because there is no address.
    #[default]
    NotAsked,
    /// It did not answer in time, or refused: why.
    Failed(String),
    /// It answered.
    Answered(MemberAnswer),
}

impl Probe {
    /// The answer, if there is one.
    pub fn answer(&self) -> Option<&MemberAnswer> {
        match self {
            Self::Answered(answer) => Some(answer),
            Self::NotAsked | Self::Failed(_) => None,
        }
    }
}

/// A member's status.
#[derive(Clone, Debug, Default)]
pub struct MemberAnswer {
    /// How long it took to answer.
    pub answer_time: Duration,
    /// Its id.
    pub member_id: u64,
    /// The id of its cluster.
    pub cluster_id: u64,
    /// The leader that it knows; 0 for none.
    pub leader_id: u64,
    /// It does not vote.
    pub is_learner: bool,
    /// Version of its server.
    pub version: String,
    /// Version of its data.
    pub storage_version: String,
    /// Revision of its data.
    pub revision: i64,
    /// Index of the last entry in its log.
    pub raft_index: u64,
    /// Index of the last entry that it applied.
    pub raft_applied_index: u64,
    /// Size of its database.
    pub db_size_bytes: i64,
    /// Bytes of it that are used.
    pub db_in_use_bytes: i64,
    /// The quota with which it runs; 0 or less: it does not say, or has none.
    pub db_quota_bytes: i64,
}

/// A member in the cluster's own list.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ListedMember {
    /// Its id.
    pub id: u64,
    /// Its name; empty before it has started for the first time.
    pub name: String,
    /// Where the others reach it.
    pub peer_urls: Vec<String>,
    /// It does not vote.
    pub is_learner: bool,
}

/// An alarm.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Alarm {
    /// The member that raised it.
    pub member_id: u64,
    /// What it says.
    pub kind: AlarmKind,
}

/// What an alarm says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AlarmKind {
    /// The store is full.
    Nospace,
    /// A member's data differs.
    Corrupt,
}

/// The certificates.
#[derive(Clone, Debug, Default)]
pub struct CertificatesObservation {
    /// TLS is on somewhere.
    pub is_enabled: bool,
    /// All of them are there.
    pub is_ready: bool,
    /// What is wrong: reason and message.
    pub problem: Option<(String, String)>,
    /// When the first of them ends.
    pub next_expiry: Option<Timestamp>,
}

/// A task.
#[derive(Clone, Debug)]
pub struct TaskObservation {
    /// Its name.
    pub name: String,
    /// What it asks for.
    pub spec: TaskSpec,
    /// How far it is.
    pub status: TaskStatus,
}

/// Backups of the cluster.
#[derive(Clone, Debug, Default)]
pub struct BackupsObservation {
    /// There is a schedule that is not suspended.
    pub has_schedule: bool,
    /// When the next backup after the last complete one was due.
    pub next_due: Option<Timestamp>,
    /// The last complete one: name, revision, time.
    pub last_complete: Option<(String, i64, Timestamp)>,
    /// Name of the last verified one.
    pub last_verified: Option<String>,
    /// The newest one failed: its name.
    pub last_failed: Option<String>,
    /// The verification of the newest one failed: its name.
    pub verification_failed: Option<String>,
}
