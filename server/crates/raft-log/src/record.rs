//! Records: the unit that is written and checked.
//!
//! ```text
//! offset  0  crc32c       u32   of everything after it, seeded with the segment sequence
//!         4  length       u32   of the payload
//!         8  kind         u8    see [`RecordKind`]
//!         9  zero         3 bytes
//!        12  group_start  u32   offset in the segment of the first record of the same group
//!        16  group        u64   number of the group; grows by one with each sync
//!        24  payload, then zeros up to a multiple of 8
//! ```
//!
//! All numbers are little-endian. The checksum comes first so that it is computed in one pass. Two
//! different seeds give two different checksums for equal bytes (the register update of a CRC is a
//! bijection), so what a recycled file holds from its former life never validates.
//!
//! A *group* is what one sync covers. Group n + 1 is written only after the sync of group n
//! returned, therefore a valid record whose group starts *behind* a damaged place proves that the
//! damaged place was durable once.

use crate::types::{LogEntry, LogPosition};

/// Bytes of a record before its payload.
pub const RECORD_HEADER_BYTES: usize = 24;

/// Bytes of an entry's payload before the entry's own: index and term.
pub const ENTRY_PREFIX_BYTES: usize = 16;

/// Bytes that an entry with a payload of this length takes in a segment.
pub(crate) fn entry_record_bytes(payload_bytes: usize) -> u64 {
    record_bytes(ENTRY_PREFIX_BYTES + payload_bytes)
}

/// Bytes that a record with a payload of this length takes in a segment.
pub(crate) fn record_bytes(payload_bytes: usize) -> u64 {
    (RECORD_HEADER_BYTES + payload_bytes).next_multiple_of(8) as u64
}

/// What a record says. The numbers are the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// `index u64 ‖ term u64 ‖ payload`.
    Entry = 1,
    /// The vote, opaque.
    Vote = 2,
    /// Everything after a position is gone: `index u64 ‖ term u64`, or nothing for "the whole log".
    Truncate = 3,
    /// Everything up to a position is gone: `index u64 ‖ term u64`.
    Purge = 4,
    /// A position that is committed: `index u64 ‖ term u64`. Not synced.
    Committed = 5,
}

impl RecordKind {
    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Entry),
            2 => Some(Self::Vote),
            3 => Some(Self::Truncate),
            4 => Some(Self::Purge),
            5 => Some(Self::Committed),
            _ => None,
        }
    }
}

/// The fixed part of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub crc: u32,
    pub payload_bytes: u32,
    pub kind: RecordKind,
    pub group_start: u32,
    pub group: u64,
}

impl RecordHeader {
    /// None when the bytes cannot be a header (zeros, for instance).
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; RECORD_HEADER_BYTES] = bytes.first_chunk()?;
        let kind = RecordKind::from_byte(bytes[8])?;
        if bytes[9..12] != [0; 3] {
            return None;
        }
        Some(Self {
            crc: u32_at(bytes, 0),
            payload_bytes: u32_at(bytes, 4),
            kind,
            group_start: u32_at(bytes, 12),
            group: u64_at(bytes, 16),
        })
    }

    /// Bytes of the whole record with its padding.
    pub fn record_bytes(&self) -> u64 {
        record_bytes(self.payload_bytes as usize)
    }
}

/// Whether the bytes of a record, from its start to the end of its padding, have the right checksum.
pub(crate) fn is_intact(record: &[u8], seed: u32) -> bool {
    crc32c::crc32c_append(seed, &record[4..]) == u32_at(record, 0)
}

/// Where a record is written: the parts of its header that do not depend on what it says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    pub seed: u32,
    pub group: u64,
    pub group_start: u32,
}

impl Frame {
    /// Appends a record to the buffer whose payload is the parts one after the other.
    pub fn put(&self, buffer: &mut Vec<u8>, kind: RecordKind, parts: [&[u8]; 2]) {
        let payload_bytes = parts[0].len() + parts[1].len();
        let start = buffer.len();
        let size = (RECORD_HEADER_BYTES + payload_bytes).next_multiple_of(8);
        buffer.reserve(size);
        let mut header = [0; RECORD_HEADER_BYTES];
        let payload_length =
            u32::try_from(payload_bytes).expect("the size of a payload is checked when it arrives");
        header[4..8].copy_from_slice(&payload_length.to_le_bytes());
        header[8] = kind as u8;
        header[12..16].copy_from_slice(&self.group_start.to_le_bytes());
        header[16..24].copy_from_slice(&self.group.to_le_bytes());
        buffer.extend_from_slice(&header);
        buffer.extend_from_slice(parts[0]);
        buffer.extend_from_slice(parts[1]);
        buffer.resize(start + size, 0);
        let crc = crc32c::crc32c_append(self.seed, &buffer[start + 4..]);
        buffer[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    }

    pub fn put_entry(&self, buffer: &mut Vec<u8>, entry: &LogEntry) {
        let prefix = encode_position(entry.position());
        self.put(buffer, RecordKind::Entry, [&prefix, &entry.payload]);
    }

    pub fn put_position(
        &self,
        buffer: &mut Vec<u8>,
        kind: RecordKind,
        position: Option<LogPosition>,
    ) {
        match position {
            Some(position) => self.put(buffer, kind, [&encode_position(position), &[]]),
            None => self.put(buffer, kind, [&[], &[]]),
        }
    }
}

fn encode_position(position: LogPosition) -> [u8; ENTRY_PREFIX_BYTES] {
    let mut bytes = [0; ENTRY_PREFIX_BYTES];
    bytes[..8].copy_from_slice(&position.index.to_le_bytes());
    bytes[8..].copy_from_slice(&position.term.to_le_bytes());
    bytes
}

/// Position at the start of a payload; None when there is none.
pub(crate) fn decode_position(payload: &[u8]) -> Option<LogPosition> {
    if payload.len() < ENTRY_PREFIX_BYTES {
        return None;
    }
    let position = LogPosition {
        index: u64_at(payload, 0),
        term: u64_at(payload, 8),
    };
    // Nothing could follow it, so nobody wrote it.
    (position.index != u64::MAX).then_some(position)
}

/// Callers have checked the length.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(
        *bytes[offset..]
            .first_chunk()
            .expect("the caller checked the length"),
    )
}

/// Callers have checked the length.
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(
        *bytes[offset..]
            .first_chunk()
            .expect("the caller checked the length"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: Frame = Frame {
        seed: 7,
        group: 42,
        group_start: 4096,
    };

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        for payload in [0_usize, 1, 7, 8, 9, 1000] {
            let payload = vec![0xab; payload];
            let mut buffer = Vec::new();
            FRAME.put(&mut buffer, RecordKind::Vote, [&payload, b"x"]);
            assert_eq!(buffer.len() % 8, 0);
            let header = RecordHeader::parse(&buffer).unwrap();
            assert_eq!(header.kind, RecordKind::Vote);
            assert_eq!(header.group, 42);
            assert_eq!(header.group_start, 4096);
            assert_eq!(header.record_bytes(), buffer.len() as u64);
            assert_eq!(header.payload_bytes as usize, payload.len() + 1);
            assert!(is_intact(&buffer, 7));
        }
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let mut buffer = Vec::new();
        FRAME.put(&mut buffer, RecordKind::Vote, [b"hello", b""]);
        for bit in 0..buffer.len() * 8 {
            buffer[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_intact(&buffer, 7), "bit {bit}");
            buffer[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_record_of_another_segment_never_validates() {
        let mut buffer = Vec::new();
        FRAME.put(&mut buffer, RecordKind::Vote, [b"hello", b""]);
        for seed in (0..100_000).filter(|seed| *seed != 7) {
            assert!(!is_intact(&buffer, seed));
        }
    }

    #[test]
    fn zeros_are_not_a_record() {
        assert_eq!(RecordHeader::parse(&[0; 64]), None);
    }

    #[test]
    fn the_largest_index_is_no_position() {
        let payload = |index: u64| [index.to_le_bytes(), 7_u64.to_le_bytes()].concat();
        let position = decode_position(&payload(u64::MAX - 1)).expect("a position");
        assert_eq!((position.index, position.term), (u64::MAX - 1, 7));
        assert_eq!(decode_position(&payload(u64::MAX)), None);
        assert_eq!(decode_position(&payload(1)[..15]), None);
    }
}
