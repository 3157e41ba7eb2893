//! Random scripts: few keys, few leases and a short history, so that requests meet.

use std::fmt::Write as _;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

/// Deepest nesting of transactions.
const NESTING_MAX: usize = 2;
/// Keys of which some are prefixes of others and one sorts directly after another.
const KEYS: &[&str] = &["a", "aa", "ab", "b", "b\\x00", "c", "d"];
const RANGES: &[&str] = &[
    "a*", "b*", "a..c", "b..", "*", "c..a", "b..b", "a..b", "aa..d",
];
const VALUES: &[&str] = &["''", "x", "y", "z", "v~300", "w~3000"];
const LEASES: &[i64] = &[101, 102, 103];

/// A script of `steps` steps.
pub fn random_script(random: &mut StdRng, steps: usize) -> String {
    let mut generator = Generator { random, watches: 0 };
    let steps: Vec<_> = (0..steps).map(|_| generator.step()).collect();
    steps.join("; ")
}

struct Generator<'a> {
    random: &'a mut StdRng,
    watches: usize,
}

impl Generator<'_> {
    fn pick<'b>(&mut self, choices: &[&'b str]) -> &'b str {
        choices
            .choose(self.random)
            .expect("lists of choices are not empty")
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.random.random_ratio(percent, 100)
    }

    fn key(&mut self) -> &'static str {
        // An empty key is refused: now and then.
        if self.chance(1) {
            "''"
        } else {
            self.pick(KEYS)
        }
    }

    fn range(&mut self) -> &'static str {
        if self.chance(50) {
            self.key()
        } else {
            self.pick(RANGES)
        }
    }

    fn lease(&mut self) -> i64 {
        *LEASES.choose(self.random).expect("there are leases")
    }

    /// Mostly a revision of this script's history, sometimes one before or after it.
    fn revision(&mut self) -> String {
        match self.random.random_range(0..20) {
            0 => "-1".into(),
            1 => "1000000".into(),
            2 => "0".into(),
            _ => format!("@{:+}", self.random.random_range(-3..40)).replace("@+", "@"),
        }
    }

    fn step(&mut self) -> String {
        match self.random.random_range(0..100) {
            0..30 => self.put(),
            30..45 => self.get("get"),
            45..48 => self.get("stream"),
            48..58 => self.delete(),
            58..78 => self.txn(0),
            78..81 => format!(
                "compact {}{}",
                self.revision(),
                if self.chance(30) { " physical" } else { "" }
            ),
            81..85 => format!(
                "grant {} {}",
                self.lease(),
                self.random.random_range(60..1000)
            ),
            85..87 => format!("revoke {}", self.lease()),
            87..89 => format!("ttl {} keys", self.lease()),
            89..90 => format!("keepalive {}", self.lease()),
            90..92 => format!("hashkv {}", self.revision()),
            _ => self.watch(),
        }
    }

    fn put(&mut self) -> String {
        let mut text = format!("put {} {}", self.key(), self.pick(VALUES));
        if self.chance(15) {
            let _ = write!(text, " lease={}", self.lease());
        }
        for (percent, option) in [(30, " prev"), (8, " ignore_value"), (8, " ignore_lease")] {
            if self.chance(percent) {
                text.push_str(option);
            }
        }
        if text.contains("ignore_value") && self.chance(80) {
            // With a value it would only be refused.
            let words: Vec<_> = text.split(' ').map(str::to_owned).collect();
            text = text.replacen(&words[2], "''", 1);
        }
        text
    }

    fn get(&mut self, verb: &str) -> String {
        let mut text = format!("{verb} {}", self.range());
        if self.chance(35) {
            let _ = write!(text, " rev={}", self.revision());
        }
        if self.chance(30) {
            let _ = write!(text, " limit={}", self.random.random_range(-1..5));
        }
        if self.chance(if verb == "get" { 30 } else { 5 }) {
            let _ = write!(
                text,
                " sort={} by={}",
                self.pick(&["none", "asc", "desc"]),
                self.pick(&["key", "ver", "create", "mod", "val"])
            );
        }
        for filter in ["minmod", "maxmod", "mincreate", "maxcreate"] {
            if self.chance(if verb == "get" { 8 } else { 1 }) {
                let _ = write!(text, " {filter}={}", self.revision());
            }
        }
        for (percent, option) in [
            (10, " keys_only"),
            (10, " count_only"),
            (20, " serializable"),
        ] {
            if self.chance(percent) {
                text.push_str(option);
            }
        }
        text
    }

    fn delete(&mut self) -> String {
        format!(
            "del {}{}",
            self.range(),
            if self.chance(40) { " prev" } else { "" }
        )
    }

    fn txn(&mut self, depth: usize) -> String {
        let mut text = String::from("txn");
        let compares: Vec<_> = (0..self.random.random_range(0..3))
            .map(|_| self.compare())
            .collect();
        if !compares.is_empty() {
            let _ = write!(text, " if({})", compares.join(", "));
        }
        for branch in ["then", "else"] {
            if self.chance(70) {
                let operations: Vec<_> = (0..self.random.random_range(0..4))
                    .map(|_| self.operation(depth))
                    .collect();
                let _ = write!(text, " {branch}({})", operations.join("; "));
            }
        }
        text
    }

    fn operation(&mut self, depth: usize) -> String {
        match self.random.random_range(0..10) {
            0..4 => self.put(),
            4..7 => self.get("get"),
            7..9 => self.delete(),
            _ if depth < NESTING_MAX => self.txn(depth + 1),
            _ => self.put(),
        }
    }

    fn compare(&mut self) -> String {
        let key = self.range();
        let result = self.pick(&["=", "!=", "<", ">"]);
        match self.random.random_range(0..5) {
            0 => format!("val {key} {result} {}", self.pick(VALUES)),
            1 => format!("ver {key} {result} {}", self.random.random_range(0..3)),
            2 => format!("create {key} {result} {}", self.revision()),
            3 => format!("mod {key} {result} {}", self.revision()),
            _ => format!("lease {key} {result} {}", self.lease()),
        }
    }

    fn watch(&mut self) -> String {
        if self.watches > 0 && self.chance(20) {
            return format!("cancel w{} 0", self.random.random_range(0..self.watches));
        }
        let name = format!("w{}", self.watches);
        self.watches += 1;
        let mut text = format!("watch {name} {}", self.range());
        if self.chance(50) {
            let _ = write!(text, " start={}", self.revision());
        }
        for (percent, option) in [
            (40, " prev"),
            (10, " noput"),
            (10, " nodelete"),
            (10, " fragment"),
        ] {
            if self.chance(percent) {
                text.push_str(option);
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::script::{Symbols, parse, split};

    #[test]
    fn random_scripts_can_be_read() {
        for seed in 0..200 {
            let script = random_script(&mut StdRng::seed_from_u64(seed), 50);
            for step in split(&script) {
                parse(step, Symbols { base: 5, member: 1 });
            }
        }
    }
}
