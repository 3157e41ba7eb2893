//! Log lines in the shape of zap, etcd's logger, because that is what people's collectors parse.
//!
//! ```text
//! tracing events ──► ZapLayer ─┐
//! record(), Notice ────────────┴─► Sink: one line, one write per output
//! ```
//!
//! A line is `{"level":"info","ts":"2026-01-02T15:04:05.999999Z","caller":"src/main.rs:7","msg":"…",…}`;
//! with `--log-format=console` the same as text. Times are UTC. A write that fails is dropped: a log
//! that nobody reads (a closed pipe) must not stop a member.
//!
//! Events of other crates than ours are capped at `warn` and shown one level later than ours:
//! `error` is reserved for what the operator of the store must look at.

use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use super::log_rotation::{RotatingFile, RotationOptions};

/// The level of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For those who look for a bug.
    Debug,
    /// What happens normally.
    Info,
    /// What is not normal and handled.
    Warn,
    /// What needs somebody.
    Error,
    /// The last line before the process ends because of it.
    Fatal,
}

impl Level {
    /// zap's word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
            Self::Fatal => "fatal",
        }
    }
}

/// `--log-level`: the lowest level that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold(Level);

impl Threshold {
    /// Reads zap's words, in lower or upper case; nothing for others.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Some(Self(match text.to_ascii_lowercase().as_str() {
            "debug" => Level::Debug,
            "info" | "" => Level::Info,
            "warn" | "warning" => Level::Warn,
            "error" => Level::Error,
            "dpanic" | "panic" | "fatal" => Level::Fatal,
            _ => return None,
        }))
    }

    /// True if lines of the level are written.
    #[must_use]
    pub fn allows(self, level: Level) -> bool {
        level >= self.0
    }
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object per line.
    Json,
    /// Text with tabs.
    Console,
}

impl Format {
    /// Reads the option; nothing for unknown words.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "json" | "" => Some(Self::Json),
            "console" => Some(Self::Console),
            _ => None,
        }
    }
}

/// One element of `--log-outputs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogOutput {
    /// The standard error output; also `default` and `systemd/journal`, because systemd puts it there.
    Stderr,
    /// The standard output.
    Stdout,
    /// A file, to which lines are appended.
    File(PathBuf),
}

impl LogOutput {
    /// Reads one element.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text {
            "default" | "stderr" | "systemd/journal" => Self::Stderr,
            "stdout" => Self::Stdout,
            path => Self::File(PathBuf::from(path)),
        }
    }
}

/// What the options say about logging.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// The lowest level that is written.
    pub threshold: Threshold,
    /// The shape of lines.
    pub format: Format,
    /// Where lines go; never empty.
    pub outputs: Vec<LogOutput>,
    /// How files among the outputs are rotated; nothing: not at all.
    pub rotation: Option<RotationOptions>,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            threshold: Threshold(Level::Info),
            format: Format::Json,
            outputs: vec![LogOutput::Stderr],
            rotation: None,
        }
    }
}

static SINK: OnceLock<Arc<Sink>> = OnceLock::new();

/// Opens the outputs and sends all events of the process there. To be called once, at the start; later
/// calls change nothing. Until then [`record`] writes JSON lines to the standard error output.
///
/// # Errors
///
/// A log file that cannot be opened.
pub fn init(options: &LogOptions) -> Result<(), std::io::Error> {
    let sink = Arc::new(Sink::open(options)?);
    if SINK.set(Arc::clone(&sink)).is_ok() {
        // Fails only if somebody else, a test, has set a subscriber: then events go there.
        let _ = tracing_subscriber::registry()
            .with(ZapLayer { sink })
            .try_init();
    }
    Ok(())
}

/// Where a line comes from; pass it to [`record`].
#[macro_export]
#[doc(hidden)]
macro_rules! __log_here {
    () => {
        concat!(file!(), ":", line!())
    };
}
pub use __log_here as here;

/// Writes one line whose field names are known only at run time; elsewhere use `tracing`'s macros.
pub fn record(level: Level, caller: &str, message: &str, fields: &[(&str, Value)]) {
    match SINK.get() {
        Some(sink) => sink.write(level, caller, message, fields),
        None => Sink::open(&LogOptions::default())
            .expect("the default opens no file")
            .write(level, caller, message, fields),
    }
}

/// Writes text to the standard error output and does not mind if nobody reads it.
pub fn write_stderr(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// Writes text to the standard output and does not mind if nobody reads it.
pub fn write_stdout(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
}

enum Output {
    Stderr,
    Stdout,
    File(File),
    Rotating(RotatingFile),
}

struct Sink {
    threshold: Threshold,
    format: Format,
    outputs: Vec<Output>,
}

impl Sink {
    fn open(options: &LogOptions) -> Result<Self, std::io::Error> {
        let outputs = options
            .outputs
            .iter()
            .map(|output| match output {
                LogOutput::Stderr => Ok(Output::Stderr),
                LogOutput::Stdout => Ok(Output::Stdout),
                LogOutput::File(path) => {
                    open_file(path, options.rotation.as_ref()).map_err(|error| {
                        // The system's text does not say which file.
                        let text = format!("open log output {}: {error}", path.display());
                        std::io::Error::new(error.kind(), text)
                    })
                }
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            threshold: options.threshold,
            format: options.format,
            outputs,
        })
    }

    fn write(&self, level: Level, caller: &str, message: &str, fields: &[(&str, Value)]) {
        if !self.threshold.allows(level) {
            return;
        }
        let line = format_line(
            self.format,
            SystemTime::now(),
            level,
            caller,
            message,
            fields,
        );
        for output in &self.outputs {
            // One write for the whole line keeps the lines of threads apart, also in files that two
            // processes share.
            match output {
                Output::Stderr => write_stderr(&line),
                Output::Stdout => write_stdout(&line),
                Output::File(file) => {
                    let mut file = file;
                    let _ = file.write_all(line.as_bytes());
                }
                Output::Rotating(file) => {
                    let _ = file.write(line.as_bytes());
                }
            }
        }
    }
}

fn open_file(path: &Path, rotation: Option<&RotationOptions>) -> Result<Output, std::io::Error> {
    match rotation {
        Some(options) => RotatingFile::open(path, options.clone()).map(Output::Rotating),
        None => OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map(Output::File),
    }
}

fn format_line(
    format: Format,
    now: SystemTime,
    level: Level,
    caller: &str,
    message: &str,
    fields: &[(&str, Value)],
) -> String {
    let mut line = String::with_capacity(256);
    let time = timestamp(now);
    let caller = short_caller(caller);
    match format {
        Format::Json => {
            line.push_str("{\"level\":\"");
            line.push_str(level.as_str());
            line.push_str("\",\"ts\":\"");
            line.push_str(&time);
            line.push_str("\",\"caller\":");
            push_json(&mut line, &Value::from(caller));
            line.push_str(",\"msg\":");
            push_json(&mut line, &Value::from(message));
            for (name, value) in fields {
                line.push(',');
                push_json(&mut line, &Value::from(*name));
                line.push(':');
                push_json(&mut line, value);
            }
            line.push('}');
        }
        Format::Console => {
            line.push_str(&time);
            for part in [level.as_str(), caller, message] {
                line.push('\t');
                line.push_str(part);
            }
            if !fields.is_empty() {
                line.push_str("\t{");
                for (position, (name, value)) in fields.iter().enumerate() {
                    if position > 0 {
                        line.push_str(", ");
                    }
                    push_json(&mut line, &Value::from(*name));
                    line.push_str(": ");
                    push_json(&mut line, value);
                }
                line.push('}');
            }
        }
    }
    line.push('\n');
    line
}

fn push_json(line: &mut String, value: &Value) {
    write!(line, "{value}").expect("writing to a string never fails");
}

/// Folder and file, as zap writes it: `config/mod.rs:7`.
fn short_caller(caller: &str) -> &str {
    let mut slashes = caller.rmatch_indices('/');
    slashes.next();
    slashes
        .next()
        .map_or(caller, |(slash, _)| &caller[slash + 1..])
}

/// UTC in the layout `2006-01-02T15:04:05.000000Z`, which etcd's parsers read.
pub(crate) fn timestamp(now: SystemTime) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let seconds = since.as_secs();
    let (year, month, day) = civil_date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let micros = since.subsec_micros();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// The date of a day since 1970-01-01, in the proleptic Gregorian calendar.
///
/// Counted from 0000-03-01, so that the leap day is the last day of the year; 146097 days are the 400
/// years after which the calendar repeats.
fn civil_date(days_since_1970: u64) -> (u64, u64, u64) {
    let days = days_since_1970 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// Our own crates; the names of the others differ.
const OWN_TARGETS: &str = "metastore";

struct ZapLayer {
    sink: Arc<Sink>,
}

impl ZapLayer {
    /// The level at which an event is written.
    fn level(metadata: &Metadata<'_>) -> Level {
        let level = match *metadata.level() {
            tracing::Level::ERROR => Level::Error,
            tracing::Level::WARN => Level::Warn,
            tracing::Level::INFO => Level::Info,
            tracing::Level::DEBUG | tracing::Level::TRACE => Level::Debug,
        };
        if metadata.target().starts_with(OWN_TARGETS) {
            level
        } else {
            level.min(Level::Warn)
        }
    }

    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        if metadata.is_span() || *metadata.level() == tracing::Level::TRACE {
            return false;
        }
        let level = Self::level(metadata);
        if metadata.target().starts_with(OWN_TARGETS) {
            return self.sink.threshold.allows(level);
        }
        let one_later = match level {
            Level::Debug => return false,
            Level::Info => Level::Debug,
            _ => level,
        };
        self.sink.threshold.allows(one_later)
    }
}

impl<S: Subscriber> Layer<S> for ZapLayer {
    fn register_callsite(
        &self,
        metadata: &'static Metadata<'static>,
    ) -> tracing::subscriber::Interest {
        // The threshold never changes, so the decision of a call site may be kept for ever.
        if self.wants(metadata) {
            tracing::subscriber::Interest::always()
        } else {
            tracing::subscriber::Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.wants(metadata)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut fields = FieldCollector::default();
        event.record(&mut fields);
        let caller = format!(
            "{}:{}",
            metadata.file().unwrap_or(metadata.target()),
            metadata.line().unwrap_or(0)
        );
        self.sink.write(
            Self::level(metadata),
            &caller,
            &fields.message,
            &fields.fields,
        );
    }
}

#[derive(Default)]
struct FieldCollector {
    message: String,
    fields: Vec<(&'static str, Value)>,
}

impl FieldCollector {
    fn push(&mut self, field: &Field, value: Value) {
        if field.name() == "message" {
            self.message = match value {
                Value::String(text) => text,
                other => other.to_string(),
            };
        } else {
            self.fields.push((field.name(), value));
        }
    }
}

impl Visit for FieldCollector {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.push(field, Value::from(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field, Value::from(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field, Value::from(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push(field, Value::from(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push(field, Value::from(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.push(field, Value::from(value));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.push(field, Value::from(value.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64, micros: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_micros(seconds * 1_000_000 + micros)
    }

    #[test]
    fn times_are_written_in_utc_with_six_digits() {
        for (time, text) in [
            (at(0, 0), "1970-01-01T00:00:00.000000Z"),
            (at(951_782_400, 5), "2000-02-29T00:00:00.000005Z"),
            (at(1_767_366_245, 999_999), "2026-01-02T15:04:05.999999Z"),
            (at(4_107_542_399, 0), "2100-02-28T23:59:59.000000Z"),
            (at(4_107_542_400, 0), "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(timestamp(time), text);
        }
    }

    #[test]
    fn json_lines_have_the_shape_of_zap() {
        let fields = [("data-dir", Value::from("a\"b")), ("count", Value::from(3))];
        let line = format_line(
            Format::Json,
            at(1_767_366_245, 0),
            Level::Warn,
            "server/src/config/mod.rs:7",
            "two\nlines",
            &fields,
        );
        assert_eq!(
            line,
            "{\"level\":\"warn\",\"ts\":\"2026-01-02T15:04:05.000000Z\",\"caller\":\"config/mod.rs:7\",\"msg\":\"two\\nlines\",\"data-dir\":\"a\\\"b\",\"count\":3}\n"
        );
        serde_json::from_str::<Value>(&line).expect("a JSON object");
    }

    #[test]
    fn console_lines_are_for_people() {
        let line = format_line(
            Format::Console,
            at(0, 0),
            Level::Info,
            "a.rs:1",
            "started",
            &[("name", Value::from("a")), ("port", Value::from(1))],
        );
        assert_eq!(
            line,
            "1970-01-01T00:00:00.000000Z\tinfo\ta.rs:1\tstarted\t{\"name\": \"a\", \"port\": 1}\n"
        );
    }

    #[test]
    fn thresholds_are_those_of_zap() {
        let threshold = |text| Threshold::parse(text).expect(text);
        assert!(threshold("debug").allows(Level::Debug));
        assert!(!threshold("info").allows(Level::Debug));
        assert!(threshold("WARN").allows(Level::Error));
        assert!(!threshold("panic").allows(Level::Error));
        assert!(threshold("fatal").allows(Level::Fatal));
        assert_eq!(Threshold::parse("loud"), None);
    }

    #[test]
    fn events_become_lines_of_a_file() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("log");
        let options = LogOptions {
            threshold: Threshold(Level::Info),
            format: Format::Json,
            outputs: vec![LogOutput::File(path.clone())],
            rotation: None,
        };
        let sink = Arc::new(Sink::open(&options).expect("the file can be opened"));
        let layer = ZapLayer {
            sink: Arc::clone(&sink),
        };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::info!(
                "member-id" = "8e9e05c52164694d",
                count = 3_u64,
                ok = true,
                "a line"
            );
            tracing::debug!("not written");
            tracing::error!(target: "other_crate", "capped");
            tracing::info!(target: "other_crate", "not written");
        });
        sink.write(
            Level::Error,
            here!(),
            "by hand",
            &[("any-name", Value::from(1.5))],
        );
        let text = std::fs::read_to_string(&path).expect("the log exists");
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("every line is a JSON object"))
            .collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(lines[0]["msg"], "a line");
        assert_eq!(lines[0]["member-id"], "8e9e05c52164694d");
        assert_eq!(lines[0]["count"], 3);
        assert_eq!(lines[0]["ok"], true);
        assert_eq!(
            lines[1]["level"], "warn",
            "events of other crates are capped"
        );
        assert_eq!(lines[2]["level"], "error");
        assert_eq!(lines[2]["any-name"], 1.5);
    }
}
