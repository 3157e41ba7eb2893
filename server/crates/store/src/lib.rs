//! The executor of every key-value operation over a small engine trait, and the memory engine.
//!
//! Owns what a command means: revisions, versions, leases on keys, transactions, compaction,
//! hashes. Knows no consensus, no network, no clock. One thread applies ([`Applier`]), any thread
//! reads ([`Reader`]).
//!
//! ```text
//! Command ─► Applier::execute ─► overlay (uncommitted rows) ─► Applier::commit ─► Engine::write
//!                 ▲                                                  │ publishes the revision
//!                 └── metadata cache ◄── Engine                      ▼
//! request ─► Reader::range ─► rows of `latest` ≤ R, else along `previous` ─► answer at R
//! ```
//!
//! An engine only stores rows, so two engines cannot disagree about what a command means.

mod applier;
mod compaction;
mod counters;
mod encoding;
pub mod engine;
pub mod export;
mod hash;
mod import;
mod key_counts;
mod lease_rows;
mod memory_engine;
mod metadata_cache;
mod overlay;
mod range;
mod reader;
#[cfg(feature = "reference-model")]
pub mod reference_model;
mod response;
mod shared;
mod snapshot_file;
mod txn;
pub mod validate;
mod view;

pub use applier::Applier;
pub use counters::{StoreCounterValues, StoreCounters};
pub use engine::{Engine, EngineError, SharedEngine, Table};
pub use import::Importer;
pub use lease_rows::LeaseRecord;
pub use memory_engine::MemoryEngine;
pub use reader::{EventScan, HashKv, RangeChunk, RangeCursor, ReadError, Reader, StoreSize};
pub use response::{
    CommandResponse, CommandResult, Committed, LeaseChange, RevisionEvents, StoredEvent,
};
pub use shared::{StoreOptions, open};
