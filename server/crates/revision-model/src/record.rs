//! The two stored forms of a change: a record of the history and a key's latest row.

use bytes::{Buf, BufMut, Bytes};
use metastore_proto::{EncodedKeyValue, varint_len};
use prost::encoding::{decode_varint, encode_varint};

use crate::Revision;

/// First byte of every stored record and row. A later layout takes another number.
const FORMAT: u8 = 1;
const FLAG_TOMBSTONE: u8 = 1;
const FLAG_INLINE: u8 = 2;

/// Stored bytes that are no record: the disk or a program damaged them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a stored {what} is damaged ({bytes} bytes): stop this member, keep its data directory, and \
     restore it from a snapshot or re-add it as a new member"
)]
pub struct RecordError {
    /// Which kind of record.
    pub what: &'static str,
    /// Its length.
    pub bytes: usize,
}

/// One change in the history of the store: the value of the `revisions` table under the change's
/// [`Revision`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevisionRecord {
    /// Where and whether the key was stored before; [`Revision::NONE`] for a creation. Makes each
    /// key a linked list: `prev_kv` is one get, and compaction reads only its own window.
    pub previous: Revision,
    /// The exact `mvccpb.KeyValue` that etcd would store: for a tombstone only the key is set.
    pub key_value: EncodedKeyValue,
}

/// The newest state of a key: the value of the `latest` table under the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LatestRow {
    /// Revision of the last change.
    pub revision: Revision,
    /// Main revision of the creation; 0 for a tombstone.
    pub create_revision: i64,
    /// Changes since the creation; 0 for a tombstone.
    pub version: i64,
    /// Lease that the key is attached to; 0 for none.
    pub lease: i64,
    /// The key's previous record, as in [`RevisionRecord::previous`].
    pub previous: Revision,
    /// Whether the last change was a deletion.
    pub tombstone: bool,
    /// The encoded `KeyValue` of the last change when the engine keeps it here; `None`: read it
    /// from `revisions`.
    pub key_value: Option<EncodedKeyValue>,
}

impl RevisionRecord {
    /// The stored bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(
            1 + varint_len(self.previous.main as u64)
                + varint_len(self.previous.sub as u64)
                + self.key_value.0.len(),
        );
        self.encode_to(&mut bytes);
        bytes
    }

    /// Appends the stored bytes.
    pub fn encode_to(&self, bytes: &mut Vec<u8>) {
        bytes.put_u8(FORMAT);
        encode_varint(self.previous.main as u64, bytes);
        encode_varint(self.previous.sub as u64, bytes);
        bytes.put_slice(&self.key_value.0);
    }

    /// Reads stored bytes; the key value is a slice of them.
    ///
    /// # Errors
    /// [`RecordError`] for bytes that [`RevisionRecord::encode`] did not write.
    pub fn decode(stored: Bytes) -> Result<Self, RecordError> {
        let mut rest = stored;
        let error = RecordError {
            what: "revision record",
            bytes: rest.len(),
        };
        if !rest.has_remaining() || rest.get_u8() != FORMAT {
            return Err(error);
        }
        let mut number = || decode_varint(&mut rest).map_err(|_| error.clone());
        let previous = Revision::new(number()? as i64, number()? as i64);
        Ok(Self {
            previous,
            key_value: EncodedKeyValue(rest),
        })
    }
}

impl LatestRow {
    /// The stored bytes.
    pub fn encode(&self) -> Vec<u8> {
        let inline_bytes = self.key_value.as_ref().map_or(0, |kv| kv.0.len());
        let mut bytes = Vec::with_capacity(32 + inline_bytes);
        self.encode_to(&mut bytes, usize::MAX);
        bytes
    }

    /// Appends the stored bytes; the key value only when it has at most `inline_bytes_max` bytes.
    pub fn encode_to(&self, bytes: &mut Vec<u8>, inline_bytes_max: usize) {
        let inline = self
            .key_value
            .as_ref()
            .filter(|key_value| key_value.0.len() <= inline_bytes_max);
        bytes.put_u8(FORMAT);
        let mut flags = 0;
        if self.tombstone {
            flags |= FLAG_TOMBSTONE;
        }
        if inline.is_some() {
            flags |= FLAG_INLINE;
        }
        bytes.put_u8(flags);
        for number in [
            self.revision.main,
            self.revision.sub,
            self.create_revision,
            self.version,
            self.lease,
            self.previous.main,
            self.previous.sub,
        ] {
            encode_varint(number as u64, bytes);
        }
        if let Some(key_value) = inline {
            bytes.put_slice(&key_value.0);
        }
    }

    /// Reads stored bytes. `copy` makes the bytes of an inline key value; it is given the part of
    /// `stored` that holds them, so that callers who need only the metadata copy nothing.
    ///
    /// # Errors
    /// [`RecordError`] for bytes that [`LatestRow::encode`] did not write.
    pub fn decode_with(
        stored: &[u8],
        copy: impl FnOnce(&[u8]) -> Option<Bytes>,
    ) -> Result<Self, RecordError> {
        let error = || RecordError {
            what: "latest row",
            bytes: stored.len(),
        };
        let mut rest = stored;
        if rest.len() < 2 || rest.get_u8() != FORMAT {
            return Err(error());
        }
        let flags = rest.get_u8();
        let mut number = || {
            decode_varint(&mut rest)
                .map(|n| n as i64)
                .map_err(|_| error())
        };
        let revision = Revision::new(number()?, number()?);
        let create_revision = number()?;
        let version = number()?;
        let lease = number()?;
        let previous = Revision::new(number()?, number()?);
        let key_value = if flags & FLAG_INLINE != 0 {
            copy(rest).map(EncodedKeyValue)
        } else {
            None
        };
        Ok(Self {
            revision,
            create_revision,
            version,
            lease,
            previous,
            tombstone: flags & FLAG_TOMBSTONE != 0,
            key_value,
        })
    }

    /// Reads stored bytes with the inline key value copied.
    ///
    /// # Errors
    /// As [`LatestRow::decode_with`].
    pub fn decode(stored: &[u8]) -> Result<Self, RecordError> {
        Self::decode_with(stored, |bytes| Some(Bytes::copy_from_slice(bytes)))
    }

    /// Reads stored bytes without the key value.
    ///
    /// # Errors
    /// As [`LatestRow::decode_with`].
    pub fn decode_metadata(stored: &[u8]) -> Result<Self, RecordError> {
        Self::decode_with(stored, |_| None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_and_rows_survive_a_round_trip() {
        let record = RevisionRecord {
            previous: Revision::new(300, 2),
            key_value: EncodedKeyValue(Bytes::from_static(b"abc")),
        };
        assert_eq!(RevisionRecord::decode(record.encode().into()), Ok(record));
        for key_value in [None, Some(EncodedKeyValue(Bytes::from_static(b"xyz")))] {
            for tombstone in [false, true] {
                let row = LatestRow {
                    revision: Revision::new(i64::MAX, 1),
                    create_revision: 9,
                    version: 4,
                    lease: -7,
                    previous: Revision::NONE,
                    tombstone,
                    key_value: key_value.clone(),
                };
                assert_eq!(LatestRow::decode(&row.encode()), Ok(row));
            }
        }
    }

    #[test]
    fn damaged_bytes_are_an_error_not_a_panic() {
        for bytes in [&b""[..], b"\x02", b"\x01", b"\x01\xff", b"\x01\x00\x80"] {
            assert!(LatestRow::decode(bytes).is_err(), "{bytes:?}");
        }
        for bytes in [&b""[..], b"\x02", b"\x01", b"\x01\xff"] {
            assert!(RevisionRecord::decode(Bytes::copy_from_slice(bytes)).is_err());
        }
    }
}
