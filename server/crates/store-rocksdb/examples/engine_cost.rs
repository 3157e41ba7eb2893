//! What the engine's operations cost: microseconds of wall time and of CPU for each, and memory.
//!
//! ```text
//! cargo run --release -p metastore-store-rocksdb --example engine_cost [KEYS] [MEMORY_MIB] [DIRECTORY]
//! ```
//!
//! KEYS: default 1 000 000, with values of 256 bytes. MEMORY_MIB: default that of the engine.
//! DIRECTORY: where a temporary directory is made, default the current one. CPU is that of the
//! whole process, so flushes and compactions on other threads count.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use metastore_proto::EncodedKeyValue;
use metastore_proto::mvccpb::KeyValue;
use metastore_revision_model::{KeyRange, LatestRow, Revision, RevisionRecord};
use metastore_store::engine::{Direction, Engine, EngineError, RowParts, Table, WriteBatch};
use metastore_store_rocksdb::{RocksDbEngine, RocksDbOptions};
use prost::Message;

const VALUE_BYTES: usize = 256;
/// Operations of each measurement, so that a run takes a minute or two.
const OPERATIONS: u64 = 200_000;
const PAGE_KEYS: usize = 500;
const MIB: usize = 1024 * 1024;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let keys: u64 = arguments
        .next()
        .map_or(Ok(1_000_000), |text| text.parse())?;
    let mut options = RocksDbOptions::default();
    if let Some(text) = arguments.next() {
        options.memory_bytes = text.parse::<usize>()? * MIB;
    }
    let parent = arguments.next().unwrap_or_else(|| ".".into());
    let directory = tempfile::tempdir_in(parent)?;
    let path = directory.path().join("db");
    let mut bench = Bench {
        engine: RocksDbEngine::open(&path, &options)?,
        keys,
        revision: 0,
        random: 42,
    };
    println!("{keys} keys of {VALUE_BYTES} bytes, {options:?}");
    bench.memory("empty")?;
    bench.load()?;
    bench.memory("loaded")?;
    measure("flush", 1, || bench.engine.flush())?;
    bench.reads("loaded")?;
    measure("compact_files", 1, || bench.engine.compact_files())?;
    bench.memory("compacted")?;
    bench.reads("compacted")?;
    bench.writes()?;
    bench.memory("overwritten")?;
    bench.reads("overwritten")?;
    bench.read_modify_writes()?;
    bench.memory("read and overwritten")?;
    let copy = directory.path().join("copy");
    measure("checkpoint", 1, || {
        bench.engine.checkpoint(&copy, Table::Meta, b"").map(drop)
    })?;
    bench.reopen(&path, &options)?;
    bench.memory("reopened")?;
    Ok(())
}

struct Bench {
    engine: RocksDbEngine,
    keys: u64,
    revision: i64,
    random: u64,
}

impl Bench {
    /// Ascending new keys in batches of 128.
    fn load(&mut self) -> Result<(), EngineError> {
        let keys = self.keys;
        measure("load, batch 128", keys, || {
            let mut next = 0;
            while next < keys {
                let end = (next + 128).min(keys);
                self.put(next..end)?;
                next = end;
            }
            Ok(())
        })
    }

    fn writes(&mut self) -> Result<(), EngineError> {
        for batch in [1, 16, 128] {
            measure(&format!("overwrite, batch {batch}"), OPERATIONS, || {
                for _ in 0..OPERATIONS / batch {
                    let keys: Vec<_> = (0..batch).map(|_| self.random_key()).collect();
                    self.put(keys)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The apply loop: metadata of the batch's keys, then the batch.
    fn read_modify_writes(&mut self) -> Result<(), EngineError> {
        for batch in [1, 16, 128] {
            let name = format!("get metadata and overwrite, batch {batch}");
            measure(&name, OPERATIONS, || {
                for _ in 0..OPERATIONS / batch {
                    let keys: Vec<_> = (0..batch).map(|_| self.random_key()).collect();
                    let names: Vec<_> = keys.iter().map(|key| key_name(*key)).collect();
                    self.engine.multi_get_latest(&names, RowParts::Metadata)?;
                    self.put(keys)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn reads(&mut self, state: &str) -> Result<(), EngineError> {
        let gets = OPERATIONS / 2;
        measure(&format!("{state}: get random"), gets, || {
            for _ in 0..gets {
                let key = key_name(self.random_key());
                assert!(self.engine.get_latest(&key, RowParts::All)?.is_some());
            }
            Ok(())
        })?;
        measure(&format!("{state}: get missing"), gets, || {
            for _ in 0..gets {
                let mut key = key_name(self.random_key()).to_vec();
                key.push(b'x');
                assert!(self.engine.get_latest(&key, RowParts::All)?.is_none());
            }
            Ok(())
        })?;
        measure(&format!("{state}: multi_get of 64"), gets, || {
            for _ in 0..gets / 64 {
                let names: Vec<_> = (0..64).map(|_| key_name(self.random_key())).collect();
                self.engine.multi_get_latest(&names, RowParts::Metadata)?;
            }
            Ok(())
        })?;
        measure(&format!("{state}: get revision"), gets, || {
            for _ in 0..gets {
                let main = 1 + self.next_random() as i64 % self.revision;
                let found = self.engine.get_revision(Revision::new(main, 0))?;
                assert!(found.is_some());
            }
            Ok(())
        })?;
        let pages = 1000;
        measure(
            &format!("{state}: key of a page of {PAGE_KEYS}"),
            pages * PAGE_KEYS as u64,
            || {
                for _ in 0..pages {
                    let mut left = PAGE_KEYS;
                    let range =
                        KeyRange::new(key_name(self.random_key()), Bytes::from_static(b"\0"));
                    self.engine.scan_latest(
                        &range,
                        Direction::Forward,
                        RowParts::All,
                        &mut |_, _| {
                            left -= 1;
                            if left == 0 {
                                ControlFlow::Break(())
                            } else {
                                ControlFlow::Continue(())
                            }
                        },
                    )?;
                }
                Ok(())
            },
        )?;
        let mut records = 0;
        let end = Revision::new(i64::MAX, 0);
        measure(
            &format!("{state}: record of the whole history"),
            self.revision as u64,
            || {
                self.engine
                    .scan_revisions(Revision::NONE, end, &mut |_, _, _| {
                        records += 1;
                        ControlFlow::Continue(())
                    })
            },
        )?;
        assert_eq!(records, self.revision);
        Ok(())
    }

    fn put(&mut self, keys: impl IntoIterator<Item = u64>) -> Result<(), EngineError> {
        let mut batch = WriteBatch::default();
        for number in keys {
            self.revision += 1;
            let revision = Revision::new(self.revision, 0);
            let key = key_name(number);
            let key_value = KeyValue {
                key: key.clone(),
                value: self.value(),
                create_revision: self.revision,
                mod_revision: self.revision,
                version: 1,
                lease: 0,
            };
            let key_value = EncodedKeyValue(key_value.encode_to_vec().into());
            let record = RevisionRecord {
                previous: Revision::NONE,
                key_value: key_value.clone(),
            };
            batch.put_revisions.push((revision, false, record));
            let row = LatestRow {
                revision,
                create_revision: self.revision,
                version: 1,
                lease: 0,
                previous: Revision::NONE,
                tombstone: false,
                key_value: Some(key_value),
            };
            batch.latest.push((key, Some(row)));
        }
        let applied = Bytes::copy_from_slice(&self.revision.to_be_bytes());
        batch
            .rows
            .push((Table::Meta, Bytes::from_static(b"applied"), Some(applied)));
        self.engine.write(batch)
    }

    /// Half random, half zero: compresses to about a half, as much real data does.
    fn value(&mut self) -> Bytes {
        let mut value = vec![0; VALUE_BYTES];
        for eight in value[..VALUE_BYTES / 2].chunks_mut(8) {
            eight.copy_from_slice(&self.next_random().to_le_bytes());
        }
        value.into()
    }

    fn random_key(&mut self) -> u64 {
        self.next_random() % self.keys
    }

    /// SplitMix64, shifted so that the number is not negative as an `i64`.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.random;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (number ^ (number >> 31)) >> 1
    }

    fn reopen(&mut self, path: &Path, options: &RocksDbOptions) -> Result<(), EngineError> {
        // The engine is replaced by one elsewhere first, since two cannot have one directory open.
        let other = RocksDbEngine::open(&path.with_extension("other"), options)?;
        let mut old = std::mem::replace(&mut self.engine, other);
        measure("close", 1, || {
            drop(std::mem::replace(
                &mut old,
                RocksDbEngine::open(&path.with_extension("third"), options)?,
            ));
            Ok(())
        })?;
        measure("open", 1, || {
            self.engine = RocksDbEngine::open(path, options)?;
            Ok(())
        })
    }

    fn memory(&self, state: &str) -> Result<(), EngineError> {
        let used = self.engine.memory_use()?;
        println!(
            "-- {state}: resident {} MiB (peak {}), memtables {} MiB, cache {} MiB, readers {} KiB, \
             database {} MiB",
            status_kib("VmRSS:") / 1024,
            status_kib("VmHWM:") / 1024,
            used.memtables / MIB as u64,
            used.cache / MIB as u64,
            used.table_readers / 1024,
            self.engine.size()?.physical_bytes / MIB as u64,
        );
        Ok(())
    }
}

fn key_name(number: u64) -> Bytes {
    format!("/registry/pods/key-{number:012}").into()
}

fn measure(
    name: &str,
    operations: u64,
    run: impl FnOnce() -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let (begin, cpu) = (Instant::now(), cpu_microseconds());
    run()?;
    let count = operations as f64;
    println!(
        "{name:42} {:>12.2} us, CPU {:>12.2} us",
        begin.elapsed().as_micros() as f64 / count,
        (cpu_microseconds() - cpu) / count,
    );
    Ok(())
}

/// User and system time of the process, in steps of 10 ms.
fn cpu_microseconds() -> f64 {
    const MICROSECONDS_PER_TICK: f64 = 10_000.0;
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The program's name may hold spaces, but ends with the last parenthesis.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks: f64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<f64>().ok())
        .sum();
    ticks * MICROSECONDS_PER_TICK
}

fn status_kib(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| {
            line.strip_prefix(field)?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .unwrap_or(0)
}
