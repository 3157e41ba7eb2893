//! Which events a watcher wants, and in which form.

use metastore_proto::etcdserverpb::WatchCreateRequest;
use metastore_proto::etcdserverpb::watch_create_request::FilterType;
use metastore_revision_model::{KeyRange, RangeEnd};

use crate::event::StoredEvent;

/// What decides which bytes a watcher gets. Watchers with equal selectors form a group: they are
/// found once and their events are put together once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Selector {
    pub(crate) range: KeyRange,
    pub(crate) previous: bool,
    pub(crate) no_put: bool,
    pub(crate) no_delete: bool,
}

impl Selector {
    /// The selector of a request. An empty key is the smallest one, `"\0"`. Unknown filters are
    /// ignored, as in etcd.
    pub(crate) fn new(request: &WatchCreateRequest) -> Self {
        let mut key = request.key.clone();
        if key.is_empty() {
            key = bytes::Bytes::from_static(b"\0");
        }
        let filters = &request.filters;
        Self {
            range: KeyRange::new(key, request.range_end.clone()),
            previous: request.prev_kv,
            no_put: filters.contains(&(FilterType::Noput as i32)),
            no_delete: filters.contains(&(FilterType::Nodelete as i32)),
        }
    }

    /// Whether the filters let the event through. Its key is in the range already.
    pub(crate) fn lets_through(&self, event: &StoredEvent) -> bool {
        if event.tombstone {
            !self.no_delete
        } else {
            !self.no_put
        }
    }
}

/// The prefix that a range stands for: `None` when it is no range of a prefix. Every key is the
/// range of the empty prefix.
pub(crate) fn prefix_of(range: &KeyRange) -> Option<&[u8]> {
    match &range.end {
        RangeEnd::Single => None,
        // No key is empty, so everything from "\0" on is everything.
        RangeEnd::Open => (range.start.as_ref() == b"\0").then_some(&[]),
        RangeEnd::Before(end) => {
            let (last, head) = end.split_last()?;
            let start = range.start.as_ref();
            let rest = start.strip_prefix(head)?;
            let (first, tail) = rest.split_first()?;
            let is_prefix =
                first.checked_add(1) == Some(*last) && tail.iter().all(|byte| *byte == 0xff);
            is_prefix.then_some(start)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_prefixes_are_recognised() {
        for (start, end, prefix) in [
            (&b"a"[..], &b"b"[..], Some(&b"a"[..])),
            (
                b"/registry/pods/",
                b"/registry/pods0",
                Some(b"/registry/pods/"),
            ),
            (b"a\xff", b"b", Some(b"a\xff")),
            (b"a\xff\xff", b"b", Some(b"a\xff\xff")),
            (b"\0", b"\0", Some(b"")),
            (b"a", b"\0", None),
            (b"a", b"", None),
            (b"a", b"c", None),
            (b"ab", b"b", None),
            (b"a", b"aa", None),
            (b"b", b"a", None),
            (b"\xff", b"\x01", None),
        ] {
            let range = KeyRange::new(start.into(), end.into());
            assert_eq!(prefix_of(&range), prefix, "{range:?}");
        }
    }
}
