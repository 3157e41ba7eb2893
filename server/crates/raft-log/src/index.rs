//! Where entries are in the files.

use std::collections::VecDeque;

/// Bytes of log between two points: what a read has to skip at most.
const POINT_SPACING_BYTES: u64 = 64 * 1024;

/// Where one entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    pub index: u64,
    pub segment: u64,
    pub offset: u64,
}

/// Some entries' places, so few that a long log costs little memory.
///
/// A point stands for the entries from its own up to the next point's: they are the first ones with
/// these indexes that are met when the segment is read from the point on. After a truncation the next
/// entry always gets a point of its own, which keeps that true.
#[derive(Clone, Debug, Default)]
pub(crate) struct SparseIndex {
    points: VecDeque<Point>,
}

impl SparseIndex {
    pub fn push(&mut self, point: Point) {
        debug_assert!(
            self.points
                .back()
                .is_none_or(|last| last.index < point.index)
        );
        self.points.push_back(point);
    }

    /// Forgets entries from `next` on.
    pub fn truncate(&mut self, next: u64) {
        while self.points.back().is_some_and(|point| point.index >= next) {
            self.points.pop_back();
        }
    }

    /// Forgets entries before `first`.
    pub fn purge(&mut self, first: u64) {
        while self.points.get(1).is_some_and(|point| point.index <= first) {
            self.points.pop_front();
        }
    }

    pub fn clear(&mut self) {
        self.points.clear();
    }

    pub fn first(&self) -> Option<Point> {
        self.points.front().copied()
    }

    /// The point to read `index` from, and the index of the next point.
    pub fn find(&self, index: u64) -> Option<(Point, Option<u64>)> {
        let after = self.points.partition_point(|point| point.index <= index);
        let point = *self.points.get(after.checked_sub(1)?)?;
        let next = self.points.get(after).map(|point| point.index);
        Some((point, next))
    }
}

/// Decides which entries get a point.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PointSpacing {
    next_offset: u64,
}

impl PointSpacing {
    pub fn new() -> Self {
        Self { next_offset: 0 }
    }

    /// The next entry gets a point: it starts a segment, or the log was cut before it.
    pub fn force(&mut self) {
        self.next_offset = 0;
    }

    /// Whether the entry at this offset of the current segment gets a point.
    pub fn wants(&mut self, offset: u64) -> bool {
        let wanted = offset >= self.next_offset;
        if wanted {
            self.next_offset = offset + POINT_SPACING_BYTES;
        }
        wanted
    }
}
