//! The benchmark of MetaStore against etcd.
//!
//! Two programs share this library:
//!
//! * `load` puts one kind of load on running servers and prints one JSON line;
//! * `bench` starts our server and a real etcd in turn, runs the rows of the table on both, and
//!   writes `docs/performance.md`.
//!
//! ```text
//! bench ── rows ──┬── servers      start, stop, restart members, find the leader
//!                 ├── load ── client   calls over raw h2, one thread
//!                 ├── measure      CPU, memory and disk of the members, from /proc
//!                 └── report       medians, ratios, thresholds, the page
//! ```
//!
//! The load program is deliberately thin. It shares the cores with the servers, so every
//! microsecond it spends on a call hides a part of the difference between them: requests are
//! patched copies of a prepared body, answers are counted and their status checked, and nothing is
//! decoded that the next request does not need.

pub mod client;
pub mod load;
pub mod measure;
pub mod report;
pub mod rows;
pub mod servers;
