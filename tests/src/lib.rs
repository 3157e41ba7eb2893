//! Fixtures for the tests that judge MetaStore from outside, and the checkers they share.
//!
//! Owns: starting and breaking real processes (ours and real etcd 3.7.3, the oracle), clients,
//! scripts that run on two stores and compare every answer, and history checkers. Knows no inside
//! of the server: everything here goes over the network, as a user's program does.
//!
//! * [`programs`]: where the programs are.
//! * [`member`], [`cluster`]: processes under test.
//! * [`client`]: gRPC clients; [`certificates`]: authorities and what they sign.
//! * [`script`]: the language of the differential tests; [`script_runner`] runs it on a store;
//!   [`script_generator`] makes random ones.
//! * [`history`]: what clients saw, and whether a linearizable store could have shown it.
//! * [`load`]: clients that write and read while something breaks, and record a history.
//! * [`http`], [`exposition`]: what curl and Prometheus see; [`raw_http`]: every byte of it, also while
//!   it comes.
//! * [`eventually`]: the only way to wait.

pub mod certificates;
pub mod client;
pub mod cluster;
pub mod exposition;
pub mod history;
pub mod http;
pub mod load;
pub mod member;
pub mod patience;
pub mod programs;
pub mod raw_http;
pub mod script;
pub mod script_generator;
pub mod script_runner;

pub use client::Client;
pub use cluster::Cluster;
pub use member::{Member, MemberBuilder};
pub use patience::{deadline, eventually, within};
pub use programs::Program;

/// The seed of a random test: from the environment variable `SEED` to replay, else fresh.
///
/// Tests print it when they fail.
pub fn seed() -> u64 {
    match std::env::var("SEED") {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("SEED={text} is not a number")),
        Err(_) => rand::random(),
    }
}
