//! Expiry of leases on the leader.
