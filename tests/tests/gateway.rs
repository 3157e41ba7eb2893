//! What is built on top of the key-value API: the Lock and Election services, the JSON gateway, the
//! health endpoints and the plain HTTP API.
//!
//! The same requests go to a real etcd 3.7.3 and to MetaStore, and the answers must be equal; where
//! etcd has nothing to compare with, the answers are checked by themselves.
//! `METASTORE_TEST_SUBJECT=etcd` compares etcd with etcd.

#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Duration;

use metastore_tests::programs::subject;
use metastore_tests::{Member, MemberBuilder, Program, deadline};

#[path = "gateway/authentication.rs"]
mod authentication;
#[path = "gateway/concurrency.rs"]
mod concurrency;
#[path = "gateway/grpc_heads.rs"]
mod grpc_heads;
#[path = "gateway/health.rs"]
mod health;
#[path = "gateway/json.rs"]
mod json;
#[path = "gateway/paths.rs"]
mod paths;
#[path = "gateway/rest.rs"]
mod rest;
#[path = "gateway/websocket.rs"]
mod websocket;

/// A test that takes longer hangs.
const TEST_LIMIT: Duration = Duration::from_secs(120);

async fn within(test: impl Future<Output = ()>) {
    metastore_tests::within(TEST_LIMIT, test).await;
}

/// The oracle and the store under test, with the same flags.
async fn both(flags: &[&str]) -> [Member; 2] {
    let mut members = [Program::Etcd, subject()].map(|program| {
        flags
            .iter()
            .fold(MemberBuilder::new(program), |builder, flag| {
                builder.flag(*flag)
            })
            .spawn()
    });
    for member in &mut members {
        member.ready().await;
    }
    members
}

/// Fails with both transcripts where they differ.
fn assert_equal_transcripts(etcd: &[String], ours: &[String]) {
    for (position, (theirs, mine)) in etcd.iter().zip(ours).enumerate() {
        assert_eq!(mine, theirs, "line {position} (left: ours, right: etcd)");
    }
    assert_eq!(ours.len(), etcd.len(), "lines of the transcripts");
}
