//! Changes as the store publishes them, and how they look on the wire.

use bytes::{BufMut, Bytes, BytesMut};
use metastore_proto::{EncodedKeyValue, varint_len};

pub use metastore_store::{EventScan, RevisionEvents, StoredEvent};

/// Bookkeeping of one event in memory, beside its bytes.
const EVENT_OVERHEAD_BYTES: usize = 160;

/// Memory that the events of a revision keep alive.
pub(crate) fn memory_bytes(revision: &RevisionEvents) -> usize {
    revision
        .events
        .iter()
        .map(|event| {
            let previous = event.previous_key_value.as_ref();
            EVENT_OVERHEAD_BYTES
                + event.key.len()
                + event.key_value.0.len()
                + previous.map_or(0, |pair| pair.0.len())
        })
        .sum()
}

/// Key of field 11, `events`, of a `WatchResponse`.
pub(crate) const EVENTS_FIELD_KEY: u8 = (11 << 3) | 2;
const TYPE_FIELD_KEY: u8 = 1 << 3;
const KEY_VALUE_FIELD_KEY: u8 = (2 << 3) | 2;
const PREVIOUS_FIELD_KEY: u8 = (3 << 3) | 2;
const TYPE_DELETE: u8 = 1;

/// The event as one entry of the field `events` of a `WatchResponse`, key and length included, so
/// that responses are made by putting entries one behind the other.
pub(crate) fn encode(event: &StoredEvent, previous: Option<&EncodedKeyValue>) -> Bytes {
    let field_len = |pair: &EncodedKeyValue| 1 + varint_len(pair.0.len() as u64) + pair.0.len();
    let type_len = if event.tombstone { 2 } else { 0 };
    let length = type_len + field_len(&event.key_value) + previous.map_or(0, field_len);
    let mut buffer = BytesMut::with_capacity(1 + varint_len(length as u64) + length);
    buffer.put_u8(EVENTS_FIELD_KEY);
    put_varint(&mut buffer, length as u64);
    if event.tombstone {
        buffer.put_slice(&[TYPE_FIELD_KEY, TYPE_DELETE]);
    }
    put_field(&mut buffer, KEY_VALUE_FIELD_KEY, &event.key_value.0);
    if let Some(previous) = previous {
        put_field(&mut buffer, PREVIOUS_FIELD_KEY, &previous.0);
    }
    buffer.freeze()
}

fn put_field(buffer: &mut BytesMut, field_key: u8, content: &[u8]) {
    buffer.put_u8(field_key);
    put_varint(buffer, content.len() as u64);
    buffer.put_slice(content);
}

fn put_varint(buffer: &mut BytesMut, value: u64) {
    prost::encoding::encode_varint(value, buffer);
}

#[cfg(test)]
mod tests {
    use metastore_proto::{KeyValue, etcdserverpb::WatchResponse, mvccpb};
    use metastore_revision_model::Revision;
    use prost::Message;

    use super::*;

    fn pair(value: &'static str, mod_revision: i64) -> EncodedKeyValue {
        EncodedKeyValue::from(&KeyValue {
            key: "k".into(),
            value: value.into(),
            mod_revision,
            ..KeyValue::default()
        })
    }

    #[test]
    fn an_encoded_event_is_an_entry_of_the_events_of_a_response() {
        for (tombstone, previous) in [
            (false, None),
            (false, Some(pair("old", 4))),
            (true, None),
            (true, Some(pair("old", 4))),
        ] {
            let event = StoredEvent {
                key: "k".into(),
                revision: Revision::new(7, 0),
                tombstone,
                created: false,
                key_value: pair("new", 7),
                previous: Revision::new(4, 0),
                previous_key_value: None,
            };
            let response = WatchResponse::decode(encode(&event, previous.as_ref())).unwrap();
            assert_eq!(
                response.events,
                [mvccpb::Event {
                    r#type: i32::from(tombstone),
                    kv: Some(pair("new", 7)),
                    prev_kv: previous,
                }]
            );
        }
    }
}
