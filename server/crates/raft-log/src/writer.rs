//! The writer: one group after the other.
//!
//! There are no timers: while one sync runs, the requests for the next group gather in the queue.

use std::collections::VecDeque;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::directory::LogDirectory;
use crate::disk::DiskLock;
use crate::error::LogError;
use crate::index::{Point, PointSpacing};
use crate::log::{Failure, Operation, Request, Shared};
use crate::record::{Frame, RecordKind, entry_record_bytes, record_bytes};
use crate::recovery::{Recovered, active_segment};
use crate::segment::{HEAD_BYTES, HEADER_BYTES, Segment, SegmentHeader};
use crate::types::{Completion, LogEntry, LogPosition, next_index};

/// A group is written when its buffer is this full, even when more is queued: it bounds the buffer,
/// and the time until the first completion.
const GROUP_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A buffer that one large entry has blown up is given back.
const BUFFER_BYTES_KEPT: usize = 2 * GROUP_BYTES_MAX;

/// What a step did.
pub(crate) enum Step {
    Worked,
    Idle,
    Failed,
}

/// A change of the index that takes effect when the records are in the file.
enum IndexChange {
    Point(Point),
    Truncate { next: u64 },
    Purge { first: u64, emptied: bool },
}

/// Writes the queue to the segments.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    directory: LogDirectory,
    /// Released when the writer ends.
    _lock: Box<dyn DiskLock>,
    background_threads: bool,

    // Where the next record goes.
    segment: Arc<Segment>,
    /// End of what is in the file; the buffer comes behind it.
    offset: u64,
    group: u64,
    group_start: u64,
    /// Whether the file has bytes that were not synced.
    dirty: bool,
    buffer: Vec<u8>,
    records: u64,

    // The log at the last record in the buffer; repeated at the head of the next segment.
    vote: Option<Bytes>,
    purged: Option<LogPosition>,
    committed: Option<LogPosition>,
    next: Option<u64>,

    // What happens when the buffer is written and synced.
    operations: VecDeque<Operation>,
    completions: VecDeque<Completion>,
    index_changes: Vec<IndexChange>,
    spacing: PointSpacing,
    written_ticket: u64,
    written_bytes: usize,
    must_sync: bool,
    must_retire: bool,

    spare_ready: bool,
    spare_maker: Option<SpareMaker>,
    removal: Option<Removal>,
}

/// A removal of segments that another thread makes durable.
struct Removal {
    /// Tells when it is durable; the segments are freed after that.
    durable: mpsc::Receiver<Result<(), LogError>>,
    /// One of them became the spare.
    recycles: bool,
}

/// The thread that zeroes the next segment.
struct SpareMaker {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), LogError>>,
}

/// Bytes of a removed segment that are freed at once.
const FREED_BYTES: u64 = 4 << 20;
/// Between two such steps: syncs of the log go on.
const FREEING_PAUSE: Duration = Duration::from_millis(5);

/// Frees a segment that has no name any more: at once this would delay syncs of other files. Readers that
/// still have it free it with their last look.
fn free(segment: Arc<Segment>) {
    let Ok(segment) = Arc::try_unwrap(segment) else {
        return;
    };
    let mut bytes = segment.bytes;
    while bytes > FREED_BYTES {
        bytes -= FREED_BYTES;
        if segment.file.shrink(bytes).is_err() {
            return;
        }
        thread::sleep(FREEING_PAUSE);
    }
}

/// The body of the writer thread. It shares the writer with callers who write themselves.
pub(crate) fn run(shared: &Shared, writer: &Mutex<Option<Writer>>) {
    let ended = panic::catch_unwind(AssertUnwindSafe(|| {
        loop {
            let closing = wait(shared);
            let step = match &mut *writer.lock() {
                Some(writer) => writer.step(),
                None => return,
            };
            match step {
                Step::Worked => {}
                Step::Idle if closing => break,
                Step::Idle => {}
                Step::Failed => break,
            }
        }
    }));
    // Taken out, so that its lock on the directory is released.
    let Some(mut writer) = writer.lock().take() else {
        return;
    };
    if ended.is_ok() {
        writer.finish();
    } else {
        writer.fail(Failure {
            kind: io::ErrorKind::Other,
            message: "raft log: the writer thread panicked, probably in a completion".to_owned(),
        });
    }
}

/// Waits for something to do; returns whether the log is being closed.
fn wait(shared: &Shared) -> bool {
    let mut inner = shared.inner.lock();
    while inner.queue.is_empty() && !inner.closing && inner.failure.is_none() {
        inner.writer_waits = true;
        shared.wake.wait(&mut inner);
        inner.writer_waits = false;
    }
    inner.closing
}

impl Writer {
    pub fn new(
        shared: Arc<Shared>,
        directory: LogDirectory,
        lock: Box<dyn DiskLock>,
        recovered: &Recovered,
        background_threads: bool,
    ) -> Self {
        Self {
            shared,
            directory,
            _lock: lock,
            background_threads,
            segment: active_segment(&recovered.segments),
            offset: recovered.offset,
            group: recovered.group,
            group_start: recovered.offset,
            dirty: false,
            buffer: Vec::new(),
            records: 0,
            vote: recovered.state.vote.clone(),
            purged: recovered.state.purged,
            committed: recovered.state.committed,
            next: next_index(recovered.state.last),
            operations: VecDeque::new(),
            completions: VecDeque::new(),
            index_changes: Vec::new(),
            spacing: recovered.spacing,
            written_ticket: 0,
            written_bytes: 0,
            must_sync: false,
            must_retire: false,
            spare_ready: recovered.spare_ready,
            spare_maker: None,
            removal: None,
        }
    }

    /// Writes, syncs and completes everything that is queued.
    pub fn step(&mut self) -> Step {
        {
            let mut inner = self.shared.inner.lock();
            if let Some(failure) = inner.failure.clone() {
                drop(inner);
                self.complete_with_failure(&failure);
                return Step::Failed;
            }
            if inner.queue.is_empty() {
                return Step::Idle;
            }
            self.operations.extend(inner.queue.drain(..));
        }
        match self.write_operations() {
            Ok(()) => Step::Worked,
            Err(error) => {
                self.fail(Failure {
                    kind: error.kind(),
                    message: error.full_message(),
                });
                Step::Failed
            }
        }
    }

    /// Ends in good order: the last hints become durable.
    pub fn finish(&mut self) {
        if let Some(maker) = self.spare_maker.take() {
            maker.stop.store(true, Ordering::Relaxed);
            // It only makes a spare: its errors come back when a spare is needed.
            let _ = maker.thread.join();
        }
        // The next start removes again what is still there.
        let _ = self.settle_removal(true);
        let failed = self.shared.inner.lock().failure.is_some();
        if !failed
            && self.dirty
            && let Err(error) = self.sync()
        {
            self.fail(Failure {
                kind: error.kind(),
                message: error.full_message(),
            });
        }
    }

    /// Ends as a killed process does.
    pub fn abandon(&mut self) {
        self.complete_with_failure(&Failure {
            kind: io::ErrorKind::Other,
            message: "raft log: it was dropped".to_owned(),
        });
    }

    /// Makes the first error final and gives it to everyone who waits.
    fn fail(&mut self, failure: Failure) {
        tracing::error!("{}", failure.message);
        let failure = {
            let mut inner = self.shared.inner.lock();
            inner
                .failure
                .get_or_insert_with(|| Arc::new(failure))
                .clone()
        };
        self.complete_with_failure(&failure);
    }

    fn complete_with_failure(&mut self, failure: &Failure) {
        while let Some(done) = self.completions.pop_front() {
            done(Err(failure.to_io()));
        }
        loop {
            while let Some(operation) = self.operations.pop_front() {
                if let Some(done) = operation.done {
                    done(Err(failure.to_io()));
                }
            }
            let mut inner = self.shared.inner.lock();
            if inner.queue.is_empty() {
                return;
            }
            self.operations.extend(inner.queue.drain(..));
        }
    }

    fn write_operations(&mut self) -> Result<(), LogError> {
        while let Some(operation) = self.operations.pop_front() {
            let Operation {
                ticket,
                request,
                done,
                bytes,
            } = operation;
            if let Err(error) = self.encode(&request) {
                self.completions.extend(done);
                return Err(error);
            }
            self.completions.extend(done);
            self.written_ticket = ticket;
            self.written_bytes += bytes;
            if self.buffer.len() >= GROUP_BYTES_MAX {
                self.flush()?;
            }
        }
        self.flush()
    }

    fn encode(&mut self, request: &Request) -> Result<(), LogError> {
        match request {
            Request::Append(entries) => entries.iter().try_for_each(|entry| self.put_entry(entry)),
            Request::Vote(vote) => {
                self.make_room(record_bytes(vote.len()))?;
                self.frame()
                    .put(&mut self.buffer, RecordKind::Vote, [vote, &[]]);
                self.must_sync = true;
                self.vote = Some(vote.clone());
                self.records += 1;
                Ok(())
            }
            Request::Committed(position) => {
                self.put_position(RecordKind::Committed, Some(*position))?;
                self.committed = Some(*position);
                Ok(())
            }
            Request::Truncate(last_kept) => {
                self.put_position(RecordKind::Truncate, *last_kept)?;
                self.must_sync = true;
                self.next = next_index(*last_kept);
                self.spacing.force();
                self.index_changes.push(IndexChange::Truncate {
                    next: self.next.unwrap_or(0),
                });
                Ok(())
            }
            Request::Purge(up_to) => {
                self.put_position(RecordKind::Purge, Some(*up_to))?;
                self.must_sync = true;
                self.must_retire = true;
                self.purged = Some(*up_to);
                let first = up_to.index + 1;
                let emptied = self.next.is_none_or(|next| next <= first);
                if emptied {
                    self.next = Some(first);
                    self.spacing.force();
                }
                self.index_changes
                    .push(IndexChange::Purge { first, emptied });
                Ok(())
            }
            Request::Nothing => Ok(()),
        }
    }

    fn put_entry(&mut self, entry: &LogEntry) -> Result<(), LogError> {
        assert!(
            self.next.is_none_or(|next| next == entry.index),
            "entries arrive without a gap: append checks them before it queues them"
        );
        self.make_room(entry_record_bytes(entry.payload.len()))?;
        let offset = self.end();
        if self.spacing.wants(offset) {
            self.index_changes.push(IndexChange::Point(Point {
                index: entry.index,
                segment: self.segment.sequence,
                offset,
            }));
        }
        self.frame().put_entry(&mut self.buffer, entry);
        self.must_sync = true;
        self.next = Some(entry.index + 1);
        self.records += 1;
        Ok(())
    }

    fn put_position(
        &mut self,
        kind: RecordKind,
        position: Option<LogPosition>,
    ) -> Result<(), LogError> {
        self.make_room(entry_record_bytes(0))?;
        self.frame().put_position(&mut self.buffer, kind, position);
        self.records += 1;
        Ok(())
    }

    fn frame(&self) -> Frame {
        Frame {
            seed: self.segment.seed(),
            group: self.group,
            group_start: u32::try_from(self.group_start).expect("segments are below 4 GiB"),
        }
    }

    /// Where the next record goes.
    fn end(&self) -> u64 {
        self.offset + self.buffer.len() as u64
    }

    /// Starts a new segment when the next record does not fit into this one.
    fn make_room(&mut self, record_bytes: u64) -> Result<(), LogError> {
        if self.end() + record_bytes <= self.segment.bytes {
            return Ok(());
        }
        self.flush()?;
        self.start_segment(record_bytes)
    }

    /// Writes the buffer, syncs it when someone waits for that, and completes.
    fn flush(&mut self) -> Result<(), LogError> {
        if !self.buffer.is_empty() {
            let started = Instant::now();
            self.segment
                .file
                .write_at(&self.buffer, self.offset)
                .map_err(LogError::io("write", &self.segment.path))?;
            self.dirty = true;
            self.offset += self.buffer.len() as u64;
            if let Some(observer) = &self.shared.options.observer {
                observer.written(self.buffer.len() as u64, self.records, started.elapsed());
            }
            self.records = 0;
            self.buffer.clear();
            self.buffer.shrink_to(BUFFER_BYTES_KEPT);
        }
        self.publish_written();
        if self.must_sync {
            self.sync()?;
        }
        while let Some(done) = self.completions.pop_front() {
            done(Ok(()));
        }
        if self.must_retire {
            self.must_retire = false;
            self.retire_segments()?;
        }
        self.prepare_spare();
        Ok(())
    }

    /// What is in the file may be read from there, and may leave the memory.
    fn publish_written(&mut self) {
        let mut inner = self.shared.inner.lock();
        for change in self.index_changes.drain(..) {
            match change {
                IndexChange::Point(point) => inner.index.push(point),
                IndexChange::Truncate { next } => inner.index.truncate(next),
                IndexChange::Purge { emptied: true, .. } => inner.index.clear(),
                IndexChange::Purge { first, .. } => inner.index.purge(first),
            }
        }
        inner.cache.written(self.written_ticket);
        inner.queued_bytes -= self.written_bytes;
        self.written_bytes = 0;
    }

    /// Ends the group: what was written is durable.
    fn sync(&mut self) -> Result<(), LogError> {
        if !self.shared.options.unsafe_no_sync {
            let started = Instant::now();
            self.segment
                .file
                .sync_data()
                .map_err(LogError::io("sync", &self.segment.path))?;
            if let Some(observer) = &self.shared.options.observer {
                observer.synced(started.elapsed());
            }
        }
        self.dirty = false;
        self.must_sync = false;
        self.group += 1;
        self.group_start = self.offset;
        Ok(())
    }

    /// Starts the next segment, large enough for a record of this size.
    fn start_segment(&mut self, record_bytes: u64) -> Result<(), LogError> {
        // The new header says where this segment ends, hints included.
        if self.dirty {
            self.sync()?;
        }
        self.collect_spare(true);
        // A recycled file must not get new content while it may still have its old name.
        let recycles = self.removal.as_ref().is_some_and(|it| it.recycles);
        self.settle_removal(recycles)?;
        let needed = (HEAD_BYTES as u64 + record_bytes).next_multiple_of(4096);
        let header = SegmentHeader {
            identity: self.directory.identity,
            sequence: self.segment.sequence + 1,
            first_index: self.next,
            previous_end: self.offset,
            first_group: self.group,
            segment_bytes: self.shared.options.segment_bytes.max(needed),
        };
        let records = self.encode_state(&header);
        self.segment = self
            .directory
            .start_segment(&header, &records, self.spare_ready)?;
        self.spare_ready = false;
        self.offset = HEADER_BYTES + records.len() as u64;
        self.group += 1;
        self.group_start = self.offset;
        self.spacing.force();
        let mut inner = self.shared.inner.lock();
        inner
            .segments
            .insert(self.segment.sequence, self.segment.clone());
        drop(inner);
        if let Some(observer) = &self.shared.options.observer {
            observer.segment_started(self.segment.sequence);
        }
        Ok(())
    }

    /// The records that make all older segments dispensable.
    fn encode_state(&self, header: &SegmentHeader) -> Vec<u8> {
        let frame = Frame {
            seed: header.sequence as u32,
            group: header.first_group,
            group_start: HEADER_BYTES as u32,
        };
        let mut records = Vec::new();
        if let Some(vote) = &self.vote {
            frame.put(&mut records, RecordKind::Vote, [vote, &[]]);
        }
        if self.purged.is_some() {
            frame.put_position(&mut records, RecordKind::Purge, self.purged);
        }
        if self.committed.is_some() {
            frame.put_position(&mut records, RecordKind::Committed, self.committed);
        }
        records
    }

    /// Removes the segments whose entries are all purged, oldest first. One becomes the spare. While the
    /// removal before is not durable, they stay until a later write.
    fn retire_segments(&mut self) -> Result<(), LogError> {
        if !self.settle_removal(false)? {
            self.must_retire = true;
            return Ok(());
        }
        let retired: Vec<Arc<Segment>> = {
            let mut inner = self.shared.inner.lock();
            let needed = match inner.index.first() {
                Some(point) => point.segment,
                None => self.segment.sequence,
            };
            let kept = inner.segments.split_off(&needed);
            std::mem::replace(&mut inner.segments, kept)
                .into_values()
                .collect()
        };
        if retired.is_empty() {
            return Ok(());
        }
        self.collect_spare(false);
        let mut removed = Vec::new();
        let mut recycles = false;
        for segment in retired {
            // A reader that still holds the file must not see it change.
            let unused = Arc::strong_count(&segment) == 1;
            let recycle = unused
                && !self.spare_ready
                && self.spare_maker.is_none()
                && segment.bytes == self.shared.options.segment_bytes;
            self.directory.retire_segment(&segment.path, recycle)?;
            self.spare_ready |= recycle;
            recycles |= recycle;
            if !recycle {
                removed.push(segment);
            }
        }
        if !self.background_threads {
            return self.directory.sync();
        }
        // Syncing the directory and freeing what was removed hold up the next write by 10 ms each.
        let directory = self.directory.clone();
        let (durable, removal) = mpsc::sync_channel(1);
        let remover = thread::Builder::new()
            .name("raft-log-remove".to_owned())
            .spawn(move || {
                // Nobody waits when the log ends.
                let _ = durable.send(directory.sync());
                removed.into_iter().for_each(free);
            });
        match remover {
            Ok(_) => {
                self.removal = Some(Removal {
                    durable: removal,
                    recycles,
                });
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%error, "raft log: cannot start a thread");
                self.directory.sync()
            }
        }
    }

    /// Whether the last removal of segments is durable, which this may wait for.
    fn settle_removal(&mut self, wait: bool) -> Result<bool, LogError> {
        let Some(removal) = &self.removal else {
            return Ok(true);
        };
        let durable = match wait {
            true => removal.durable.recv().map_err(TryRecvError::from),
            false => removal.durable.try_recv(),
        };
        if let Err(TryRecvError::Empty) = durable {
            return Ok(false);
        }
        self.removal = None;
        // Without an answer the thread has panicked.
        durable.unwrap_or_else(|_| self.directory.sync())?;
        Ok(true)
    }

    /// Starts to zero the next segment when this one is half full. A log that never gets there never
    /// pays for it.
    fn prepare_spare(&mut self) {
        let wanted = self.background_threads
            && !self.spare_ready
            && self.spare_maker.is_none()
            && self.offset > self.segment.bytes / 2;
        if !wanted {
            return;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let stop = stop.clone();
            let directory = self.directory.clone();
            let bytes = self.shared.options.segment_bytes;
            thread::Builder::new()
                .name("raft-log-spare".to_owned())
                .spawn(move || directory.make_spare(bytes, &stop))
        };
        match thread {
            Ok(thread) => self.spare_maker = Some(SpareMaker { stop, thread }),
            // The next segment is then zeroed when it is needed.
            Err(error) => tracing::warn!(%error, "raft log: cannot start a thread"),
        }
    }

    /// Takes over the spare when it is done, or waits for it.
    fn collect_spare(&mut self, wait: bool) {
        if let Some(maker) = self
            .spare_maker
            .take_if(|maker| wait || maker.thread.is_finished())
        {
            match maker.thread.join() {
                Ok(Ok(())) => self.spare_ready = true,
                // The same will happen again, and be final, when the segment is needed.
                Ok(Err(error)) => {
                    tracing::warn!("cannot prepare a segment: {}", error.full_message());
                }
                Err(_) => tracing::warn!("raft log: the thread that prepares segments panicked"),
            }
        }
    }
}
