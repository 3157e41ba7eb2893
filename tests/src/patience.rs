//! Waiting: always for a reason, always with a deadline.

use std::future::Future;
use std::time::{Duration, Instant};

/// Pause between two looks at a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// `duration` times the environment variable `METASTORE_TEST_PATIENCE` (default 1), for slow
/// machines. Deadlines that are part of a promise ("a new leader within two election time-outs")
/// are not stretched.
pub fn deadline(duration: Duration) -> Duration {
    let patience = std::env::var("METASTORE_TEST_PATIENCE")
        .ok()
        .and_then(|text| text.parse::<f64>().ok())
        .unwrap_or(1.0);
    duration.mul_f64(patience)
}

/// Repeats `attempt` until it succeeds and returns its value.
///
/// # Panics
///
/// When `limit` (stretched by [`deadline`]) has passed: with the reason and the last failure.
pub async fn eventually<T, F, Fut>(reason: &str, limit: Duration, mut attempt: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, String>>,
{
    let limit = deadline(limit);
    let start = Instant::now();
    let mut last = String::from("never tried");
    while start.elapsed() < limit {
        match tokio::time::timeout(limit.saturating_sub(start.elapsed()), attempt()).await {
            Ok(Ok(value)) => return value,
            Ok(Err(failure)) => last = failure,
            Err(_) => last = format!("{last}; the last attempt hung"),
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    panic!("waited {limit:?} in vain until {reason}: {last}");
}

/// Runs a test with a deadline, stretched by [`deadline`]. What the test holds is dropped while the
/// failure unwinds, so that members show their logs.
///
/// # Panics
///
/// When the test takes longer.
pub async fn within(limit: Duration, test: impl Future<Output = ()>) {
    let mut test = std::pin::pin!(test);
    if tokio::time::timeout(deadline(limit), &mut test)
        .await
        .is_err()
    {
        panic!("the test takes longer than {limit:?}");
    }
}
