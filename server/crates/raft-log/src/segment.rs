//! Segment files.
//!
//! A segment is named by its sequence number, `0000000000000001.log`, and is zeroed in its whole
//! length before it is used, so that writing into it changes no metadata and `fdatasync` is one plain
//! flush. It starts with a header of 128 bytes:
//!
//! ```text
//! offset  0  magic           8 bytes  "MSRAFTLG"
//!         8  version         u32      1
//!        12  zero            u32
//!        16  cluster_id      u64
//!        24  member_id       u64
//!        32  sequence        u64      also in the file name
//!        40  first_index     u64      of the next entry when the segment was started; all ones: none yet
//!        48  previous_end    u64      where the records of the previous segment end; 0: no previous
//!        56  first_group     u64      number of the group at the head
//!        64  segment_bytes   u64      length of the file
//!        72  zero
//!       124  crc32c          u32      of the 124 bytes before it
//! ```
//!
//! Behind it follow records that repeat the state at this point (vote, purge, committed), so that all
//! older segments can be deleted once their entries are purged. Header and state are synced before
//! the file gets its name: a segment with a damaged header is never the trace of a crash.
//!
//! `spare` is a segment that waits for its sequence number: zeroed, or recycled with old records that
//! never validate again. `spare.tmp` is one that is being zeroed. `lock` is locked while the log is
//! open.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::DiskFile;
use crate::error::LogError;
use crate::record::{self, RECORD_HEADER_BYTES, RecordHeader, u32_at, u64_at};
use crate::types::LogIdentity;

/// Version of the format of segments and records.
pub const FORMAT_VERSION: u32 = 1;

/// Bytes of a segment before its first record.
pub const HEADER_BYTES: u64 = 128;

const MAGIC: &[u8; 8] = b"MSRAFTLG";
const CRC_OFFSET: usize = HEADER_BYTES as usize - 4;
const NO_INDEX: u64 = u64::MAX;

/// Bytes that are written when a segment is started: header, state, zeros.
///
/// The zeros matter when a crash undid the naming of a segment and its file is used again under the
/// same sequence number: only here can the first attempt have left records with a valid checksum.
pub(crate) const HEAD_BYTES: usize = 8192;

/// Longest vote. A vote is two numbers and a flag; the limit keeps the head of a segment small.
pub(crate) const VOTE_BYTES_MAX: usize = 4096;

const _: () = assert!(
    HEADER_BYTES as usize
        + (RECORD_HEADER_BYTES + VOTE_BYTES_MAX)
        + 2 * (RECORD_HEADER_BYTES + record::ENTRY_PREFIX_BYTES)
        <= HEAD_BYTES,
    "the state at the head of a segment must fit into the bytes that are always rewritten"
);

/// The next file to be a segment.
pub(crate) const SPARE_NAME: &str = "spare";
/// A spare that is being zeroed.
pub(crate) const UNFINISHED_SPARE_NAME: &str = "spare.tmp";
/// The file that is locked.
pub(crate) const LOCK_NAME: &str = "lock";

/// File name of a segment.
pub(crate) fn segment_name(sequence: u64) -> String {
    format!("{sequence:016x}.log")
}

/// Sequence number of a segment's file name; None for any other name.
pub(crate) fn sequence_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log")?;
    let sequence = u64::from_str_radix(digits, 16).ok()?;
    (segment_name(sequence) == name).then_some(sequence)
}

/// An open segment.
pub(crate) struct Segment {
    pub sequence: u64,
    pub path: PathBuf,
    pub file: Arc<dyn DiskFile>,
    /// Length of the file: where records must end.
    pub bytes: u64,
}

impl Segment {
    /// Seed of the checksums. The low half of the sequence number is enough: 2^32 segments are
    /// 256 PiB of log.
    pub fn seed(&self) -> u32 {
        self.sequence as u32
    }
}

/// What the header of a segment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub identity: LogIdentity,
    pub sequence: u64,
    pub first_index: Option<u64>,
    pub previous_end: u64,
    pub first_group: u64,
    pub segment_bytes: u64,
}

impl SegmentHeader {
    pub fn encode(&self) -> [u8; HEADER_BYTES as usize] {
        let Self {
            identity,
            sequence,
            first_index,
            previous_end,
            first_group,
            segment_bytes,
        } = *self;
        let mut bytes = [0; HEADER_BYTES as usize];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        let numbers = [
            identity.cluster_id,
            identity.member_id,
            sequence,
            first_index.unwrap_or(NO_INDEX),
            previous_end,
            first_group,
            segment_bytes,
        ];
        for (position, number) in numbers.into_iter().enumerate() {
            let offset = 16 + 8 * position;
            bytes[offset..offset + 8].copy_from_slice(&number.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes[..CRC_OFFSET]);
        bytes[CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEADER_BYTES as usize], path: &Path) -> Result<Self, LogError> {
        if &bytes[..8] != MAGIC {
            return Err(LogError::Foreign {
                path: path.to_owned(),
                reason: "it does not start as a log segment",
            });
        }
        // The version stands before the checksum is judged: a newer one may check differently.
        let version = u32_at(bytes, 8);
        let intact = crc32c::crc32c(&bytes[..CRC_OFFSET]) == u32_at(bytes, CRC_OFFSET);
        if version > FORMAT_VERSION {
            return Err(LogError::UnsupportedVersion {
                path: path.to_owned(),
                found: version,
                expected: FORMAT_VERSION,
            });
        }
        if !intact || version != FORMAT_VERSION {
            return Err(LogError::corrupt(path, 0, "the header is damaged"));
        }
        Ok(Self {
            identity: LogIdentity {
                cluster_id: u64_at(bytes, 16),
                member_id: u64_at(bytes, 24),
            },
            sequence: u64_at(bytes, 32),
            first_index: Some(u64_at(bytes, 40)).filter(|index| *index != NO_INDEX),
            previous_end: u64_at(bytes, 48),
            first_group: u64_at(bytes, 56),
            segment_bytes: u64_at(bytes, 64),
        })
    }

    /// Reads the header and checks that the file is this member's segment of that number.
    pub fn read(
        file: &dyn DiskFile,
        path: &Path,
        sequence: u64,
        identity: LogIdentity,
    ) -> Result<Self, LogError> {
        let length = file
            .length()
            .map_err(LogError::io("get the length of", path))?;
        if length < HEADER_BYTES {
            return Err(LogError::corrupt(
                path,
                length,
                "the file is shorter than a header",
            ));
        }
        let mut bytes = [0; HEADER_BYTES as usize];
        file.read_at(&mut bytes, 0)
            .map_err(LogError::io("read", path))?;
        let header = Self::decode(&bytes, path)?;
        let ids = [
            ("cluster", header.identity.cluster_id, identity.cluster_id),
            ("member", header.identity.member_id, identity.member_id),
        ];
        for (what, found, expected) in ids {
            if found != expected {
                return Err(LogError::WrongIdentity {
                    path: path.to_owned(),
                    what,
                    found,
                    expected,
                });
            }
        }
        if header.sequence != sequence {
            let reason = format!(
                "the header says segment {:x}: the file was renamed",
                header.sequence
            );
            return Err(LogError::corrupt(path, 0, reason));
        }
        if length < header.segment_bytes {
            let reason = format!(
                "the file was truncated: it has {length} of {} bytes",
                header.segment_bytes
            );
            return Err(LogError::corrupt(path, length, reason));
        }
        Ok(header)
    }
}

/// Reads records through a buffer.
pub(crate) struct Window<'a> {
    segment: &'a Segment,
    buffer: Vec<u8>,
    start: u64,
    chunk_bytes: usize,
}

impl<'a> Window<'a> {
    /// `chunk_bytes`: how much is read at once, at least.
    pub fn new(segment: &'a Segment, chunk_bytes: usize) -> Self {
        Self {
            segment,
            buffer: Vec::new(),
            start: 0,
            chunk_bytes,
        }
    }

    /// The bytes at an offset; None when the segment ends before.
    fn bytes(&mut self, offset: u64, length: usize) -> io::Result<Option<&[u8]>> {
        let end = offset + length as u64;
        if end > self.segment.bytes {
            return Ok(None);
        }
        if offset < self.start || end > self.start + self.buffer.len() as u64 {
            let rest = self.segment.bytes - offset;
            let wanted = length.max(self.chunk_bytes) as u64;
            self.buffer.clear();
            self.buffer.resize(wanted.min(rest) as usize, 0);
            self.segment.file.read_at(&mut self.buffer, offset)?;
            self.start = offset;
        }
        let from = (offset - self.start) as usize;
        Ok(Some(&self.buffer[from..from + length]))
    }

    /// The valid record at an offset and its payload; None when there is none.
    pub fn record(&mut self, offset: u64) -> io::Result<Option<(RecordHeader, &[u8])>> {
        let seed = self.segment.seed();
        let Some(header) = self.bytes(offset, RECORD_HEADER_BYTES)? else {
            return Ok(None);
        };
        let Some(header) = RecordHeader::parse(header) else {
            return Ok(None);
        };
        if u64::from(header.group_start) > offset {
            return Ok(None);
        }
        let Some(record) = self.bytes(offset, header.record_bytes() as usize)? else {
            return Ok(None);
        };
        if !record::is_intact(record, seed) {
            return Ok(None);
        }
        let payload_end = RECORD_HEADER_BYTES + header.payload_bytes as usize;
        Ok(Some((header, &record[RECORD_HEADER_BYTES..payload_end])))
    }

    /// The first valid record at or after an offset whose group number is in the range.
    pub fn find(
        &mut self,
        mut offset: u64,
        groups: &std::ops::RangeInclusive<u64>,
    ) -> io::Result<Option<(u64, RecordHeader)>> {
        while offset + RECORD_HEADER_BYTES as u64 <= self.segment.bytes {
            let rest = self.segment.bytes - offset;
            let length = rest.min(self.chunk_bytes.max(RECORD_HEADER_BYTES) as u64) as usize;
            let chunk = self
                .bytes(offset, length)?
                .expect("the length was cut to the rest of the segment");
            let limit = length - RECORD_HEADER_BYTES;
            let candidate = (0..=limit).step_by(8).find(|position| {
                RecordHeader::parse(&chunk[*position..]).is_some_and(|header| {
                    groups.contains(&header.group)
                        && u64::from(header.group_start) <= offset + *position as u64
                        && u64::from(header.group_start) >= HEADER_BYTES
                })
            });
            match candidate {
                Some(position) => {
                    offset += position as u64;
                    if let Some((header, _)) = self.record(offset)? {
                        return Ok(Some((offset, header)));
                    }
                    offset += 8;
                }
                None => offset += (limit / 8 * 8) as u64 + 8,
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_back_as_it_was_written() {
        for first_index in [None, Some(0), Some(77)] {
            let header = SegmentHeader {
                identity: LogIdentity {
                    cluster_id: 1,
                    member_id: 2,
                },
                sequence: 3,
                first_index,
                previous_end: 4,
                first_group: 5,
                segment_bytes: 6,
            };
            let decoded = SegmentHeader::decode(&header.encode(), Path::new("x")).unwrap();
            assert_eq!(decoded, header);
        }
    }

    #[test]
    fn only_full_names_are_segments() {
        assert_eq!(sequence_of(&segment_name(0x1f)), Some(0x1f));
        for name in [
            "1.log",
            "spare",
            "000000000000001F.log",
            "000000000000001f.wal",
        ] {
            assert_eq!(sequence_of(name), None, "{name}");
        }
    }
}
