//! Carries opaque commands to a majority of the members, in one order.

mod consensus;
mod entry_log;
mod error;
mod options;
mod peers;
pub mod state_machine;

pub use consensus::{Consensus, ConsensusStatus, PeerProgress, ReadIndex};
pub use entry_log::EntryLog;
pub use error::{
    ChangeError, MembershipChange, PeerError, ProposeError, ReadIndexError, StartError,
    TransferError,
};
pub use options::{ConsensusOptions, SNAPSHOT_CATCHUP_ENTRIES_DEFAULT, SNAPSHOT_ENTRIES_DEFAULT};
pub use peers::{PeerAddress, PeerDirectory, PeerHandler};
