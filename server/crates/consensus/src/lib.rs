//! Carries opaque commands to a majority of the members, in one order.
//!
//! This crate owns the agreement: proposals, the log's place in it, leadership, linearizable reads,
//! membership changes, snapshots on their way, and the connections between members. It never
//! decodes a command and never knows a key; what commands mean is behind [`StateMachine`], how
//! entries become durable behind [`EntryLog`]. It is the only crate that names openraft.
//!
//! ```text
//! propose ──> openraft core ──> log (sync) ──┐
//!  (any          │   ▲                       ├─> committed ──> apply thread ──> state machine
//!  runtime)      ▼   │                       │                     │
//!            transport <── other members ────┘                     └──> responder ──> propose
//! ```
//!
//! The core and the transport share one OS thread with its own runtime; applying has another.
//! openraft is an alpha release: what it stores and sends is our own protobuf, its defaults that
//! do not fit are overridden in `node.rs`, and its views of leadership are corrected in
//! `leadership.rs`.
//!
//! [`StateMachine`]: state_machine::StateMachine

mod apply;
pub mod completion;
mod consensus;
mod counters;
mod entry_log;
mod error;
mod force;
mod leadership;
mod log_adapter;
mod node;
mod options;
mod peers;
mod raft_types;
mod read_index;
mod runtime;
pub mod state_machine;
#[cfg(test)]
mod tests;
mod transport;

pub use consensus::{Consensus, ConsensusStatus, PeerProgress, ReadIndex};
pub use counters::{CounterValues, PeerCounterValues, TransferValues};
pub use entry_log::EntryLog;
pub use error::{
    ChangeError, MembershipChange, PeerError, ProposeError, ReadIndexError, StartError,
    TransferError,
};
pub use force::{force_single_member, form_cluster};
pub use options::{ConsensusOptions, SNAPSHOT_CATCHUP_ENTRIES_DEFAULT, SNAPSHOT_ENTRIES_DEFAULT};
pub use peers::{PeerAddress, PeerDirectory, PeerHandler};
pub use transport::{
    BoxedStream, Connector, Listener, Negotiation, PEER_MAGIC, PeerStream, Rewound, TcpConnector,
    negotiate, prepare_tcp,
};
