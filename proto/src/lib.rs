//! The etcd v3 API and MetaStore's internal messages, as Rust types.
//!
//! Owns the wire: message types, service stubs (feature `services`), the encoded form of a
//! key-value pair, and every error text of etcd. Holds no behaviour.
//!
//! `src/generated` is written by `metastore-proto-codegen` (`make fix`).

#[cfg(feature = "services")]
pub mod codec;
mod encoded_key_value;
pub mod error_text;
mod keep_alive;
#[cfg(feature = "services")]
pub mod repeat;

pub use keep_alive::ping_interval;

pub use encoded_key_value::{EncodedKeyValue, KeyValue, encoded_field_bytes, varint_len};

/// `mvccpb`: events.
#[allow(missing_docs, clippy::all)]
pub mod mvccpb {
    pub use crate::{EncodedKeyValue, KeyValue};
    include!("generated/mvccpb.rs");
}

/// `authpb`: users, roles and permissions.
#[allow(missing_docs, clippy::all)]
pub mod authpb {
    include!("generated/authpb.rs");
}

/// `etcdserverpb`: the KV, Watch, Lease, Cluster, Maintenance and Auth services.
#[allow(missing_docs, clippy::all)]
pub mod etcdserverpb {
    include!("generated/etcdserverpb.rs");
}

/// `v3lockpb`: the Lock service.
#[allow(missing_docs, clippy::all)]
pub mod v3lockpb {
    include!("generated/v3lockpb.rs");
}

/// `v3electionpb`: the Election service.
#[allow(missing_docs, clippy::all)]
pub mod v3electionpb {
    include!("generated/v3electionpb.rs");
}

/// Messages that never reach a client.
#[allow(missing_docs, clippy::all)]
pub mod metastore {
    /// What MetaStore replicates through its log.
    pub mod internal {
        include!("generated/metastore.internal.rs");
    }
    /// What members say to each other.
    pub mod peer {
        include!("generated/metastore.peer.rs");
    }
}

pub use metastore::{internal, peer};

/// The file descriptors of all messages and services, for reflection and the JSON gateway.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/descriptors.bin");
