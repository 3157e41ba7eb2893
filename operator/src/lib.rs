//! The parts of the operator that have a clock and a socket.
//!
//! ```text
//! watch ──► observe ──► decide (metastore-operator-core) ──► apply ──► status
//! ```
//!
//! Owns talking: to the Kubernetes API, to members, to object stores. Decides nothing about clusters.

pub mod agent;
mod apply;
mod backups;
mod certificates;
mod identity;
mod kubernetes;
mod lease;
mod member_client;
mod observe;
pub mod program;
mod reconcile;
pub mod settings;
mod telemetry;
