//! What consensus drives: a state machine of opaque commands.

use std::path::{Path, PathBuf};

use bytes::Bytes;

/// Position of an entry in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPosition {
    /// Term of the leader that proposed the entry.
    pub term: u64,
    /// Index of the entry; the first entry of a cluster has index 0.
    pub index: u64,
}

/// What one entry asks the state machine to do.
#[derive(Clone, Debug)]
pub enum EntryPayload {
    /// A leader's first entry of its term: nothing but the position.
    Blank,
    /// A proposed command.
    Command(Bytes),
    /// The voters or learners changed; `command` is the application's part of the change (a
    /// `MembershipCommand`), empty when there is none.
    Membership(Bytes),
}

/// The result of one entry, handed to whoever proposed it on this member. Opaque to consensus.
pub type Reply = Box<dyn std::any::Any + Send + Sync>;

/// Hands the result of an entry to its proposer. Dropping it tells the proposer that the outcome
/// is unknown.
pub type Responder = Box<dyn FnOnce(Reply) + Send>;

/// One committed entry.
pub struct CommittedEntry {
    /// Where the entry stands.
    pub position: LogPosition,
    /// What it asks for.
    pub payload: EntryPayload,
    /// Set on the member that proposed the entry, when a proposer still waits.
    pub responder: Option<Responder>,
}

/// The durable position of the state machine.
///
/// `membership` is consensus' own encoding of the membership at `position`; the state machine
/// stores it with the position, in the same atomic write, and gives it back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppliedState {
    /// Last applied entry; `None`: nothing was applied.
    pub position: Option<LogPosition>,
    /// Opaque bytes; empty when there was no membership yet.
    pub membership: Bytes,
}

/// A snapshot on this member's disk, ready to be sent or installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFiles {
    /// What the snapshot holds.
    pub applied: AppliedState,
    /// Directory of plain files; consensus sends them one by one, in any order.
    pub directory: PathBuf,
}

/// Why the state machine cannot go on. Every one ends the process.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StateMachineError(pub String);

/// A state machine of opaque commands.
///
/// [`StateMachine::apply`] is called from one thread only, with every committed entry exactly once
/// and in order, from the one after [`StateMachine::applied`] on. Snapshots are built while apply
/// goes on.
pub trait StateMachine: Send + Sync + 'static {
    /// The last applied position, as an in-memory read.
    fn applied(&self) -> AppliedState;

    /// Applies entries in order. `memberships` has one item for each `EntryPayload::Membership`
    /// among them, in order: the encoding to be kept for [`AppliedState::membership`].
    /// Every responder is called after its entry's effects can be read.
    fn apply(
        &self,
        entries: Vec<CommittedEntry>,
        memberships: Vec<Bytes>,
    ) -> Result<(), StateMachineError>;

    /// Makes a durable copy of the current state. The returned position is the one that the copy
    /// holds. Called on a blocking thread.
    fn build_snapshot(&self) -> Result<SnapshotFiles, StateMachineError>;

    /// The newest durable snapshot, if any; must be cheap.
    fn current_snapshot(&self) -> Option<SnapshotFiles>;

    /// An empty directory into which a snapshot that arrives is to be written.
    fn incoming_directory(&self) -> Result<PathBuf, StateMachineError>;

    /// Replaces the whole state by the snapshot in `directory` (which came from
    /// [`StateMachine::incoming_directory`], complete, verified and synced). Durable on return.
    /// Called from the apply thread.
    fn install_snapshot(
        &self,
        directory: &Path,
        applied: AppliedState,
    ) -> Result<(), StateMachineError>;
}
