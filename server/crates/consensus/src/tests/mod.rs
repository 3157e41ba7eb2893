//! Members in one process, over real TCP.

mod cluster;
mod conformance;
mod failures;
mod membership;
mod network;
mod one_member;
mod snapshots;
mod three_members;
mod toy;
