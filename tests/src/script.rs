//! The language of the differential tests.
//!
//! A script is a list of steps separated by `;`, one line of text, so that a table of edge cases is
//! one line each and a random script that failed can be pasted as a new line.
//!
//! ```text
//! put KEY VALUE [lease=ID] [prev] [ignore_value] [ignore_lease]
//! get RANGE [rev=R] [limit=N] [sort=none|asc|desc|N] [by=key|ver|create|mod|val|N] [keys_only]
//!           [count_only] [serializable] [minmod=R] [maxmod=R] [mincreate=R] [maxcreate=R]
//! stream RANGE …            RangeStream, with the options of get
//! del RANGE [prev]
//! txn if(COMPARE, …) then(OPERATION; …) else(OPERATION; …)      any part may be absent
//! compact R [physical]
//! grant ID TTL · revoke ID · ttl ID [keys] · leases · keepalive ID
//! hashkv R · status
//! watch STREAM RANGE [start=R] [prev] [noput] [nodelete] [fragment] [notify] [id=N]
//! cancel STREAM ID · progress STREAM · close STREAM
//! settle                    waits until the watch streams are equal and quiet, and compares them
//! members [serializable] · add URL[,URL] [learner] · remove ID · promote ID · update ID URL
//! move_leader ID
//! alarm get|raise|disarm [none|nospace|corrupt|N] [ID] · downgrade validate|enable|cancel [VERSION]
//! defragment
//! raw PATH HEX              a unary call with any bytes as its message; only the code is compared
//! ```
//!
//! * OPERATION: put, get, del, txn, or `nothing` (an operation without a request).
//! * COMPARE: `ver|create|mod|val|lease RANGE =|!=|<|> OPERAND`; `tN` and `rN` are unknown targets
//!   and results; the operand `nothing` leaves the operand away.
//! * RANGE: `a` one key, `a..b` from a below b, `a..` from a on, `a*` a prefix, `*` everything.
//! * KEY, VALUE: text; `''` is empty, `\xHH` one byte, `a~N` N times the letter a.
//! * R: a revision; `@+2` is two after the revision at which the script began. ID: a number, or
//!   `self` for the answering member.

use bytes::Bytes;
use metastore_proto::etcdserverpb as pb;
use pb::request_op::Request;

/// What a script's symbols stand for on one store.
#[derive(Clone, Copy, Debug)]
pub struct Symbols {
    /// Revision at which the script began: `@`.
    pub base: i64,
    /// Id of the answering member: `self`.
    pub member: u64,
}

/// One request.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Step {
    Range(pb::RangeRequest),
    RangeStream(pb::RangeRequest),
    Put(pb::PutRequest),
    Delete(pb::DeleteRangeRequest),
    Txn(pb::TxnRequest),
    Compact(pb::CompactionRequest),
    Grant(pb::LeaseGrantRequest),
    Revoke(pb::LeaseRevokeRequest),
    TimeToLive(pb::LeaseTimeToLiveRequest),
    Leases,
    KeepAlive(pb::LeaseKeepAliveRequest),
    HashKv(pb::HashKvRequest),
    Status,
    Watch {
        stream: String,
        request: pb::WatchCreateRequest,
    },
    Cancel {
        stream: String,
        id: i64,
    },
    Progress {
        stream: String,
    },
    Close {
        stream: String,
    },
    Settle,
    Members(pb::MemberListRequest),
    MemberAdd(pb::MemberAddRequest),
    MemberRemove(pb::MemberRemoveRequest),
    MemberPromote(pb::MemberPromoteRequest),
    MemberUpdate(pb::MemberUpdateRequest),
    MoveLeader(pb::MoveLeaderRequest),
    Alarm(pb::AlarmRequest),
    Downgrade(pb::DowngradeRequest),
    Defragment,
    Raw {
        path: String,
        message: Bytes,
    },
}

/// Splits a script into the texts of its steps.
pub fn split(script: &str) -> Vec<&str> {
    let mut steps = Vec::new();
    let mut depth = 0;
    let mut start = 0;
    for (index, character) in script.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            ';' if depth == 0 => {
                steps.push(&script[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    steps.push(&script[start..]);
    steps
        .into_iter()
        .map(str::trim)
        .filter(|step| !step.is_empty())
        .collect()
}

/// Reads one step.
///
/// # Panics
///
/// When the text is no step: scripts are part of the tests.
pub fn parse(text: &str, symbols: Symbols) -> Step {
    let mut parser = Parser {
        text,
        tokens: tokens(text),
        next: 0,
        symbols,
    };
    let step = parser.step();
    assert!(
        parser.peek().is_none(),
        "`{text}`: unexpected `{}`",
        parser.word()
    );
    step
}

fn tokens(text: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    for word in text.split_whitespace() {
        let mut rest = word;
        while let Some(index) = rest.find(['(', ')', ';', ',']) {
            if index > 0 {
                tokens.push(&rest[..index]);
            }
            tokens.push(&rest[index..=index]);
            rest = &rest[index + 1..];
        }
        if !rest.is_empty() {
            tokens.push(rest);
        }
    }
    tokens
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<&'a str>,
    next: usize,
    symbols: Symbols,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.tokens.get(self.next).copied()
    }

    fn word(&mut self) -> &'a str {
        let word = self
            .peek()
            .unwrap_or_else(|| panic!("`{}` ends too early", self.text));
        self.next += 1;
        word
    }

    /// Takes the next word when it is `wanted`.
    fn take(&mut self, wanted: &str) -> bool {
        let found = self.peek() == Some(wanted);
        self.next += usize::from(found);
        found
    }

    fn expect(&mut self, wanted: &str) {
        assert!(
            self.take(wanted),
            "`{}`: expected `{wanted}`, not {:?}",
            self.text,
            self.peek()
        );
    }

    /// Takes the next option: `name` or `name=value`. Options end at a separator.
    fn option(&mut self) -> Option<(&'a str, &'a str)> {
        let word = self.peek()?;
        if ["(", ")", ";", ","].contains(&word) {
            return None;
        }
        self.next += 1;
        Some(word.split_once('=').unwrap_or((word, "")))
    }

    fn unknown(&self, word: &str) -> ! {
        panic!("`{}`: unknown word `{word}`", self.text)
    }

    fn number(&self, word: &str) -> i64 {
        if let Some(offset) = word.strip_prefix('@') {
            let offset = offset.strip_prefix('+').unwrap_or(offset);
            return self.symbols.base
                + if offset.is_empty() {
                    0
                } else {
                    self.number(offset)
                };
        }
        word.parse()
            .unwrap_or_else(|_| panic!("`{}`: `{word}` is no number", self.text))
    }

    fn member(&self, word: &str) -> u64 {
        if word == "self" {
            return self.symbols.member;
        }
        word.parse()
            .unwrap_or_else(|_| panic!("`{}`: `{word}` is no member", self.text))
    }

    fn step(&mut self) -> Step {
        match self.word() {
            "get" => Step::Range(self.range()),
            "stream" => Step::RangeStream(self.range()),
            "put" => Step::Put(self.put()),
            "del" => Step::Delete(self.delete()),
            "txn" => Step::Txn(self.txn()),
            "compact" => {
                let word = self.word();
                let revision = self.number(word);
                Step::Compact(pb::CompactionRequest {
                    revision,
                    physical: self.take("physical"),
                })
            }
            "grant" => {
                let (id, ttl) = (self.word(), self.word());
                Step::Grant(pb::LeaseGrantRequest {
                    id: self.number(id),
                    ttl: self.number(ttl),
                })
            }
            "revoke" => {
                let id = self.word();
                Step::Revoke(pb::LeaseRevokeRequest {
                    id: self.number(id),
                })
            }
            "ttl" => {
                let id = self.word();
                let id = self.number(id);
                Step::TimeToLive(pb::LeaseTimeToLiveRequest {
                    id,
                    keys: self.take("keys"),
                })
            }
            "leases" => Step::Leases,
            "keepalive" => {
                let id = self.word();
                Step::KeepAlive(pb::LeaseKeepAliveRequest {
                    id: self.number(id),
                })
            }
            "hashkv" => {
                let revision = self.word();
                Step::HashKv(pb::HashKvRequest {
                    revision: self.number(revision),
                })
            }
            "status" => Step::Status,
            "watch" => self.watch(),
            "cancel" => {
                let (stream, id) = (self.word(), self.word());
                Step::Cancel {
                    stream: stream.to_owned(),
                    id: self.number(id),
                }
            }
            "progress" => Step::Progress {
                stream: self.word().to_owned(),
            },
            "close" => Step::Close {
                stream: self.word().to_owned(),
            },
            "settle" => Step::Settle,
            "members" => Step::Members(pb::MemberListRequest {
                linearizable: !self.take("serializable"),
            }),
            "add" => self.member_add(),
            "remove" => {
                let id = self.word();
                Step::MemberRemove(pb::MemberRemoveRequest {
                    id: self.member(id),
                })
            }
            "promote" => {
                let id = self.word();
                Step::MemberPromote(pb::MemberPromoteRequest {
                    id: self.member(id),
                })
            }
            "update" => {
                let id = self.word();
                let id = self.member(id);
                Step::MemberUpdate(pb::MemberUpdateRequest {
                    id,
                    peer_ur_ls: self.urls(),
                })
            }
            "move_leader" => {
                let id = self.word();
                Step::MoveLeader(pb::MoveLeaderRequest {
                    target_id: self.member(id),
                })
            }
            "alarm" => self.alarm(),
            "downgrade" => {
                let action = match self.word() {
                    "validate" => 0,
                    "enable" => 1,
                    "cancel" => 2,
                    other => self.enumerator(other),
                };
                let version = match self.peek() {
                    Some(word) => String::from_utf8_lossy(&literal(word)).into_owned(),
                    None => String::new(),
                };
                self.next += usize::from(self.peek().is_some());
                Step::Downgrade(pb::DowngradeRequest { action, version })
            }
            "defragment" => Step::Defragment,
            "raw" => {
                let path = self.word().to_owned();
                let message = self.peek().map_or_else(Bytes::new, unhex);
                self.next += usize::from(self.peek().is_some());
                Step::Raw { path, message }
            }
            other => self.unknown(other),
        }
    }

    fn range(&mut self) -> pb::RangeRequest {
        let (key, range_end) = range(self.word());
        let mut request = pb::RangeRequest {
            key,
            range_end,
            ..Default::default()
        };
        while let Some((name, value)) = self.option() {
            match name {
                "rev" => request.revision = self.number(value),
                "limit" => request.limit = self.number(value),
                "sort" => {
                    request.sort_order = match value {
                        "none" => 0,
                        "asc" => 1,
                        "desc" => 2,
                        other => self.enumerator(other),
                    }
                }
                "by" => {
                    request.sort_target = match value {
                        "key" => 0,
                        "ver" => 1,
                        "create" => 2,
                        "mod" => 3,
                        "val" => 4,
                        other => self.enumerator(other),
                    }
                }
                "keys_only" => request.keys_only = true,
                "count_only" => request.count_only = true,
                "serializable" => request.serializable = true,
                "minmod" => request.min_mod_revision = self.number(value),
                "maxmod" => request.max_mod_revision = self.number(value),
                "mincreate" => request.min_create_revision = self.number(value),
                "maxcreate" => request.max_create_revision = self.number(value),
                other => self.unknown(other),
            }
        }
        request
    }

    fn enumerator(&self, word: &str) -> i32 {
        i32::try_from(self.number(word)).expect("enumerators have 32 bits")
    }

    fn put(&mut self) -> pb::PutRequest {
        let (key, value) = (self.word(), self.word());
        let mut request = pb::PutRequest {
            key: literal(key),
            value: literal(value),
            ..Default::default()
        };
        while let Some((name, value)) = self.option() {
            match name {
                "lease" => request.lease = self.number(value),
                "prev" => request.prev_kv = true,
                "ignore_value" => request.ignore_value = true,
                "ignore_lease" => request.ignore_lease = true,
                other => self.unknown(other),
            }
        }
        request
    }

    fn delete(&mut self) -> pb::DeleteRangeRequest {
        let (key, range_end) = range(self.word());
        pb::DeleteRangeRequest {
            key,
            range_end,
            prev_kv: self.take("prev"),
        }
    }

    fn txn(&mut self) -> pb::TxnRequest {
        let mut request = pb::TxnRequest::default();
        if self.take("if") {
            self.expect("(");
            while !self.take(")") {
                request.compare.push(self.compare());
                self.take(",");
            }
        }
        if self.take("then") {
            request.success = self.operations();
        }
        if self.take("else") {
            request.failure = self.operations();
        }
        request
    }

    fn operations(&mut self) -> Vec<pb::RequestOp> {
        let mut operations = Vec::new();
        self.expect("(");
        while !self.take(")") {
            let request = match self.word() {
                "get" => Some(Request::RequestRange(self.range())),
                "put" => Some(Request::RequestPut(self.put())),
                "del" => Some(Request::RequestDeleteRange(self.delete())),
                "txn" => Some(Request::RequestTxn(self.txn())),
                "nothing" => None,
                other => self.unknown(other),
            };
            operations.push(pb::RequestOp { request });
            self.take(";");
        }
        operations
    }

    fn compare(&mut self) -> pb::Compare {
        use pb::compare::TargetUnion;
        let target = self.word();
        let (key, range_end) = range(self.word());
        let result = match self.word() {
            "=" => 0,
            ">" => 1,
            "<" => 2,
            "!=" => 3,
            other => match other.strip_prefix('r') {
                Some(number) => self.enumerator(number),
                None => self.unknown(other),
            },
        };
        let operand = self.word();
        let number = |parser: &Self| parser.number(operand);
        let (target, union) = match target {
            _ if operand == "nothing" => (target_number(target), None),
            "ver" => (0, Some(TargetUnion::Version(number(self)))),
            "create" => (1, Some(TargetUnion::CreateRevision(number(self)))),
            "mod" => (2, Some(TargetUnion::ModRevision(number(self)))),
            "val" => (3, Some(TargetUnion::Value(literal(operand)))),
            "lease" => (4, Some(TargetUnion::Lease(number(self)))),
            other => (
                target_number(other),
                Some(TargetUnion::Version(number(self))),
            ),
        };
        pb::Compare {
            result,
            target,
            key,
            range_end,
            target_union: union,
        }
    }

    fn watch(&mut self) -> Step {
        let stream = self.word().to_owned();
        let (key, range_end) = range(self.word());
        let mut request = pb::WatchCreateRequest {
            key,
            range_end,
            ..Default::default()
        };
        while let Some((name, value)) = self.option() {
            match name {
                "start" => request.start_revision = self.number(value),
                "prev" => request.prev_kv = true,
                "noput" => request.filters.push(0),
                "nodelete" => request.filters.push(1),
                "filter" => request.filters.push(self.enumerator(value)),
                "fragment" => request.fragment = true,
                "notify" => request.progress_notify = true,
                "id" => request.watch_id = self.number(value),
                other => self.unknown(other),
            }
        }
        Step::Watch { stream, request }
    }

    fn urls(&mut self) -> Vec<String> {
        let mut urls = Vec::new();
        while let Some(word) = self.peek() {
            if word == "learner" {
                break;
            }
            self.next += 1;
            if word != "," {
                urls.push(if word == "''" {
                    String::new()
                } else {
                    word.to_owned()
                });
            }
        }
        urls
    }

    fn alarm(&mut self) -> Step {
        let action = match self.word() {
            "get" => 0,
            "raise" => 1,
            "disarm" => 2,
            other => self.unknown(other),
        };
        let mut request = pb::AlarmRequest {
            action,
            ..Default::default()
        };
        if self.peek().is_some() {
            request.alarm = match self.word() {
                "none" => 0,
                "nospace" => 1,
                "corrupt" => 2,
                other => self.enumerator(other),
            };
        }
        if self.peek().is_some() {
            let id = self.word();
            request.member_id = self.member(id);
        }
        Step::Alarm(request)
    }

    fn member_add(&mut self) -> Step {
        let peer_ur_ls = self.urls();
        Step::MemberAdd(pb::MemberAddRequest {
            peer_ur_ls,
            is_learner: self.take("learner"),
        })
    }
}

fn target_number(name: &str) -> i32 {
    match name {
        "ver" => 0,
        "create" => 1,
        "mod" => 2,
        "val" => 3,
        "lease" => 4,
        other => other
            .strip_prefix('t')
            .and_then(|number| number.parse().ok())
            .unwrap_or_else(|| panic!("unknown compare target `{other}`")),
    }
}

/// Key and range end of a RANGE.
fn range(text: &str) -> (Bytes, Bytes) {
    if text == "*" {
        return (Bytes::from_static(b"\0"), Bytes::from_static(b"\0"));
    }
    if let Some(prefix) = text.strip_suffix('*') {
        let key = literal(prefix);
        let end = prefix_end(&key);
        return (key, end);
    }
    match text.split_once("..") {
        Some((start, "")) => (literal(start), Bytes::from_static(b"\0")),
        Some((start, end)) => (literal(start), literal(end)),
        None => (literal(text), Bytes::new()),
    }
}

/// The first key after all keys that begin with `prefix`.
fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end.into();
        }
    }
    Bytes::from_static(b"\0")
}

/// The bytes of a KEY or VALUE.
fn literal(text: &str) -> Bytes {
    if text == "''" {
        return Bytes::new();
    }
    if let Some((letter, count)) = text.split_once('~') {
        return letter
            .repeat(count.parse().expect("a~N: N is a number"))
            .into();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(index) = rest.find("\\x") {
        bytes.extend_from_slice(&rest.as_bytes()[..index]);
        bytes.push(u8::from_str_radix(&rest[index + 2..index + 4], 16).expect("\\xHH"));
        rest = &rest[index + 4..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes.into()
}

fn unhex(text: &str) -> Bytes {
    (0..text.len() / 2)
        .map(|index| u8::from_str_radix(&text[2 * index..2 * index + 2], 16).expect("hex digits"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYMBOLS: Symbols = Symbols {
        base: 10,
        member: 7,
    };

    #[test]
    fn a_nested_transaction_is_one_step() {
        let script = "txn if(val a = x, mod b* > @-1) then(put a 1; txn then(del a..c prev)) \
                      else(get * limit=2); compact @";
        let steps = split(script);
        assert_eq!(steps.len(), 2);
        let Step::Txn(txn) = parse(steps[0], SYMBOLS) else {
            panic!("a transaction")
        };
        assert_eq!(txn.compare.len(), 2);
        assert_eq!(&txn.compare[1].range_end[..], b"c");
        assert_eq!(txn.success.len(), 2);
        assert_eq!(txn.failure.len(), 1);
        let Step::Compact(compact) = parse(steps[1], SYMBOLS) else {
            panic!("a compaction")
        };
        assert_eq!(compact.revision, 10);
    }

    #[test]
    fn literals_can_be_any_bytes() {
        assert_eq!(&literal("''")[..], b"");
        assert_eq!(&literal("a\\x00b")[..], b"a\0b");
        assert_eq!(literal("x~300").len(), 300);
        assert_eq!(range("\\xff*").1, Bytes::from_static(b"\0"));
    }
}
