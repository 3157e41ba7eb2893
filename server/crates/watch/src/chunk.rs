//! The events of one group of equal watchers, put together once.

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

/// Collects the encoded events of a group, in order.
#[derive(Debug, Default)]
pub(crate) struct ChunkBuilder {
    parts: SmallVec<[(i64, Bytes); 1]>,
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
        self.parts.push((revision, encoded));
    }

    /// The chunk of what was pushed; the builder is empty and reusable afterwards.
    pub(crate) fn finish(&mut self) -> Chunk {
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

    /// The last revision with an event; 0 when there is none.
    pub(crate) fn last_revision(&self) -> i64 {
        self.marks.last().map_or(0, |(revision, _)| *revision)
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
        assert_eq!(chunk.last_revision(), 9);
        for (from, expected) in [(0, "abcde"), (3, "abcde"), (4, "de"), (6, "e"), (10, "")] {
            assert_eq!(chunk.since(from), expected, "from {from}");
        }
        assert_eq!(builder.finish().last_revision(), 0);
    }
}
