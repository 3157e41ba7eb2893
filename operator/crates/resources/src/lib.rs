//! What the operator creates in Kubernetes, as pure functions of a cluster's spec.
//!
//! Owns the shape of every object: StatefulSets, volume claims, Services, budgets, certificates, Jobs, and the
//! server's configuration file. Never talks to anybody. Objects are JSON, as they are sent; the tests read
//! them with Kubernetes' own types and compare them with `tests/snapshots`.

mod config_file;
mod context;
mod jobs;
mod member;
mod shared;

pub use config_file::{
    CONFIG_FILE, CONFIG_FOLDER, DATA_FOLDER, MemberStart, VOLUME_FOLDER, config_file, join_list,
    lasting_config,
};
pub use context::{Cluster, Images, TlsSecrets};
pub use jobs::{
    BACKUP_VOLUME_FOLDER, JobOwner, SCRATCH_FOLDER, backup_job, delete_job, verify_job,
};
pub use member::{SeedRestore, claim, config_map, stateful_set, template_hash};
pub use shared::{Capabilities, peer_names, server_names, shared_objects};
