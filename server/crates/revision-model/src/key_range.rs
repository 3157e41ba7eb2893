//! A range of keys as the API means it.

use bytes::Bytes;

/// Where a range of keys ends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RangeEnd {
    /// The range is the one key.
    Single,
    /// Every key at or after the start.
    Open,
    /// Every key before this one, which is excluded. At or before the start: the range is empty.
    Before(Bytes),
}

/// A range of keys as the API means it: `key` and `range_end` with etcd's special cases resolved
/// once, so that nobody below the handlers looks at `range_end == "\0"` again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyRange {
    /// First key of the range.
    pub start: Bytes,
    /// Where it ends.
    pub end: RangeEnd,
}

impl KeyRange {
    /// The range of a request. `range_end`: empty = the single key, `"\0"` = every key from `key`
    /// on. `key = "\0"` with `range_end = "\0"` is every key, since no key is empty.
    pub fn new(key: Bytes, range_end: Bytes) -> Self {
        let end = match range_end.as_ref() {
            b"" => RangeEnd::Single,
            b"\0" => RangeEnd::Open,
            _ => RangeEnd::Before(range_end),
        };
        Self { start: key, end }
    }

    /// The range of one key.
    pub fn single(key: Bytes) -> Self {
        Self {
            start: key,
            end: RangeEnd::Single,
        }
    }

    /// Every key.
    pub fn all() -> Self {
        Self {
            start: Bytes::from_static(b"\0"),
            end: RangeEnd::Open,
        }
    }

    /// Whether the range is one key.
    pub fn is_single(&self) -> bool {
        self.end == RangeEnd::Single
    }

    /// Whether no key can be in the range.
    pub fn is_empty(&self) -> bool {
        matches!(&self.end, RangeEnd::Before(end) if end <= &self.start)
    }

    /// Whether `key` is in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            RangeEnd::Single => key == self.start,
            RangeEnd::Open => key >= &self.start[..],
            RangeEnd::Before(end) => key >= &self.start[..] && key < &end[..],
        }
    }

    /// The excluded upper bound as bytes; `None` when the range is open. A single key ends at the
    /// key followed by a zero byte, its immediate successor.
    pub fn end_bytes(&self) -> Option<Bytes> {
        match &self.end {
            RangeEnd::Open => None,
            RangeEnd::Before(end) => Some(end.clone()),
            RangeEnd::Single => {
                let mut end = Vec::with_capacity(self.start.len() + 1);
                end.extend_from_slice(&self.start);
                end.push(0);
                Some(end.into())
            }
        }
    }

    /// Whether the two ranges share a key.
    pub fn overlaps(&self, other: &Self) -> bool {
        let starts_before_end = |key: &Bytes, range: &Self| match &range.end {
            RangeEnd::Single => key <= &range.start,
            RangeEnd::Open => true,
            RangeEnd::Before(end) => key < end,
        };
        !self.is_empty()
            && !other.is_empty()
            && starts_before_end(&self.start, other)
            && starts_before_end(&other.start, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(key: &'static str, end: &'static str) -> KeyRange {
        KeyRange::new(key.into(), end.into())
    }

    #[test]
    fn range_ends_mean_what_etcd_means() {
        for (key, end, inside, outside) in [
            ("b", "", vec!["b"], vec!["a", "b\0", "c"]),
            ("b", "\0", vec!["b", "b\0", "c", "\u{7f}"], vec!["a"]),
            ("b", "d", vec!["b", "c", "cz"], vec!["a", "d", "da"]),
            ("d", "b", vec![], vec!["a", "b", "c", "d"]),
            ("\0", "\0", vec!["\0", "a"], vec![]),
        ] {
            let range = range(key, end);
            for key in inside {
                assert!(range.contains(key.as_bytes()), "{key:?} in {range:?}");
            }
            for key in outside {
                assert!(!range.contains(key.as_bytes()), "{key:?} not in {range:?}");
            }
        }
    }

    #[test]
    fn ranges_overlap_exactly_when_they_share_a_key() {
        for (a, b, expected) in [
            (range("a", ""), range("a", ""), true),
            (range("a", ""), range("b", ""), false),
            (range("a", "c"), range("b", ""), true),
            (range("a", "c"), range("c", ""), false),
            (range("a", "c"), range("b", "d"), true),
            (range("a", "\0"), range("z", ""), true),
            (range("b", "\0"), range("a", ""), false),
            (range("c", "a"), range("b", ""), false),
        ] {
            assert_eq!(a.overlaps(&b), expected, "{a:?} {b:?}");
            assert_eq!(b.overlaps(&a), expected, "{b:?} {a:?}");
        }
    }
}
