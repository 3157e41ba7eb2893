//! Carries opaque commands to a majority of the members, in one order.
pub mod state_machine;
