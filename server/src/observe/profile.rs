//! Where the processor's time goes: samples of all threads, in the format of Google's pprof.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pprof::{ProfilerGuardBuilder, Report};
use prost::Message;

/// Samples per second and thread of running time; Go's number.
const FREQUENCY_HZ: i32 = 100;
/// Code in which a signal may not unwind the stack: it could hold the loader's lock.
const NOT_UNWOUND: [&str; 4] = ["libc", "libgcc", "pthread", "vdso"];

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Another profile is being taken, or the system gives no timer.
    #[error("Could not enable CPU profiling: {0}")]
    Start(String),
    /// The samples could not be read.
    #[error("Could not read the samples: {0}")]
    Report(String),
}

/// Takes samples for some time and answers with an encoded `perftools.profiles.Profile`.
///
/// # Errors
/// See [`ProfileError`].
pub async fn cpu_profile(duration: Duration) -> Result<Vec<u8>, ProfileError> {
    let guard = ProfilerGuardBuilder::default()
        .frequency(FREQUENCY_HZ)
        .blocklist(&NOT_UNWOUND)
        .build()
        .map_err(|error| ProfileError::Start(error.to_string()))?;
    tokio::time::sleep(duration).await;
    // Finding the names of functions takes long.
    let encoded = tokio::task::spawn_blocking(move || {
        let report = guard.report().build();
        report.map(|report| encode(&report, duration))
    })
    .await;
    match encoded {
        Ok(Ok(profile)) => Ok(profile),
        Ok(Err(error)) => Err(ProfileError::Report(error.to_string())),
        Err(error) => Err(ProfileError::Report(error.to_string())),
    }
}

/// `perftools.profiles`, as far as it is needed here.
pub(super) mod messages {
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Profile {
        #[prost(message, repeated, tag = "1")]
        pub sample_types: Vec<ValueType>,
        #[prost(message, repeated, tag = "2")]
        pub samples: Vec<Sample>,
        #[prost(message, repeated, tag = "4")]
        pub locations: Vec<Location>,
        #[prost(message, repeated, tag = "5")]
        pub functions: Vec<Function>,
        #[prost(string, repeated, tag = "6")]
        pub strings: Vec<String>,
        #[prost(int64, tag = "9")]
        pub time_nanoseconds: i64,
        #[prost(int64, tag = "10")]
        pub duration_nanoseconds: i64,
        #[prost(message, optional, tag = "11")]
        pub period_type: Option<ValueType>,
        #[prost(int64, tag = "12")]
        pub period: i64,
        #[prost(int64, tag = "14")]
        pub default_sample_type: i64,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct ValueType {
        #[prost(int64, tag = "1")]
        pub kind: i64,
        #[prost(int64, tag = "2")]
        pub unit: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Sample {
        #[prost(uint64, repeated, tag = "1")]
        pub locations: Vec<u64>,
        #[prost(int64, repeated, tag = "2")]
        pub values: Vec<i64>,
        #[prost(message, repeated, tag = "3")]
        pub labels: Vec<Label>,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct Label {
        #[prost(int64, tag = "1")]
        pub key: i64,
        #[prost(int64, tag = "2")]
        pub text: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Location {
        #[prost(uint64, tag = "1")]
        pub id: u64,
        #[prost(message, repeated, tag = "4")]
        pub lines: Vec<Line>,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct Line {
        #[prost(uint64, tag = "1")]
        pub function: u64,
        #[prost(int64, tag = "2")]
        pub line: i64,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct Function {
        #[prost(uint64, tag = "1")]
        pub id: u64,
        #[prost(int64, tag = "2")]
        pub name: i64,
        #[prost(int64, tag = "3")]
        pub system_name: i64,
        #[prost(int64, tag = "4")]
        pub file: i64,
    }
}

/// Texts and functions of a profile, each once.
#[derive(Default)]
pub(super) struct Tables {
    strings: HashMap<String, i64>,
    list: Vec<String>,
    functions: HashMap<(i64, i64), u64>,
    function_list: Vec<messages::Function>,
    locations: HashMap<Vec<(u64, i64)>, u64>,
    location_list: Vec<messages::Location>,
}

impl Tables {
    /// The number of a text. That of the first text, which has to be the empty one, is 0.
    pub(super) fn text(&mut self, text: &str) -> i64 {
        if let Some(position) = self.strings.get(text) {
            return *position;
        }
        let position = i64::try_from(self.list.len()).unwrap_or(i64::MAX);
        self.strings.insert(text.to_owned(), position);
        self.list.push(text.to_owned());
        position
    }

    /// The number of a function with its name as people write it and as the linker knows it.
    pub(super) fn function(&mut self, name: &str, system_name: &str, file: &str) -> u64 {
        let name = self.text(name);
        let system_name = self.text(system_name);
        let file = self.text(file);
        let next = self.function_list.len() as u64 + 1;
        let id = *self.functions.entry((system_name, file)).or_insert(next);
        if id == next {
            self.function_list.push(messages::Function {
                id,
                name,
                system_name,
                file,
            });
        }
        id
    }

    /// One address: the function in it and those that were inlined there.
    fn symbols(&mut self, symbols: &[pprof::Symbol]) -> u64 {
        let lines = symbols
            .iter()
            .map(|symbol| {
                let (name, system_name) = (symbol.name(), symbol.sys_name());
                let function = self.function(&name, &system_name, &symbol.filename());
                (function, i64::from(symbol.lineno()))
            })
            .collect();
        self.location(lines)
    }

    /// The number of a place: functions with their lines, the one that was inlined first.
    pub(super) fn location(&mut self, lines: Vec<(u64, i64)>) -> u64 {
        let next = self.location_list.len() as u64 + 1;
        let id = *self.locations.entry(lines.clone()).or_insert(next);
        if id == next {
            let lines = lines
                .into_iter()
                .map(|(function, line)| messages::Line { function, line })
                .collect();
            self.location_list.push(messages::Location { id, lines });
        }
        id
    }
}

impl Tables {
    /// The encoded profile of now.
    pub(super) fn complete(self, profile: messages::Profile) -> Vec<u8> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        messages::Profile {
            locations: self.location_list,
            functions: self.function_list,
            strings: self.list,
            time_nanoseconds: now.map_or(0, nanoseconds),
            ..profile
        }
        .encode_to_vec()
    }
}

fn encode(report: &Report, duration: Duration) -> Vec<u8> {
    let mut tables = Tables::default();
    // The first text has to be the empty one.
    tables.text("");
    let count_type = messages::ValueType {
        kind: tables.text("samples"),
        unit: tables.text("count"),
    };
    let time_type = messages::ValueType {
        kind: tables.text("cpu"),
        unit: tables.text("nanoseconds"),
    };
    let thread = tables.text("thread");
    let period = 1_000_000_000 / i64::from(FREQUENCY_HZ);
    let samples = report
        .data
        .iter()
        .map(|(frames, count)| {
            let count = i64::try_from(*count).unwrap_or(i64::MAX);
            messages::Sample {
                locations: frames
                    .frames
                    .iter()
                    .map(|symbols| tables.symbols(symbols))
                    .collect(),
                values: vec![count, count.saturating_mul(period)],
                labels: vec![messages::Label {
                    key: thread,
                    text: tables.text(&frames.thread_name_or_id()),
                }],
            }
        })
        .collect();
    let profile = messages::Profile {
        sample_types: vec![count_type, time_type],
        samples,
        duration_nanoseconds: nanoseconds(duration),
        period_type: Some(time_type),
        period,
        ..Default::default()
    };
    tables.complete(profile)
}

fn nanoseconds(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}
