//! Inputs that are almost right, for the tests of everything that reads what clients, people and disks
//! give it: no such input may panic, hang or break what must hold for every input.
//!
//! Fuzzing with coverage (`make fuzz`) needs the whole server built once more, with instrumentation.
//! Mutations of real inputs find the nearest mistakes in a second of every test run;
//! `METASTORE_FUZZ_SECONDS=300 cargo test --lib mutated` looks longer, and `SEED=…` repeats.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// Time for one kind of input in a normal test run.
const SECONDS: u64 = 1;
/// Changes to one input.
const CHANGES_MAX: usize = 6;
/// A mutated input does not grow beyond this.
const BYTES_MAX: usize = 64 * 1024;

/// Says how to repeat a failure.
struct Repeat<'a> {
    seed: u64,
    input: &'a [u8],
}

impl Drop for Repeat<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("SEED={} input: {}", self.seed, self.input.escape_ascii());
        }
    }
}

/// Gives `check` mutated inputs for a while. `corpus` are right inputs, `words` what inputs are made of.
pub fn mutated(corpus: &[&[u8]], words: &[&[u8]], mut check: impl FnMut(&[u8])) {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    for input in corpus {
        check(input);
    }
    if let Some(seed) = number("SEED") {
        let input = mutate(&mut StdRng::seed_from_u64(seed), corpus, words);
        let _repeat = Repeat {
            seed,
            input: &input,
        };
        return check(&input);
    }
    let limit = Duration::from_secs(number("METASTORE_FUZZ_SECONDS").unwrap_or(SECONDS));
    let started = Instant::now();
    let first: u64 = rand::random();
    let mut count = 0_u64;
    while started.elapsed() < limit {
        let seed = first.wrapping_add(count);
        let input = mutate(&mut StdRng::seed_from_u64(seed), corpus, words);
        let repeat = Repeat {
            seed,
            input: &input,
        };
        check(&input);
        drop(repeat);
        count += 1;
    }
    eprintln!("{count} mutated inputs");
}

fn mutate(random: &mut StdRng, corpus: &[&[u8]], words: &[&[u8]]) -> Vec<u8> {
    let mut input = corpus.choose(random).map_or(Vec::new(), |one| one.to_vec());
    for _ in 0..random.random_range(1..=CHANGES_MAX) {
        change(random, &mut input, corpus, words);
        input.truncate(BYTES_MAX);
    }
    input
}

fn change(random: &mut StdRng, input: &mut Vec<u8>, corpus: &[&[u8]], words: &[&[u8]]) {
    let position = random.random_range(0..=input.len());
    let rest = input.len() - position;
    match random.random_range(0..9) {
        0 if rest > 0 => input[position] ^= 1 << random.random_range(0..8),
        1 if rest > 0 => {
            let edges = [0, 1, 0x7f, 0x80, 0xff, b'"', b'\\', b'%', b'/', b' '];
            input[position] = edges[random.random_range(0..edges.len())];
        }
        2 => {
            let length = random.random_range(0..=rest.min(64));
            input.drain(position..position + length);
        }
        3 => {
            let length = random.random_range(0..=rest.min(256));
            let copied = input[position..position + length].to_vec();
            let times = random.random_range(1..=64);
            insert(input, position, &copied.repeat(times));
        }
        4 => {
            let mut bytes = vec![0; random.random_range(1..=16)];
            random.fill(&mut bytes[..]);
            insert(input, position, &bytes);
        }
        5 => input.truncate(position),
        6 => {
            let other = corpus.choose(random).copied().unwrap_or_default();
            let start = random.random_range(0..=other.len());
            let end = random.random_range(start..=other.len());
            insert(input, position, &other[start..end]);
        }
        _ => {
            let word = words.choose(random).copied().unwrap_or_default();
            if random.random() {
                let length = random.random_range(0..=rest.min(16));
                input.drain(position..position + length);
            }
            insert(input, position, word);
        }
    }
}

fn insert(input: &mut Vec<u8>, position: usize, bytes: &[u8]) {
    input.splice(position..position, bytes.iter().copied());
}
