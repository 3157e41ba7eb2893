//! What the clients of a run count, and the phase they share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use hdrhistogram::Histogram;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::client::CallError;

/// Latencies are kept to three digits.
const SIGNIFICANT_DIGITS: u8 = 3;

/// The longest latency that is told apart from longer ones, in microseconds: five minutes, longer
/// than a run waits for its calls.
const LATENCY_MAX_US: u64 = 300_000_000;

/// State that all clients of a run share. They run on one thread, so relaxed order is enough.
#[derive(Default)]
pub struct Shared {
    measuring: AtomicBool,
    stopped: watch::Sender<bool>,
    /// The next number of whatever the clients deal out among themselves.
    pub next: AtomicU64,
}

impl Shared {
    /// From now on completed calls count.
    pub fn start_measuring(&self) {
        self.measuring.store(true, Relaxed);
    }

    /// From now on completed calls do not count any more, and clients end.
    pub fn stop(&self) {
        self.measuring.store(false, Relaxed);
        self.stopped.send_replace(true);
    }

    /// Whether clients must end.
    pub fn stopped(&self) -> bool {
        *self.stopped.borrow()
    }

    /// Resolves when clients must end; for those that wait for something that may never come.
    pub async fn until_stopped(&self) {
        // The sender lives as long as `self`, so the wait ends with the value.
        let _ = self.stopped.subscribe().wait_for(|stopped| *stopped).await;
    }
}

/// Counts of one client, or of all of them together.
pub struct Recorder {
    shared: Arc<Shared>,
    histogram: Histogram<u64>,
    /// Operations completed inside the measured time.
    pub operations: u64,
    /// Failed calls, at any time.
    pub errors: u64,
    /// Text of the first failure.
    pub first_error: Option<String>,
    /// Compare-and-swaps that met another revision, at any time.
    pub conflicts: u64,
}

impl Recorder {
    /// Counts while `shared` says so.
    pub fn new(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::clone(shared),
            histogram: Histogram::new_with_max(LATENCY_MAX_US, SIGNIFICANT_DIGITS)
                .expect("the bounds are constants"),
            operations: 0,
            errors: 0,
            first_error: None,
            conflicts: 0,
        }
    }

    /// One call brought `operations`.
    pub fn done(&mut self, operations: u64, started: Instant) {
        self.count(operations);
        self.latency(u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }

    /// Counts operations without a latency.
    pub fn count(&mut self, operations: u64) {
        if self.shared.measuring.load(Relaxed) {
            self.operations += operations;
        }
    }

    /// Records a latency without an operation.
    pub fn latency(&mut self, nanoseconds: u64) {
        if self.shared.measuring.load(Relaxed) {
            self.histogram.saturating_record(nanoseconds / 1000);
        }
    }

    /// One call failed.
    pub fn fail(&mut self, error: &CallError) {
        self.errors += 1;
        if self.first_error.is_none() {
            self.first_error = Some(error.to_string());
        }
    }

    /// Adds the counts of another client.
    pub fn add(&mut self, other: Self) {
        self.histogram
            .add(&other.histogram)
            .expect("all histograms have one shape");
        self.operations += other.operations;
        self.errors += other.errors;
        self.conflicts += other.conflicts;
        if self.first_error.is_none() {
            self.first_error = other.first_error;
        }
    }

    /// The latency that this share of the calls did not exceed, in microseconds.
    pub fn latency_us(&self, share: f64) -> u64 {
        self.histogram.value_at_quantile(share)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_what_completes_inside_the_measured_time_counts() {
        let shared = Arc::new(Shared::default());
        let mut recorder = Recorder::new(&shared);
        let started = Instant::now() - Duration::from_millis(20);
        recorder.done(1, started);
        shared.start_measuring();
        recorder.done(2, started);
        shared.stop();
        recorder.done(4, started);
        let mut total = Recorder::new(&shared);
        total.add(recorder);
        assert_eq!(total.operations, 2);
        assert!(total.latency_us(0.5) >= 20_000, "{}", total.latency_us(0.5));
    }
}
