//! What executing and committing commands gives back.

use bytes::Bytes;
use metastore_proto::EncodedKeyValue;
use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::{
    CompactionResponse, DeleteRangeResponse, LeaseCheckpointResponse, LeaseGrantResponse,
    LeaseRevokeResponse, PutResponse, TxnResponse,
};
use metastore_revision_model::Revision;

/// The outcome of a command. An error is an answer like any other: every member computes the same
/// one, and the command left no trace.
pub type CommandResult = Result<CommandResponse, EtcdError>;

/// The answer to a command. Its header holds the revision only; the RPC layer fills in the
/// cluster, the member and the term.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum CommandResponse {
    Put(PutResponse),
    DeleteRange(DeleteRangeResponse),
    Txn(TxnResponse),
    Compaction(CompactionResponse),
    LeaseGrant(LeaseGrantResponse),
    LeaseRevoke(LeaseRevokeResponse),
    LeaseCheckpoint(LeaseCheckpointResponse),
}

/// What one commit made visible.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Committed {
    /// The revision that readers see from now on.
    pub revision: i64,
    /// The changes of keys, one element for each revision, ascending.
    pub events: Vec<RevisionEvents>,
    /// The changes of leases, in the order of the commands.
    pub lease_changes: Vec<LeaseChange>,
}

/// All changes of one revision.
#[derive(Clone, Debug, PartialEq)]
pub struct RevisionEvents {
    /// The main revision.
    pub revision: i64,
    /// Its changes, in the order of their sub-revisions. Never empty.
    pub events: Vec<StoredEvent>,
}

/// One change of one key, as watchers see it.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredEvent {
    /// The key.
    pub key: Bytes,
    /// Where the change is in the history.
    pub revision: Revision,
    /// Whether the key was deleted.
    pub tombstone: bool,
    /// Whether the key was created: its version is 1.
    pub created: bool,
    /// The pair after the change; of a deletion only the key and the mod revision.
    pub key_value: EncodedKeyValue,
    /// The record that a watcher with `prev_kv` gets: the key's state one main revision before.
    /// [`Revision::NONE`] when the key did not exist then. It may have been compacted away since.
    pub previous: Revision,
    /// The pair at `previous`, when it was known without reading, or was asked for
    /// ([`crate::Reader::want_previous`], or the argument of [`crate::Reader::events`]).
    pub previous_key_value: Option<EncodedKeyValue>,
}

/// One change of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseChange {
    /// A lease was granted.
    Granted {
        /// Its id.
        id: i64,
        /// Its time to live in seconds.
        ttl: i64,
    },
    /// A lease is gone, with the keys that were attached to it.
    Revoked {
        /// Its id.
        id: i64,
    },
    /// The remaining time of a lease was recorded.
    Checkpointed {
        /// Its id.
        id: i64,
        /// Remaining seconds; 0 for the whole time to live.
        remaining_ttl: i64,
    },
}
