//! Time inside the cache: tenths of a second since the cache began, in 32 bits, so that
//! an entry's three times take 12 bytes.
//!
//! Invariant: what is rounded is rounded so that nothing lives longer than was asked. At
//! the end of the count, after 13 years, time stands still and everything has expired.

use std::time::{Duration, Instant};

/// Tenths of a second since the cache began.
pub(super) type Tick = u32;

const TICK: Duration = Duration::from_millis(100);

/// Turns instants into ticks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    start: Instant,
}

impl Clock {
    pub(super) fn new(start: Instant) -> Self {
        Self { start }
    }

    /// The tick that `now` falls into; the first one for what lies before the start.
    pub(super) fn tick(self, now: Instant) -> Tick {
        ticks(now.saturating_duration_since(self.start))
    }
}

/// The whole ticks in `duration`.
pub(super) fn ticks(duration: Duration) -> Tick {
    Tick::try_from(duration.as_millis() / TICK.as_millis()).unwrap_or(Tick::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_rounded_down_and_stop_at_the_end() {
        let start = Instant::now();
        let clock = Clock::new(start);
        assert_eq!(clock.tick(start), 0);
        assert_eq!(clock.tick(start + Duration::from_millis(199)), 1);
        assert_eq!(clock.tick(start + Duration::from_secs(3600)), 36_000);
        assert_eq!(clock.tick(start + Duration::from_secs(20 * 365 * 86_400)), Tick::MAX);
        assert_eq!(Clock::new(start + TICK).tick(start), 0);
    }
}
