//! The runtime that openraft runs on: tokio, with a generator that can be seeded.

use std::cell::Cell;
use std::future::Future;
use std::time::Duration;

use openraft::OptionalSend;
use openraft_rt::AsyncRuntime;
use openraft_rt_tokio::{
    TokioInstant, TokioMpsc, TokioMutex, TokioOneshot, TokioRuntime, TokioWatch,
};
use rand::SeedableRng;
use rand::rngs::SmallRng;

thread_local! {
    /// Seed of the next generator of this thread. All members of a simulation share one thread,
    /// hence one sequence.
    static NEXT_SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Makes the election time-outs of this thread a function of `seed`.
pub(crate) fn seed_this_thread(seed: u64) {
    NEXT_SEED.with(|cell| cell.set(Some(seed)));
}

fn next_seed() -> u64 {
    NEXT_SEED.with(|cell| {
        let seed = cell.get().unwrap_or_else(rand::random::<u64>);
        // SplitMix64's increment: neighbouring seeds give unrelated generators.
        cell.set(Some(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)));
        seed
    })
}

/// [`TokioRuntime`] but for [`AsyncRuntime::thread_rng`], which openraft draws its election
/// time-outs from.
#[derive(Debug)]
pub struct Runtime {
    inner: TokioRuntime,
}

impl AsyncRuntime for Runtime {
    type JoinError = tokio::task::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = tokio::task::JoinHandle<T>;
    type Sleep = tokio::time::Sleep;
    type Instant = TokioInstant;
    type TimeoutError = tokio::time::error::Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = tokio::time::Timeout<T>;
    type ThreadLocalRng = SmallRng;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        SmallRng::seed_from_u64(next_seed())
    }

    type Mpsc = TokioMpsc;
    type Watch = TokioWatch;
    type Oneshot = TokioOneshot;
    type Mutex<T: OptionalSend + 'static> = TokioMutex<T>;

    fn new(threads: usize) -> Self {
        Self {
            inner: TokioRuntime::new(threads),
        }
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.inner.block_on(future)
    }
}
