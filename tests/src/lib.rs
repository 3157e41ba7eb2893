//! Fixtures, reference model, history checker and the tests that need more than one crate.
