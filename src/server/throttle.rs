//! Log lines that a stranger can cause: at most one a second, and the next one says
//! how many were left out.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

const GAP: Duration = Duration::from_secs(1);

/// Decides which lines are written.
#[derive(Debug, Default)]
pub(super) struct Throttle(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    skipped: u64,
}

impl Throttle {
    /// `Some` if a line may be written at `now`, with the number that was left out
    /// since the last one.
    pub(super) fn allow(&self, now: Instant) -> Option<u64> {
        // The state is two plain values: a panic elsewhere cannot have left it half set.
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some_and(|last| now.duration_since(last) < GAP) {
            state.skipped += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.skipped))
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
        assert_eq!(throttle.allow(start + GAP / 2), None);
        assert_eq!(throttle.allow(start + GAP), Some(2));
        assert_eq!(throttle.allow(start + GAP * 3), Some(0));
    }
}
