//! How far a long command is, for whoever sits at a terminal.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How often it is shown.
const INTERVAL: Duration = Duration::from_millis(200);
/// Length of the bar.
const WIDTH: u64 = 40;

/// A bar on the standard error output, if that is a terminal.
pub(super) struct Progress {
    done: u64,
    all: u64,
    shown: Instant,
    is_visible: bool,
}

impl Progress {
    /// Of so many bytes.
    pub(super) fn of(all: u64) -> Self {
        Self {
            done: 0,
            all,
            shown: Instant::now(),
            is_visible: std::io::stderr().is_terminal(),
        }
    }

    /// So many more are done.
    pub(super) fn add(&mut self, bytes: u64) {
        self.done += bytes;
        if self.is_visible && self.shown.elapsed() >= INTERVAL {
            self.shown = Instant::now();
            eprint!("\r{}", bar(self.done, self.all));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_visible {
            // Over what stands there.
            eprint!("\r{:70}\r", "");
        }
    }
}

fn bar(done: u64, all: u64) -> String {
    let done = done.min(all);
    let part = |of: u64| (u128::from(done) * u128::from(of) / u128::from(all.max(1))) as u64;
    let full = part(WIDTH);
    let bar: String = (0..WIDTH)
        .map(|at| if at < full { '=' } else { ' ' })
        .collect();
    format!("[{bar}] {:3} % of {} MiB", part(100), all >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_is_full_at_the_end_and_never_overflows() {
        assert!(bar(0, 0).starts_with('['));
        assert_eq!(
            bar(1 << 20, 2 << 20),
            format!("[{}{}]  50 % of 2 MiB", "=".repeat(20), " ".repeat(20))
        );
        assert!(bar(u64::MAX, u64::MAX).contains("100 %"));
        assert!(bar(9, 3).contains("100 %"));
    }
}
