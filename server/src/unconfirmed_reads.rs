//! How often reads waited for a whole request time and no leader confirmed them.
//!
//! etcd asks its leader for all readers together and counts a question that nobody answered in time once,
//! however many wait for it and whether or not they have given up meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// Watches over reads that have no leader.
#[derive(Default)]
pub struct UnconfirmedReads {
    /// Whether the time of a question runs.
    running: AtomicBool,
    ended: Arc<Notify>,
    timed_out: AtomicU64,
}

impl UnconfirmedReads {
    /// A read found no leader: unless it does already, the time of the question runs from now on.
    pub fn begin(self: &Arc<Self>, limit: Duration) {
        if self.running.swap(true, Ordering::Relaxed) {
            return;
        }
        let ended = self.ended.clone().notified_owned();
        let this = self.clone();
        tokio::spawn(async move {
            if tokio::time::timeout(limit, ended).await.is_err() {
                this.timed_out.fetch_add(1, Ordering::Relaxed);
            }
            this.running.store(false, Ordering::Relaxed);
        });
    }

    /// A read was answered, and with it the question. Costs nothing when none is open.
    pub fn end(&self) {
        if self.running.load(Ordering::Relaxed) {
            self.ended.notify_waiters();
        }
    }

    /// Questions that got no answer in time.
    pub fn timed_out(&self) -> u64 {
        self.timed_out.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(7);

    /// Time passes, and the watching task sees both its begin and its end.
    async fn pass(time: Duration) {
        tokio::task::yield_now().await;
        tokio::time::advance(time).await;
        tokio::task::yield_now().await;
    }

    #[tokio::test(start_paused = true)]
    async fn one_question_is_counted_for_all_who_wait_for_it() {
        let reads = Arc::new(UnconfirmedReads::default());
        for _ in 0..3 {
            reads.begin(LIMIT);
            pass(LIMIT / 7).await;
        }
        assert_eq!(reads.timed_out(), 0);
        pass(LIMIT).await;
        assert_eq!(reads.timed_out(), 1);
        reads.begin(LIMIT);
        pass(LIMIT).await;
        assert_eq!(reads.timed_out(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_ends_a_question_and_the_next_has_its_whole_time() {
        let reads = Arc::new(UnconfirmedReads::default());
        reads.end();
        reads.begin(LIMIT);
        pass(LIMIT - Duration::from_secs(1)).await;
        reads.end();
        pass(LIMIT).await;
        assert_eq!(reads.timed_out(), 0);
        reads.begin(LIMIT);
        pass(LIMIT - Duration::from_secs(1)).await;
        assert_eq!(reads.timed_out(), 0);
        pass(Duration::from_secs(1)).await;
        assert_eq!(reads.timed_out(), 1);
    }
}
