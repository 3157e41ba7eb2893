//! The executor of every key-value operation over a small engine trait, and the memory engine.
//!
//! Owns what a command means: revisions, versions, leases on keys, transactions, compaction,
//! hashes. Knows no consensus, no network, no clock. One thread applies ([`Applier`]), any thread
//! reads ([`Reader`]).

pub mod engine;
