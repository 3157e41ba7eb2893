//! The watch hub: finds the watchers of every event and keeps slow ones from costing memory.
//!
//! Owns which watcher gets which event, in which response, and when it may be told how far it is.
//! Decides no permissions, adds no member ids (the server does both), knows no runtime and has no
//! clock. Never keeps a whole history for a client that does not read: such a watcher is a revision
//! number, and reads the store again when its client is back.
//!
//! ```text
//! apply thread ──publish──► inbox ──► Hub::run            one wake per batch
//!                                        │  index: key or range → group of equal watchers
//!                                        ▼
//!                             per-stream queues, bounded in bytes ──poll_next──► connection tasks
//!                                        │ full, or start revision in the past
//!                                        ▼
//!                             Hub::run_catch_up: ring of recent revisions, else the store
//! ```
//!
//! The order of one stream is made in one place: whatever is queued for a stream (created, events,
//! progress, canceled) is queued under the hub's lock, so progress cannot overtake events.

mod catch_up;
mod chunk;
mod core;
mod event;
mod history;
mod hub;
mod inbox;
mod index;
mod output;
mod ring;
mod selector;
mod slab;
mod stream;
mod stream_queue;

pub use crate::core::{
    REASON_COMPACTED, REASON_DUPLICATE_WATCH_ID, REASON_EMPTY_RANGE, WATCH_ID_OF_NO_WATCHER,
};
pub use event::{EventScan, RevisionEvents, StoredEvent};
pub use history::{History, HistoryError};
pub use hub::{Hub, HubOptions, HubStatistics};
pub use output::WatchOutput;
pub use stream::{Stream, StreamControl};
