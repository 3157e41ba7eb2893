//! How often clients may ping.

use std::time::Duration;

/// grpc-go's `KeepaliveMinPingTime`: its clients raise what they are asked for to this.
const PING_INTERVAL_MIN: Duration = Duration::from_secs(10);

/// The interval at which a client pings that is asked to ping each `asked`. Servers hang up on clients that
/// ping faster than they allow, etcd and MetaStore by default at the third ping within five seconds of the
/// one before, in the middle of a call. The flags of etcd's tools ask for two seconds.
#[must_use]
pub fn ping_interval(asked: Duration) -> Duration {
    asked.max(PING_INTERVAL_MIN)
}
