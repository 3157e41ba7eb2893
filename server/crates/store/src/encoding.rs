//! `mvccpb.KeyValue` written by hand, byte for byte as etcd's protobuf library writes it.
//!
//! The hot path encodes a pair once, with exact capacity, and everybody shares the result.

use bytes::Bytes;
use metastore_proto::{EncodedKeyValue, varint_len};
use metastore_revision_model::RecordError;
use prost::encoding::{decode_varint, encode_varint};

const KEY_TAG: u8 = 0x0a;
const CREATE_TAG: u8 = 0x10;
const MOD_TAG: u8 = 0x18;
const VERSION_TAG: u8 = 0x20;
const VALUE_TAG: u8 = 0x2a;
const LEASE_TAG: u8 = 0x30;

/// The fields of a pair, borrowed.
#[derive(Clone, Copy, Default)]
pub(crate) struct Fields<'a> {
    pub key: &'a [u8],
    pub create_revision: i64,
    pub mod_revision: i64,
    pub version: i64,
    pub value: &'a [u8],
    pub lease: i64,
}

impl Fields<'_> {
    /// The encoded pair; fields that are zero are left out, in the order of their numbers.
    pub fn encode(&self) -> EncodedKeyValue {
        let number_len = |number: i64| match number {
            0 => 0,
            _ => 1 + varint_len(number as u64),
        };
        let bytes_len = |bytes: &[u8]| match bytes.len() {
            0 => 0,
            length => 1 + varint_len(length as u64) + length,
        };
        let capacity = bytes_len(self.key)
            + number_len(self.create_revision)
            + number_len(self.mod_revision)
            + number_len(self.version)
            + bytes_len(self.value)
            + number_len(self.lease);
        let mut encoded = Vec::with_capacity(capacity);
        put_bytes(&mut encoded, KEY_TAG, self.key);
        put_number(&mut encoded, CREATE_TAG, self.create_revision);
        put_number(&mut encoded, MOD_TAG, self.mod_revision);
        put_number(&mut encoded, VERSION_TAG, self.version);
        put_bytes(&mut encoded, VALUE_TAG, self.value);
        put_number(&mut encoded, LEASE_TAG, self.lease);
        debug_assert_eq!(encoded.len(), capacity, "the capacity is exact");
        EncodedKeyValue(encoded.into())
    }
}

fn put_number(encoded: &mut Vec<u8>, tag: u8, number: i64) {
    if number != 0 {
        encoded.push(tag);
        encode_varint(number as u64, encoded);
    }
}

fn put_bytes(encoded: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        encoded.push(tag);
        encode_varint(bytes.len() as u64, encoded);
        encoded.extend_from_slice(bytes);
    }
}

/// The fields of a stored pair, as slices of it.
///
/// # Errors
/// [`RecordError`] for bytes that are no `KeyValue`.
pub(crate) fn fields(encoded: &EncodedKeyValue) -> Result<Fields<'_>, RecordError> {
    let error = || RecordError {
        what: "key-value pair",
        bytes: encoded.0.len(),
    };
    let mut fields = Fields::default();
    let mut rest = &encoded.0[..];
    while let Some((&tag, after)) = rest.split_first() {
        rest = after;
        let number = decode_varint(&mut rest).map_err(|_| error())?;
        match tag {
            KEY_TAG | VALUE_TAG => {
                let length = usize::try_from(number).map_err(|_| error())?;
                let (bytes, after) = rest.split_at_checked(length).ok_or_else(error)?;
                rest = after;
                if tag == KEY_TAG {
                    fields.key = bytes;
                } else {
                    fields.value = bytes;
                }
            }
            CREATE_TAG => fields.create_revision = number as i64,
            MOD_TAG => fields.mod_revision = number as i64,
            VERSION_TAG => fields.version = number as i64,
            LEASE_TAG => fields.lease = number as i64,
            _ => return Err(error()),
        }
    }
    Ok(fields)
}

/// The key of a stored pair, as a slice that shares its memory.
///
/// # Errors
/// As [`fields`].
pub(crate) fn key(encoded: &EncodedKeyValue) -> Result<Bytes, RecordError> {
    let key = fields(encoded)?.key;
    Ok(encoded.0.slice_ref(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use metastore_proto::KeyValue;

    #[test]
    fn pairs_are_encoded_as_prost_and_etcd_encode_them() {
        for (key, value, numbers) in [
            (&b"k"[..], &b""[..], [1, 2, 3, 0]),
            (b"key", b"value", [i64::MAX, 1, 300, -5]),
            (b"tombstone", b"", [0, 0, 0, 0]),
            (&[7; 200], &[9; 70_000], [2, 128, 1, i64::MIN]),
        ] {
            let [create_revision, mod_revision, version, lease] = numbers;
            let mine = Fields {
                key,
                create_revision,
                mod_revision,
                version,
                value,
                lease,
            };
            let expected = EncodedKeyValue::from(&KeyValue {
                key: Bytes::copy_from_slice(key),
                create_revision,
                mod_revision,
                version,
                value: Bytes::copy_from_slice(value),
                lease,
            });
            let encoded = mine.encode();
            assert_eq!(encoded, expected);
            let back = fields(&encoded).expect("just encoded");
            assert_eq!((back.key, back.value), (key, value));
            assert_eq!(
                [
                    back.create_revision,
                    back.mod_revision,
                    back.version,
                    back.lease
                ],
                numbers
            );
        }
    }

    #[test]
    fn damaged_pairs_are_an_error_not_a_panic() {
        for bytes in [
            &b"\x0a"[..],
            b"\x0a\x05ab",
            b"\x10",
            b"\x99\x01",
            b"\x10\xff",
        ] {
            assert!(fields(&EncodedKeyValue(Bytes::copy_from_slice(bytes))).is_err());
        }
    }
}
