//! Sets of keys that are made of ranges.

use bytes::Bytes;
use metastore_proto::authpb::Permission;

/// `range_end` of a range without end.
const OPEN_END: &[u8] = b"\0";

/// A set of keys: intervals in order that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySet {
    intervals: Vec<Interval>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Interval {
    start: Bytes,
    /// First key after the interval; `None` for an interval without end.
    end: Option<Bytes>,
}

/// Whether an end comes before another one or is the same.
fn end_reaches(end: Option<&[u8]>, other: Option<&[u8]>) -> bool {
    match (end, other) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(end), Some(other)) => end >= other,
    }
}

impl Interval {
    fn of(permission: &Permission) -> Self {
        let start = permission.key.clone();
        let end = match &permission.range_end[..] {
            [] => Some(successor(&start)),
            OPEN_END => None,
            _ => Some(permission.range_end.clone()),
        };
        Self { start, end }
    }
}

/// The smallest key after `key`.
fn successor(key: &[u8]) -> Bytes {
    [key, b"\0"].concat().into()
}

impl KeySet {
    /// The union of the ranges of permissions.
    pub fn union<'a>(permissions: impl IntoIterator<Item = &'a Permission>) -> Self {
        let mut intervals: Vec<Interval> = permissions.into_iter().map(Interval::of).collect();
        intervals.sort_by(|a, b| a.start.cmp(&b.start));
        let mut merged: Vec<Interval> = Vec::with_capacity(intervals.len());
        for interval in intervals {
            match merged.last_mut() {
                Some(last) if end_reaches(last.end.as_deref(), Some(&interval.start)) => {
                    if !end_reaches(last.end.as_deref(), interval.end.as_deref()) {
                        last.end = interval.end;
                    }
                }
                _ => merged.push(interval),
            }
        }
        Self { intervals: merged }
    }

    /// Whether every key of a request's range is in the set. An empty `range_end` names one key,
    /// `"\0"` everything from `key` on. A range that ends before it begins counts as its first key,
    /// as in etcd.
    pub fn covers(&self, key: &[u8], range_end: &[u8]) -> bool {
        let after = self
            .intervals
            .partition_point(|interval| interval.start[..] <= *key);
        let Some(interval) = after.checked_sub(1).map(|at| &self.intervals[at]) else {
            return false;
        };
        let end = interval.end.as_deref();
        let holds_first_key = end.is_none_or(|end| key < end);
        match range_end {
            OPEN_END => end.is_none(),
            _ => holds_first_key && (range_end <= key || end_reaches(end, Some(range_end))),
        }
    }

    /// Whether no key is in the set.
    pub fn is_empty(&self) -> bool {
        self.intervals.is_empty()
    }
}

/// Whether a permission may have this range: one key, a range that is not empty, or one without
/// end.
pub(crate) fn is_valid_range(key: &[u8], range_end: &[u8]) -> bool {
    !key.is_empty() && (range_end.is_empty() || range_end == OPEN_END || key < range_end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn permission(key: &[u8], range_end: &[u8]) -> Permission {
        Permission {
            perm_type: 0,
            key: Bytes::copy_from_slice(key),
            range_end: Bytes::copy_from_slice(range_end),
        }
    }

    fn set(ranges: &[(&str, &str)]) -> KeySet {
        let permissions: Vec<Permission> = ranges
            .iter()
            .map(|(key, end)| permission(key.as_bytes(), end.as_bytes()))
            .collect();
        KeySet::union(&permissions)
    }

    #[test]
    fn a_request_must_lie_inside_the_union() {
        type Ranges = &'static [(&'static str, &'static str)];
        let cases: &[(Ranges, &str, &str, bool)] = &[
            (&[], "a", "", false),
            (&[("a", "")], "a", "", true),
            (&[("a", "")], "a", "a\0", true),
            (&[("a", "")], "a", "b", false),
            (&[("a", "")], "b", "", false),
            (&[("a", "c")], "a", "c", true),
            (&[("a", "c")], "b", "c", true),
            (&[("a", "c")], "b", "cc", false),
            (&[("a", "c")], "a", "\0", false),
            // Ranges that touch are one.
            (&[("a", "b"), ("b", "c")], "a", "c", true),
            (&[("b", "c"), ("a", "b"), ("d", "e")], "a", "c", true),
            (&[("a", "b"), ("b\0", "c")], "a", "c", false),
            (&[("a", ""), ("a\0", "c")], "a", "c", true),
            // The large one hides the small one behind which the next one begins.
            (&[("a", "x"), ("b", "c"), ("x", "z")], "a", "z", true),
            // Open ends.
            (&[("b", "\0")], "b", "\0", true),
            (&[("b", "\0")], "c", "\0", true),
            (&[("b", "\0")], "a", "\0", false),
            (&[("b", "\0")], "zzz", "", true),
            (&[("a", "c"), ("b", "\0")], "a", "\0", true),
            (&[("\0", "\0")], "\0", "\0", true),
            (&[("\0", "\0"), ("a", "")], "\0", "\0", true),
            // A range that is empty counts as its first key.
            (&[("b", "c")], "b", "a", true),
            (&[("b", "c")], "d", "a", false),
            (&[("b", "c")], "b", "b", true),
        ];
        for (ranges, key, end, expected) in cases {
            assert_eq!(
                set(ranges).covers(key.as_bytes(), end.as_bytes()),
                *expected,
                "{ranges:?} covers [{key:?}, {end:?})"
            );
        }
    }

    #[test]
    fn ranges_of_permissions_are_checked() {
        assert!(is_valid_range(b"a", b""));
        assert!(is_valid_range(b"a", b"b"));
        assert!(is_valid_range(b"a", b"\0"));
        assert!(is_valid_range(b"\0", b"\0"));
        assert!(!is_valid_range(b"", b""));
        assert!(!is_valid_range(b"", b"\0"));
        assert!(!is_valid_range(b"b", b"b"));
        assert!(!is_valid_range(b"b", b"a"));
    }

    /// `None` is the end of all keys.
    type Naive = (Vec<u8>, Option<Vec<u8>>);

    fn naive(key: &[u8], range_end: &[u8]) -> Naive {
        let end = match range_end {
            [] => Some([key, b"\0"].concat()),
            OPEN_END => None,
            _ => Some(range_end.to_vec()),
        };
        (key.to_vec(), end)
    }

    /// Looks at every piece between two neighbouring bounds by itself.
    fn naively_covers(permissions: &[Naive], request: &Naive) -> bool {
        let is_inside = |key: &[u8], (start, end): &Naive| {
            key >= &start[..] && end.as_ref().is_none_or(|end| key < &end[..])
        };
        let mut bounds: Vec<&Vec<u8>> = vec![&request.0];
        bounds.extend(permissions.iter().map(|(start, _)| start));
        bounds.extend(permissions.iter().filter_map(|(_, end)| end.as_ref()));
        bounds
            .into_iter()
            .filter(|bound| *bound == &request.0 || is_inside(bound, request))
            .all(|bound| permissions.iter().any(|range| is_inside(bound, range)))
    }

    fn key() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(
            prop_oneof![Just(0u8), Just(b'a'), Just(b'b'), Just(0xff)],
            1..4,
        )
    }

    fn range() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
        (
            key(),
            prop_oneof![
                2 => Just(Vec::new()),
                1 => Just(OPEN_END.to_vec()),
                4 => key(),
            ],
        )
    }

    proptest! {
        #[test]
        fn unions_agree_with_a_model_that_looks_at_every_piece(
            ranges in proptest::collection::vec(range(), 0..12),
            requests in proptest::collection::vec(range(), 1..24),
        ) {
            let valid: Vec<_> = ranges
                .iter()
                .filter(|(key, end)| is_valid_range(key, end))
                .collect();
            let permissions: Vec<Permission> =
                valid.iter().map(|(key, end)| permission(key, end)).collect();
            let model: Vec<Naive> = valid.iter().map(|(key, end)| naive(key, end)).collect();
            let union = KeySet::union(&permissions);
            for (key, end) in &requests {
                prop_assert_eq!(
                    union.covers(key, end),
                    naively_covers(&model, &naive(key, end)),
                    "[{:?}, {:?})", key, end
                );
            }
        }
    }
}
