//! The limits of leases, equal to etcd's.

use std::time::Duration;

/// Longest TTL of a lease, in seconds; a longer one is refused as `too large lease TTL`.
pub const MAXIMUM_TTL_SECONDS: i64 = 9_000_000_000;

/// Leases that are revoked in one second, over all: a pile of expired leases must not push client
/// writes out of the log.
pub const REVOKES_PER_SECOND: u32 = 1000;

/// Revokes of expired leases that are on their way through the log at one time.
pub const PENDING_REVOKES_MAX: usize = 16;

/// Time between two checkpoints of a lease's remaining time. A lease that is shorter needs none.
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// Checkpoints that go into one log entry.
pub const CHECKPOINT_BATCH_MAX: usize = 1000;

/// The asked TTL is above [`MAXIMUM_TTL_SECONDS`]. The caller answers `too large lease TTL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too large lease TTL: {asked} s, at most {MAXIMUM_TTL_SECONDS} s")]
pub struct TtlTooLarge {
    /// What was asked for, in seconds.
    pub asked: i64,
}

/// The shortest TTL that is granted, in seconds, as etcd derives it: one and a half election
/// time-outs, counted in whole ticks of the heartbeat, rounded up to a second. 2 s at the defaults.
///
/// A shorter lease could end during a normal change of the leader. A heartbeat of 0 counts as 1 ms.
pub fn minimum_ttl_seconds(heartbeat_interval: Duration, election_timeout: Duration) -> i64 {
    let tick_ms = heartbeat_interval.as_millis().max(1);
    let election_ticks = election_timeout.as_millis() / tick_ms;
    let minimum_ms = election_ticks * 3 / 2 * tick_ms;
    i64::try_from(minimum_ms.div_ceil(1000))
        .unwrap_or(MAXIMUM_TTL_SECONDS)
        .min(MAXIMUM_TTL_SECONDS)
}

/// The TTL that a lease gets when `asked` is asked for: never below `minimum`, which includes 0 and
/// negative values. To be decided once, before the command is proposed, so that all members agree.
///
/// # Errors
/// [`TtlTooLarge`] above the maximum.
pub fn granted_ttl(asked: i64, minimum: i64) -> Result<i64, TtlTooLarge> {
    if asked > MAXIMUM_TTL_SECONDS {
        return Err(TtlTooLarge { asked });
    }
    Ok(asked.max(minimum))
}

/// How long after an offer a lease whose revoke did not go through is offered again: the time that
/// a request may take (5 s of queueing and disk, two elections).
pub fn revoke_retry_interval(election_timeout: Duration) -> Duration {
    Duration::from_secs(5) + 2 * election_timeout
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minimum_ttl_is_etcds() {
        for (heartbeat_ms, election_ms, expected) in [
            (100, 1000, 2),
            (100, 500, 1),
            (500, 5000, 8),
            (10, 100, 1),
            (100, 50_000, 75),
            // 3 ticks: 3 * 3 / 2 = 4 whole ticks.
            (300, 1000, 2),
            (0, 1000, 2),
        ] {
            assert_eq!(
                minimum_ttl_seconds(
                    Duration::from_millis(heartbeat_ms),
                    Duration::from_millis(election_ms)
                ),
                expected,
                "{heartbeat_ms} {election_ms}"
            );
        }
    }

    #[test]
    fn a_short_ttl_is_raised_and_a_long_one_refused() {
        assert_eq!(granted_ttl(1, 2), Ok(2));
        assert_eq!(granted_ttl(0, 2), Ok(2));
        assert_eq!(granted_ttl(-5, 2), Ok(2));
        assert_eq!(granted_ttl(60, 2), Ok(60));
        assert_eq!(granted_ttl(MAXIMUM_TTL_SECONDS, 2), Ok(MAXIMUM_TTL_SECONDS));
        assert_eq!(
            granted_ttl(MAXIMUM_TTL_SECONDS + 1, 2),
            Err(TtlTooLarge {
                asked: MAXIMUM_TTL_SECONDS + 1
            })
        );
    }
}
