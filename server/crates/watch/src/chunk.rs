//! The events of one group of equal watchers, put together once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

/// Collects the encoded events of a group, in order.
#[derive(Debug, Default)]
pub(crate) struct ChunkBuilder {
    parts: SmallVec<[(i64, Bytes); 1]>,
    /// Different revisions in it.
    revisions: usize,
}

/// Encoded events of one or more whole revisions, one behind the other.
#[derive(Debug)]
pub(crate) struct Chunk {
    bytes: Bytes,
    /// Where each revision begins.
    marks: SmallVec<[(i64, usize); 1]>,
}

impl ChunkBuilder {
    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    pub(crate) fn push(&mut self, revision: i64, encoded: Bytes) {
        debug_assert!(self.parts.last().is_none_or(|last| last.0 <= revision));
        self.revisions += usize::from(self.begins(revision));
        self.parts.push((revision, encoded));
    }

    /// Whether an event of `revision` would be one of more than `revisions_max` revisions.
    pub(crate) fn is_full_for(&self, revision: i64, revisions_max: usize) -> bool {
        self.revisions == revisions_max && self.begins(revision)
    }

    fn begins(&self, revision: i64) -> bool {
        self.parts.last().is_none_or(|last| last.0 != revision)
    }

    /// The chunk of what was pushed; the builder is empty and reusable afterwards.
    pub(crate) fn finish(&mut self) -> Chunk {
        self.revisions = 0;
        let mut marks = SmallVec::new();
        if let [(revision, encoded)] = self.parts.as_mut_slice() {
            marks.push((*revision, 0));
            let bytes = std::mem::take(encoded);
            self.parts.clear();
            return Chunk { bytes, marks };
        }
        let length = self.parts.iter().map(|(_, part)| part.len()).sum();
        let mut bytes = BytesMut::with_capacity(length);
        let mut last_revision = 0;
        for (revision, part) in self.parts.drain(..) {
            if revision != last_revision {
                marks.push((revision, bytes.len()));
                last_revision = revision;
            }
            bytes.extend_from_slice(&part);
        }
        Chunk {
            bytes: bytes.freeze(),
            marks,
        }
    }
}

/// How many bytes are in chunks that are larger than usual, for as long as somebody holds their events.
#[derive(Clone, Debug)]
pub(crate) struct LargeChunks {
    bytes: Arc<AtomicUsize>,
    /// Chunks up to this size are not counted: the queues of the streams bound them.
    from_bytes: usize,
}

/// The bytes of a large chunk.
struct Counted {
    content: Bytes,
    bytes: Arc<AtomicUsize>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.content
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.bytes.fetch_sub(self.content.len(), Ordering::Relaxed);
    }
}

impl LargeChunks {
    pub(crate) fn above(from_bytes: usize) -> Self {
        Self {
            bytes: Arc::default(),
            from_bytes,
        }
    }

    /// Bytes that are held.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Counts a chunk if it is large.
    pub(crate) fn note(&self, mut chunk: Chunk) -> Chunk {
        if chunk.bytes.len() > self.from_bytes {
            self.bytes.fetch_add(chunk.bytes.len(), Ordering::Relaxed);
            chunk.bytes = Bytes::from_owner(Counted {
                content: chunk.bytes,
                bytes: Arc::clone(&self.bytes),
            });
        }
        chunk
    }
}

impl Chunk {
    /// The events from revision `from` on: empty when all are older.
    pub(crate) fn since(&self, from: i64) -> Bytes {
        let position = self.marks.partition_point(|(revision, _)| *revision < from);
        match self.marks.get(position) {
            Some((_, 0)) => self.bytes.clone(),
            Some((_, offset)) => self.bytes.slice(*offset..),
            None => Bytes::new(),
        }
    }

    /// The responses in which the events from revision `from` on come, each with its last revision: one for each
    /// revision if there are at most `apart_max`, otherwise one for all.
    pub(crate) fn responses(
        &self,
        from: i64,
        apart_max: usize,
    ) -> impl Iterator<Item = (i64, Bytes)> + '_ {
        let position = self.marks.partition_point(|(revision, _)| *revision < from);
        let marks = &self.marks[position..];
        let step = if marks.len() <= apart_max {
            1
        } else {
            marks.len()
        };
        marks.chunks(step).enumerate().map(move |(index, part)| {
            let end = marks
                .get((index + 1) * step)
                .map_or(self.bytes.len(), |(_, offset)| *offset);
            let last = part.last().map_or(0, |(revision, _)| *revision);
            (last, self.bytes.slice(part[0].1..end))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_gives_whole_revisions_from_any_start() {
        let mut builder = ChunkBuilder::default();
        for (revision, part) in [(3, "a"), (3, "bc"), (5, "d"), (9, "e")] {
            builder.push(revision, part.into());
        }
        let chunk = builder.finish();
        assert!(builder.is_empty());
        for (from, expected) in [(0, "abcde"), (3, "abcde"), (4, "de"), (6, "e"), (10, "")] {
            assert_eq!(chunk.since(from), expected, "from {from}");
        }
        let parts = |from: i64, apart_max: usize| -> Vec<(i64, Bytes)> {
            chunk.responses(from, apart_max).collect()
        };
        let wanted = |parts: &[(i64, &'static str)]| -> Vec<(i64, Bytes)> {
            let part = |(revision, text): &(i64, &'static str)| (*revision, Bytes::from(*text));
            parts.iter().map(part).collect()
        };
        assert_eq!(parts(0, 3), wanted(&[(3, "abc"), (5, "d"), (9, "e")]));
        assert_eq!(parts(4, 2), wanted(&[(5, "d"), (9, "e")]));
        assert_eq!(parts(0, 2), wanted(&[(9, "abcde")]));
        assert_eq!(parts(4, 1), wanted(&[(9, "de")]));
        assert_eq!(parts(10, 3), wanted(&[]));
        assert_eq!(builder.finish().responses(0, 3).count(), 0);
    }

    #[test]
    fn a_builder_counts_revisions_and_not_events() {
        let mut builder = ChunkBuilder::default();
        for revision in [3, 3, 4] {
            assert!(!builder.is_full_for(revision, 2));
            builder.push(revision, "a".into());
        }
        assert!(!builder.is_full_for(4, 2));
        assert!(builder.is_full_for(5, 2));
        builder.finish();
        assert!(!builder.is_full_for(5, 2));
    }

    #[test]
    fn large_chunks_count_until_the_last_part_of_them_is_gone() {
        let large = LargeChunks::above(3);
        let chunk_of = |text: &'static str| {
            let mut builder = ChunkBuilder::default();
            builder.push(1, text.into());
            builder.push(2, "z".into());
            large.note(builder.finish())
        };
        let small = chunk_of("ab");
        assert_eq!(large.bytes(), 0);
        let chunk = chunk_of("abcdef");
        assert_eq!(large.bytes(), 7);
        let part = chunk.since(2);
        drop((small, chunk));
        assert_eq!((&part[..], large.bytes()), (&b"z"[..], 7));
        drop(part);
        assert_eq!(large.bytes(), 0);
    }
}
