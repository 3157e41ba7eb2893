//! Random commands on the memory engine and on the naive model.
#![cfg(feature = "reference-model")]

use std::sync::Arc;

use metastore_store::MemoryEngine;
use metastore_store::reference_model::{Shape, check_engine, fresh_seed};

fn check(shape: Shape, runs: u64, steps: usize) {
    let seed = fresh_seed();
    for run in 0..runs {
        let engine = Arc::new(MemoryEngine::new());
        check_engine(engine, seed.wrapping_add(run), shape, steps);
    }
}

#[test]
fn the_memory_engine_agrees_with_the_model_on_few_keys() {
    check(Shape::Narrow, 40, 150);
}

#[test]
fn the_memory_engine_agrees_with_the_model_over_a_long_history() {
    check(Shape::Narrow, 2, 1000);
}

#[test]
fn the_memory_engine_agrees_with_the_model_on_many_keys() {
    check(Shape::Wide, 2, 60);
}
