//! Requests by the version that clients say they have.
//!
//! The version is a text that the client chooses, so how many are told apart is bounded. A thread
//! remembers the version that it saw last: nearly always it is that one again.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use super::families::Families;
use super::grpc::CallType;

/// Versions that are told apart; a client that makes up more must not fill the memory.
const VERSIONS_MAX: usize = 64;
/// What counts for clients that do not say their version, as in etcd.
const UNKNOWN: &str = "unknown";
/// What counts for versions beyond [`VERSIONS_MAX`].
const OTHER: &str = "other";

struct ClientVersion {
    version: String,
    unary: AtomicU64,
    stream: AtomicU64,
}

static VERSIONS: RwLock<Vec<&'static ClientVersion>> = RwLock::new(Vec::new());

thread_local! {
    static LAST: Cell<Option<&'static ClientVersion>> = const { Cell::new(None) };
}

/// Counts a request of a client that named this version, or none.
pub(crate) fn count(call_type: CallType, version: Option<&str>) {
    let version = version.unwrap_or(UNKNOWN);
    let counters = match LAST.get() {
        Some(last) if last.version == version => last,
        _ => {
            let found = counters_of(version);
            LAST.set(Some(found));
            found
        }
    };
    let counter = match call_type {
        CallType::Unary => &counters.unary,
        CallType::ServerStream | CallType::BidiStream => &counters.stream,
    };
    counter.fetch_add(1, Ordering::Relaxed);
}

fn counters_of(version: &str) -> &'static ClientVersion {
    let find = |versions: &[&'static ClientVersion], wanted: &str| {
        versions
            .iter()
            .find(|known| known.version == wanted)
            .copied()
    };
    if let Some(found) = find(&VERSIONS.read(), version) {
        return found;
    }
    let mut versions = VERSIONS.write();
    let name = match versions.len() {
        ..VERSIONS_MAX => version,
        _ => OTHER,
    };
    if let Some(found) = find(&versions, name) {
        return found;
    }
    // Lives as long as the process, and there are at most VERSIONS_MAX + 1.
    let added: &'static ClientVersion = Box::leak(Box::new(ClientVersion {
        version: name.to_owned(),
        unary: AtomicU64::new(0),
        stream: AtomicU64::new(0),
    }));
    versions.push(added);
    added
}

pub(super) fn collect(families: &mut Families) {
    for counters in VERSIONS.read().iter() {
        for (call_type, counter) in [("unary", &counters.unary), ("stream", &counters.stream)] {
            let count = counter.load(Ordering::Relaxed);
            if count > 0 {
                families.add_labelled(
                    "etcd_server_client_requests_total",
                    vec![
                        ("type", call_type.to_owned()),
                        ("client_api_version", counters.version.clone()),
                    ],
                    count as f64,
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_versions_do_not_fill_the_memory() {
        for number in 0..10 * VERSIONS_MAX {
            count(CallType::Unary, Some(&number.to_string()));
        }
        assert!(VERSIONS.read().len() <= VERSIONS_MAX + 1);
        let all: u64 = VERSIONS
            .read()
            .iter()
            .map(|counters| counters.unary.load(Ordering::Relaxed))
            .sum();
        assert_eq!(all, 10 * VERSIONS_MAX as u64);
    }
}
