//! The ceiling: how many units of work a backend may be given in a time.
//!
//! A vault counts operations, and some more than others; what is over its quota is
//! refused and counts all the same. It is the generic cell rate algorithm: one instant
//! says how far ahead of its pace the work already is.
//!
//! Pure: `now` is a value. Invariant: in any time `t`, no more than `burst` plus
//! `per_second` times `t` units are let through, but for what is [charged](Rate::charge),
//! which is let through always and makes the others wait for it.

use std::time::{Duration, Instant};

use crate::backend::Ceiling;

/// Debts beyond a burst are forgotten beyond this, so that a clock that jumps or a flood of charges
/// cannot shut a backend for hours.
const AHEAD_MAX: Duration = Duration::from_secs(30);

/// Keeps work below a ceiling.
#[derive(Debug)]
pub(super) struct Rate {
    unit: Duration,
    burst: Duration,
    /// When everything let through so far would be done, at the ceiling's pace.
    done_at: Option<Instant>,
    /// Nothing goes before this: the backend asked for a pause.
    paused_until: Option<Instant>,
}

impl Rate {
    pub(super) fn new(ceiling: Ceiling) -> Self {
        let per_second = ceiling.per_second.max(0.001);
        let unit = Duration::from_secs_f64(1.0 / per_second);
        Self {
            unit,
            burst: unit.mul_f64(ceiling.burst.max(1.0)),
            done_at: None,
            paused_until: None,
        }
    }

    /// When `units` may go: `now`, or later.
    pub(super) fn ready_at(&self, units: u32, now: Instant) -> Instant {
        let paced = self
            .done_at
            .map_or(now, |done_at| {
                // A backlog of `burst` is allowed; more than a burst at once, never alone.
                let work = self.work(units).min(self.burst);
                (done_at + work).checked_sub(self.burst).unwrap_or(now)
            })
            .max(now);
        self.paused_until.map_or(paced, |until| until.max(paced))
    }

    /// Lets `units` through, ready or not.
    pub(super) fn charge(&mut self, units: u32, now: Instant) {
        let done_at = self.done_at.map_or(now, |done_at| done_at.max(now)) + self.work(units);
        self.done_at = Some(done_at.min(now + self.burst + AHEAD_MAX));
    }

    /// Lets nothing through for a time, because the backend asked for it.
    pub(super) fn pause(&mut self, pause: Duration, now: Instant) {
        let until = now + pause.min(AHEAD_MAX);
        self.paused_until = self.paused_until.max(Some(until));
    }

    /// How long `units` take at the ceiling's pace.
    pub(super) fn work(&self, units: u32) -> Duration {
        self.unit * units
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(per_second: f64, burst: f64) -> Rate {
        Rate::new(Ceiling { per_second, burst })
    }

    fn millis(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_burst_goes_at_once_and_the_rest_at_the_pace() {
        let (mut rate, now) = (rate(10.0, 3.0), Instant::now());
        for _ in 0..3 {
            assert_eq!(rate.ready_at(1, now), now);
            rate.charge(1, now);
        }
        assert_eq!(rate.ready_at(1, now), now + millis(100));
        assert_eq!(rate.ready_at(2, now), now + millis(200));
        assert_eq!(rate.ready_at(1, now + millis(150)), now + millis(150));
    }

    #[test]
    fn what_is_charged_makes_others_wait() {
        let (mut rate, now) = (rate(10.0, 1.0), Instant::now());
        (0..5).for_each(|_| rate.charge(1, now));
        assert_eq!(rate.ready_at(1, now), now + millis(500));
    }

    #[test]
    fn more_than_a_burst_waits_for_an_empty_backlog_and_goes() {
        let (mut rate, now) = (rate(10.0, 2.0), Instant::now());
        rate.charge(1, now);
        let at = rate.ready_at(8, now);
        assert_eq!(at, now + millis(100));
        rate.charge(8, at);
        assert!(rate.ready_at(1, at) > at);
    }

    #[test]
    fn a_pause_holds_everything_and_ends() {
        let (mut rate, now) = (rate(10.0, 2.0), Instant::now());
        rate.pause(millis(700), now);
        rate.pause(millis(300), now);
        assert_eq!(rate.ready_at(1, now), now + millis(700));
        assert_eq!(rate.ready_at(1, now + millis(701)), now + millis(701));
        rate.pause(Duration::from_secs(86_400), now);
        assert_eq!(rate.ready_at(1, now), now + AHEAD_MAX);
    }

    proptest! {
        /// Whatever is asked when, no window holds more than its burst and its pace allow.
        #[test]
        fn the_ceiling_holds(
            per_second in 1.0f64..200.0,
            burst in 1.0f64..50.0,
            steps in prop::collection::vec((0u64..200, 1u32..4), 1..200),
        ) {
            let (mut rate, start) = (rate(per_second, burst), Instant::now());
            let mut now = start;
            let mut passed: Vec<(Instant, u32)> = Vec::new();
            for (pause, units) in steps {
                now += millis(pause);
                if rate.ready_at(units, now) == now {
                    rate.charge(units, now);
                    passed.push((now, units));
                }
            }
            for (first, (from, _)) in passed.iter().enumerate() {
                let mut units = 0;
                for (to, more) in &passed[first..] {
                    units += more;
                    let window = (*to - *from).as_secs_f64();
                    // What is larger than a burst goes alone, hence the three.
                    prop_assert!(f64::from(units) <= burst.max(3.0) + per_second * window + 0.01);
                }
            }
        }
    }
}
