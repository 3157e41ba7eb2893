//! Finds the selectors that a key falls under.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use bytes::Bytes;
use interavl::IntervalTree;
use metastore_revision_model::{KeyRange, RangeEnd};
use smallvec::SmallVec;

use crate::selector::prefix_of;

/// End of a range of keys: an open end is behind every key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Limit {
    At(Bytes),
    Infinity,
}

/// Values of one place: nearly always one.
type Values<T> = SmallVec<[T; 1]>;

/// Values under ranges of keys. A look-up costs one probe for the key, one for each length among
/// the prefixes, and a logarithm of the number of other ranges; what does not match costs nothing
/// more.
///
/// Single keys are most of all watchers, prefixes nearly all of the rest (Kubernetes sends nothing
/// else), so the tree is usually empty.
#[derive(Debug)]
pub(crate) struct Index<T> {
    keys: HashMap<Bytes, Values<T>>,
    prefixes: BTreeMap<usize, HashMap<Bytes, Values<T>>>,
    ranges: IntervalTree<Limit, Values<T>>,
    range_count: usize,
}

impl<T: Copy + PartialEq> Index<T> {
    pub(crate) fn new() -> Self {
        Self {
            keys: HashMap::new(),
            prefixes: BTreeMap::new(),
            ranges: IntervalTree::default(),
            range_count: 0,
        }
    }

    /// Adds a value under a range that is not empty.
    pub(crate) fn insert(&mut self, range: &KeyRange, value: T) {
        if range.is_single() {
            self.keys
                .entry(range.start.clone())
                .or_default()
                .push(value);
        } else if let Some(prefix) = prefix_of(range) {
            self.prefixes
                .entry(prefix.len())
                .or_default()
                .entry(Bytes::copy_from_slice(prefix))
                .or_default()
                .push(value);
        } else {
            self.ranges.entry(limits(range)).or_default().push(value);
            self.range_count += 1;
        }
    }

    /// Removes a value that was inserted under this range.
    pub(crate) fn remove(&mut self, range: &KeyRange, value: T) {
        if range.is_single() {
            remove_from(&mut self.keys, &range.start, value);
        } else if let Some(prefix) = prefix_of(range) {
            let Some(of_length) = self.prefixes.get_mut(&prefix.len()) else {
                return;
            };
            remove_from(of_length, prefix, value);
            if of_length.is_empty() {
                self.prefixes.remove(&prefix.len());
            }
        } else {
            let limits = limits(range);
            let Some(values) = self.ranges.get_mut(&limits) else {
                return;
            };
            if remove_value(values, value) {
                self.range_count -= 1;
            }
            if values.is_empty() {
                self.ranges.remove(&limits);
            }
        }
    }

    /// Calls `found` with every value under a range that holds `key`.
    pub(crate) fn matching(&self, key: &Bytes, mut found: impl FnMut(T)) {
        if let Some(values) = self.keys.get(key) {
            values.iter().copied().for_each(&mut found);
        }
        for (length, of_length) in &self.prefixes {
            let Some(prefix) = key.get(..*length) else {
                break;
            };
            if let Some(values) = of_length.get(prefix) {
                values.iter().copied().for_each(&mut found);
            }
        }
        if self.range_count > 0 {
            let point = limits(&KeyRange::single(key.clone()));
            for (_, values) in self.ranges.iter_overlaps(&point) {
                values.iter().copied().for_each(&mut found);
            }
        }
    }

    /// Whether any value is under a range that holds `key`.
    pub(crate) fn matches(&self, key: &[u8]) -> bool {
        if self.keys.contains_key(key) {
            return true;
        }
        for (length, of_length) in &self.prefixes {
            let Some(prefix) = key.get(..*length) else {
                break;
            };
            if of_length.contains_key(prefix) {
                return true;
            }
        }
        self.range_count > 0 && {
            let point = limits(&KeyRange::single(Bytes::copy_from_slice(key)));
            self.ranges.iter_overlaps(&point).next().is_some()
        }
    }
}

fn limits(range: &KeyRange) -> Range<Limit> {
    let end = match &range.end {
        RangeEnd::Before(end) => Limit::At(end.clone()),
        RangeEnd::Open | RangeEnd::Single => range.end_bytes().map_or(Limit::Infinity, Limit::At),
    };
    Limit::At(range.start.clone())..end
}

fn remove_from<T: PartialEq>(map: &mut HashMap<Bytes, Values<T>>, key: &[u8], value: T) {
    if let Some(values) = map.get_mut(key) {
        remove_value(values, value);
        if values.is_empty() {
            map.remove(key);
        }
    }
}

fn remove_value<T: PartialEq>(values: &mut Values<T>, value: T) -> bool {
    let position = values.iter().position(|other| *other == value);
    if let Some(position) = position {
        values.swap_remove(position);
    }
    position.is_some()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(
            prop::sample::select(vec![0_u8, b'a', b'b', 0xfe, 0xff]),
            1..4,
        )
    }

    fn range() -> impl Strategy<Value = KeyRange> {
        prop_oneof![
            key().prop_map(|key| KeyRange::single(key.into())),
            key().prop_map(|key| KeyRange::new(key.into(), "\0".into())),
            (key(), key()).prop_map(|(key, end)| KeyRange::new(key.into(), end.into())),
            key().prop_map(|key| {
                let mut end = key.clone();
                while end.last() == Some(&0xff) {
                    end.pop();
                }
                match end.last_mut() {
                    Some(last) => *last += 1,
                    None => end.push(0),
                }
                KeyRange::new(key.into(), end.into())
            }),
        ]
        .prop_filter("an empty range is refused before", |range| {
            !range.is_empty()
        })
    }

    proptest! {
        #[test]
        fn finds_exactly_the_ranges_that_hold_the_key(
            ranges in prop::collection::vec((range(), any::<bool>()), 0..40),
            keys in prop::collection::vec(key(), 1..20),
        ) {
            let mut index = Index::new();
            for (id, (range, _)) in ranges.iter().enumerate() {
                index.insert(range, id);
            }
            for (id, (range, removed)) in ranges.iter().enumerate() {
                if *removed {
                    index.remove(range, id);
                }
            }
            for key in keys {
                let mut found = Vec::new();
                index.matching(&key.clone().into(), |id| found.push(id));
                found.sort_unstable();
                let expected: Vec<usize> = ranges
                    .iter()
                    .enumerate()
                    .filter(|(_, (range, removed))| !removed && range.contains(&key))
                    .map(|(id, _)| id)
                    .collect();
                prop_assert_eq!(index.matches(&key), !expected.is_empty());
                prop_assert_eq!(found, expected);
            }
        }
    }
}
