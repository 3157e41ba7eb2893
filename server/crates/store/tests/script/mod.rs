//! A little language for tests of semantics: one statement in a line, one answer in a line.
//!
//! ```text
//! put a 1 [lease=7] [prev] [ignore_value] [ignore_lease]    -> @2 [prev a=1]
//! del a [c | \0] [prev]                                     -> @3 del 1 [prev a=1]
//! get a [c | \0] [limit=2] [rev=3] [sort=mod] [desc | asc] [keys] [count] [full] [maxmod=3]…
//!                                                           -> @3 a=1 b=2 /2 [more]
//! txn v(a)=0 val(a..c)>x ? put a 1 , get a : del a          -> @4 then [@4] [@4 a=1 /1]
//! compact 3   grant 7 10   revoke 7   checkpoint 7 5   lease 7   hash [rev]   commit   gc
//! ```
//!
//! `full` shows a pair as `a=1(create,mod,version,lease)`. An error is its name.

use std::sync::Arc;

use metastore_proto::EncodedKeyValue;
use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::compare::TargetUnion;
use metastore_proto::etcdserverpb::request_op::Request as Op;
use metastore_proto::etcdserverpb::response_op::Response;
use metastore_proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, DeleteRangeResponse, LeaseCheckpoint,
    LeaseCheckpointRequest, LeaseGrantRequest, PutRequest, PutResponse, RangeRequest,
    RangeResponse, RequestOp, TxnRequest, TxnResponse,
};
use metastore_proto::internal::command::Request;
use metastore_proto::internal::{Command, LeaseRevokeCommand};
use metastore_store::{
    Applier, CommandResponse, MemoryEngine, ReadError, Reader, StoreOptions, open, validate,
};

/// Term of every command.
const TERM: u64 = 5;

/// Runs the statements on a fresh store and compares the answers, line by line. Each statement is
/// committed, and all garbage collected only where the script says so.
pub fn check(script: &str) {
    let engine = Arc::new(MemoryEngine::new());
    let (applier, reader) = open(engine, StoreOptions::default()).expect("it is empty");
    let mut store = Store { applier, reader };
    for line in script
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
    {
        let (statement, expected) = line.split_once("->").unwrap_or((line, ""));
        let answer = store.run(statement.trim());
        if !expected.is_empty() {
            assert_eq!(
                answer,
                expected.trim(),
                "{statement}\nof the script{script}"
            );
        }
    }
}

struct Store {
    applier: Applier,
    reader: Reader,
}

impl Store {
    fn run(&mut self, statement: &str) -> String {
        let words: Vec<&str> = statement.split_whitespace().collect();
        let number = |index: usize| words[index].parse::<i64>().expect("a number");
        let request = match words[0] {
            "put" => Request::Put(put(&words)),
            "del" => Request::DeleteRange(delete(&words)),
            "txn" => Request::Txn(txn(statement)),
            "compact" => Request::Compaction(CompactionRequest {
                revision: number(1),
                physical: false,
            }),
            "grant" => Request::LeaseGrant(LeaseGrantRequest {
                id: number(1),
                ttl: number(2),
            }),
            "revoke" => Request::LeaseRevoke(LeaseRevokeCommand {
                id: number(1),
                expired_in_term: words.get(2).map_or(0, |term| term.parse().expect("a term")),
            }),
            "checkpoint" => Request::LeaseCheckpoint(LeaseCheckpointRequest {
                checkpoints: vec![LeaseCheckpoint {
                    id: number(1),
                    remaining_ttl: number(2),
                }],
            }),
            "get" => return show_read(self.reader.range(&get(&words)), |r| show_range(&r, &words)),
            "read" => {
                let request = txn(statement);
                return show_read(self.reader.read_only_txn(&request), |r| show_txn(&r));
            }
            "lease" => {
                let lease = self.reader.lease(number(1)).expect("the engine works");
                let keys = self.reader.lease_keys(number(1)).expect("the engine works");
                let keys: Vec<String> = keys.iter().map(|key| text(key)).collect();
                return match lease {
                    Some(lease) => format!(
                        "{}/{} {}",
                        lease.remaining_ttl,
                        lease.granted_ttl,
                        keys.join(" ")
                    )
                    .trim()
                    .to_string(),
                    None => format!("none {}", keys.join(" ")).trim().to_string(),
                };
            }
            "gc" => {
                while self
                    .reader
                    .collect_garbage_step(2)
                    .expect("the engine works")
                {}
                self.applier.commit().expect("the engine works");
                return String::new();
            }
            other => panic!("unknown statement {other}"),
        };
        self.execute(request)
    }

    fn execute(&mut self, request: Request) -> String {
        let checked = match &request {
            Request::Put(put) => validate::put(put),
            Request::DeleteRange(delete) => validate::delete_range(delete),
            Request::Txn(txn) => validate::txn(txn, 128),
            _ => Ok(()),
        };
        if let Err(error) = checked {
            return format!("{error:?}");
        }
        let command = Command {
            request: Some(request),
            ..Command::default()
        };
        let before = self.applier.revision();
        let result = self
            .applier
            .execute(&command, TERM)
            .expect("the engine works");
        if result.is_err() {
            assert_eq!(self.applier.revision(), before, "a failure leaves no trace");
        }
        let committed = self.applier.commit().expect("the engine works");
        assert_eq!(committed.revision, self.reader.revision());
        show_result(result)
    }
}

fn show_read<T>(result: Result<T, ReadError>, show: impl FnOnce(T) -> String) -> String {
    match result {
        Ok(answer) => show(answer),
        Err(ReadError::Etcd(error)) => format!("{error:?}"),
        Err(ReadError::Engine(error)) => panic!("the engine failed: {error}"),
    }
}

fn show_result(result: Result<CommandResponse, EtcdError>) -> String {
    match result {
        Err(error) => format!("{error:?}"),
        Ok(CommandResponse::Put(response)) => show_put(&response),
        Ok(CommandResponse::DeleteRange(response)) => show_delete(&response),
        Ok(CommandResponse::Txn(response)) => show_txn(&response),
        Ok(CommandResponse::Compaction(response)) => show_header(response.header),
        Ok(CommandResponse::LeaseGrant(response)) => {
            format!(
                "{} {} {}",
                show_header(response.header),
                response.id,
                response.ttl
            )
        }
        Ok(CommandResponse::LeaseRevoke(response)) => show_header(response.header),
        Ok(CommandResponse::LeaseCheckpoint(response)) => show_header(response.header),
    }
}

fn show_header(header: Option<metastore_proto::etcdserverpb::ResponseHeader>) -> String {
    format!("@{}", header.expect("every answer has a header").revision)
}

fn show_put(response: &PutResponse) -> String {
    let previous = response.prev_kv.iter().map(|pair| show_pair(pair, false));
    let previous: String = previous.map(|pair| format!(" prev {pair}")).collect();
    show_header(response.header) + &previous
}

fn show_delete(response: &DeleteRangeResponse) -> String {
    let pairs = response.prev_kvs.iter().map(|pair| show_pair(pair, false));
    let pairs: String = pairs.map(|pair| format!(" prev {pair}")).collect();
    format!(
        "{} del {}{pairs}",
        show_header(response.header),
        response.deleted
    )
}

fn show_range(response: &RangeResponse, words: &[&str]) -> String {
    let full = words.contains(&"full");
    let pairs = response.kvs.iter().map(|pair| show_pair(pair, full) + " ");
    let pairs: String = pairs.collect();
    let more = if response.more { " more" } else { "" };
    format!(
        "{} {pairs}/{}{more}",
        show_header(response.header),
        response.count
    )
}

fn show_txn(response: &TxnResponse) -> String {
    let mut shown = show_header(response.header);
    shown += if response.succeeded { " then" } else { " else" };
    for op in &response.responses {
        shown += &match op.response.as_ref().expect("every operation answers") {
            Response::ResponseRange(response) => format!(" [{}]", show_range(response, &[])),
            Response::ResponsePut(response) => format!(" [{}]", show_put(response)),
            Response::ResponseDeleteRange(response) => format!(" [{}]", show_delete(response)),
            Response::ResponseTxn(response) => format!(" [{}]", show_txn(response)),
        };
    }
    shown
}

fn show_pair(pair: &EncodedKeyValue, full: bool) -> String {
    let pair = pair.decode().expect("a stored pair");
    let shown = format!("{}={}", text(&pair.key), text(&pair.value));
    match full {
        true => format!(
            "{shown}({},{},{},{})",
            pair.create_revision, pair.mod_revision, pair.version, pair.lease
        ),
        false => shown,
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("scripts use text")
}

fn bytes(word: &str) -> bytes::Bytes {
    word.replace("\\0", "\0").replace('_', "").into()
}

fn option<'a>(words: &[&'a str], name: &str) -> Option<&'a str> {
    let found = words.iter().filter_map(|word| word.split_once('='));
    found
        .filter(|(key, _)| *key == name)
        .map(|(_, value)| value)
        .next()
}

fn number(words: &[&str], name: &str) -> i64 {
    option(words, name).map_or(0, |value| value.parse().expect("a number"))
}

fn put(words: &[&str]) -> PutRequest {
    let value = words
        .get(2)
        .filter(|word| !word.contains('=') && !word.starts_with("ignore"));
    PutRequest {
        key: bytes(words[1]),
        value: value.map_or_else(bytes::Bytes::new, |value| bytes(value)),
        lease: number(words, "lease"),
        prev_kv: words.contains(&"prev"),
        ignore_value: words.contains(&"ignore_value"),
        ignore_lease: words.contains(&"ignore_lease"),
    }
}

fn delete(words: &[&str]) -> DeleteRangeRequest {
    DeleteRangeRequest {
        key: bytes(words[1]),
        range_end: range_end(words),
        prev_kv: words.contains(&"prev"),
    }
}

fn range_end(words: &[&str]) -> bytes::Bytes {
    const FLAGS: [&str; 6] = ["prev", "desc", "asc", "keys", "count", "full"];
    match words.get(2) {
        Some(word) if !word.contains('=') && !FLAGS.contains(word) => bytes(word),
        _ => bytes::Bytes::new(),
    }
}

fn get(words: &[&str]) -> RangeRequest {
    let target = option(words, "sort").unwrap_or("key");
    let targets = ["key", "version", "create", "mod", "value"];
    let order = words.iter().find_map(|word| match *word {
        "asc" => Some(1),
        "desc" => Some(2),
        _ => None,
    });
    RangeRequest {
        key: bytes(words[1]),
        range_end: range_end(words),
        limit: number(words, "limit"),
        revision: number(words, "rev"),
        sort_order: order.unwrap_or(0),
        sort_target: targets.iter().position(|t| *t == target).expect("a target") as i32,
        serializable: false,
        keys_only: words.contains(&"keys"),
        count_only: words.contains(&"count"),
        min_mod_revision: number(words, "minmod"),
        max_mod_revision: number(words, "maxmod"),
        min_create_revision: number(words, "mincreate"),
        max_create_revision: number(words, "maxcreate"),
    }
}

/// `txn compares ? ops : ops`; a nested one stands in braces.
fn txn(statement: &str) -> TxnRequest {
    let rest = statement.split_once(' ').map_or("", |(_, rest)| rest);
    let (compares, branches) = split_outside(rest, '?');
    let (success, failure) = split_outside(branches, ':');
    TxnRequest {
        compare: compares.split_whitespace().map(compare).collect(),
        success: ops(success),
        failure: ops(failure),
    }
}

/// Splits at the first separator that is not inside braces.
fn split_outside(text: &str, separator: char) -> (&str, &str) {
    let mut depth = 0;
    for (position, character) in text.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ if character == separator && depth == 0 => {
                return (&text[..position], &text[position + 1..]);
            }
            _ => {}
        }
    }
    (text, "")
}

fn ops(mut list: &str) -> Vec<RequestOp> {
    let mut found = Vec::new();
    while !list.trim().is_empty() {
        let (op, rest) = split_outside(list, ',');
        list = rest;
        let op = op
            .trim()
            .trim_start_matches('{')
            .trim_end_matches('}')
            .trim();
        let words: Vec<&str> = op.split_whitespace().collect();
        found.push(RequestOp {
            request: Some(match words[0] {
                "put" => Op::RequestPut(put(&words)),
                "del" => Op::RequestDeleteRange(delete(&words)),
                "get" => Op::RequestRange(get(&words)),
                "txn" => Op::RequestTxn(txn(op)),
                other => panic!("unknown operation {other}"),
            }),
        });
    }
    found
}

/// `v(a)=0`, `m(a..c)>3`, `val(a)!x`…: v, c, m, l, val; `=`, `>`, `<`, `!`.
fn compare(word: &str) -> Compare {
    let (target, rest) = word.split_once('(').expect("a target");
    let (keys, rest) = rest.split_once(')').expect("a key");
    let (key, range_end) = keys.split_once("..").unwrap_or((keys, ""));
    let (result, wanted) = rest.split_at(1);
    let number = || wanted.parse::<i64>().expect("a number");
    let (target, union) = match target {
        "v" => (0, TargetUnion::Version(number())),
        "c" => (1, TargetUnion::CreateRevision(number())),
        "m" => (2, TargetUnion::ModRevision(number())),
        "val" => (3, TargetUnion::Value(bytes(wanted))),
        _ => (4, TargetUnion::Lease(number())),
    };
    Compare {
        result: ["=", ">", "<", "!"]
            .iter()
            .position(|r| *r == result)
            .expect("a result") as i32,
        target,
        key: bytes(key),
        range_end: bytes(range_end),
        target_union: Some(union),
    }
}
