//! Answers on their way back to the thread that asked.
//!
//! Waking a task of another thread costs a system call and a change of thread, and a task that is
//! woken alone also writes its answer to its socket alone. So an answer does not wake its task: it
//! leaves the task's waker in the [`Mailbox`] of the asking thread, which is woken once for a whole
//! batch and wakes its own tasks itself.
//!
//! ```text
//! apply thread ── Batch: answer, answer, answer ──> Mailbox ── one wake-up ──> client thread ──> tasks
//! ```

use std::cell::RefCell;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use openraft::OptionalSend;
use openraft::raft::responder::Responder;
use parking_lot::Mutex;

use crate::raft_types::TypeConfig;

thread_local! {
    /// The mailbox of this thread's runtime.
    static MAILBOX: RefCell<Option<Arc<Mailbox>>> = const { RefCell::new(None) };
    /// Deliveries that this thread collects while it has a [`Batch`].
    static COLLECTED: RefCell<Collected> = const { RefCell::new(Collected { batches: 0, deliveries: Vec::new() }) };
}

struct Collected {
    /// Batches of this thread that live; the last one delivers.
    batches: usize,
    deliveries: Vec<(Arc<Mailbox>, Waker)>,
}

/// Where a thread gets the wakers of its tasks that have an answer.
pub struct Mailbox {
    state: Mutex<MailboxState>,
}

#[derive(Default)]
struct MailboxState {
    ready: Vec<Waker>,
    /// The task that empties the mailbox, while it sleeps.
    collector: Option<Waker>,
}

impl Mailbox {
    /// Gives the current thread a mailbox; to be called inside its own current-thread runtime. Answers
    /// to whatever is asked on this thread from now on come through it, for as long as the runtime
    /// lives.
    pub fn open() {
        let mailbox = Arc::new(Self {
            state: Mutex::default(),
        });
        tokio::spawn(Collector {
            mailbox: mailbox.clone(),
            taken: Vec::new(),
        });
        MAILBOX.with(|current| *current.borrow_mut() = Some(mailbox));
    }

    fn current() -> Option<Arc<Self>> {
        MAILBOX.with(|current| current.borrow().clone())
    }

    fn deliver(&self, wakers: impl IntoIterator<Item = Waker>) {
        let collector = {
            let mut state = self.state.lock();
            state.ready.extend(wakers);
            state.collector.take()
        };
        if let Some(collector) = collector {
            collector.wake();
        }
    }
}

/// The task that empties a mailbox.
struct Collector {
    mailbox: Arc<Mailbox>,
    /// Swapped with the mailbox's, so that neither is allocated anew.
    taken: Vec<Waker>,
}

impl Future for Collector {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        {
            let mut state = this.mailbox.state.lock();
            std::mem::swap(&mut state.ready, &mut this.taken);
            state.collector = Some(context.waker().clone());
        }
        for waker in this.taken.drain(..) {
            waker.wake();
        }
        Poll::Pending
    }
}

/// While it lives, answers that this thread gives are collected; they leave when it is dropped.
///
/// Must not live across a wait: what it holds back, others wait for.
pub struct Batch(PhantomData<*const ()>);

impl Batch {
    /// Starts to collect.
    pub fn begin() -> Self {
        COLLECTED.with(|collected| collected.borrow_mut().batches += 1);
        Self(PhantomData)
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let mut deliveries = COLLECTED.with(|collected| {
            let mut collected = collected.borrow_mut();
            collected.batches -= 1;
            match collected.batches {
                0 => std::mem::take(&mut collected.deliveries),
                _ => Vec::new(),
            }
        });
        // There are as many mailboxes as threads that serve clients: few.
        while let Some((mailbox, _)) = deliveries.first() {
            let mailbox = mailbox.clone();
            let same = |(other, _): &mut (Arc<Mailbox>, Waker)| Arc::ptr_eq(other, &mailbox);
            let wakers = deliveries.extract_if(.., same).map(|(_, waker)| waker);
            mailbox.deliver(wakers);
        }
    }
}

/// One answer; the sending half.
///
/// Dropping it without an answer tells the receiver.
pub struct Sender<T> {
    slot: Option<Arc<Slot<T>>>,
}

/// One answer; the receiving half, a future.
pub struct Receiver<T> {
    slot: Arc<Slot<T>>,
}

/// There will be no answer: the sender was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the question was dropped")]
pub struct Dropped;

struct Slot<T> {
    mailbox: Option<Arc<Mailbox>>,
    state: Mutex<SlotState<T>>,
}

struct SlotState<T> {
    answer: Option<Result<T, Dropped>>,
    waker: Option<Waker>,
    abandoned: bool,
}

/// A question of the current thread.
pub fn question<T>() -> (Sender<T>, Receiver<T>) {
    let slot = Arc::new(Slot {
        mailbox: Mailbox::current(),
        state: Mutex::new(SlotState {
            answer: None,
            waker: None,
            abandoned: false,
        }),
    });
    let sender = Sender {
        slot: Some(slot.clone()),
    };
    (sender, Receiver { slot })
}

impl<T> Sender<T> {
    /// Answers. Nothing happens when nobody waits any more.
    pub fn send(mut self, answer: T) {
        if let Some(slot) = self.slot.take() {
            slot.complete(Ok(answer));
        }
    }

    /// Whether nobody waits any more.
    pub fn is_abandoned(&self) -> bool {
        self.slot
            .as_ref()
            .is_none_or(|slot| slot.state.lock().abandoned)
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            slot.complete(Err(Dropped));
        }
    }
}

impl<T> Slot<T> {
    fn complete(&self, answer: Result<T, Dropped>) {
        let waker = {
            let mut state = self.state.lock();
            state.answer = Some(answer);
            state.waker.take()
        };
        let Some(waker) = waker else {
            // Not asked yet, or given up.
            return;
        };
        let Some(mailbox) = &self.mailbox else {
            waker.wake();
            return;
        };
        let at_once = COLLECTED.with(|collected| {
            let mut collected = collected.borrow_mut();
            if collected.batches == 0 {
                return Some(waker);
            }
            collected.deliveries.push((mailbox.clone(), waker));
            None
        });
        if let Some(waker) = at_once {
            mailbox.deliver([waker]);
        }
    }
}

impl<T> Future for Receiver<T> {
    type Output = Result<T, Dropped>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.slot.state.lock();
        if let Some(answer) = state.answer.take() {
            return Poll::Ready(answer);
        }
        match &mut state.waker {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.slot.state.lock();
        state.abandoned = true;
        state.waker = None;
    }
}

impl<T: OptionalSend + 'static> Responder<TypeConfig, T> for Sender<T> {
    fn on_complete(self, result: T) {
        self.send(result);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn answers_reach_a_thread_with_a_mailbox_alone_and_in_batches() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            Mailbox::open();
            for batched in [false, true] {
                let mut receivers = Vec::new();
                let mut senders = Vec::new();
                for _ in 0..100_u32 {
                    let (sender, receiver) = question();
                    senders.push(sender);
                    receivers.push(tokio::spawn(receiver));
                }
                let answering = thread::spawn(move || {
                    let _batch = batched.then(Batch::begin);
                    for (number, sender) in senders.into_iter().enumerate() {
                        sender.send(number);
                    }
                });
                for (number, receiver) in receivers.into_iter().enumerate() {
                    assert_eq!(receiver.await.unwrap(), Ok(number));
                }
                answering.join().unwrap();
            }
        });
    }

    #[tokio::test]
    async fn a_question_that_is_dropped_or_given_up_is_noticed() {
        let (sender, receiver) = question::<()>();
        drop(sender);
        assert_eq!(receiver.await, Err(Dropped));
        let (sender, receiver) = question();
        assert!(!sender.is_abandoned());
        drop(receiver);
        assert!(sender.is_abandoned());
        sender.send(());
    }
}
