//! How the requests of an HTTP/2 connection run.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Waker};

use hyper::rt::Executor;

/// Runs a request at once, where it was read, and makes a task of it only when it has to wait.
///
/// A read that finds everything in memory never waits, and a task for it would cost as much as the read. What
/// has to wait is polled a second time by its task, which is then the one to be woken.
#[derive(Clone, Copy, Debug)]
pub(super) struct PollFirst;

impl<F> Executor<F> for PollFirst
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, request: F) {
        let mut request = Box::pin(request);
        let mut context = Context::from_waker(Waker::noop());
        // As in a task: a request that panics ends alone and not with its connection.
        let polled = catch_unwind(AssertUnwindSafe(|| request.as_mut().poll(&mut context)));
        if polled.is_ok_and(|poll| poll.is_pending()) {
            tokio::spawn(request);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_request_that_waits_goes_on_by_itself() {
        let (question, asked) = oneshot::channel::<u32>();
        let (answer, answered) = oneshot::channel();
        PollFirst.execute(async move {
            let _ = answer.send(asked.await);
        });
        question.send(7).expect("the request waits");
        assert_eq!(answered.await.expect("it was answered"), Ok(7));
    }

    #[test]
    fn a_request_that_need_not_wait_is_done_at_once_and_without_a_runtime() {
        let done = Arc::new(AtomicBool::new(false));
        let mark = Arc::clone(&done);
        PollFirst.execute(async move { mark.store(true, Ordering::Relaxed) });
        assert!(done.load(Ordering::Relaxed));
    }

    #[test]
    fn a_request_that_panics_ends_alone() {
        PollFirst.execute(async { panic!("on purpose") });
    }
}
