//! How leases and their attached keys look in the tables `lease` and `lease_keys`.

use bytes::Bytes;
use metastore_revision_model::RecordError;
use prost::encoding::{decode_varint, encode_varint};

/// First byte of every row of `lease`. A later layout takes another number.
const FORMAT: u8 = 1;

/// What a lease adds to the logical size; etcd's estimate. Without it leases could fill a store whose
/// quota looks at keys only.
pub(crate) const LEASE_BYTES: i64 = 64;

/// The replicated part of a lease. When it expires is known to the leader alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseRecord {
    /// The lease's id, never 0.
    pub id: i64,
    /// The granted time to live in seconds.
    pub granted_ttl: i64,
    /// Seconds that were left at the last checkpoint; 0: no checkpoint since the last renewal.
    pub remaining_ttl: i64,
}

impl LeaseRecord {
    /// The key of the lease's row.
    pub(crate) fn row_key(id: i64) -> Bytes {
        Bytes::copy_from_slice(&id.to_be_bytes())
    }

    /// The value of the lease's row.
    pub(crate) fn encode(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(21);
        bytes.push(FORMAT);
        encode_varint(self.granted_ttl as u64, &mut bytes);
        encode_varint(self.remaining_ttl as u64, &mut bytes);
        bytes.into()
    }

    /// Reads a row.
    pub(crate) fn decode(key: &[u8], value: &[u8]) -> Result<Self, RecordError> {
        let error = || RecordError {
            what: "lease row",
            bytes: value.len(),
        };
        let id = key.try_into().map(i64::from_be_bytes);
        let Some((&FORMAT, mut rest)) = value.split_first() else {
            return Err(error());
        };
        let mut number = || decode_varint(&mut rest).map_err(|_| error());
        Ok(Self {
            id: id.map_err(|_| error())?,
            granted_ttl: number()? as i64,
            remaining_ttl: number()? as i64,
        })
    }
}

/// The row key that says that `key` is attached to the lease. Rows of one lease sort by key.
pub(crate) fn attachment(id: i64, key: &[u8]) -> Bytes {
    let mut bytes = Vec::with_capacity(8 + key.len());
    bytes.extend_from_slice(&id.to_be_bytes());
    bytes.extend_from_slice(key);
    bytes.into()
}

/// The attached key of a row key of `lease_keys`.
pub(crate) fn attached_key(row_key: &[u8]) -> Result<Bytes, RecordError> {
    match row_key.get(8..) {
        Some(key) if !key.is_empty() => Ok(Bytes::copy_from_slice(key)),
        _ => Err(RecordError {
            what: "lease key row",
            bytes: row_key.len(),
        }),
    }
}
