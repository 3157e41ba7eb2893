//! A replicated, revisioned key-value server that speaks the etcd v3 API.
