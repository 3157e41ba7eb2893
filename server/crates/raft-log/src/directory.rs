//! Making and removing segment files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::disk::{Disk, DiskFile};
use crate::error::LogError;
use crate::segment::{
    HEAD_BYTES, SPARE_NAME, Segment, SegmentHeader, UNFINISHED_SPARE_NAME, segment_name,
};
use crate::types::LogIdentity;

/// Zeros are written in pieces of this size.
const ZERO_CHUNK_BYTES: usize = 1024 * 1024;

/// Zeros are synced after this many pieces, so that a sync of the log beside it waits for a few
/// megabytes at most.
const ZERO_CHUNKS_PER_SYNC: usize = 4;

/// The directory of a log.
#[derive(Clone)]
pub(crate) struct LogDirectory {
    pub disk: Arc<dyn Disk>,
    pub path: PathBuf,
    pub identity: LogIdentity,
}

impl LogDirectory {
    pub fn file_path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub fn segment_path(&self, sequence: u64) -> PathBuf {
        self.file_path(&segment_name(sequence))
    }

    /// Makes a spare segment of zeros. Ends early, without a spare, when `stop` becomes true.
    pub fn make_spare(&self, bytes: u64, stop: &AtomicBool) -> Result<(), LogError> {
        let unfinished = self.file_path(UNFINISHED_SPARE_NAME);
        let file = self
            .disk
            .create(&unfinished)
            .map_err(LogError::io("create", &unfinished))?;
        let made = self.fill_spare(&unfinished, &*file, bytes, stop);
        if made.is_err() {
            // On a full disk the half-made file would take what others still need. The error that is
            // reported is the first one.
            let _ = self.disk.remove(&unfinished);
        }
        made
    }

    fn fill_spare(
        &self,
        unfinished: &Path,
        file: &dyn DiskFile,
        bytes: u64,
        stop: &AtomicBool,
    ) -> Result<(), LogError> {
        let chunk = vec![0; ZERO_CHUNK_BYTES.min(bytes as usize)];
        let mut offset = 0;
        let mut chunks = 0;
        while offset < bytes {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let length = (bytes - offset).min(chunk.len() as u64);
            file.write_at(&chunk[..length as usize], offset)
                .map_err(LogError::io("reserve space for", unfinished))?;
            offset += length;
            chunks += 1;
            if chunks % ZERO_CHUNKS_PER_SYNC == 0 || offset == bytes {
                file.sync_data().map_err(LogError::io("sync", unfinished))?;
            }
        }
        let spare = self.file_path(SPARE_NAME);
        self.disk
            .rename(unfinished, &spare)
            .map_err(LogError::io("rename", unfinished))?;
        self.sync()
    }

    /// Turns the spare into a segment: header and state are durable before the name is.
    ///
    /// `records` are the encoded records that repeat the state. A missing spare, or one of another
    /// size, is made anew.
    pub fn start_segment(
        &self,
        header: &SegmentHeader,
        records: &[u8],
        spare_ready: bool,
    ) -> Result<Arc<Segment>, LogError> {
        let spare = self.file_path(SPARE_NAME);
        if !spare_ready || !self.spare_has_length(&spare, header.segment_bytes)? {
            self.make_spare(header.segment_bytes, &AtomicBool::new(false))?;
        }
        let file = self
            .disk
            .open(&spare)
            .map_err(LogError::io("open", &spare))?;
        let mut head = Vec::with_capacity(HEAD_BYTES);
        head.extend_from_slice(&header.encode());
        head.extend_from_slice(records);
        assert!(
            head.len() <= HEAD_BYTES,
            "the state at the head of a segment is limited by the limits of its parts"
        );
        head.resize(HEAD_BYTES, 0);
        let path = self.segment_path(header.sequence);
        file.write_at(&head, 0)
            .map_err(LogError::io("write the header of", &spare))?;
        file.sync_data().map_err(LogError::io("sync", &spare))?;
        self.disk
            .rename(&spare, &path)
            .map_err(LogError::io("rename the spare to", &path))?;
        self.sync()?;
        Ok(Arc::new(Segment {
            sequence: header.sequence,
            path,
            file,
            bytes: header.segment_bytes,
        }))
    }

    fn spare_has_length(&self, spare: &Path, bytes: u64) -> Result<bool, LogError> {
        let file = self.disk.open(spare).map_err(LogError::io("open", spare))?;
        let length = file
            .length()
            .map_err(LogError::io("get the length of", spare))?;
        Ok(length == bytes)
    }

    /// Removes a segment, or keeps its file as the spare.
    pub fn retire_segment(&self, path: &Path, keep_as_spare: bool) -> Result<(), LogError> {
        if keep_as_spare {
            self.disk
                .rename(path, &self.file_path(SPARE_NAME))
                .map_err(LogError::io("recycle", path))
        } else {
            self.disk.remove(path).map_err(LogError::io("remove", path))
        }
    }

    /// Makes the names durable.
    pub fn sync(&self) -> Result<(), LogError> {
        self.disk
            .sync_directory(&self.path)
            .map_err(LogError::io("sync the directory", &self.path))
    }
}
