//! A replicated, revisioned key-value server that speaks the etcd v3 API.
//!
//! Owns everything that has a clock, a socket or a thread: configuration, start and stop, the gRPC
//! and HTTP services, and the state machine that ties consensus to the store. Decides no semantics
//! of keys (that is `metastore-store`) and no order of commands (`metastore-consensus`).
//!
//! ```text
//! client ─► listen ─► rpc ─► node ─► consensus ─► application (apply thread) ─► store
//!                      ▲                                   │
//!                      └────── answer, watch hub ◄─────────┘
//! ```

pub mod alarms;
pub mod application;
pub mod applied_position;
pub mod auth;
pub mod auto_compaction;
pub mod backup;
pub mod bootstrap;
pub mod client_limits;
pub mod cluster_version;
pub mod compaction;
pub mod config;
pub mod corruption;
pub mod defragment;
pub mod discovery;
pub mod engines;
pub mod error;
pub mod grpc_proxy;
pub mod http;
pub mod identity_file;
pub mod init_daemon;
pub mod lease_leadership;
pub mod lease_manager;
pub mod lease_requests;
pub mod listen;
pub mod listeners;
pub mod member_directory;
pub mod membership;
pub mod memory_lock;
#[cfg(test)]
mod mutation;
pub mod node;
pub mod observe;
pub mod offline;
pub mod peer_activity;
pub mod peer_service;
pub mod peer_transport;
pub mod quota;
pub mod request_size;
pub mod rpc;
pub mod slow_requests;
pub mod space;
pub mod startup;
mod subcommand;
pub mod tasks;
pub mod tcp_gateway;
pub mod tls;
pub mod unconfirmed_reads;
pub mod version;
pub mod waiters;
