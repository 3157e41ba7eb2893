//! Reading the log back when it is opened.
//!
//! The segments must be without a gap, and each must end where its successor says; anything else is
//! corruption. Only the last segment may hold an interrupted write, and only in its last group:
//!
//! * no valid record behind the first invalid place, or only such of a group that starts at or before
//!   it: the last group was interrupted, and is cut there;
//! * a valid record of a group that starts behind it: that group was written after the sync of what
//!   is damaged, so acknowledged data is damaged, and the log refuses to open.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::directory::LogDirectory;
use crate::error::LogError;
use crate::index::{Point, PointSpacing, SparseIndex};
use crate::record::{RECORD_HEADER_BYTES, RecordHeader, RecordKind, decode_position};
use crate::segment::{
    HEADER_BYTES, LOCK_NAME, SPARE_NAME, Segment, SegmentHeader, UNFINISHED_SPARE_NAME, Window,
    sequence_of,
};
use crate::types::{LogPosition, LogState, may_follow, next_index};

/// Segments are read in pieces of this size.
const RECOVERY_CHUNK_BYTES: usize = 1024 * 1024;

/// An open log directory.
pub(crate) struct Recovered {
    pub state: LogState,
    pub index: SparseIndex,
    pub spacing: PointSpacing,
    pub segments: BTreeMap<u64, Arc<Segment>>,
    /// Where the next group goes in the last segment.
    pub offset: u64,
    /// Number of the next group.
    pub group: u64,
    pub spare_ready: bool,
}

/// Opens the segments of a directory, or starts the first one.
pub(crate) fn recover(directory: &LogDirectory, segment_bytes: u64) -> Result<Recovered, LogError> {
    let names = directory
        .disk
        .list(&directory.path)
        .map_err(LogError::io("list", &directory.path))?;
    if names.iter().any(|name| name == UNFINISHED_SPARE_NAME) {
        let path = directory.file_path(UNFINISHED_SPARE_NAME);
        directory
            .disk
            .remove(&path)
            .map_err(LogError::io("remove", &path))?;
    }
    let spare_ready = names.iter().any(|name| name == SPARE_NAME);
    let mut sequences: Vec<u64> = names.iter().filter_map(|name| sequence_of(name)).collect();
    sequences.sort_unstable();
    if sequences.is_empty() {
        refuse_foreign_directory(directory, &names)?;
        return start(directory, segment_bytes, spare_ready);
    }
    // A crash may have undone the removal of some purged segments; what counts is the part without a
    // gap at the end. That it is the whole log is checked when it is known what was purged.
    let gaps = |pair: &[u64]| pair[0] + 1 != pair[1];
    let kept_from = sequences.windows(2).rposition(gaps).map_or(0, |at| at + 1);
    let leftovers: Vec<u64> = sequences.drain(..kept_from).collect();
    let mut recovered = read_segments(directory, &sequences)?;
    recovered.spare_ready = spare_ready;
    for sequence in leftovers {
        directory.retire_segment(&directory.segment_path(sequence), false)?;
    }
    // What was read may have come from the page cache of a process that was killed before its sync.
    // From here on it counts as durable, so it has to be.
    let last = active_segment(&recovered.segments);
    last.file
        .sync_data()
        .map_err(LogError::io("sync", &last.path))?;
    directory.sync()?;
    Ok(recovered)
}

/// The segment that is written to.
pub(crate) fn active_segment(segments: &BTreeMap<u64, Arc<Segment>>) -> Arc<Segment> {
    let (_, segment) = segments
        .last_key_value()
        .expect("a log has at least one segment, and the last one is never removed");
    segment.clone()
}

/// A new log beside somebody else's files is more likely a wrong path than an intention.
fn refuse_foreign_directory(directory: &LogDirectory, names: &[String]) -> Result<(), LogError> {
    let known = [LOCK_NAME, SPARE_NAME, UNFINISHED_SPARE_NAME, "lost+found"];
    match names
        .iter()
        .find(|name| !known.contains(&name.as_str()) && !name.starts_with('.'))
    {
        Some(name) => Err(LogError::Foreign {
            path: directory.file_path(name),
            reason: "a new log needs an empty directory",
        }),
        None => Ok(()),
    }
}

/// Starts a log in an empty directory.
fn start(
    directory: &LogDirectory,
    segment_bytes: u64,
    spare_ready: bool,
) -> Result<Recovered, LogError> {
    let header = SegmentHeader {
        identity: directory.identity,
        sequence: 1,
        first_index: None,
        previous_end: 0,
        first_group: 1,
        segment_bytes,
    };
    let segment = directory.start_segment(&header, &[], spare_ready)?;
    Ok(Recovered {
        state: LogState::default(),
        index: SparseIndex::default(),
        spacing: PointSpacing::new(),
        segments: BTreeMap::from([(segment.sequence, segment)]),
        offset: HEADER_BYTES,
        group: 2,
        spare_ready: false,
    })
}

fn read_segments(directory: &LogDirectory, sequences: &[u64]) -> Result<Recovered, LogError> {
    let mut opened = Vec::with_capacity(sequences.len());
    for &sequence in sequences {
        let path = directory.segment_path(sequence);
        let file = directory
            .disk
            .open(&path)
            .map_err(LogError::io("open", &path))?;
        let header = SegmentHeader::read(&*file, &path, sequence, directory.identity)?;
        let segment = Arc::new(Segment {
            sequence,
            path,
            file,
            bytes: header.segment_bytes,
        });
        opened.push((segment, header));
    }
    let (oldest, oldest_header) = opened.first().expect("there is at least one segment");
    let mut replay = Replay {
        next: oldest_header.first_index,
        ..Replay::default()
    };
    for (position, (segment, header)) in opened.iter().enumerate() {
        let successor = opened.get(position + 1).map(|(_, header)| header);
        replay.read_segment(segment, header, successor)?;
    }
    let state = replay.finish(&oldest.path, oldest.sequence)?;
    let Replay {
        index,
        spacing,
        offset,
        group,
        ..
    } = replay;
    Ok(Recovered {
        state,
        index,
        spacing,
        segments: opened
            .into_iter()
            .map(|(segment, _)| (segment.sequence, segment))
            .collect(),
        offset,
        group: group + 1,
        spare_ready: false,
    })
}

/// The log as the records read so far leave it.
struct Replay {
    state: LogState,
    /// Index of the next entry; not derived from `state.last`, since the entry before the oldest
    /// segment is not known.
    next: Option<u64>,
    index: SparseIndex,
    spacing: PointSpacing,
    offset: u64,
    group: u64,
    group_start: u64,
}

impl Default for Replay {
    fn default() -> Self {
        Self {
            state: LogState::default(),
            next: None,
            index: SparseIndex::default(),
            spacing: PointSpacing::new(),
            offset: 0,
            group: 0,
            group_start: 0,
        }
    }
}

impl Replay {
    /// Replays the records of one segment. `successor`: the next segment's header, None for the last.
    fn read_segment(
        &mut self,
        segment: &Segment,
        header: &SegmentHeader,
        successor: Option<&SegmentHeader>,
    ) -> Result<(), LogError> {
        if header.first_index != self.next || header.first_group <= self.group {
            let reason = "its header does not continue the segment before it";
            return Err(LogError::corrupt(&segment.path, 0, reason));
        }
        self.group = header.first_group;
        self.group_start = HEADER_BYTES;
        self.offset = HEADER_BYTES;
        self.spacing.force();
        let mut window = Window::new(segment, RECOVERY_CHUNK_BYTES);
        let end = successor.map_or(segment.bytes, |successor| successor.previous_end);
        while self.offset < end {
            let record = window
                .record(self.offset)
                .map_err(LogError::io("read", &segment.path))?;
            let Some((header, payload)) = record else {
                break;
            };
            if !self.continues_groups(&header) {
                break;
            }
            self.group = header.group;
            self.group_start = u64::from(header.group_start);
            self.replay(segment.sequence, header.kind, payload)
                .map_err(|reason| LogError::corrupt(&segment.path, self.offset, reason))?;
            self.offset += header.record_bytes();
        }
        match successor {
            Some(_) if self.offset != end => Err(LogError::corrupt(
                &segment.path,
                self.offset,
                format!(
                    "no valid record, but the log continues up to {end} and in the next segment"
                ),
            )),
            Some(_) => Ok(()),
            None => self.judge_tail(segment, &mut window),
        }
    }

    fn continues_groups(&self, header: &RecordHeader) -> bool {
        let start = u64::from(header.group_start);
        if header.group == self.group {
            start == self.group_start
        } else {
            header.group > self.group && start == self.offset
        }
    }

    /// Decides whether the end of the last segment is an interrupted write.
    ///
    /// The records that remain of one stay in the file. The next group gets a higher number than
    /// they have, and groups only grow, so they are never taken for what was written later.
    fn judge_tail(&mut self, segment: &Segment, window: &mut Window<'_>) -> Result<(), LogError> {
        let damaged = self.offset;
        // Every group has a record, so the segment's length limits how many can follow. Numbers
        // outside are a former life's.
        let groups_max = segment.bytes / RECORD_HEADER_BYTES as u64 + 1;
        let groups = self.group..=self.group.saturating_add(groups_max);
        let mut remains_end = damaged;
        while let Some((offset, header)) = window
            .find(remains_end.max(damaged), &groups)
            .map_err(LogError::io("read", &segment.path))?
        {
            if u64::from(header.group_start) > damaged {
                let reason = format!(
                    "no valid record, but a later write follows at {offset}, so this was durable once"
                );
                return Err(LogError::corrupt(&segment.path, damaged, reason));
            }
            remains_end = offset + header.record_bytes();
            self.group = self.group.max(header.group);
        }
        self.rewrite_last_group(segment)?;
        if remains_end > damaged {
            tracing::warn!(
                segment = %segment.path.display(),
                offset = damaged,
                "raft log: the last write was interrupted; its incomplete part is ignored"
            );
        }
        Ok(())
    }

    /// Writes the last group again, as it was read.
    ///
    /// It may come from the page cache after a sync that failed and a restart of the process. Linux
    /// calls such pages clean, so another sync would succeed without having written them. All groups
    /// before the last one were synced, or the last one would not exist.
    fn rewrite_last_group(&self, segment: &Segment) -> Result<(), LogError> {
        let mut bytes = Vec::new();
        let mut offset = self.group_start;
        while offset < self.offset {
            let length = (self.offset - offset).min(RECOVERY_CHUNK_BYTES as u64);
            bytes.resize(length as usize, 0);
            segment
                .file
                .read_at(&mut bytes, offset)
                .map_err(LogError::io("read", &segment.path))?;
            segment
                .file
                .write_at(&bytes, offset)
                .map_err(LogError::io("write", &segment.path))?;
            offset += length;
        }
        Ok(())
    }

    fn replay(&mut self, segment: u64, kind: RecordKind, payload: &[u8]) -> Result<(), String> {
        let position = || decode_position(payload).ok_or("a valid record has no position");
        match kind {
            RecordKind::Entry => self.replay_entry(segment, position()?),
            RecordKind::Vote => {
                self.state.vote = Some(Bytes::copy_from_slice(payload));
                Ok(())
            }
            RecordKind::Truncate if payload.is_empty() => self.replay_truncate(None),
            RecordKind::Truncate => self.replay_truncate(Some(position()?)),
            RecordKind::Purge => {
                self.replay_purge(position()?);
                Ok(())
            }
            RecordKind::Committed => {
                self.replay_committed(position()?);
                Ok(())
            }
        }
    }

    fn replay_entry(&mut self, segment: u64, position: LogPosition) -> Result<(), String> {
        let follows = match self.next {
            Some(next) => position.index == next,
            None => may_follow(None, position.index),
        };
        if !follows {
            return Err(format!(
                "entry {} stands where {:?} is expected",
                position.index, self.next
            ));
        }
        if self.spacing.wants(self.offset) {
            self.index.push(Point {
                index: position.index,
                segment,
                offset: self.offset,
            });
        }
        self.state.last = Some(position);
        self.next = Some(position.index + 1);
        Ok(())
    }

    fn replay_truncate(&mut self, last_kept: Option<LogPosition>) -> Result<(), String> {
        let next = next_index(last_kept);
        if next > self.next || next.unwrap_or(0) < self.state.first_live() {
            return Err(format!(
                "a truncation to {last_kept:?} does not fit a log that goes on at {:?}",
                self.next
            ));
        }
        self.index.truncate(next.unwrap_or(0));
        self.spacing.force();
        self.state.last = last_kept;
        self.next = next;
        Ok(())
    }

    /// A hint may come before the entries it speaks of (while a snapshot is installed). Whoever
    /// reads it back expects to find them, so such a hint is worth nothing.
    fn replay_committed(&mut self, position: LogPosition) {
        if self.next.is_some_and(|next| position.index < next) {
            self.state.committed = Some(position);
        }
    }

    fn replay_purge(&mut self, up_to: LogPosition) {
        let first = up_to.index + 1;
        if first <= self.state.first_live() {
            return;
        }
        self.state.purged = Some(up_to);
        if self.next.is_none_or(|next| next <= first) {
            self.next = Some(first);
            self.state.last = Some(up_to);
            self.index.clear();
            self.spacing.force();
        } else {
            self.index.purge(first);
        }
    }

    /// Checks that nothing is missing before the oldest segment.
    fn finish(&mut self, oldest: &Path, oldest_sequence: u64) -> Result<LogState, LogError> {
        let first = self.state.first_live();
        let missing = match self.state.purged {
            // Nothing was ever purged, so no segment was ever removed.
            None => oldest_sequence != 1,
            Some(_) => {
                self.next.is_some_and(|next| next > first)
                    && self.index.first().is_none_or(|point| point.index > first)
            }
        };
        if missing {
            let reason = format!(
                "entries from {first} on are not here: a segment file before it is missing, or was deleted by hand"
            );
            return Err(LogError::corrupt(oldest, 0, reason));
        }
        let mut state = self.state.clone();
        if self.next.is_some_and(|next| next <= first) {
            state.last = state.purged;
        }
        // Entries were cut after the hint came: it was about others, or wrong.
        let last = next_index(state.last);
        state.committed = state
            .committed
            .filter(|committed| next_index(Some(*committed)) <= last);
        Ok(state)
    }
}
