//! The custom resources of the MetaStore operator: types, defaults, validation rules, names.
//!
//! Owns the API that people write in YAML, and what the operator writes back. Does no I/O. The files
//! below `crds/` are written by the program `crdgen` (`make fix`), and a test fails when they are stale.
//!
//! * [`MetaStoreCluster`]: the wanted state of one cluster.
//! * [`MetaStoreBackup`]: one backup, an immutable record.
//! * [`MetaStoreBackupSchedule`]: when backups are made, and which are kept.
//! * [`MetaStoreTask`]: one operation that is done once.
//! * [`conditions`], [`names`]: the words that programs may rely on.

// Columns of different names have the same type: clippy takes the parts of an attribute for attributes.
#![allow(clippy::duplicated_attributes)]

mod backup;
mod cluster;
mod cluster_status;
pub mod conditions;
mod definitions;
pub mod names;
mod scalars;
mod schedule;
mod task;

pub use backup::*;
pub use cluster::*;
pub use cluster_status::*;
pub use definitions::*;
pub use scalars::*;
pub use schedule::*;
pub use task::*;

/// The API group of every kind.
pub const GROUP: &str = "metastore.io";
/// The one version that is served and stored.
pub const VERSION: &str = "v1alpha1";
