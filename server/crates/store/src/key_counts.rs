//! Counted blocks: how many keys of a range are live, without visiting them.
//!
//! etcd answers the count of all keys in a range with every page of a list, and Kubernetes asks
//! for pages of 500. Visiting a million keys for each page would cost 0.3 s on RocksDB, so the key
//! space is cut into blocks of about 512 live keys whose numbers are kept.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use metastore_revision_model::{KeyRange, RangeEnd, RecordError};

/// Live keys in a block after a split. Small enough that the two partial scans of a count cost
/// less than the answer's page, large enough that a million keys need 2000 blocks (150 KB).
pub(crate) const BLOCK_KEYS: u64 = 512;
/// Live keys at which a block is split.
pub(crate) const SPLIT_KEYS: u64 = 2 * BLOCK_KEYS;
/// Live keys below which a block joins the one before it, when both fit in one.
const MERGE_KEYS: u64 = BLOCK_KEYS / 4;

/// The blocks of the committed state. A block begins at its fence and ends before the next one;
/// the first fence is the empty key, so that every key is in a block.
#[derive(Debug)]
pub(crate) struct KeyCounts {
    blocks: BTreeMap<Bytes, u64>,
    /// The revision whose live keys are counted.
    pub revision: i64,
}

/// A count in parts: what the blocks say, and the ranges that must be visited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BlockSum {
    pub whole_keys: i64,
    pub partial: Vec<KeyRange>,
}

/// New numbers of blocks; `None` removes the fence.
pub(crate) type BlockChanges = BTreeMap<Bytes, Option<u64>>;

impl KeyCounts {
    /// The blocks of an empty store.
    pub fn new(revision: i64) -> Self {
        Self {
            blocks: BTreeMap::from([(Bytes::new(), 0)]),
            revision,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.blocks.len() == 1 && self.blocks.values().all(|count| *count == 0)
    }

    /// Takes over a stored or computed block.
    pub fn set(&mut self, fence: Bytes, count: u64) {
        self.blocks.insert(fence, count);
    }

    pub fn apply(&mut self, changes: BlockChanges) {
        for (fence, count) in changes {
            match count {
                Some(count) => self.blocks.insert(fence, count),
                None => self.blocks.remove(&fence),
            };
        }
    }

    /// The numbers of the blocks after keys came and went; `keys` in ascending order.
    ///
    /// # Panics
    /// When more keys leave a block than were in it: the counts and the rows contradict each
    /// other.
    pub fn changes<'a>(&self, keys: impl Iterator<Item = (&'a Bytes, bool)>) -> BlockChanges {
        let mut changes = BlockChanges::new();
        for (key, created) in keys {
            let (fence, count) = self.block_of(key);
            let changed = changes
                .entry(fence.clone())
                .or_insert(Some(count))
                .as_mut()
                .expect("no fence is removed before all keys are counted");
            *changed = match created {
                true => *changed + 1,
                false => changed
                    .checked_sub(1)
                    .expect("a key that is deleted was counted: the key counts are damaged"),
            };
        }
        self.merge_small_blocks(&mut changes);
        changes
    }

    /// The stored form of a block's number.
    pub fn encode(count: u64) -> Bytes {
        Bytes::copy_from_slice(&count.to_be_bytes())
    }

    /// Reads a stored number.
    pub fn decode(stored: &[u8]) -> Result<u64, RecordError> {
        let bytes = stored.try_into().map_err(|_| RecordError {
            what: "key count row",
            bytes: stored.len(),
        })?;
        Ok(u64::from_be_bytes(bytes))
    }

    /// The range of a block.
    pub fn range_of(&self, fence: &Bytes) -> KeyRange {
        KeyRange {
            start: fence.clone(),
            end: match self.fence_after(fence) {
                Some(next) => RangeEnd::Before(next.clone()),
                None => RangeEnd::Open,
            },
        }
    }

    /// The live keys of a range, as far as whole blocks say.
    pub fn sum(&self, range: &KeyRange) -> BlockSum {
        let end = match &range.end {
            RangeEnd::Single => {
                return BlockSum {
                    whole_keys: 0,
                    partial: vec![range.clone()],
                };
            }
            RangeEnd::Open => None,
            RangeEnd::Before(end) => Some(end),
        };
        if range.is_empty() {
            return BlockSum::default();
        }
        // No key is empty, so a range from "\0" on is a range from the first fence on.
        let start = match &range.start[..] {
            b"\0" => Bytes::new(),
            _ => range.start.clone(),
        };
        let bound = end.map_or(Bound::Unbounded, |end| Bound::Excluded(end.clone()));
        let mut sum = BlockSum::default();
        let mut first = None;
        let mut last = None;
        for (fence, count) in self.blocks.range((Bound::Included(start.clone()), bound)) {
            first.get_or_insert(fence);
            last = Some((fence, *count));
            sum.whole_keys += *count as i64;
        }
        let (Some(first), Some((last, last_count))) = (first, last) else {
            return BlockSum {
                whole_keys: 0,
                partial: vec![range.clone()],
            };
        };
        if *first > start {
            sum.partial.push(KeyRange {
                start,
                end: RangeEnd::Before(first.clone()),
            });
        }
        if self.fence_after(last) != end {
            sum.whole_keys -= last_count as i64;
            sum.partial.push(KeyRange {
                start: last.clone(),
                end: range.end.clone(),
            });
        }
        sum
    }

    fn block_of(&self, key: &Bytes) -> (&Bytes, u64) {
        let (fence, count) = self
            .blocks
            .range((Bound::Unbounded, Bound::Included(key.clone())))
            .next_back()
            .expect("the first fence is the empty key");
        (fence, *count)
    }

    fn fence_after(&self, fence: &Bytes) -> Option<&Bytes> {
        let after = (Bound::Excluded(fence.clone()), Bound::Unbounded);
        self.blocks.range(after).next().map(|(fence, _)| fence)
    }

    fn merge_small_blocks(&self, changes: &mut BlockChanges) {
        let small: Vec<Bytes> = changes
            .iter()
            .filter(|(fence, count)| !fence.is_empty() && count.unwrap_or(0) < MERGE_KEYS)
            .map(|(fence, _)| fence.clone())
            .collect();
        // Backwards, so that a row of small blocks rolls up into the first of them.
        for fence in small.into_iter().rev() {
            let count = changes.get(&fence).copied().flatten().unwrap_or(0);
            let before = (Bound::Unbounded, Bound::Excluded(fence.clone()));
            let (previous, stored) = self
                .blocks
                .range(before)
                .next_back()
                .expect("the first fence is the empty key and is never merged");
            let joined = changes.get(previous).copied().flatten().unwrap_or(*stored) + count;
            if joined <= BLOCK_KEYS {
                changes.insert(previous.clone(), Some(joined));
                changes.insert(fence, None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: &'static str, end: &'static str) -> KeyRange {
        KeyRange::new(start.into(), end.into())
    }

    fn counts(blocks: &[(&'static str, u64)]) -> KeyCounts {
        let mut counts = KeyCounts::new(1);
        for (fence, count) in blocks {
            counts.set(Bytes::from_static(fence.as_bytes()), *count);
        }
        counts
    }

    #[test]
    fn a_sum_takes_whole_blocks_and_names_the_rest() {
        let counts = counts(&[("", 10), ("d", 20), ("h", 40), ("m", 80)]);
        for (asked, whole_keys, partial) in [
            (range("\0", "\0"), 150, vec![]),
            (range("d", "m"), 60, vec![]),
            (range("d", "\0"), 140, vec![]),
            (range("\0", "h"), 30, vec![]),
            (range("c", "h"), 20, vec![range("c", "d")]),
            (range("c", "n"), 60, vec![range("c", "d"), range("m", "n")]),
            (range("e", "f"), 0, vec![range("e", "f")]),
            (range("n", "\0"), 0, vec![range("n", "\0")]),
            (range("e", ""), 0, vec![range("e", "")]),
            (range("f", "e"), 0, vec![]),
        ] {
            let expected = BlockSum {
                whole_keys,
                partial,
            };
            assert_eq!(counts.sum(&asked), expected, "{asked:?}");
        }
    }

    #[test]
    fn small_blocks_roll_up_into_their_predecessor() {
        let mut counts = counts(&[("", 200), ("d", 128), ("h", 1)]);
        let gone = [(Bytes::from("e"), false), (Bytes::from("i"), false)];
        let changes = counts.changes(gone.iter().map(|(key, created)| (key, *created)));
        counts.apply(changes);
        assert_eq!(
            counts.blocks,
            BTreeMap::from([(Bytes::new(), 327)]),
            "200 + 127 + 0"
        );
    }
}
