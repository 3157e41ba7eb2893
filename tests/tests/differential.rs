//! The same requests to a real etcd 3.7.3 and to MetaStore with each engine: every field of every
//! answer, every error's code and text, every watch stream and HashKV must be equal.
//!
//! The language of the scripts is described in `metastore_tests::script`.
//!
//! * `CASE=text` runs only the table lines whose name contains the text.
//! * `SEED=n` replays a random script.
//! * `SCRIPT=text` runs this one instead of random ones, to find out which of its steps matter.
//! * `METASTORE_TEST_SUBJECT=etcd` compares etcd with etcd, which must give no difference.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

use metastore_proto::etcdserverpb as pb;
use metastore_tests::script_generator::random_script;
use metastore_tests::script_runner::{Difference, Store, compare};
use metastore_tests::{Member, MemberBuilder, Program, programs, seed};
use rand::SeedableRng;
use rand::rngs::StdRng;

#[path = "differential/errors.rs"]
mod errors;
#[path = "differential/history.rs"]
mod history;
#[path = "differential/no_leader.rs"]
mod no_leader;
#[path = "differential/request_size.rs"]
mod request_size;
// One line for each case.
#[rustfmt::skip]
mod tables;

/// Steps of one random script.
const RANDOM_STEPS: usize = 60;
/// How long random scripts run; `METASTORE_TEST_SECONDS` overrides it.
const RANDOM_TIME: Duration = Duration::from_secs(40);
/// A table or random run that takes longer has a store that hangs.
const TEST_LIMIT: Duration = Duration::from_secs(400);
/// Differences shown before a test gives up.
const SHOWN_DIFFERENCES: usize = 60;

/// The stores that are compared, the oracle first.
struct Stores {
    members: Vec<Member>,
    stores: Vec<Store>,
    /// The etcd that answers are compared with ended by itself: some commands make it panic.
    oracle_ended: bool,
}

impl Stores {
    async fn start(flags: &[&str]) -> Self {
        let with = |builder: MemberBuilder, more: &[&str]| {
            flags
                .iter()
                .chain(more)
                .fold(builder, |builder, flag| builder.flag(*flag))
        };
        let mut names = vec!["etcd"];
        let mut builders = vec![with(MemberBuilder::new(Program::Etcd), &[])];
        match programs::subject() {
            Program::Etcd => {
                names.push("etcd again");
                builders.push(with(MemberBuilder::new(Program::Etcd), &[]));
            }
            Program::MetaStore => {
                for engine in ["rocksdb", "memory"] {
                    let flag = format!("--engine={engine}");
                    names.push(engine);
                    builders.push(with(MemberBuilder::new(Program::MetaStore), &[&flag]));
                }
            }
        }
        let mut members: Vec<_> = builders.into_iter().map(MemberBuilder::spawn).collect();
        let mut stores = Vec::new();
        for (name, member) in names.into_iter().zip(&mut members) {
            member.ready().await;
            stores.push(Store::new(name, member.client()).await);
        }
        Self {
            members,
            stores,
            oracle_ended: false,
        }
    }

    /// A compaction at exactly the revision of a transaction that deleted all keys and wrote one again loses
    /// that key in etcd, which hashes on without it, and ends when it is read.
    async fn read_all_of_the_oracle(&mut self) {
        let oracle = &mut self.members[0];
        let all = pb::RangeRequest {
            key: b"\0".to_vec().into(),
            range_end: b"\0".to_vec().into(),
            ..Default::default()
        };
        if oracle.client().kv.clone().range(all).await.is_err() {
            // The connection is gone a little before the process.
            let ended = tokio::time::timeout(Duration::from_secs(5), async {
                while oracle.try_exit().is_none() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            });
            self.oracle_ended = ended.await.is_ok();
            eprintln!("etcd itself lost a key: {}", self.oracle_ended);
        }
    }

    async fn compare(&mut self, script: &str) -> Result<(), Box<Difference>> {
        let result = compare(&mut self.stores, script).await;
        if result.is_err() {
            self.read_all_of_the_oracle().await;
        }
        for member in &mut self.members {
            if let Some(status) = member.try_exit() {
                if member.builder().started_program() == Program::Etcd {
                    eprintln!("etcd itself ended ({status}) in script: {script}");
                    self.oracle_ended = true;
                    continue;
                }
                panic!(
                    "{} ended ({status}) in script: {script}",
                    member.builder().member_name()
                );
            }
        }
        result
    }
}

/// Runs a table: one line `name: script` each. A line that differs gets fresh stores after it, so
/// that it does not spoil the next ones.
async fn run_table(table: &str, flags: &[&str], lines: &[(&str, &str)]) {
    let only = std::env::var("CASE").unwrap_or_default();
    let lines: Vec<_> = lines
        .iter()
        .filter(|(name, _)| name.contains(&only))
        .collect();
    if lines.is_empty() {
        return;
    }
    let run = async {
        let mut stores = Stores::start(flags).await;
        let mut report = String::new();
        let mut differences = 0;
        for (name, script) in &lines {
            if let Err(difference) = stores.compare(script).await {
                differences += 1;
                let _ = writeln!(report, "\n== {table}: {name}\n{difference}");
                stores = Stores::start(flags).await;
            }
        }
        (report, differences)
    };
    let (report, differences) = tokio::time::timeout(metastore_tests::deadline(TEST_LIMIT), run)
        .await
        .expect("in time");
    assert!(
        differences == 0,
        "{differences} of {} lines of {table} differ:{report}",
        lines.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fresh_store_answers_as_etcd() {
    // Each line needs a store without history.
    let only = std::env::var("CASE").unwrap_or_default();
    let mut report = String::new();
    for (name, script) in tables::FRESH
        .iter()
        .filter(|(name, _)| name.contains(&only))
    {
        let mut stores = Stores::start(&[]).await;
        if let Err(difference) = stores.compare(script).await {
            let _ = writeln!(report, "\n== fresh: {name}\n{difference}");
        }
    }
    assert!(report.is_empty(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_answer_as_etcd() {
    run_table("range", &[], tables::RANGE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn puts_and_deletes_answer_as_etcd() {
    run_table("put and delete", &[], tables::PUT_AND_DELETE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_answer_as_etcd() {
    run_table("txn", &[], tables::TXN).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_and_hashes_answer_as_etcd() {
    run_table("compaction", &[], tables::COMPACTION).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_answer_as_etcd() {
    run_table("watch", &[], tables::WATCH).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_answer_as_etcd() {
    run_table("lease", &[], tables::LEASE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_and_status_answer_as_etcd() {
    run_table("members", &[], tables::MEMBERS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alarms_and_downgrades_answer_as_etcd() {
    run_table("maintenance", &[], tables::MAINTENANCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_is_kept_as_by_etcd() {
    run_table("quota", &["--quota-backend-bytes=200000"], tables::QUOTA).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_is_refused_as_by_etcd() {
    run_table("bad input", &[], tables::BAD_INPUT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_set_by_flags_are_etcds() {
    let flags = ["--max-txn-ops=3", "--max-request-bytes=1000"];
    run_table("limits", &flags, tables::LIMITS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_scripts_answer_as_etcd() {
    let given = std::env::var("SCRIPT");
    let only_one = given.is_ok() || std::env::var("SEED").is_ok();
    let time = std::env::var("METASTORE_TEST_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .map_or(RANDOM_TIME, Duration::from_secs);
    let start = Instant::now();
    let mut stores = Stores::start(&[]).await;
    let mut report = String::new();
    let mut runs = 0;
    let mut differences = 0;
    while start.elapsed() < time && differences < SHOWN_DIFFERENCES {
        let seed = seed();
        let script = given
            .clone()
            .unwrap_or_else(|_| random_script(&mut StdRng::seed_from_u64(seed), RANDOM_STEPS));
        let result = tokio::time::timeout(
            metastore_tests::deadline(TEST_LIMIT),
            stores.compare(&script),
        )
        .await
        .unwrap_or_else(|_| panic!("SEED={seed} hangs: {script}"));
        runs += 1;
        if stores.oracle_ended {
            // Nothing to compare with: the script proves nothing, and says so above.
            stores = Stores::start(&[]).await;
            continue;
        }
        if let Err(difference) = result {
            differences += 1;
            let _ = writeln!(report, "\n== SEED={seed}\n{difference}");
            stores = Stores::start(&[]).await;
        }
        if only_one {
            break;
        }
    }
    // Their logs tell nothing that the answers do not.
    drop(stores);
    let _ = writeln!(
        std::io::stderr(),
        "{runs} random scripts of {RANDOM_STEPS} steps"
    );
    assert!(
        differences == 0,
        "{differences} of {runs} scripts differ:{report}"
    );
}
