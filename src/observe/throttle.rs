//! Log lines that a stranger can cause: at most so many a second, and the next one says
//! how many were left out.
//!
//! It writes nothing itself. If there may be no next line, whoever writes them asks for
//! what was left out at the end.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

const SPAN: Duration = Duration::from_secs(1);

/// Decides which lines are written.
#[derive(Debug)]
pub struct Throttle {
    most: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When the first line of the present second was written.
    since: Option<Instant>,
    /// Lines since then.
    written: u32,
    skipped: u64,
}

impl Throttle {
    /// At most `most` lines a second.
    pub fn of(most: u32) -> Self {
        Self { most, state: Mutex::default() }
    }

    /// `Some` if a line may be written at `now`, with the number that was left out
    /// since the last one.
    pub fn allow(&self, now: Instant) -> Option<u64> {
        let mut state = self.state();
        if state.since.is_none_or(|since| now.saturating_duration_since(since) >= SPAN) {
            (state.since, state.written) = (Some(now), 0);
        }
        if state.written >= self.most {
            state.skipped += 1;
            return None;
        }
        state.written += 1;
        Some(std::mem::take(&mut state.skipped))
    }

    /// The number that was left out since the last line.
    pub fn left_out(&self) -> u64 {
        self.state().skipped
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is plain values: a panic elsewhere cannot have left it half set.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One line a second.
impl Default for Throttle {
    fn default() -> Self {
        Self::of(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_and_the_next_counts_the_rest() {
        let throttle = Throttle::default();
        let start = Instant::now();
        assert_eq!(throttle.allow(start), Some(0));
        assert_eq!(throttle.allow(start), None);
        assert_eq!(throttle.allow(start + SPAN / 2), None);
        assert_eq!(throttle.left_out(), 2);
        assert_eq!(throttle.allow(start + SPAN), Some(2));
        assert_eq!(throttle.allow(start + SPAN * 3), Some(0));
        assert_eq!(throttle.left_out(), 0);
    }

    #[test]
    fn several_lines_a_second_may_come_together() {
        let throttle = Throttle::of(3);
        let start = Instant::now();
        let allowed = |at: Instant, n: u32| (0..n).filter_map(|_| throttle.allow(at)).count();
        assert_eq!(allowed(start, 2), 2);
        assert_eq!(allowed(start + SPAN / 2, 5), 1);
        assert_eq!(throttle.left_out(), 4);
        assert_eq!(throttle.allow(start + SPAN), Some(4));
    }
}
