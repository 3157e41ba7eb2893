//! A response of a watch stream, all but the parts that only the server knows.

use std::borrow::Cow;

use bytes::{BufMut, Bytes};
use metastore_proto::etcdserverpb::{ResponseHeader, WatchResponse};
use prost::Message;
use prost::encoding::{bool, encode_key, encode_varint, int64};

use crate::event::EVENTS_FIELD_KEY;

/// One `WatchResponse`: events are encoded already, the header lacks cluster, member and term.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchOutput {
    /// Watcher that it is for; −1 when it is for none or for all of the stream.
    pub watch_id: i64,
    /// `header.revision`. 0 in a cancellation because of compaction, as in etcd.
    pub header_revision: i64,
    /// The watcher exists from now on (or, together with `canceled`, was refused).
    pub created: bool,
    /// Nothing comes for the watcher after this.
    pub canceled: bool,
    /// When canceled because of compaction: the first revision from which a watcher may start.
    pub compact_revision: i64,
    /// Why a watcher was refused; empty otherwise.
    pub cancel_reason: Cow<'static, str>,
    /// More of the same response follows.
    pub fragment: bool,
    /// The entries of the field `events`, encoded one behind the other, shared by all watchers that
    /// get the same.
    pub events: Bytes,
}

mod tag {
    pub const HEADER: u32 = 1;
    pub const WATCH_ID: u32 = 2;
    pub const CREATED: u32 = 3;
    pub const CANCELED: u32 = 4;
    pub const COMPACT_REVISION: u32 = 5;
    pub const CANCEL_REASON: u32 = 6;
    pub const FRAGMENT: u32 = 7;
}

impl WatchOutput {
    /// A progress notification: everything up to `revision` was delivered.
    pub(crate) fn progress(watch_id: i64, revision: i64) -> Self {
        Self {
            watch_id,
            header_revision: revision,
            ..Self::default()
        }
    }

    /// Whether it carries events, in contrast to created, canceled and progress.
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// How many events it carries. Visits each of them.
    pub fn event_count(&self) -> usize {
        let mut rest = &self.events[..];
        let mut count = 0;
        while !rest.is_empty() {
            rest = &rest[entry_len(rest)..];
            count += 1;
        }
        count
    }

    /// Whether it is a progress notification.
    pub fn is_progress(&self) -> bool {
        !self.has_events() && !self.created && !self.canceled
    }

    fn header(&self, cluster_id: u64, member_id: u64, term: u64) -> ResponseHeader {
        ResponseHeader {
            cluster_id,
            member_id,
            revision: self.header_revision,
            raft_term: term,
        }
    }

    /// Length of what [`encode`](Self::encode) writes.
    pub fn encoded_len(&self, cluster_id: u64, member_id: u64, term: u64) -> usize {
        let header = self.header(cluster_id, member_id, term).encoded_len();
        let mut length = 1 + prost::encoding::encoded_len_varint(header as u64) + header;
        if self.watch_id != 0 {
            length += int64::encoded_len(tag::WATCH_ID, &self.watch_id);
        }
        length += 2 * (usize::from(self.created) + usize::from(self.canceled));
        if self.compact_revision != 0 {
            length += int64::encoded_len(tag::COMPACT_REVISION, &self.compact_revision);
        }
        if !self.cancel_reason.is_empty() {
            let reason = self.cancel_reason.len();
            length += 1 + prost::encoding::encoded_len_varint(reason as u64) + reason;
        }
        length + 2 * usize::from(self.fragment) + self.events.len()
    }

    /// Writes the complete `etcdserverpb.WatchResponse`.
    pub fn encode(&self, cluster_id: u64, member_id: u64, term: u64, buffer: &mut impl BufMut) {
        let header = self.header(cluster_id, member_id, term);
        encode_key(
            tag::HEADER,
            prost::encoding::WireType::LengthDelimited,
            buffer,
        );
        encode_varint(header.encoded_len() as u64, buffer);
        header.encode_raw(buffer);
        if self.watch_id != 0 {
            int64::encode(tag::WATCH_ID, &self.watch_id, buffer);
        }
        if self.created {
            bool::encode(tag::CREATED, &true, buffer);
        }
        if self.canceled {
            bool::encode(tag::CANCELED, &true, buffer);
        }
        if self.compact_revision != 0 {
            int64::encode(tag::COMPACT_REVISION, &self.compact_revision, buffer);
        }
        if !self.cancel_reason.is_empty() {
            encode_key(
                tag::CANCEL_REASON,
                prost::encoding::WireType::LengthDelimited,
                buffer,
            );
            encode_varint(self.cancel_reason.len() as u64, buffer);
            buffer.put_slice(self.cancel_reason.as_bytes());
        }
        if self.fragment {
            bool::encode(tag::FRAGMENT, &true, buffer);
        }
        buffer.put_slice(&self.events);
    }

    /// The response as an ordinary message: for the JSON gateway and for tests.
    pub fn to_response(&self, cluster_id: u64, member_id: u64, term: u64) -> WatchResponse {
        let mut buffer = Vec::with_capacity(self.encoded_len(cluster_id, member_id, term));
        self.encode(cluster_id, member_id, term, &mut buffer);
        WatchResponse::decode(Bytes::from(buffer)).expect("the hub encodes valid responses")
    }

    /// Splits at event boundaries into responses below `limit` bytes; one event is never split. All
    /// but the last say `fragment`.
    pub(crate) fn into_fragments(self, limit: usize) -> Vec<Self> {
        let limit = limit.saturating_sub(RESPONSE_FIELDS_BYTES_MAX);
        if self.events.len() < limit {
            return vec![self];
        }
        let mut fragments = Vec::new();
        let mut rest = self.events.clone();
        while !rest.is_empty() {
            let mut length = entry_len(&rest);
            while length < rest.len() && length + entry_len(&rest[length..]) < limit {
                length += entry_len(&rest[length..]);
            }
            let events = rest.split_to(length);
            fragments.push(Self {
                fragment: !rest.is_empty(),
                events,
                ..self.clone()
            });
        }
        fragments
    }
}

/// The fields of a response beside events: the header with four full varints, id, flags.
const RESPONSE_FIELDS_BYTES_MAX: usize = 64;

/// Length of the first entry of encoded `events`.
fn entry_len(entries: &[u8]) -> usize {
    assert_eq!(
        entries[0], EVENTS_FIELD_KEY,
        "an entry of events starts with its key"
    );
    let mut content = &entries[1..];
    let length = prost::encoding::decode_varint(&mut content).expect("the hub wrote this length");
    entries.len() - content.len() + length as usize
}

#[cfg(test)]
mod tests {
    use metastore_proto::mvccpb;

    use super::*;

    fn entries(sizes: &[usize]) -> Bytes {
        let events = sizes
            .iter()
            .map(|size| mvccpb::Event {
                kv: Some(metastore_proto::EncodedKeyValue::from(
                    &metastore_proto::KeyValue {
                        key: vec![b'k'; *size].into(),
                        ..Default::default()
                    },
                )),
                ..Default::default()
            })
            .collect();
        let response = WatchResponse {
            events,
            ..WatchResponse::default()
        };
        response.encode_to_vec().into()
    }

    #[test]
    fn encoding_agrees_with_the_message_type() {
        let full = WatchOutput {
            watch_id: -1,
            header_revision: 77,
            created: true,
            canceled: true,
            compact_revision: 300,
            cancel_reason: "why".into(),
            fragment: true,
            events: entries(&[1, 200]),
        };
        for output in [full, WatchOutput::default()] {
            let response = output.to_response(1 << 63, 2, 3);
            let expected = WatchResponse {
                header: Some(output.header(1 << 63, 2, 3)),
                watch_id: output.watch_id,
                created: output.created,
                canceled: output.canceled,
                compact_revision: output.compact_revision,
                cancel_reason: output.cancel_reason.to_string(),
                fragment: output.fragment,
                events: WatchResponse::decode(output.events.clone()).unwrap().events,
            };
            assert_eq!(response, expected);
            assert_eq!(expected.encoded_len(), output.encoded_len(1 << 63, 2, 3));
        }
    }

    #[test]
    fn fragments_split_between_events_only() {
        let output = WatchOutput {
            events: entries(&[100, 100, 5000, 100, 100]),
            ..WatchOutput::default()
        };
        let all = output.to_response(0, 0, 0).events;
        let fragments = output.clone().into_fragments(400);
        let flags: Vec<bool> = fragments.iter().map(|it| it.fragment).collect();
        assert_eq!(flags, [true, true, false]);
        let joined: Vec<mvccpb::Event> = fragments
            .iter()
            .flat_map(|it| it.to_response(0, 0, 0).events)
            .collect();
        assert_eq!(joined, all);
        assert_eq!(output.clone().into_fragments(1 << 20), [output]);
    }
}
