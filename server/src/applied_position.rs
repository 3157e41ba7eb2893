//! The stored form of how far the state machine is.

use bytes::Bytes;
use metastore_consensus::state_machine::{AppliedState, LogPosition};
use prost::Message;

#[derive(Clone, PartialEq, Message)]
struct StoredPosition {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    index: u64,
    #[prost(bytes = "bytes", tag = "3")]
    membership: Bytes,
}

/// The stored bytes; empty when nothing was applied.
pub fn encode(applied: &AppliedState) -> Bytes {
    let Some(LogPosition { term, index }) = applied.position else {
        return Bytes::new();
    };
    let stored = StoredPosition {
        term,
        index,
        membership: applied.membership.clone(),
    };
    stored.encode_to_vec().into()
}

/// Reads stored bytes.
///
/// # Errors
/// For bytes that [`encode`] did not write.
pub fn decode(stored: Bytes) -> Result<AppliedState, prost::DecodeError> {
    if stored.is_empty() {
        return Ok(AppliedState::default());
    }
    let stored = StoredPosition::decode(stored)?;
    Ok(AppliedState {
        position: Some(LogPosition {
            term: stored.term,
            index: stored.index,
        }),
        membership: stored.membership,
    })
}
