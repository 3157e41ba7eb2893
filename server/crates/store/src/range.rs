//! Range: filters, orders and limits over the live keys at a revision.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::ops::ControlFlow;

use bytes::Bytes;
use metastore_proto::EncodedKeyValue;
use metastore_proto::etcdserverpb::RangeRequest;
use metastore_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use metastore_revision_model::KeyRange;

use crate::encoding::{self, Fields};
use crate::engine::Direction;
use crate::view::{LiveKey, ScanError, View, Want, scan_live};

/// What a range answers beside its header.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Answer {
    pub key_values: Vec<EncodedKeyValue>,
    pub more: bool,
    pub count: i64,
}

/// Counts the live keys of a range, when a scan was cut off before it had seen them all.
pub(crate) type Counter<'a> = dyn FnMut(&KeyRange) -> Result<i64, ScanError> + 'a;

/// Whether the order is the one in which keys are stored.
pub(crate) fn is_default_order(request: &RangeRequest) -> bool {
    let order = request.sort_order;
    order == SortOrder::None as i32
        || request.sort_target == SortTarget::Key as i32 && order == SortOrder::Ascend as i32
}

/// Whether any of the four revision filters is set.
pub(crate) fn has_revision_filters(request: &RangeRequest) -> bool {
    request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0
}

/// Answers the request at `revision`, which the caller has checked against the current and the
/// compact revision.
pub(crate) fn execute(
    view: &impl View,
    request: &RangeRequest,
    revision: i64,
    counter: &mut Counter<'_>,
) -> Result<Answer, ScanError> {
    let range = KeyRange::new(request.key.clone(), request.range_end.clone());
    if range.is_empty() {
        return Ok(Answer::default());
    }
    if request.count_only {
        return Ok(Answer {
            count: counter(&range)?,
            ..Answer::default()
        });
    }
    let want = match (
        request.keys_only,
        request.sort_target == SortTarget::Value as i32,
    ) {
        (true, false) => Want::KeyOnlyPair,
        _ => Want::Pair,
    };
    let limit = usize::try_from(request.limit).unwrap_or(0);
    let filtered = has_revision_filters(request);
    let order = order(request);
    let mut answer = match order {
        Order::Key(direction) => {
            let cut = !filtered;
            collect(view, &range, direction, revision, want, limit, cut, request)?
        }
        // etcd cuts before it sorts when a target but no order was asked for.
        Order::FirstKeysByTarget if limit > 0 && !filtered => {
            first_keys_by_target(view, &range, revision, want, limit, request)?
        }
        Order::FirstKeysByTarget | Order::Target(Sequence::Ascending) => {
            let sequence = Sequence::Ascending;
            by_target(view, &range, revision, want, limit, sequence, request)?
        }
        Order::Target(sequence) => {
            by_target(view, &range, revision, want, limit, sequence, request)?
        }
    };
    if answer.count < 0 {
        answer.count = counter(&range)?;
    }
    if request.keys_only && want == Want::Pair {
        for key_value in &mut answer.key_values {
            let fields = encoding::fields(key_value)?;
            *key_value = Fields {
                value: &[],
                ..fields
            }
            .encode();
        }
    }
    Ok(answer)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sequence {
    Ascending,
    Descending,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// By key.
    Key(Direction),
    /// The first keys, then sorted by a target: what a target without an order means.
    FirstKeysByTarget,
    /// All keys by a target.
    Target(Sequence),
}

fn order(request: &RangeRequest) -> Order {
    let descending = request.sort_order == SortOrder::Descend as i32;
    if request.sort_target == SortTarget::Key as i32 {
        // etcd fetches everything, reverses and cuts; scanning backwards gives the same keys.
        Order::Key(match descending {
            true => Direction::Backward,
            false => Direction::Forward,
        })
    } else if request.sort_order == SortOrder::None as i32 {
        Order::FirstKeysByTarget
    } else if descending {
        Order::Target(Sequence::Descending)
    } else {
        Order::Target(Sequence::Ascending)
    }
}

fn passes(live: &LiveKey, request: &RangeRequest) -> bool {
    let within = |number: i64, min: i64, max: i64| {
        (max == 0 || number <= max) && (min == 0 || number >= min)
    };
    within(
        live.mod_revision,
        request.min_mod_revision,
        request.max_mod_revision,
    ) && within(
        live.create_revision,
        request.min_create_revision,
        request.max_create_revision,
    )
}

/// Keys in key order. With `cut` the scan ends at the first key beyond the limit, and the count is
/// left open (-1); else every key is visited and counted.
#[allow(clippy::too_many_arguments)]
fn collect(
    view: &impl View,
    range: &KeyRange,
    direction: Direction,
    revision: i64,
    want: Want,
    limit: usize,
    cut: bool,
    request: &RangeRequest,
) -> Result<Answer, ScanError> {
    let mut answer = Answer::default();
    let expected = match cut {
        true if limit > 0 => limit.saturating_add(1),
        _ => 0,
    };
    scan_live(
        view,
        range,
        direction,
        revision,
        want,
        expected,
        &mut |live| {
            answer.count += 1;
            if !passes(&live, request) {
                return ControlFlow::Continue(());
            }
            if limit == 0 || answer.key_values.len() < limit {
                answer.key_values.push(live.key_value);
                return ControlFlow::Continue(());
            }
            answer.more = true;
            if cut {
                answer.count = -1;
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        },
    )?;
    Ok(answer)
}

/// The first `limit` + 1 keys sorted by the target, cut to `limit`: the key that is cut off is the
/// last of the sorted ones, not the last by key, as in etcd.
fn first_keys_by_target(
    view: &impl View,
    range: &KeyRange,
    revision: i64,
    want: Want,
    limit: usize,
    request: &RangeRequest,
) -> Result<Answer, ScanError> {
    let mut ranked = Vec::new();
    let fetched = limit.saturating_add(1);
    let direction = Direction::Forward;
    scan_live(
        view,
        range,
        direction,
        revision,
        want,
        fetched,
        &mut |live| {
            ranked.push(Ranked::new(
                live,
                ranked.len(),
                Sequence::Ascending,
                request,
            ));
            match ranked.len() == fetched {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        },
    )?;
    ranked.sort();
    let more = ranked.len() > limit;
    let count = match more {
        true => -1,
        false => ranked.len() as i64,
    };
    ranked.truncate(limit);
    Ok(Answer {
        key_values: ranked.into_iter().map(|ranked| ranked.key_value).collect(),
        more,
        count,
    })
}

/// All keys by a target. With a limit a heap of that size holds the best so far, so that the
/// memory is bounded by the answer and not by the range.
fn by_target(
    view: &impl View,
    range: &KeyRange,
    revision: i64,
    want: Want,
    limit: usize,
    sequence: Sequence,
    request: &RangeRequest,
) -> Result<Answer, ScanError> {
    let mut count = 0;
    let mut passed = 0;
    let mut best = BinaryHeap::new();
    let direction = Direction::Forward;
    scan_live(view, range, direction, revision, want, 0, &mut |live| {
        count += 1;
        if passes(&live, request) {
            best.push(Ranked::new(live, passed, sequence, request));
            passed += 1;
            if limit > 0 && best.len() > limit {
                best.pop();
            }
        }
        ControlFlow::Continue(())
    })?;
    let sorted = best.into_sorted_vec();
    Ok(Answer {
        key_values: sorted.into_iter().map(|ranked| ranked.key_value).collect(),
        more: limit > 0 && passed > limit,
        count,
    })
}

/// A pair with its place in the order; pairs of equal rank stay in the order of their keys.
#[derive(PartialEq, Eq)]
struct Ranked {
    number: i64,
    value: Bytes,
    position: usize,
    sequence: Sequence,
    key_value: EncodedKeyValue,
}

impl Ranked {
    fn new(live: LiveKey, position: usize, sequence: Sequence, request: &RangeRequest) -> Self {
        let number = match SortTarget::try_from(request.sort_target) {
            Ok(SortTarget::Version) => live.version,
            Ok(SortTarget::Create) => live.create_revision,
            Ok(SortTarget::Mod) => live.mod_revision,
            Ok(SortTarget::Key | SortTarget::Value) | Err(_) => 0,
        };
        let value = match request.sort_target == SortTarget::Value as i32 {
            true => live.value(),
            false => Bytes::new(),
        };
        Self {
            number,
            value,
            position,
            sequence,
            key_value: live.key_value,
        }
    }
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        let rank = self
            .number
            .cmp(&other.number)
            .then_with(|| self.value.cmp(&other.value));
        match self.sequence {
            Sequence::Ascending => rank,
            Sequence::Descending => rank.reverse(),
        }
        .then_with(|| self.position.cmp(&other.position))
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
