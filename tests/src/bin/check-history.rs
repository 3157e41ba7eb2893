//! Judges what `clientv3-check history` recorded.
//!
//! ```text
//! check-history RECORD [PHASES]
//! ```
//!
//! Fails when no linearizable store could have given these answers and events: an acknowledged write that is
//! lost, one that happened twice, a stale read, an event too many or too few. With a file of phases, each line
//! `BEGIN END NAME` with times in nanoseconds since 1970, it prints how long nothing was acknowledged in each:
//! to any client, and to the one that waited longest.

use std::collections::BTreeMap;
use std::process::ExitCode;

use metastore_tests::history::{Action, Change, History, Recorded};
use serde_json::Value;

/// What is shown of a fault.
const SHOWN_CHARS_MAX: usize = 20_000;
/// The client that only does the last write, as `clientv3-check` numbers it.
const LAST_WRITER: u32 = 1_000_000;
/// Fewer operations say nothing about a store.
const OPERATIONS_MIN: usize = 100;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.as_slice() {
        [record] => judge(record, None),
        [record, phases] => judge(record, Some(phases)),
        _ => Err("usage: check-history RECORD [PHASES]".to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            let shown: String = fault.chars().take(SHOWN_CHARS_MAX).collect();
            eprintln!("check-history: {shown}");
            ExitCode::FAILURE
        }
    }
}

fn judge(record: &str, phases: Option<&String>) -> Result<(), String> {
    let history = read_history(&read_file(record)?)?;
    let writes = history.operations.iter().filter(|o| is_write(o)).count();
    let unknown = history
        .operations
        .iter()
        .filter(|o| !is_answered(o))
        .count();
    if let Some(phases) = phases {
        print_phases(&history, &read_phases(&read_file(phases)?)?);
    }
    if history.operations.len() < OPERATIONS_MIN {
        return Err(format!("only {} operations", history.operations.len()));
    }
    history.check_operations()?;
    println!(
        "{} operations, {writes} of them writes, {unknown} without an answer, {} events: linearizable, no \
         acknowledged write is lost",
        history.operations.len(),
        history.events.len()
    );
    Ok(())
}

fn read_file(path: &str) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))
}

fn read_history(text: &str) -> Result<History, String> {
    let mut history = History::default();
    let mut is_complete = false;
    for (at, line) in text.lines().enumerate() {
        let value: Value =
            serde_json::from_str(line).map_err(|error| format!("line {}: {error}", at + 1))?;
        match value["type"].as_str() {
            Some("operation") => history.operations.extend(read_operation(&value)?),
            Some("event") => history.events.push(read_event(&value)?),
            Some("end") => is_complete = true,
            other => return Err(format!("line {}: of type {other:?}", at + 1)),
        }
    }
    if !is_complete {
        return Err(
            "the record has no end: its client was killed, or saw a fault itself".to_owned(),
        );
    }
    Ok(history)
}

/// A number that is left away when it is 0.
fn number(value: &Value, key: &str) -> i64 {
    value[key].as_i64().unwrap_or(0)
}

fn unsigned(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or(0)
}

fn text(value: &Value, key: &str) -> Result<String, String> {
    let found = value[key].as_str();
    found
        .map(ToOwned::to_owned)
        .ok_or_else(|| format!("no {key} in {value}"))
}

/// `None` for a read without an answer, which says nothing.
fn read_operation(value: &Value) -> Result<Option<Recorded>, String> {
    let revision = number(value, "revision");
    let answered = value["error"].as_str().is_none();
    let succeeded = value["succeeded"].as_bool().unwrap_or(false);
    let answer = answered.then_some((succeeded, revision));
    let action = match value["action"].as_str() {
        Some("put") => Action::Put {
            value: unsigned(value, "value"),
            revision: answered.then_some(revision),
        },
        Some("swap") => Action::Swap {
            expected: number(value, "expected"),
            value: unsigned(value, "value"),
            answer,
        },
        Some("delete") => Action::Delete { answer },
        Some("get") if !answered => return Ok(None),
        Some("get") => Action::Get {
            seen: Some((unsigned(value, "seen"), number(value, "seenRevision")))
                .filter(|(_, revision)| *revision != 0),
            revision,
        },
        other => return Err(format!("unknown action {other:?}")),
    };
    Ok(Some(Recorded {
        client: u32::try_from(unsigned(value, "client")).map_err(|error| error.to_string())?,
        call: number(value, "call"),
        end: number(value, "end"),
        key: text(value, "key")?,
        action,
    }))
}

fn read_event(value: &Value) -> Result<Change, String> {
    let is_delete = value["deleted"].as_bool().unwrap_or(false);
    Ok(Change {
        revision: number(value, "revision"),
        key: text(value, "key")?,
        value: (!is_delete).then(|| unsigned(value, "value")),
        created: value["created"].as_bool().unwrap_or(false),
        previous: None,
    })
}

fn is_write(operation: &Recorded) -> bool {
    !matches!(operation.action, Action::Get { .. })
}

fn is_answered(operation: &Recorded) -> bool {
    match &operation.action {
        Action::Put { revision, .. } => revision.is_some(),
        Action::Swap { answer, .. } | Action::Delete { answer } => answer.is_some(),
        Action::Get { .. } => true,
    }
}

/// A part of the time, with a name.
#[derive(Debug, PartialEq)]
struct Phase {
    begin: i64,
    end: i64,
    name: String,
}

fn read_phases(text: &str) -> Result<Vec<Phase>, String> {
    let read = |line: &str| {
        let mut parts = line.splitn(3, ' ');
        Some(Phase {
            begin: parts.next()?.parse().ok()?,
            end: parts.next()?.parse().ok()?,
            name: parts.next()?.to_owned(),
        })
    };
    text.lines()
        .map(|line| read(line).ok_or_else(|| format!("no phase: {line}")))
        .collect()
}

fn print_phases(history: &History, phases: &[Phase]) {
    println!(
        "| During | Seconds | Writes | Longest without a write: any client | the unluckiest | Without a read: any client | the unluckiest |"
    );
    println!("|---|---|---|---|---|---|---|");
    for phase in phases {
        let writes = |o: &&Recorded| is_write(o) && is_answered(o);
        let reads = |o: &&Recorded| !is_write(o);
        let count = history
            .operations
            .iter()
            .filter(writes)
            .filter(|o| (phase.begin..phase.end).contains(&o.end))
            .count();
        let (write_any, write_worst) = gaps(history.operations.iter().filter(writes), phase);
        let (read_any, read_worst) = gaps(history.operations.iter().filter(reads), phase);
        println!(
            "| {} | {:.0} | {count} | {write_any:.2} s | {write_worst:.2} s | {read_any:.2} s | {read_worst:.2} s |",
            phase.name,
            seconds(phase.end - phase.begin),
        );
    }
}

#[allow(clippy::cast_precision_loss, reason = "it is shown with two digits")]
fn seconds(nanoseconds: i64) -> f64 {
    nanoseconds as f64 / 1e9
}

/// The longest time in a phase in which no answer came, in seconds: for all clients together, and for the one
/// that waited longest. Waiting that began before the phase or ended after it counts from its beginning and to
/// its end.
fn gaps<'a>(operations: impl Iterator<Item = &'a Recorded>, phase: &Phase) -> (f64, f64) {
    let mut ends: BTreeMap<u32, Vec<i64>> = BTreeMap::new();
    for operation in operations {
        ends.entry(operation.client)
            .or_default()
            .push(operation.end);
    }
    let longest = |mut ends: Vec<i64>| {
        ends.retain(|end| (phase.begin..phase.end).contains(end));
        ends.extend([phase.begin, phase.end]);
        ends.sort_unstable();
        ends.windows(2)
            .map(|pair| pair[1] - pair[0])
            .max()
            .unwrap_or(0)
    };
    let all = longest(ends.values().flatten().copied().collect());
    let unluckiest = ends
        .into_iter()
        .filter(|(client, _)| *client != LAST_WRITER)
        .map(|(_, ends)| longest(ends))
        .max();
    (seconds(all), seconds(unluckiest.unwrap_or(all)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "in a test an unwrap is an assertion")]
mod tests {
    use super::*;

    const RECORD: &str = r#"{"type":"operation","client":0,"call":1000000000,"end":2000000000,"key":"k","action":"put","value":1,"revision":2}
{"type":"event","revision":2,"key":"k","value":1,"created":true}
{"type":"operation","client":1,"call":3000000000,"end":4000000000,"key":"k","action":"swap","value":2,"expected":2,"error":"deadline"}
{"type":"operation","client":0,"call":5000000000,"end":6000000000,"key":"k","action":"get","seen":1,"seenRevision":2,"revision":2}
{"type":"operation","client":1000000,"call":7000000000,"end":8000000000,"key":"k","action":"delete","succeeded":true,"revision":3}
{"type":"event","revision":3,"key":"k","deleted":true}
{"type":"end"}"#;

    #[test]
    fn a_good_record_is_linearizable() {
        let history = read_history(RECORD).unwrap();
        assert_eq!((history.operations.len(), history.events.len()), (4, 2));
        history.check_operations().unwrap();
    }

    #[test]
    fn a_record_without_an_event_or_an_end_is_refused() {
        let lost: String = RECORD
            .lines()
            .filter(|line| !line.contains("\"created\""))
            .map(|line| format!("{line}\n"))
            .collect();
        let fault = read_history(&lost).unwrap().check_operations().unwrap_err();
        assert!(fault.contains("not what happened"), "{fault}");
        let cut = RECORD.replace("{\"type\":\"end\"}", "");
        assert!(read_history(&cut).unwrap_err().contains("no end"));
    }

    #[test]
    fn gaps_are_measured_within_their_phase() {
        let history = read_history(RECORD).unwrap();
        let phases = read_phases("1000000000 9000000000 all of it").unwrap();
        let writes = history
            .operations
            .iter()
            .filter(|o| is_write(o) && is_answered(o));
        // Client 0 was answered at 2 s only; the last writer is not looked at alone.
        assert_eq!(gaps(writes, &phases[0]), (6.0, 7.0));
        assert!(read_phases("1 x y").is_err());
    }
}
