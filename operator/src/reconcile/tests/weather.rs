//! An API server that is slow, restarts and refuses, by a seed.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// In a thousand requests: restarts, refusals, answers that get lost, and requests that hang. A pass makes some dozens
/// of requests, so that about every second one is disturbed.
const RESTARTS: u32 = 2;
const REFUSALS: u32 = 8;
const CUTS: u32 = 4;
const LOST_ANSWERS: u32 = 6;
const HANGS: u32 = 1;

/// What becomes of a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// This code, and nothing is done.
    Refused(u16),
    /// The connection ends, and nothing is done.
    Cut,
    /// It is done, and this code is the answer; 0: the connection ends.
    Afterwards(u16),
    /// Nobody answers, and nothing is done.
    Hangs,
}

/// How the server feels.
#[derive(Default)]
pub(super) struct Weather {
    random: Option<StdRng>,
    /// Requests that still meet a server that is not there.
    is_away_for: u32,
    /// This method (empty: each) on paths with this is always refused with this code.
    pub(super) grudge: Option<(&'static str, &'static str, u16)>,
}

impl Weather {
    pub(super) fn bad(seed: u64) -> Self {
        Self {
            random: Some(StdRng::seed_from_u64(seed)),
            ..Self::default()
        }
    }

    pub(super) fn is_bad(&self) -> bool {
        self.random.is_some()
    }

    pub(super) fn next(&mut self, method: &str, path: &str) -> Option<Fault> {
        if let Some((of_method, part, code)) = self.grudge
            && method.contains(of_method)
            && path.contains(part)
        {
            return Some(Fault::Refused(code));
        }
        let random = self.random.as_mut()?;
        if self.is_away_for > 0 {
            self.is_away_for -= 1;
            return Some(Fault::Cut);
        }
        let code = [409, 429, 500, 503, 504][random.random_range(0..5)];
        let mut number = random.random_range(0..1000);
        let mut is_in = |share: u32| {
            let is_in = number < share;
            number = number.wrapping_sub(share);
            is_in
        };
        if is_in(RESTARTS) {
            self.is_away_for = random.random_range(5..40);
            Some(Fault::Cut)
        } else if is_in(REFUSALS) {
            Some(Fault::Refused(code))
        } else if is_in(CUTS) {
            Some(Fault::Cut)
        } else if is_in(LOST_ANSWERS) {
            let codes = [0, 500, 504];
            Some(Fault::Afterwards(
                codes[random.random_range(0..codes.len())],
            ))
        } else if is_in(HANGS) {
            Some(Fault::Hangs)
        } else {
            None
        }
    }
}
