//! Requests that this member forwarded to the leader and that wait for their own apply here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use metastore_consensus::completion::{self, Receiver, Sender};
use parking_lot::Mutex;

use crate::application::Applied;

/// Waiting requests by id.
#[derive(Default)]
pub struct Waiters {
    waiting: Mutex<HashMap<u64, Sender<Applied>>>,
    next_id: AtomicU64,
}

/// A registered wait; forgetting it takes it out of the table.
pub struct Waiter<'a> {
    table: &'a Waiters,
    id: u64,
    receiver: Receiver<Applied>,
}

impl Waiters {
    /// An empty table whose ids start at `seed`, so that ids of an earlier life of this member that
    /// are still in the log do not answer requests of this one.
    pub fn new(seed: u64) -> Self {
        Self {
            waiting: Mutex::default(),
            next_id: AtomicU64::new(seed),
        }
    }

    /// A number for a request; unique on this member.
    pub fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Starts to wait for the request `id`.
    pub fn register(&self, id: u64) -> Waiter<'_> {
        let (sender, receiver) = completion::question();
        self.waiting.lock().insert(id, sender);
        Waiter {
            table: self,
            id,
            receiver,
        }
    }

    /// Hands a result to whoever waits for it.
    pub fn complete(&self, id: u64, applied: Applied) {
        let sender = self.waiting.lock().remove(&id);
        if let Some(sender) = sender {
            sender.send(applied);
        }
    }
}

impl Waiter<'_> {
    /// The result, once the request was applied here; `None` when the server stops.
    pub async fn wait(&mut self) -> Option<Applied> {
        (&mut self.receiver).await.ok()
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.table.waiting.lock().remove(&self.id);
    }
}
