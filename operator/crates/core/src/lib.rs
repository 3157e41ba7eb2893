//! What the operator decides.
//!
//! ```text
//! spec, observation, now ──► classify ──► decide ──► one action, and the status
//! ```
//!
//! Owns every decision about a cluster, a backup schedule and what is kept. Never does anything: no
//! clock, socket, thread or randomness; time and fresh names are arguments. Therefore a simulation can
//! run it against thousands of failures (`tests/simulation`).
//!
//! *Invariant: an action is one step whose repetition is harmless*, so the operator may crash after any
//! of them.

mod action;
mod classify;
mod decide;
mod observation;
mod quorum;
pub mod retention;
pub mod schedule;
mod status;
mod version;

pub use action::*;
pub use classify::{Class, classify};
pub use decide::{Decision, FORCED_TEMPLATE_HASH, decide};
pub use observation::*;
pub use quorum::quorum;
pub use status::condition;
pub use version::{Version, version_is_reachable};
