//! The segmented write-ahead log of a member.
pub mod api_sketch;
