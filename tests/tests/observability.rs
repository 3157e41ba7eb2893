//! What operators and dashboards see, compared with a real etcd 3.7.3 after the same work.

#![allow(missing_docs, clippy::unwrap_used)]

#[path = "observability/metrics.rs"]
mod metrics;

#[path = "observability/dashboards.rs"]
mod dashboards;

#[path = "observability/debug.rs"]
mod debug;

#[path = "observability/traces.rs"]
mod traces;

#[path = "observability/control.rs"]
mod control;

#[path = "observability/failover.rs"]
mod failover;
