//! The memory engine's snapshot file.
//!
//! ```text
//! file   = magic (8 bytes) frame* end-frame
//! frame  = length of the payload u32 ‖ crc32c of the payload u32 ‖ payload      (little endian)
//! payload = 0 ‖ { main varint ‖ sub varint ‖ tombstone u8 ‖ length varint ‖ record }*
//!         | 1 ‖ table u8 ‖ { length varint ‖ key ‖ length varint ‖ value }*
//!         | 2 ‖ number of records varint ‖ number of rows varint                 the end
//! ```
//!
//! `latest` is not in the file: it is the newest record of each key.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::ops::Bound;
use std::path::{Path, PathBuf};

use bytes::{Buf, Bytes};
use metastore_revision_model::{LatestRow, Revision, RevisionRecord};
use prost::encoding::{decode_varint, encode_varint};

use crate::encoding;
use crate::engine::{EngineError, Table};
use crate::memory_engine::Rows;

const FILE_NAME: &str = "memory-engine.snapshot";
/// The last byte is the version of the format.
const MAGIC: &[u8; 8] = b"MSMEMSN\x01";
const KIND_REVISIONS: u8 = 0;
const KIND_ROWS: u8 = 1;
const KIND_END: u8 = 2;
/// Payload bytes at which a frame is closed: a checksum for each MiB, and little memory.
const FRAME_BYTES: usize = 1 << 20;
/// Frames after which the file is synced, so that a sync of the log beside it waits for a few megabytes and
/// not for the whole file.
const FRAMES_PER_SYNC: u32 = 4;
/// Longest frame that is read: a closed frame and one record of the largest request. A longer
/// length is damage, not a reason to allocate.
const FRAME_BYTES_MAX: usize = 1 << 30;

/// One record with its place in the history.
pub(crate) type Entry = (Revision, bool, RevisionRecord);

/// Writes the file into the new directory and makes both durable. `next_entries` appends the next
/// records from a bound on; it returns the record behind which there may be more.
pub(crate) fn write(
    directory: &Path,
    tables: &[std::collections::BTreeMap<Bytes, Bytes>],
    mut next_entries: impl FnMut(Bound<Revision>, &mut Vec<Entry>) -> Option<Revision>,
) -> Result<(), EngineError> {
    std::fs::create_dir_all(directory).map_err(io("create", directory))?;
    let path = directory.join(FILE_NAME);
    let file = File::create(&path).map_err(io("create", &path))?;
    let mut frames = FrameWriter {
        out: BufWriter::new(file),
        path: &path,
        payload: Vec::new(),
        unsynced: 0,
    };
    frames.write_all(MAGIC)?;

    let mut entries = Vec::new();
    let mut written_entries = 0u64;
    let mut from = Bound::Unbounded;
    loop {
        let last = next_entries(from, &mut entries);
        for (revision, tombstone, record) in entries.drain(..) {
            written_entries += 1;
            let payload = frames.open(&[KIND_REVISIONS]);
            encode_varint(revision.main as u64, payload);
            encode_varint(revision.sub as u64, payload);
            payload.push(u8::from(tombstone));
            put_bytes(payload, &record.encode());
            frames.close_when_full()?;
        }
        match last {
            Some(last) => from = Bound::Excluded(last),
            None => break,
        }
    }
    frames.close()?;

    let mut written_rows = 0u64;
    for (table, rows) in Table::ALL.into_iter().zip(tables) {
        for (key, value) in rows {
            written_rows += 1;
            let payload = frames.open(&[KIND_ROWS, table as u8]);
            put_bytes(payload, key);
            put_bytes(payload, value);
            frames.close_when_full()?;
        }
        frames.close()?;
    }

    let payload = frames.open(&[KIND_END]);
    encode_varint(written_entries, payload);
    encode_varint(written_rows, payload);
    frames.close()?;
    let file = frames
        .out
        .into_inner()
        .map_err(|error| io("write", &path)(error.into_error()))?;
    file.sync_all().map_err(io("sync", &path))?;
    // The name must survive a crash as well as the bytes (etcd #22340).
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(io("sync", directory))
}

/// Reads the file of a directory.
pub(crate) fn read(directory: &Path) -> Result<Rows, EngineError> {
    let path = directory.join(FILE_NAME);
    let file = File::open(&path).map_err(io("open", &path))?;
    let mut reader = Reader {
        file: BufReader::new(file),
        path: &path,
        offset: 0,
    };
    let mut rows = Rows::default();
    let mut magic = [0; MAGIC.len()];
    reader.read_exact(&mut magic)?;
    if magic != *MAGIC {
        return Err(reader.damaged("it does not begin as a snapshot of this version"));
    }
    let mut entries = 0;
    let mut table_rows = 0;
    loop {
        let mut payload = reader.frame()?;
        let parsed = match payload.first() {
            Some(&KIND_REVISIONS) => {
                payload.advance(1);
                read_entries(payload, &mut rows).map(|count| entries += count)
            }
            Some(&KIND_ROWS) => {
                payload.advance(1);
                read_rows(payload, &mut rows).map(|count| table_rows += count)
            }
            Some(&KIND_END) => {
                payload.advance(1);
                let counts = (decode_varint(&mut payload), decode_varint(&mut payload));
                return match counts {
                    (Ok(e), Ok(r)) if (e, r) == (entries, table_rows) => reader.end(rows),
                    _ => Err(reader.damaged("frames are missing")),
                };
            }
            _ => None,
        };
        if parsed.is_none() {
            return Err(reader.damaged("a frame with a valid checksum has no valid content"));
        }
    }
}

fn read_entries(mut payload: Bytes, rows: &mut Rows) -> Option<u64> {
    let mut count = 0;
    while payload.has_remaining() {
        let main = decode_varint(&mut payload).ok()? as i64;
        let sub = decode_varint(&mut payload).ok()? as i64;
        let revision = Revision::new(main, sub);
        let tombstone = payload.try_get_u8().ok()? != 0;
        // A copy of its own: a slice would keep the whole frame alive for one record.
        let record = Bytes::copy_from_slice(&take_bytes(&mut payload)?);
        let record = RevisionRecord::decode(record).ok()?;
        let fields = encoding::fields(&record.key_value).ok()?;
        let row = LatestRow {
            revision,
            create_revision: fields.create_revision,
            version: fields.version,
            lease: fields.lease,
            previous: record.previous,
            tombstone,
            key_value: (!tombstone).then(|| record.key_value.clone()),
        };
        count += 1;
        if fields.key.is_empty() {
            // Only raises the revision: see `Importer::record`.
            rows.revisions.insert(revision, (tombstone, record));
            continue;
        }
        // Records ascend, so the last one of a key is its newest.
        match rows.latest.get_mut(fields.key) {
            Some(latest) => *latest = row,
            None => {
                let key = Bytes::copy_from_slice(fields.key);
                rows.latest.insert(key, row);
            }
        }
        rows.revisions.insert(revision, (tombstone, record));
    }
    Some(count)
}

fn read_rows(mut payload: Bytes, rows: &mut Rows) -> Option<u64> {
    let table = usize::from(payload.try_get_u8().ok()?);
    let table = rows.tables.get_mut(table)?;
    let mut count = 0;
    while payload.has_remaining() {
        let key = Bytes::copy_from_slice(&take_bytes(&mut payload)?);
        let value = Bytes::copy_from_slice(&take_bytes(&mut payload)?);
        table.insert(key, value);
        count += 1;
    }
    Some(count)
}

fn put_bytes(payload: &mut Vec<u8>, bytes: &[u8]) {
    encode_varint(bytes.len() as u64, payload);
    payload.extend_from_slice(bytes);
}

fn take_bytes(payload: &mut Bytes) -> Option<Bytes> {
    let length = usize::try_from(decode_varint(payload).ok()?).ok()?;
    (length <= payload.len()).then(|| payload.split_to(length))
}

fn io<'a>(verb: &'a str, path: &'a Path) -> impl FnOnce(std::io::Error) -> EngineError + 'a {
    move |source| EngineError::Io {
        context: format!("cannot {verb} {}", path.display()),
        source,
    }
}

struct FrameWriter<'a> {
    out: BufWriter<File>,
    path: &'a PathBuf,
    payload: Vec<u8>,
    /// Frames since the last sync.
    unsynced: u32,
}

impl FrameWriter<'_> {
    /// The payload of the current frame, begun with `header` when it is new.
    fn open(&mut self, header: &[u8]) -> &mut Vec<u8> {
        if self.payload.is_empty() {
            self.payload.extend_from_slice(header);
        }
        &mut self.payload
    }

    fn close_when_full(&mut self) -> Result<(), EngineError> {
        match self.payload.len() >= FRAME_BYTES {
            true => self.close(),
            false => Ok(()),
        }
    }

    fn close(&mut self) -> Result<(), EngineError> {
        if self.payload.is_empty() {
            return Ok(());
        }
        let payload = std::mem::take(&mut self.payload);
        assert!(
            payload.len() <= FRAME_BYTES_MAX,
            "a frame holds a MiB and one record"
        );
        self.write_all(&(payload.len() as u32).to_le_bytes())?;
        self.write_all(&crc32c::crc32c(&payload).to_le_bytes())?;
        self.write_all(&payload)?;
        self.unsynced += 1;
        if self.unsynced == FRAMES_PER_SYNC {
            self.unsynced = 0;
            self.out.flush().map_err(io("write", self.path))?;
            let file = self.out.get_ref();
            file.sync_data().map_err(io("sync", self.path))?;
        }
        Ok(())
    }

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), EngineError> {
        self.out.write_all(bytes).map_err(io("write", self.path))
    }
}

struct Reader<'a> {
    file: BufReader<File>,
    path: &'a Path,
    offset: u64,
}

impl Reader<'_> {
    fn frame(&mut self) -> Result<Bytes, EngineError> {
        let mut header = [0; 8];
        self.read_exact(&mut header)?;
        let [a, b, c, d, checksum @ ..] = header;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(self.damaged("a frame says that it is longer than any frame"));
        }
        let mut payload = vec![0; length];
        self.read_exact(&mut payload)?;
        if crc32c::crc32c(&payload) != u32::from_le_bytes(checksum) {
            return Err(self.damaged("a checksum is wrong"));
        }
        Ok(payload.into())
    }

    fn end(&mut self, rows: Rows) -> Result<Rows, EngineError> {
        let mut rest = [0];
        match self.file.read(&mut rest) {
            Ok(0) => Ok(rows),
            Ok(_) => Err(self.damaged("bytes follow its end")),
            Err(error) => Err(io("read", self.path)(error)),
        }
    }

    fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), EngineError> {
        match self.file.read_exact(bytes) {
            Ok(()) => {
                self.offset += bytes.len() as u64;
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(self.damaged("it ends too early"))
            }
            Err(error) => Err(io("read", self.path)(error)),
        }
    }

    fn damaged(&self, how: &str) -> EngineError {
        EngineError::Storage(format!(
            "the snapshot file {} is damaged near byte {}: {how}; nothing was repaired. Stop this \
             member, keep the file, and restore the member from another snapshot or remove it and \
             add it again as a new member",
            self.path.display(),
            self.offset
        ))
    }
}
