//! What the server tells about itself.

pub mod heap_profile;
pub mod log;
pub mod log_rotation;
pub mod metrics;
pub mod profile;
pub mod traces;
