//! The handle that callers use.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use crate::cache::{EntryCache, ReadBudget};
use crate::directory::LogDirectory;
use crate::disk::Disk;
use crate::error::LogError;
use crate::index::{Point, SparseIndex};
use crate::record::{RecordKind, decode_position, entry_record_bytes, record_bytes};
use crate::recovery::recover;
use crate::segment::{LOCK_NAME, Segment, VOTE_BYTES_MAX, Window};
use crate::types::{
    Completion, LogEntry, LogIdentity, LogOptions, LogPosition, LogState, may_follow, next_index,
};
use crate::writer::{self, Step, Writer};

/// Entries are read from files in pieces of this size: as much as one index point covers.
const READ_CHUNK_BYTES: usize = 64 * 1024;

/// Longest payload of an entry. Far above etcd's limits for a request; it keeps the length of a
/// segment that is made for one entry below the 4 GiB that offsets can express.
const PAYLOAD_BYTES_MAX: usize = 1024 * 1024 * 1024;

/// What a queued request costs in memory beside its payloads.
const REQUEST_OVERHEAD_BYTES: usize = 128;

/// What the writer is asked to do.
pub(crate) enum Request {
    Append(Vec<LogEntry>),
    Vote(Bytes),
    Committed(LogPosition),
    Truncate(Option<LogPosition>),
    Purge(LogPosition),
    /// Only complete in order.
    Nothing,
}

/// A request in the queue.
pub(crate) struct Operation {
    pub ticket: u64,
    pub request: Request,
    pub done: Option<Completion>,
    pub bytes: usize,
}

/// The first error; it answers every later call.
#[derive(Debug)]
pub(crate) struct Failure {
    pub kind: io::ErrorKind,
    pub message: String,
}

impl Failure {
    pub fn to_io(&self) -> io::Error {
        io::Error::new(self.kind, self.message.clone())
    }
}

/// What callers and the writer share.
pub(crate) struct Shared {
    pub inner: Mutex<Inner>,
    pub wake: Condvar,
    pub options: LogOptions,
}

pub(crate) struct Inner {
    /// The log with all requests so far, durable or not.
    pub state: LogState,
    pub cache: EntryCache,
    /// The log as it is in the files.
    pub index: SparseIndex,
    pub segments: BTreeMap<u64, Arc<Segment>>,
    pub queue: Vec<Operation>,
    /// Bytes of requests that are not in the files yet.
    pub queued_bytes: usize,
    pub last_ticket: u64,
    pub writer_waits: bool,
    pub closing: bool,
    pub failure: Option<Arc<Failure>>,
}

impl Inner {
    fn check_usable(&self) -> Result<(), Failure> {
        match &self.failure {
            Some(failure) => Err(Failure {
                kind: failure.kind,
                message: failure.message.clone(),
            }),
            None if self.closing => Err(Failure {
                kind: io::ErrorKind::Other,
                message: "raft log: it was closed".to_owned(),
            }),
            None => Ok(()),
        }
    }
}

/// Who runs the writer.
enum Driver {
    /// A thread of its own, or a caller who does not want to wait for one.
    Thread(WriterThread),
    /// Whoever makes a request.
    Caller(Mutex<Option<Writer>>),
    /// Whoever calls [`RaftLog::step`].
    Step(Mutex<Option<Writer>>),
}

/// A writer that a thread and callers take in turn.
struct WriterThread {
    /// None: the log is closed.
    writer: Arc<Mutex<Option<Writer>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// See [`RaftLog::set_caller_writes`].
    caller_writes: AtomicBool,
}

/// How soon a request is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Urgency {
    /// As soon as the disk is free.
    Now,
    /// With the next request, or when [`RaftLog::write_hints`] is called.
    Later,
}

/// A handle of an open log. Clones share the log.
///
/// When the last handle is dropped, the log finishes what is queued and closes (with a writer thread;
/// without one it just ends, as a killed process does).
#[derive(Clone)]
pub struct RaftLog {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    driver: Driver,
}

impl RaftLog {
    /// Opens the log of a member, or starts a new one in an empty or missing directory, with a writer
    /// thread of its own.
    ///
    /// Blocks while it reads the segments, and zeroes a segment when it starts a new log.
    ///
    /// # Errors
    ///
    /// All are final: see [`LogError`].
    pub fn open(
        disk: Arc<dyn Disk>,
        directory: &Path,
        identity: LogIdentity,
        options: LogOptions,
    ) -> Result<Self, LogError> {
        let (shared, writer) = open_parts(disk, directory, identity, options, true)?;
        let writer = Arc::new(Mutex::new(Some(writer)));
        let thread = {
            let (shared, writer) = (shared.clone(), writer.clone());
            thread::Builder::new()
                .name("raft-log-writer".to_owned())
                .spawn(move || writer::run(&shared, &writer))
                .map_err(LogError::io("start the writer thread of", directory))?
        };
        Ok(Self::new(
            shared,
            Driver::Thread(WriterThread {
                writer,
                thread: Mutex::new(Some(thread)),
                caller_writes: AtomicBool::new(false),
            }),
        ))
    }

    /// Opens the log without any thread: each request is written and synced before the call returns,
    /// and its completion runs on the caller's thread. For simulations.
    ///
    /// # Errors
    ///
    /// As [`RaftLog::open`].
    pub fn open_inline(
        disk: Arc<dyn Disk>,
        directory: &Path,
        identity: LogIdentity,
        options: LogOptions,
    ) -> Result<Self, LogError> {
        let (shared, writer) = open_parts(disk, directory, identity, options, false)?;
        Ok(Self::new(shared, Driver::Caller(Mutex::new(Some(writer)))))
    }

    /// Opens the log without any thread: requests wait until [`RaftLog::step`] writes them. For
    /// simulations that give the disk a speed of its own.
    ///
    /// # Errors
    ///
    /// As [`RaftLog::open`].
    pub fn open_stepwise(
        disk: Arc<dyn Disk>,
        directory: &Path,
        identity: LogIdentity,
        options: LogOptions,
    ) -> Result<Self, LogError> {
        let (shared, writer) = open_parts(disk, directory, identity, options, false)?;
        Ok(Self::new(shared, Driver::Step(Mutex::new(Some(writer)))))
    }

    fn new(shared: Arc<Shared>, driver: Driver) -> Self {
        Self {
            handle: Arc::new(Handle { shared, driver }),
        }
    }

    /// Decides who writes requests in the mode of [`RaftLog::open`]: the writer thread (the default),
    /// or the thread that makes the request, which then waits for the disk before its call returns
    /// and runs the completion itself. The latter saves two changes of thread for each group; it is
    /// for callers who have nothing else to do meanwhile. Does nothing in the other modes.
    pub fn set_caller_writes(&self, caller_writes: bool) {
        if let Driver::Thread(thread) = &self.handle.driver {
            thread.caller_writes.store(caller_writes, Ordering::Relaxed);
        }
    }

    /// Writes hints ([`RaftLog::save_committed`]) that still wait for a request to travel with. To be
    /// called now and then in the mode of [`RaftLog::open`]; cheap when there are none.
    pub fn write_hints(&self) {
        let shared = &self.handle.shared;
        let mut inner = shared.inner.lock();
        if !inner.queue.is_empty() && inner.writer_waits {
            inner.writer_waits = false;
            shared.wake.notify_one();
        }
    }

    /// The log with all requests so far, durable or not.
    pub fn state(&self) -> LogState {
        self.handle.shared.inner.lock().state.clone()
    }

    /// Bytes of requests that wait for the disk. Callers that accept work from others should stop
    /// well before [`LogOptions::queue_bytes_max`].
    pub fn queued_bytes(&self) -> usize {
        self.handle.shared.inner.lock().queued_bytes
    }

    /// Adds entries. They are readable when this returns; `done` runs when they are durable.
    ///
    /// The first index must be that of the last entry plus one (0 or 1 in a log that never had one),
    /// and each further one the next. Otherwise `done` gets `InvalidInput`, and nothing changed.
    ///
    /// Never blocks on the disk (except in the modes without a thread, and after
    /// [`RaftLog::set_caller_writes`]).
    pub fn append(&self, entries: Vec<LogEntry>, done: Completion) {
        self.submit(Urgency::Now, Some(done), |inner, ticket| {
            let Some(last) = entries.last() else {
                return Ok((Request::Nothing, 0));
            };
            check_append(&inner.state, &entries)?;
            inner.state.last = Some(last.position());
            inner.cache.append(ticket, &entries);
            let bytes = entries
                .iter()
                .map(|entry| entry_record_bytes(entry.payload.len()) as usize)
                .sum();
            Ok((Request::Append(entries), bytes))
        });
    }

    /// Saves the vote; the last one is given back by [`RaftLog::state`] after a restart. At most
    /// 4096 bytes, else `done` gets `InvalidInput`.
    pub fn save_vote(&self, vote: Bytes, done: Completion) {
        self.submit(Urgency::Now, Some(done), |inner, _| {
            if vote.len() > VOTE_BYTES_MAX {
                return Err(invalid("the vote is too long"));
            }
            inner.state.vote = Some(vote.clone());
            let bytes = record_bytes(vote.len()) as usize;
            Ok((Request::Vote(vote), bytes))
        });
    }

    /// Saves how far the log is committed, as a hint: it is written with the next request or by
    /// [`RaftLog::write_hints`], but not synced, and a crash may give back an older one.
    ///
    /// The hint does a second service: being written after the sync of the entries before it, it
    /// proves at the next start that they were acknowledged (see [`crate::record`]).
    pub fn save_committed(&self, committed: LogPosition) {
        self.submit(Urgency::Later, None, |inner, _| {
            inner.state.committed = Some(committed);
            Ok((Request::Committed(committed), record_bytes(16) as usize))
        });
    }

    /// Removes all entries after a position; None: all entries. At or beyond the end nothing happens.
    /// Below the purged position `done` gets `InvalidInput`, and nothing changed.
    pub fn truncate_after(&self, last_kept: Option<LogPosition>, done: Completion) {
        self.submit(Urgency::Now, Some(done), |inner, _| {
            let next = next_index(last_kept);
            if next >= next_index(inner.state.last) {
                return Ok((Request::Nothing, 0));
            }
            let first_kept_out = next.unwrap_or(0);
            if first_kept_out < inner.state.first_live() {
                return Err(invalid("a truncation must not remove purged entries"));
            }
            if let Some(kept) = last_kept
                && let Some(entry) = inner.cache.get(kept.index)
                && entry.term != kept.term
            {
                return Err(invalid("the entry to truncate after has another term"));
            }
            inner.cache.truncate(first_kept_out);
            inner.state.last = last_kept;
            Ok((Request::Truncate(last_kept), record_bytes(16) as usize))
        });
    }

    /// Removes all entries up to a position, which must be covered by a durable snapshot. It may be
    /// beyond the end: the log is empty then and continues after it. Below what is purged already
    /// nothing happens.
    pub fn purge(&self, up_to: LogPosition, done: Completion) {
        self.submit(Urgency::Now, Some(done), |inner, _| {
            let first = up_to.index + 1;
            if first <= inner.state.first_live() {
                return Ok((Request::Nothing, 0));
            }
            inner.state.purged = Some(up_to);
            inner.cache.purge(first);
            if next_index(inner.state.last).is_none_or(|next| next <= first) {
                inner.state.last = Some(up_to);
            }
            Ok((Request::Purge(up_to), record_bytes(16) as usize))
        });
    }

    /// Entries with indexes in `[from, to)`, in order, up to the end of the log.
    ///
    /// It stops when the payloads exceed `max_bytes`, but never before the first entry: an answer for
    /// a non-empty range starts with `from` or is an error. Reads memory, then files; so it may block
    /// on the disk for entries that left the cache.
    ///
    /// # Errors
    ///
    /// [`LogError::Purged`] when `from` was purged, [`LogError::Missing`] when it is beyond the end;
    /// any other error is final.
    pub fn read(&self, from: u64, to: u64, max_bytes: usize) -> Result<Vec<LogEntry>, LogError> {
        let mut entries = Vec::new();
        let mut budget = ReadBudget::new(max_bytes);
        let mut next = from;
        while next < to {
            match self.read_some(next, to, &mut budget, &mut entries) {
                Ok(()) => {}
                // The log was cut or purged meanwhile; what was read before was right.
                Err(error) if !error.is_fatal() && !entries.is_empty() => break,
                Err(error) => return Err(error),
            }
            let read_to = entries.last().map_or(from, |entry| entry.index + 1);
            if read_to == next {
                break;
            }
            next = read_to;
        }
        Ok(entries)
    }

    /// Reads what can be read at once from memory, or from one stretch of a file. Adds nothing only
    /// when the budget is exhausted.
    fn read_some(
        &self,
        next: u64,
        to: u64,
        budget: &mut ReadBudget,
        entries: &mut Vec<LogEntry>,
    ) -> Result<(), LogError> {
        let (segment, point, end) = {
            let inner = self.handle.shared.inner.lock();
            inner.check_usable().map_err(|failure| LogError::Failed {
                reason: failure.message,
            })?;
            match inner.state.purged {
                Some(purged) if next <= purged.index => return Err(LogError::Purged { purged }),
                _ => {}
            }
            let missing = LogError::Missing {
                index: next,
                last: inner.state.last,
            };
            let Some(log_end) = next_index(inner.state.last).filter(|end| next < *end) else {
                // The end of the log ends an answer; only its start must exist.
                return if entries.is_empty() {
                    Err(missing)
                } else {
                    Ok(())
                };
            };
            if inner.cache.first().is_some_and(|first| next >= first) {
                inner.cache.collect(next, to, budget, entries);
                return Ok(());
            }
            let file_end = inner.cache.first().unwrap_or(log_end).min(to);
            let Some((point, next_point)) = inner.index.find(next) else {
                // Only in a log that starts at 1: there is no entry 0.
                return Err(missing);
            };
            let segment = inner
                .segments
                .get(&point.segment)
                .expect("segments with live entries are kept")
                .clone();
            (segment, point, next_point.unwrap_or(u64::MAX).min(file_end))
        };
        read_stretch(&segment, point, next, end, budget, entries)
    }

    /// Writes and syncs everything that is queued, in the mode of [`RaftLog::open_stepwise`]; returns
    /// whether there was anything. Does nothing in the other modes.
    pub fn step(&self) -> bool {
        match &self.handle.driver {
            Driver::Step(writer) => match &mut *writer.lock() {
                Some(writer) => matches!(writer.step(), Step::Worked),
                None => false,
            },
            Driver::Thread(_) | Driver::Caller(_) => false,
        }
    }

    /// Finishes what is queued, ends the writer thread, and releases the lock. Every later call
    /// fails. Must not be called from a completion.
    pub fn close(&self) {
        self.handle.close();
    }

    /// Queues a request. `change` updates the state in memory, or refuses.
    fn submit(
        &self,
        urgency: Urgency,
        done: Option<Completion>,
        change: impl FnOnce(&mut Inner, u64) -> io::Result<(Request, usize)>,
    ) {
        let (writer, wake_thread) = match &self.handle.driver {
            Driver::Thread(_) if urgency == Urgency::Later => (None, false),
            Driver::Thread(thread) if thread.caller_writes.load(Ordering::Relaxed) => {
                (Some(&*thread.writer), false)
            }
            Driver::Thread(_) => (None, true),
            Driver::Caller(writer) => (Some(writer), false),
            Driver::Step(_) => (None, false),
        };
        match self.enqueue(wake_thread, done, change) {
            Ok(()) => {
                if let Some(writer) = writer {
                    self.drive(writer);
                }
            }
            Err((done, error)) => {
                if let Some(done) = done {
                    done(Err(error));
                }
            }
        }
    }

    fn enqueue(
        &self,
        wake_thread: bool,
        done: Option<Completion>,
        change: impl FnOnce(&mut Inner, u64) -> io::Result<(Request, usize)>,
    ) -> Result<(), (Option<Completion>, io::Error)> {
        let shared = &self.handle.shared;
        let mut inner = shared.inner.lock();
        if let Err(failure) = inner.check_usable() {
            return Err((done, failure.to_io()));
        }
        let ticket = inner.last_ticket + 1;
        let (request, bytes) = match change(&mut inner, ticket) {
            Ok(accepted) => accepted,
            Err(error) => return Err((done, error)),
        };
        inner.last_ticket = ticket;
        let bytes = bytes + REQUEST_OVERHEAD_BYTES;
        inner.queued_bytes += bytes;
        inner.queue.push(Operation {
            ticket,
            request,
            done,
            bytes,
        });
        if inner.queued_bytes > shared.options.queue_bytes_max {
            let message = format!(
                "raft log: the disk is too far behind: {} bytes wait to be written",
                inner.queued_bytes
            );
            tracing::error!("{message}");
            inner.failure = Some(Arc::new(Failure {
                kind: io::ErrorKind::TimedOut,
                message,
            }));
        }
        if wake_thread && inner.writer_waits {
            inner.writer_waits = false;
            shared.wake.notify_one();
        }
        Ok(())
    }

    /// The caller does the work. A completion may make further requests: they find the writer busy,
    /// and the loop that runs it takes them. So does the writer thread when it has the writer.
    fn drive(&self, writer: &Mutex<Option<Writer>>) {
        loop {
            {
                let Some(mut writer) = writer.try_lock() else {
                    return;
                };
                let Some(writer) = &mut *writer else {
                    return;
                };
                while matches!(writer.step(), Step::Worked) {}
            }
            // Someone may have queued a request after the last step and found the writer busy.
            let inner = self.handle.shared.inner.lock();
            if inner.queue.is_empty() {
                return;
            }
        }
    }
}

impl Handle {
    fn begin_close(&self) {
        let mut inner = self.shared.inner.lock();
        inner.closing = true;
        inner.writer_waits = false;
        self.shared.wake.notify_one();
    }

    fn close(&self) {
        self.begin_close();
        match &self.driver {
            Driver::Thread(writer_thread) => {
                let mut thread = writer_thread.thread.lock();
                if let Some(thread) = thread.take()
                    && thread.thread().id() != thread::current().id()
                {
                    // The thread turns its own panics into a failure of the log.
                    let _ = thread.join();
                }
            }
            Driver::Caller(writer) | Driver::Step(writer) => {
                if let Some(mut writer) = writer.lock().take() {
                    while matches!(writer.step(), Step::Worked) {}
                    writer.finish();
                }
            }
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        match &self.driver {
            Driver::Thread(_) => self.close(),
            Driver::Caller(writer) | Driver::Step(writer) => {
                if let Some(mut writer) = writer.lock().take() {
                    writer.abandon();
                }
            }
        }
    }
}

fn open_parts(
    disk: Arc<dyn Disk>,
    path: &Path,
    identity: LogIdentity,
    options: LogOptions,
    background_threads: bool,
) -> Result<(Arc<Shared>, Writer), LogError> {
    check_options(&options)?;
    disk.create_directory(path)
        .map_err(LogError::io("create the directory", path))?;
    let lock_path = path.join(LOCK_NAME);
    let lock = disk
        .lock(&lock_path)
        .map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => LogError::Locked {
                path: lock_path.clone(),
            },
            _ => LogError::io("lock", &lock_path)(source),
        })?;
    let directory = LogDirectory {
        disk,
        path: path.to_owned(),
        identity,
    };
    let recovered = recover(&directory, options.segment_bytes)?;
    let shared = Arc::new(Shared {
        inner: Mutex::new(Inner {
            state: recovered.state.clone(),
            cache: EntryCache::new(options.cache_bytes),
            index: recovered.index.clone(),
            segments: recovered.segments.clone(),
            queue: Vec::new(),
            queued_bytes: 0,
            last_ticket: 0,
            writer_waits: false,
            closing: false,
            failure: None,
        }),
        wake: Condvar::new(),
        options,
    });
    let writer = Writer::new(
        shared.clone(),
        directory,
        lock,
        &recovered,
        background_threads,
    );
    Ok((shared, writer))
}

fn check_options(options: &LogOptions) -> Result<(), LogError> {
    let bytes = options.segment_bytes;
    let reason = if bytes < LogOptions::SEGMENT_BYTES_MIN {
        "segment_bytes is below its minimum"
    } else if bytes > u64::from(u32::MAX) {
        "segment_bytes must be below 4 GiB"
    } else if !bytes.is_multiple_of(512) {
        "segment_bytes must be a multiple of 512"
    } else {
        return Ok(());
    };
    Err(LogError::InvalidOptions { reason })
}

fn check_append(state: &LogState, entries: &[LogEntry]) -> io::Result<()> {
    let mut last = state.last;
    for entry in entries {
        if !may_follow(last, entry.index) {
            return Err(invalid(&format!(
                "entry {} does not continue a log that ends at {last:?}",
                entry.index
            )));
        }
        if entry.payload.len() > PAYLOAD_BYTES_MAX {
            return Err(invalid("the payload of an entry is too long"));
        }
        last = Some(entry.position());
    }
    Ok(())
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("raft log: {reason}"))
}

/// Reads the entries `[next, end)` from a file, up to the budget. `point` is at or before `next`, and
/// no other point is between them.
fn read_stretch(
    segment: &Segment,
    point: Point,
    next: u64,
    end: u64,
    budget: &mut ReadBudget,
    entries: &mut Vec<LogEntry>,
) -> Result<(), LogError> {
    let mut window = Window::new(segment, READ_CHUNK_BYTES);
    let mut offset = point.offset;
    let mut expected = point.index;
    while expected < end {
        let record = window
            .record(offset)
            .map_err(LogError::io("read", &segment.path))?;
        let Some((header, payload)) = record else {
            let reason = format!("no valid record where entry {expected} was written");
            return Err(LogError::corrupt(&segment.path, offset, reason));
        };
        if header.kind == RecordKind::Entry {
            let position = decode_position(payload).filter(|found| found.index == expected);
            let Some(position) = position else {
                let reason = format!("another entry stands where entry {expected} was written");
                return Err(LogError::corrupt(&segment.path, offset, reason));
            };
            if expected >= next {
                let payload = &payload[crate::record::ENTRY_PREFIX_BYTES..];
                if !budget.take(payload.len()) {
                    return Ok(());
                }
                entries.push(LogEntry {
                    index: position.index,
                    term: position.term,
                    payload: Bytes::copy_from_slice(payload),
                });
            }
            expected += 1;
        }
        offset += header.record_bytes();
    }
    Ok(())
}
