//! What the operator may do: one of these in a pass.

use std::time::Duration;

use metastore_operator_api::JobPhase;

/// One step. Repeating it is harmless.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Nothing is to be done, or something must be waited for.
    Wait(Duration),
    /// Write the identity of a cluster that does not exist yet. Fails when there is one.
    CreateIdentity {
        /// The member that will form it.
        seed: String,
    },
    /// Write the identity of a cluster that runs and has none.
    AdoptIdentity {
        /// Its id.
        cluster_id: u64,
    },
    /// Change the identity.
    UpdateIdentity(IdentityChange),
    /// Apply Services, budgets, configuration and the like.
    ApplyStaticObjects,
    /// Create the StatefulSet of a member.
    CreateMember {
        /// Its name.
        name: String,
        /// What it may do with an empty volume.
        start: Start,
    },
    /// Write a member's start configuration anew, without a restart.
    SetStart {
        /// Its name.
        name: String,
        /// What it may do with an empty volume.
        start: Start,
        /// Its id, once known.
        member_id: Option<u64>,
    },
    /// Give a member the wanted template, which restarts it.
    Roll {
        /// Its name.
        name: String,
    },
    /// Restart a member so that it goes on alone.
    ForceNewCluster {
        /// Its name.
        name: String,
    },
    /// Set the replicas of a member's StatefulSet.
    Scale {
        /// Its name.
        name: String,
        /// 0 or 1.
        replicas: i32,
    },
    /// Stop a member until it is replaced.
    Fence {
        /// Its name.
        name: String,
    },
    /// Delete the StatefulSet of a member that is none any more.
    DeleteMember {
        /// Its name.
        name: String,
        /// Delete its volume claim too; else the claim is marked as retired.
        deletes_claim: bool,
    },
    /// Delete, or mark as retired, the claim of a member that is none any more.
    RetireClaim {
        /// Name of the member.
        name: String,
        /// Delete it.
        deletes_claim: bool,
    },
    /// Ask for a larger volume.
    GrowClaim {
        /// Name of the member.
        name: String,
        /// Bytes.
        bytes: u64,
    },
    /// Tell the cluster about a new member that does not vote yet.
    AddLearner {
        /// Its name.
        name: String,
        /// Where it will be reached.
        peer_url: String,
    },
    /// Let a learner vote. The server refuses when it has not caught up.
    Promote {
        /// Its id.
        id: u64,
        /// Its name.
        name: String,
    },
    /// Make another member the leader.
    MoveLeader {
        /// The leader.
        from: u64,
        /// The next one.
        to: u64,
    },
    /// Take a member out of the cluster.
    RemoveMember {
        /// Its id.
        id: u64,
        /// Its name, or its address when it never had one.
        name: String,
    },
    /// Tell the cluster where a member is reached now.
    UpdatePeerUrl {
        /// Its id.
        id: u64,
        /// Its name.
        name: String,
        /// Where it is reached.
        peer_url: String,
    },
    /// Compact the history and note that space is being reclaimed.
    CompactForSpace {
        /// The revision.
        revision: i64,
    },
    /// Reclaim space on one member.
    Defragment {
        /// Its name.
        name: String,
    },
    /// Clear an alarm.
    Disarm(crate::Alarm),
    /// Make the user root and switch authentication on.
    EnableAuth,
    /// Switch authentication off. Users and roles stay.
    DisableAuth,
    /// Do one step of a task, or finish it.
    Task {
        /// Its name.
        name: String,
        /// What to do.
        step: TaskStep,
    },
    /// Add or remove the finalizer.
    SetFinalizer {
        /// Is it there?
        present: bool,
    },
    /// The object is being deleted: delete the volumes and the identity, then let it go.
    DeleteData,
}

impl Action {
    /// Does it take something away, so that it needs a fresh proof that this operator is the leader?
    pub fn is_destructive(&self) -> bool {
        match self {
            Self::Roll { .. }
            | Self::ForceNewCluster { .. }
            | Self::Scale { replicas: 0, .. }
            | Self::Fence { .. }
            | Self::DeleteMember { .. }
            | Self::RetireClaim { .. }
            | Self::RemoveMember { .. }
            | Self::MoveLeader { .. }
            | Self::CompactForSpace { .. }
            | Self::Defragment { .. }
            | Self::Disarm(_)
            | Self::DeleteData
            | Self::DisableAuth
            // Forming is the most dangerous act of all: it makes an empty cluster.
            | Self::CreateMember { start: Start::Form, .. }
            | Self::CreateIdentity { .. } => true,
            Self::Task { step, .. } => !matches!(step, TaskStep::Finish { .. } | TaskStep::Begin),
            Self::Wait(_)
            | Self::AdoptIdentity { .. }
            | Self::UpdateIdentity(_)
            | Self::ApplyStaticObjects
            | Self::CreateMember { .. }
            | Self::SetStart { .. }
            | Self::Scale { .. }
            | Self::GrowClaim { .. }
            | Self::AddLearner { .. }
            | Self::Promote { .. }
            | Self::UpdatePeerUrl { .. }
            | Self::EnableAuth
            | Self::SetFinalizer { .. } => false,
        }
    }
}

/// A change of the identity.
#[derive(Clone, Debug, PartialEq)]
pub enum IdentityChange {
    /// The seed has served: this is the cluster.
    Latch(u64),
    /// A member is about to be added, or no more.
    Pending(Option<String>),
    /// A healthy member is about to be replaced, or no more.
    Replacing(Option<String>),
    /// The replacement of this member begins now.
    ReplacementBegins(String),
    /// Go on with one member, or that is done.
    Recovering(Option<String>),
    /// Reclaiming of space is over.
    ReclaimEnded,
}

/// What a member may do with an empty volume.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Start {
    /// Form the cluster, alone.
    Form,
    /// Join the cluster of these names and URLs.
    Join(Vec<(String, String)>),
    /// Nothing: it has data, or refuses to start.
    Run,
}

/// A step of a task.
#[derive(Clone, Debug, PartialEq)]
pub enum TaskStep {
    /// Note that it has begun.
    Begin,
    /// Reclaim space on a member and note it.
    Defragment(String),
    /// Compact at this revision; 0 for the current one.
    Compact(i64),
    /// Make another member the leader.
    MoveLeader {
        /// The leader.
        from: u64,
        /// The next one.
        to: u64,
    },
    /// Compare the members' data.
    VerifyConsistency,
    /// Write how it ended.
    Finish {
        /// Succeeded, Failed or Rejected.
        phase: JobPhase,
        /// In words.
        result: String,
    },
}
