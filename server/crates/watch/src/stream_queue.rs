//! What waits for the client of one stream.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use crate::output::WatchOutput;

/// Memory of a queued response beside its events.
const OUTPUT_OVERHEAD_BYTES: usize = 128;

/// Answers to requests (created, canceled, progress) that may wait before the server should stop
/// reading requests. etcd buffers 16; a client may well create a thousand watchers at once.
const CONTROL_OUTPUTS_MAX: usize = 1024;

/// Room of the taken part that is kept for the next time.
const KEPT_CAPACITY: usize = 64;

/// A response with the bytes that it was charged for.
#[derive(Debug)]
pub(crate) struct Queued {
    output: WatchOutput,
    cost: usize,
}

/// The responses of one stream that its connection has not taken yet.
///
/// Events are refused when they would exceed the bound; then their watcher has to read the history
/// later. At half of the bound or less anything is accepted, so that a revision of any size gets
/// through: the bound on memory is `max(limit, limit / 2 + the largest revision)`.
#[derive(Debug)]
pub(crate) struct StreamQueue {
    state: Mutex<QueueState>,
    /// Of everything that was queued and not handed out, also of what is in the taker's hands.
    bytes: AtomicUsize,
    control: AtomicUsize,
    /// Some watcher waits for the queue to drain.
    paused: AtomicBool,
    limit: usize,
}

#[derive(Debug, Default)]
struct QueueState {
    outputs: VecDeque<Queued>,
    waker: Option<Waker>,
    closed: bool,
}

impl StreamQueue {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            state: Mutex::default(),
            bytes: AtomicUsize::new(0),
            control: AtomicUsize::new(0),
            paused: AtomicBool::new(false),
            limit,
        }
    }

    /// Queues an answer to a request, whatever the bound: the requests are what is bounded.
    pub(crate) fn push_control(&self, output: WatchOutput, wakers: &mut Vec<Waker>) {
        let mut state = self.state.lock();
        // Progress that was not read yet is outdated by newer progress: a client that only asks
        // must not fill the memory.
        if output.is_progress()
            && let Some(last) = state.outputs.back_mut()
            && last.output.is_progress()
            && last.output.watch_id == output.watch_id
        {
            last.output.header_revision = output.header_revision;
            return;
        }
        self.control.fetch_add(1, Ordering::Relaxed);
        self.append(&mut state, output, wakers);
    }

    /// Queues a response with events, in fragments below `fragment_limit` if given. False when
    /// there is no room: nothing was queued.
    pub(crate) fn push_events(
        &self,
        output: WatchOutput,
        fragment_limit: Option<usize>,
        wakers: &mut Vec<Waker>,
    ) -> bool {
        let mut state = self.state.lock();
        let bytes = self.bytes.load(Ordering::SeqCst);
        if bytes > self.low_mark()
            && bytes + OUTPUT_OVERHEAD_BYTES + output.events.len() > self.limit
        {
            return false;
        }
        match fragment_limit.filter(|limit| output.events.len() >= *limit / 2) {
            Some(limit) => {
                for fragment in output.into_fragments(limit) {
                    self.append(&mut state, fragment, wakers);
                }
            }
            None => self.append(&mut state, output, wakers),
        }
        true
    }

    fn append(&self, state: &mut QueueState, output: WatchOutput, wakers: &mut Vec<Waker>) {
        // Watchers of one group on one stream share the same bytes, which are in memory once.
        let shared = state.outputs.back().is_some_and(|last| {
            last.output.events.as_ptr() == output.events.as_ptr()
                && last.output.events.len() == output.events.len()
        });
        let events = if shared { 0 } else { output.events.len() };
        let cost = OUTPUT_OVERHEAD_BYTES + events;
        self.bytes.fetch_add(cost, Ordering::SeqCst);
        state.outputs.push_back(Queued { output, cost });
        wakers.extend(state.waker.take());
    }

    /// Asks to be told when there is room again: then [`take_next`](Self::take_next) says so once.
    /// True when there is room already.
    pub(crate) fn pause(&self) -> bool {
        self.paused.store(true, Ordering::SeqCst);
        // The taker first lowers `bytes` and then looks at `paused`; here it is the other way
        // round, so at least one of the two sees the other.
        self.bytes.load(Ordering::SeqCst) <= self.low_mark()
            && self.paused.swap(false, Ordering::SeqCst)
    }

    /// Events that the connection has not taken.
    pub(crate) fn event_count(&self) -> usize {
        let state = self.state.lock();
        state
            .outputs
            .iter()
            .map(|queued| queued.output.event_count())
            .sum()
    }

    fn low_mark(&self) -> usize {
        self.limit / 2
    }

    /// The next response. `taken` is the part that the caller holds; the second value says that a
    /// paused queue has room again.
    pub(crate) fn take_next(
        &self,
        taken: &mut VecDeque<Queued>,
        context: &mut Context<'_>,
    ) -> Poll<Option<(WatchOutput, bool)>> {
        if taken.is_empty() {
            let mut state = self.state.lock();
            if state.outputs.is_empty() {
                if state.closed {
                    return Poll::Ready(None);
                }
                match &mut state.waker {
                    Some(waker) => waker.clone_from(context.waker()),
                    none => *none = Some(context.waker().clone()),
                }
                return Poll::Pending;
            }
            taken.shrink_to(KEPT_CAPACITY);
            std::mem::swap(taken, &mut state.outputs);
        }
        let next = taken.pop_front().expect("it was just filled");
        if !next.output.has_events() {
            self.control.fetch_sub(1, Ordering::Relaxed);
        }
        let left = self.bytes.fetch_sub(next.cost, Ordering::SeqCst) - next.cost;
        let drained = self.paused.load(Ordering::SeqCst)
            && left <= self.low_mark()
            && self.paused.swap(false, Ordering::SeqCst);
        Poll::Ready(Some((next.output, drained)))
    }

    /// Ends the stream after what is queued.
    pub(crate) fn close(&self, wakers: &mut Vec<Waker>) {
        let mut state = self.state.lock();
        state.closed = true;
        wakers.extend(state.waker.take());
    }

    /// Bytes that are charged at present.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::SeqCst)
    }

    /// Whether few enough answers wait that another request should be read.
    pub(crate) fn takes_requests(&self) -> bool {
        self.control.load(Ordering::Relaxed) < CONTROL_OUTPUTS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(length: usize) -> WatchOutput {
        WatchOutput {
            events: vec![0; length].into(),
            ..WatchOutput::default()
        }
    }

    fn push(queue: &StreamQueue, length: usize) -> bool {
        queue.push_events(events(length), None, &mut Vec::new())
    }

    fn take(queue: &StreamQueue, taken: &mut VecDeque<Queued>) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        match queue.take_next(taken, &mut context) {
            Poll::Ready(Some((_, drained))) => drained,
            other => panic!("expected a response, got {other:?}"),
        }
    }

    #[test]
    fn events_are_refused_at_the_bound_and_room_is_announced_once() {
        let queue = StreamQueue::new(10_000);
        let mut taken = VecDeque::new();
        assert!(push(&queue, 4_000));
        assert!(push(&queue, 5_000));
        assert!(!push(&queue, 5_000));
        assert!(!queue.pause());
        assert!(!queue.pause());
        assert!(!take(&queue, &mut taken), "5 128 bytes are above half");
        assert!(take(&queue, &mut taken));
        assert_eq!(queue.bytes(), 0);
        assert!(queue.pause(), "there is room");
    }

    #[test]
    fn a_revision_above_the_bound_gets_through_when_half_is_free() {
        let queue = StreamQueue::new(1_000);
        assert!(push(&queue, 300));
        assert!(push(&queue, 50_000));
        assert!(!push(&queue, 1));
    }

    #[test]
    fn events_that_are_shared_on_a_stream_are_charged_once() {
        let queue = StreamQueue::new(1 << 20);
        let output = events(1_000);
        for _ in 0..10 {
            assert!(queue.push_events(output.clone(), None, &mut Vec::new()));
        }
        assert_eq!(queue.bytes(), 1_000 + 10 * OUTPUT_OVERHEAD_BYTES);
        let mut taken = VecDeque::new();
        for _ in 0..10 {
            take(&queue, &mut taken);
        }
        assert_eq!(queue.bytes(), 0);
    }

    #[test]
    fn progress_that_nobody_reads_takes_one_place() {
        let queue = StreamQueue::new(1 << 20);
        for revision in 0..1_000 {
            queue.push_control(WatchOutput::progress(-1, revision), &mut Vec::new());
        }
        assert_eq!(queue.bytes(), OUTPUT_OVERHEAD_BYTES);
        let mut context = Context::from_waker(Waker::noop());
        let Poll::Ready(Some((output, _))) = queue.take_next(&mut VecDeque::new(), &mut context)
        else {
            panic!("there is a response");
        };
        assert_eq!(output, WatchOutput::progress(-1, 999));
    }

    #[test]
    fn a_closed_queue_ends_after_what_it_holds() {
        let queue = StreamQueue::new(1 << 20);
        push(&queue, 1);
        queue.close(&mut Vec::new());
        let mut taken = VecDeque::new();
        take(&queue, &mut taken);
        let mut context = Context::from_waker(Waker::noop());
        assert!(matches!(
            queue.take_next(&mut taken, &mut context),
            Poll::Ready(None)
        ));
    }
}
