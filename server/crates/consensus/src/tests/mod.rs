//! Members in one process, over real TCP.

mod cluster;
mod conformance;
mod failures;
mod membership;
mod network;
mod one_member;
mod simulated;
mod snapshots;
mod three_members;
mod toy;
