//! The store on this engine agrees with the naive model: every answer, event and hash.

mod common;

use std::sync::Arc;

use metastore_store::reference_model::{Shape, check_engine, fresh_seed};

fn check(shape: Shape, runs: u64, steps: usize) {
    let seed = fresh_seed();
    for run in 0..runs {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let engine = Arc::new(common::open(directory.path()));
        check_engine(engine, seed.wrapping_add(run), shape, steps);
    }
}

#[test]
fn the_store_agrees_with_the_model_on_few_keys() {
    check(Shape::Narrow, 8, 150);
}

#[test]
fn the_store_agrees_with_the_model_on_many_keys() {
    check(Shape::Wide, 1, 80);
}
