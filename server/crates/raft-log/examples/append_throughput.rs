//! How fast the log takes entries: `append_throughput [DIRECTORY [ENTRIES [IN_FLIGHT]]]`.
//!
//! One thread appends small entries one by one, with a bounded number in flight, as consensus does.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use metastore_raft_log::{
    LogEntry, LogIdentity, LogOptions, LogPosition, Observer, RaftLog, RealDisk,
};

const PAYLOAD_BYTES: usize = 300;

#[derive(Default)]
struct Totals {
    syncs: AtomicU64,
    sync_nanoseconds: AtomicU64,
    bytes: AtomicU64,
}

impl Observer for Totals {
    fn written(&self, bytes: u64, _records: u64, _duration: Duration) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn synced(&self, duration: Duration) {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.sync_nanoseconds
            .fetch_add(nanoseconds, Ordering::Relaxed);
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().unwrap_or("append_throughput.log".into());
    let entries: u64 = arguments.next().map_or(Ok(200_000), |text| text.parse())?;
    let in_flight: usize = arguments.next().map_or(Ok(256), |text| text.parse())?;

    let totals = Arc::new(Totals::default());
    let options = LogOptions {
        observer: Some(totals.clone()),
        ..LogOptions::default()
    };
    let identity = LogIdentity {
        cluster_id: 1,
        member_id: 1,
    };
    let opening = Instant::now();
    let log = RaftLog::open(Arc::new(RealDisk), directory.as_ref(), identity, options)?;
    println!("opened in {:?}", opening.elapsed());

    let (slot, slots) = mpsc::sync_channel(in_flight);
    for _ in 0..in_flight {
        slot.send(())?;
    }
    let first = log.state().last.map_or(0, |last| last.index + 1);
    let started = Instant::now();
    let processor_before = processor_time()?;
    for index in first..first + entries {
        slots.recv()?;
        let slot = slot.clone();
        let entry = LogEntry {
            index,
            term: 1,
            payload: Bytes::from(vec![7; PAYLOAD_BYTES]),
        };
        log.append(
            vec![entry],
            Box::new(move |result| {
                result.expect("the disk works");
                let _ = slot.send(());
            }),
        );
        if index % 10_000 == 9_999 {
            let up_to = LogPosition {
                term: 1,
                index: index.saturating_sub(15_000),
            };
            log.purge(up_to, Box::new(|result| result.expect("the disk works")));
        }
    }
    for _ in 0..in_flight {
        slots.recv()?;
    }
    let took = started.elapsed();
    let processor = processor_time()? - processor_before;
    let syncs = totals.syncs.load(Ordering::Relaxed);
    let sync_time = Duration::from_nanos(totals.sync_nanoseconds.load(Ordering::Relaxed));
    println!(
        "{entries} entries in {took:?}: {:.0}/s, {:.2} µs of processor time each, {syncs} syncs of {:.1} entries and {:?}, {} bytes",
        entries as f64 / took.as_secs_f64(),
        processor.as_secs_f64() * 1e6 / entries as f64,
        entries as f64 / syncs as f64,
        sync_time / u32::try_from(syncs.max(1))?,
        totals.bytes.load(Ordering::Relaxed),
    );
    log.close();
    Ok(())
}

/// Processor time of this process, in user mode and in the kernel.
fn processor_time() -> Result<Duration, Box<dyn std::error::Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(')').next().ok_or("unexpected format")?;
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().unwrap_or(0))
        .sum();
    // The kernel reports in hundredths of a second, whatever its own clock.
    Ok(Duration::from_millis(ticks * 10))
}
