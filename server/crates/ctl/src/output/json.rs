//! JSON as Go's encoding/json writes etcd's messages: fields in the order of the messages, zeros left
//! out, bytes in base64.

use std::fmt::Write as _;

use metastore_proto::etcdserverpb as pb;
use metastore_proto::{EncodedKeyValue, authpb, mvccpb};

use super::{decode_pair, hex_id};

/// Builds one object.
#[derive(Default)]
pub struct Object {
    text: String,
}

impl Object {
    /// An object without fields.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a field whose value is JSON already.
    #[must_use]
    pub fn raw(mut self, name: &str, value: &str) -> Self {
        if !self.text.is_empty() {
            self.text.push(',');
        }
        self.text.push_str(&string(name));
        self.text.push(':');
        self.text.push_str(value);
        self
    }

    /// Adds a number unless it is 0.
    #[must_use]
    pub fn number<N: std::fmt::Display + Default + PartialEq>(self, name: &str, value: N) -> Self {
        match value == N::default() {
            true => self,
            false => self.raw(name, &value.to_string()),
        }
    }

    /// Adds a boolean unless it is false.
    #[must_use]
    pub fn boolean(self, name: &str, value: bool) -> Self {
        match value {
            true => self.raw(name, "true"),
            false => self,
        }
    }

    /// Adds a text unless it is empty.
    #[must_use]
    pub fn text(self, name: &str, value: &str) -> Self {
        match value {
            "" => self,
            value => self.raw(name, &string(value)),
        }
    }

    /// Adds bytes unless there are none.
    #[must_use]
    pub fn bytes(self, name: &str, value: &[u8]) -> Self {
        match value {
            [] => self,
            value => self.raw(name, &format!("\"{}\"", base64(value))),
        }
    }

    /// Adds a list unless it is empty.
    #[must_use]
    pub fn list(self, name: &str, items: &[String]) -> Self {
        match items {
            [] => self,
            items => self.raw(name, &array(items)),
        }
    }

    /// Adds an object if there is one.
    #[must_use]
    pub fn optional(self, name: &str, value: Option<String>) -> Self {
        match value {
            Some(value) => self.raw(name, &value),
            None => self,
        }
    }

    /// The object.
    pub fn end(self) -> String {
        format!("{{{}}}", self.text)
    }

    /// The fields without braces, to be put into another object.
    fn fields(self) -> String {
        self.text
    }

    fn join(mut self, fields: &str) -> Self {
        if !self.text.is_empty() && !fields.is_empty() {
            self.text.push(',');
        }
        self.text.push_str(fields);
        self
    }
}

/// A list of JSON values.
pub fn array(items: &[String]) -> String {
    format!("[{}]", items.join(","))
}

/// A text, escaped as Go does, which leaves no character that HTML knows.
pub fn string(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\u{1f}' => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(character));
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

/// Standard base64 with padding.
pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let at = |position: usize| u32::from(chunk.get(position).copied().unwrap_or(0));
        let group = at(0) << 16 | at(1) << 8 | at(2);
        for position in 0..4 {
            let letter = ALPHABET[(group >> (18 - 6 * position) & 63) as usize];
            text.push(if position <= chunk.len() {
                char::from(letter)
            } else {
                '='
            });
        }
    }
    text
}

fn header_object(header: &pb::ResponseHeader) -> Object {
    Object::new()
        .number("cluster_id", header.cluster_id)
        .number("member_id", header.member_id)
        .number("revision", header.revision)
        .number("raft_term", header.raft_term)
}

/// A header.
pub fn header(header: Option<&pb::ResponseHeader>) -> Option<String> {
    header.map(|header| header_object(header).end())
}

/// A response that begins with its header.
pub fn response(answer: Option<&pb::ResponseHeader>) -> Object {
    Object::new().optional("header", header(answer))
}

/// clientv3's own lease responses have the header's fields among theirs.
pub fn flat_response(answer: Option<&pb::ResponseHeader>) -> Object {
    let fields = answer.map(|header| header_object(header).fields());
    Object::new().join(&fields.unwrap_or_default())
}

/// A pair.
pub fn pair(pair: &EncodedKeyValue) -> String {
    let pair = decode_pair(pair);
    Object::new()
        .bytes("key", &pair.key)
        .number("create_revision", pair.create_revision)
        .number("mod_revision", pair.mod_revision)
        .number("version", pair.version)
        .bytes("value", &pair.value)
        .number("lease", pair.lease)
        .end()
}

fn pairs(pairs: &[EncodedKeyValue]) -> Vec<String> {
    pairs.iter().map(pair).collect()
}

/// The answer to Range.
pub fn range(answer: &pb::RangeResponse) -> String {
    response(answer.header.as_ref())
        .list("kvs", &pairs(&answer.kvs))
        .boolean("more", answer.more)
        .number("count", answer.count)
        .end()
}

/// The answer to Put.
pub fn put(answer: &pb::PutResponse) -> String {
    response(answer.header.as_ref())
        .optional("prev_kv", answer.prev_kv.as_ref().map(pair))
        .end()
}

/// The answer to DeleteRange.
pub fn delete_range(answer: &pb::DeleteRangeResponse) -> String {
    response(answer.header.as_ref())
        .number("deleted", answer.deleted)
        .list("prev_kvs", &pairs(&answer.prev_kvs))
        .end()
}

/// The answer to Txn.
pub fn txn(answer: &pb::TxnResponse) -> String {
    use pb::response_op::Response;
    let responses: Vec<_> = answer
        .responses
        .iter()
        .map(|op| {
            let inner = match &op.response {
                Some(Response::ResponseRange(answer)) => {
                    Object::new().raw("response_range", &range(answer))
                }
                Some(Response::ResponsePut(answer)) => {
                    Object::new().raw("response_put", &put(answer))
                }
                Some(Response::ResponseDeleteRange(answer)) => {
                    Object::new().raw("response_delete_range", &delete_range(answer))
                }
                Some(Response::ResponseTxn(answer)) => {
                    Object::new().raw("response_txn", &txn(answer))
                }
                None => Object::new(),
            };
            Object::new().raw("Response", &inner.end()).end()
        })
        .collect();
    response(answer.header.as_ref())
        .boolean("succeeded", answer.succeeded)
        .list("responses", &responses)
        .end()
}

/// A watch response as clientv3 has it.
pub fn watch(answer: &pb::WatchResponse) -> String {
    let events: Vec<_> = answer.events.iter().map(event).collect();
    let listed = match events.as_slice() {
        [] => "null".to_owned(),
        events => array(events),
    };
    let header = header(answer.header.as_ref()).unwrap_or_else(|| "{}".to_owned());
    Object::new()
        .raw("Header", &header)
        .raw("Events", &listed)
        .raw("CompactRevision", &answer.compact_revision.to_string())
        .raw("Canceled", &answer.canceled.to_string())
        .raw("Created", &answer.created.to_string())
        .end()
}

fn event(event: &mvccpb::Event) -> String {
    Object::new()
        .number("type", event.r#type)
        .optional("kv", event.kv.as_ref().map(pair))
        .optional("prev_kv", event.prev_kv.as_ref().map(pair))
        .end()
}

/// A member; ids as hexadecimal texts with `--hex`.
pub fn member(member: &pb::Member, hex: bool) -> String {
    let texts = |texts: &[String]| texts.iter().map(|text| string(text)).collect::<Vec<_>>();
    let object = match hex {
        true => Object::new().raw("ID", &string(&hex_id(member.id))),
        false => Object::new().number("ID", member.id),
    };
    object
        .text("name", &member.name)
        .list("peerURLs", &texts(&member.peer_ur_ls))
        .list("clientURLs", &texts(&member.client_ur_ls))
        .boolean("isLearner", member.is_learner)
        .end()
}

/// The answer to a call about members; `added` only for MemberAdd.
pub fn members(
    answer: Option<&pb::ResponseHeader>,
    added: Option<&pb::Member>,
    members: &[pb::Member],
    hex: bool,
) -> String {
    let listed: Vec<_> = members.iter().map(|each| member(each, hex)).collect();
    if !hex {
        return response(answer)
            .optional("member", added.map(|added| member(added, false)))
            .list("members", &listed)
            .end();
    }
    let header = answer.map_or_else(
        || "null".to_owned(),
        |header| {
            Object::new()
                .raw("cluster_id", &string(&hex_id(header.cluster_id)))
                .raw("member_id", &string(&hex_id(header.member_id)))
                .number("revision", header.revision)
                .number("raft_term", header.raft_term)
                .end()
        },
    );
    Object::new()
        .raw("header", &header)
        .optional("member", added.map(|added| member(added, true)))
        .raw("members", &array(&listed))
        .end()
}

/// The answer to Status.
pub fn status(answer: &pb::StatusResponse) -> String {
    let errors: Vec<_> = answer.errors.iter().map(|error| string(error)).collect();
    response(answer.header.as_ref())
        .text("version", &answer.version)
        .number("dbSize", answer.db_size)
        .number("leader", answer.leader)
        .number("raftIndex", answer.raft_index)
        .number("raftTerm", answer.raft_term)
        .number("raftAppliedIndex", answer.raft_applied_index)
        .list("errors", &errors)
        .number("dbSizeInUse", answer.db_size_in_use)
        .boolean("isLearner", answer.is_learner)
        .text("storageVersion", &answer.storage_version)
        .number("dbSizeQuota", answer.db_size_quota)
        .optional(
            "downgradeInfo",
            answer.downgrade_info.as_ref().map(|info| {
                Object::new()
                    .boolean("enabled", info.enabled)
                    .text("targetVersion", &info.target_version)
                    .end()
            }),
        )
        .end()
}

/// The answer to HashKV.
pub fn hash_kv(answer: &pb::HashKvResponse) -> String {
    response(answer.header.as_ref())
        .number("hash", answer.hash)
        .number("compact_revision", answer.compact_revision)
        .number("hash_revision", answer.hash_revision)
        .end()
}

/// The answer to Alarm.
pub fn alarms(answer: &pb::AlarmResponse) -> String {
    let alarms: Vec<_> = answer
        .alarms
        .iter()
        .map(|alarm| {
            Object::new()
                .number("memberID", alarm.member_id)
                .number("alarm", alarm.alarm)
                .end()
        })
        .collect();
    response(answer.header.as_ref())
        .list("alarms", &alarms)
        .end()
}

/// The answer to RoleGet.
pub fn role(answer: &pb::AuthRoleGetResponse) -> String {
    let permissions: Vec<_> = answer
        .perm
        .iter()
        .map(|permission: &authpb::Permission| {
            Object::new()
                .number("permType", permission.perm_type)
                .bytes("key", &permission.key)
                .bytes("range_end", &permission.range_end)
                .end()
        })
        .collect();
    response(answer.header.as_ref())
        .list("perm", &permissions)
        .end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_texts_are_written_as_go_writes_them() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(
            string("a<b>\"\n\u{1}é"),
            "\"a\\u003cb\\u003e\\\"\\n\\u0001é\""
        );
    }

    #[test]
    fn zeros_are_left_out() {
        let answer = pb::RangeResponse {
            header: Some(pb::ResponseHeader {
                cluster_id: 1,
                revision: 2,
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(
            range(&answer),
            "{\"header\":{\"cluster_id\":1,\"revision\":2}}"
        );
    }
}
