//! The ceiling: how many units of work a backend may be given in a time.
//!
//! A vault counts operations, and some more than others; what is over its quota is
//! refused and counts all the same. Two things keep the work below that:
//!
//! - **The ceiling of this sidecar**: credit that grows at its pace up to a burst. What is
//!   [charged](Rate::charge) without asking makes the others wait for it.
//! - **The others**, of whom nothing is known but that the vault refuses. So a sidecar
//!   begins gently and doubles its pace each second; when it is refused, its pace becomes
//!   a little less than what it was given in the vault's last window, which is its share of
//!   the quota by definition, and it waits until the vault forgets the first of that. From
//!   there the pace grows by a fifth each second. Fifty that start at once are through in
//!   little more than the time that the quota allows (`tests/fleet/`).
//!
//! Pure: `now` is a value. Invariant: in any time `t`, no more than `burst` plus
//! `per_second` times `t` units are let through, but for what is charged.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::backend::Ceiling;

/// Debts beyond this are forgotten, and pauses beyond it cut, so that a flood of charges or
/// an absurd wish cannot shut a backend for hours.
const AHEAD_MAX: Duration = Duration::from_secs(30);

/// How much of the ceiling a sidecar begins with.
const START: f64 = 1.0 / 16.0;

/// The least that it falls to.
const LEAST: f64 = 1.0 / 50.0;

/// What the pace grows by in a second: before the first refusal, and after.
const GROWTH: (f64, f64) = (2.0, 1.2);

/// The part of what it was given that a sidecar that was refused goes on with.
const BACK_OFF: f64 = 0.9;

/// Into how many pieces a window is cut, to remember what was given in it.
const PIECES: u32 = 20;

/// Keeps work below a ceiling.
#[derive(Debug)]
pub(super) struct Rate {
    ceiling: Ceiling,
    credit: Credit,
    /// What was answered in the backend's last window: units, and since when.
    given: VecDeque<(Instant, u32)>,
    /// When it was last refused.
    refused_at: Option<Instant>,
    /// Nothing goes before this: the backend asked for a pause.
    paused_until: Option<Instant>,
}

/// What may go at once, and how fast that grows.
#[derive(Clone, Copy, Debug)]
struct Credit {
    /// Units; below zero, what was charged beyond it.
    units: f64,
    /// Units in a second.
    pace: f64,
    /// As of when; `None` before the first look.
    at: Option<Instant>,
}

impl Rate {
    pub(super) fn new(ceiling: Ceiling) -> Self {
        let Ceiling { per_second, burst, window } = ceiling;
        let (per_second, burst) = (per_second.max(0.001), burst.max(1.0));
        let ceiling = Ceiling { per_second, burst, window };
        let credit = Credit { units: (burst * START).max(1.0), pace: per_second * START, at: None };
        Self { ceiling, credit, given: VecDeque::new(), refused_at: None, paused_until: None }
    }

    /// When `units` may go: `now`, or later.
    pub(super) fn ready_at(&self, units: u32, now: Instant) -> Instant {
        let credit = self.credit_at(now);
        // More than a burst at once goes when nothing else could.
        let wanted = f64::from(units).min(self.burst(credit.pace));
        let paced = match wanted - credit.units {
            // What is missing by rounding is not.
            missing if missing > 1e-5 => now + seconds(self.growth(credit.pace).time(missing)),
            _ => now,
        };
        self.paused_until.map_or(paced, |until| until.max(paced))
    }

    /// Lets `units` through, ready or not.
    pub(super) fn charge(&mut self, units: u32, now: Instant) {
        let credit = self.credit_at(now);
        let owed_at_most = credit.pace * AHEAD_MAX.as_secs_f64();
        self.credit =
            Credit { units: (credit.units - f64::from(units)).max(-owed_at_most), ..credit };
    }

    /// The backend answered work of `units`.
    pub(super) fn answered(&mut self, units: u32, now: Instant) {
        self.forget(now);
        let piece = self.ceiling.window / PIECES;
        match self.given.back_mut() {
            Some((since, given)) if now.saturating_duration_since(*since) < piece => {
                *given += units
            }
            _ => self.given.push_back((now, units)),
        }
    }

    /// The backend refused, for being asked too much, what was sent at `sent`; it wants to be
    /// spared for `asked`. `jitter` is 0 to 1.
    pub(super) fn refused(&mut self, sent: Instant, asked: Duration, now: Instant, jitter: f64) {
        if self.refused_at.is_some_and(|at| sent < at) {
            // On its way before that was known: the same news.
            return;
        }
        self.refused_at = Some(now);
        self.forget(now);
        let window = self.ceiling.window;
        let given: u32 = self.given.iter().map(|(_, units)| units).sum();
        let share = BACK_OFF * f64::from(given) / window.as_secs_f64().max(0.001);
        let credit = self.credit_at(now);
        self.credit = Credit {
            units: credit.units.min(0.0),
            pace: share.clamp(self.ceiling.per_second * LEAST, credit.pace.max(self.least())),
            ..credit
        };
        // Until what it was given first in this window is forgotten there is no room, unless
        // others leave some. Who was given nothing cannot tell, and asks in between.
        let full_for = match self.given.front() {
            Some((since, _)) => (*since + window).saturating_duration_since(now),
            None => window.mul_f64(0.4),
        };
        let pause = full_for.mul_f64(0.75 + 0.5 * jitter).max(asked.mul_f64(1.0 + 0.25 * jitter));
        self.pause(pause, now);
    }

    /// Lets nothing through for a time.
    pub(super) fn pause(&mut self, pause: Duration, now: Instant) {
        let until = now + pause.min(AHEAD_MAX);
        self.paused_until = self.paused_until.max(Some(until));
    }

    /// How long `units` take at the present pace.
    pub(super) fn work(&self, units: u32) -> Duration {
        seconds(f64::from(units) / self.credit.pace)
    }

    fn least(&self) -> f64 {
        self.ceiling.per_second * LEAST
    }

    /// What may be saved up: as much of the burst as the pace is of the ceiling.
    fn burst(&self, pace: f64) -> f64 {
        (self.ceiling.burst * pace / self.ceiling.per_second).max(1.0)
    }

    fn credit_at(&self, now: Instant) -> Credit {
        let Credit { units, pace, at } = self.credit;
        let since = at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let (gained, pace) = self.growth(pace).after(since.as_secs_f64());
        let units = (units + gained).min(self.burst(pace).max(units));
        Credit { units, pace, at: at.max(Some(now)) }
    }

    fn growth(&self, pace: f64) -> Growth {
        let (gentle, steady) = GROWTH;
        let factor = if self.refused_at.is_none() { gentle } else { steady };
        Growth { pace, factor, most: self.ceiling.per_second }
    }

    fn forget(&mut self, now: Instant) {
        let window = self.ceiling.window;
        while self.given.front().is_some_and(|(since, _)| *since + window <= now) {
            self.given.pop_front();
        }
    }
}

/// A pace that grows by a factor each second until it is at its most.
#[derive(Clone, Copy)]
struct Growth {
    pace: f64,
    factor: f64,
    most: f64,
}

impl Growth {
    /// How long it grows.
    fn grows_for(self) -> f64 {
        (self.most / self.pace).max(1.0).ln() / self.factor.ln()
    }

    /// What comes of it while it grows, in so many seconds.
    fn while_growing(self, seconds: f64) -> f64 {
        self.pace * (self.factor.powf(seconds) - 1.0) / self.factor.ln()
    }

    /// What has come of it after so many seconds, and the pace by then.
    fn after(self, seconds: f64) -> (f64, f64) {
        let growing = seconds.min(self.grows_for());
        let units = self.while_growing(growing) + self.most * (seconds - growing);
        (units, (self.pace * self.factor.powf(growing)).min(self.most))
    }

    /// After how many seconds so many units have come of it.
    fn time(self, units: f64) -> f64 {
        let (growing, log) = (self.grows_for(), self.factor.ln());
        match units - self.while_growing(growing) {
            beyond if beyond > 0.0 => growing + beyond / self.most,
            _ => (units * log / self.pace).ln_1p() / log,
        }
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.min(3600.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const WINDOW: Duration = Duration::from_secs(10);

    fn rate(per_second: f64, burst: f64) -> Rate {
        Rate::new(Ceiling { per_second, burst, window: WINDOW })
    }

    /// One that has been let go on for long, and when.
    fn grown(per_second: f64, burst: f64) -> (Rate, Instant) {
        let (mut rate, begin) = (rate(per_second, burst), Instant::now());
        rate.charge(0, begin);
        let now = begin + 600 * SECOND;
        rate.charge(0, now);
        (rate, now)
    }

    fn millis(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// But for rounding.
    fn assert_at(found: Instant, expected: Instant) {
        let apart = found.max(expected) - found.min(expected);
        assert!(apart < millis(1), "{apart:?} apart");
    }

    #[test]
    fn a_burst_goes_at_once_and_the_rest_at_the_pace() {
        let (mut rate, now) = grown(10.0, 3.0);
        for _ in 0..3 {
            assert_eq!(rate.ready_at(1, now), now);
            rate.charge(1, now);
        }
        assert_at(rate.ready_at(1, now), now + millis(100));
        assert_at(rate.ready_at(2, now), now + millis(200));
        assert_eq!(rate.ready_at(1, now + millis(150)), now + millis(150));
    }

    #[test]
    fn what_is_charged_makes_others_wait_and_no_longer_than_it_must() {
        let (mut rate, now) = grown(10.0, 1.0);
        (0..5).for_each(|_| rate.charge(1, now));
        assert_at(rate.ready_at(1, now), now + millis(500));
        rate.charge(1_000_000, now);
        assert_at(rate.ready_at(1, now), now + AHEAD_MAX + millis(100));
    }

    #[test]
    fn more_than_a_burst_waits_until_all_is_saved_up_and_goes() {
        let (mut rate, now) = grown(10.0, 2.0);
        rate.charge(1, now);
        let at = rate.ready_at(8, now);
        assert_at(at, now + millis(100));
        rate.charge(8, at);
        assert!(rate.ready_at(1, at) > at);
    }

    #[test]
    fn a_pause_holds_everything_and_ends() {
        let (mut rate, now) = grown(10.0, 2.0);
        rate.pause(millis(700), now);
        rate.pause(millis(300), now);
        assert_eq!(rate.ready_at(1, now), now + millis(700));
        assert_eq!(rate.ready_at(1, now + millis(701)), now + millis(701));
        rate.pause(Duration::from_secs(86_400), now);
        assert_eq!(rate.ready_at(1, now), now + AHEAD_MAX);
    }

    /// Units that go in a second, one after the other.
    fn in_a_second(rate: &mut Rate, now: Instant) -> u32 {
        let mut units = 0;
        let mut at = rate.ready_at(1, now);
        while at < now + SECOND {
            rate.charge(1, at);
            rate.answered(1, at);
            units += 1;
            at = rate.ready_at(1, at);
        }
        units
    }

    #[test]
    fn it_begins_gently_and_is_at_its_ceiling_soon() {
        let (mut rate, now) = (rate(320.0, 32.0), Instant::now());
        let seconds: Vec<u32> =
            (0..6).map(|second| in_a_second(&mut rate, now + second * SECOND)).collect();
        assert!((20..50).contains(&seconds[0]), "{seconds:?}");
        assert!((310..=340).contains(&seconds[5]), "{seconds:?}");
    }

    #[test]
    fn who_is_refused_goes_on_with_what_it_was_given() {
        let (mut rate, now) = grown(100.0, 1.0);
        for tenth in 0..20 {
            rate.answered(5, now + tenth * millis(100));
        }
        // 100 units in the last ten seconds.
        let at = now + 2 * SECOND;
        rate.refused(at, SECOND, at, 0.5);
        assert_at(rate.ready_at(1, at), now + WINDOW);
        assert!((rate.credit.pace - 9.0).abs() < 0.01, "{}", rate.credit.pace);
        // What was on its way is no further news.
        rate.refused(now + SECOND, 20 * SECOND, at, 0.5);
        assert_at(rate.ready_at(1, at), now + WINDOW);
        assert!((rate.credit.pace - 9.0).abs() < 0.01, "{}", rate.credit.pace);
        // A fifth more each second.
        let later = rate.credit_at(at + 5 * SECOND).pace;
        assert!((later - 9.0 * 1.2_f64.powi(5)).abs() < 0.1, "{later}");
    }

    #[test]
    fn who_was_given_nothing_asks_now_and_then() {
        let (mut rate, now) = grown(100.0, 10.0);
        rate.refused(now, SECOND, now, 0.5);
        assert_at(rate.ready_at(1, now), now + 4 * SECOND);
        assert!((rate.credit.pace - 2.0).abs() < 0.01, "{}", rate.credit.pace);
        // What the backend asks for counts if it is more.
        let later = now + WINDOW;
        rate.refused(later, 20 * SECOND, later, 0.0);
        assert_at(rate.ready_at(1, later), later + 20 * SECOND);
    }

    proptest! {
        #[test]
        fn what_comes_after_a_time_takes_that_time(
            pace in 0.01f64..500.0, most in 1.0f64..500.0, units in 0.001f64..5000.0, gentle: bool,
        ) {
            let factor = if gentle { GROWTH.0 } else { GROWTH.1 };
            let growth = Growth { pace: pace.min(most), factor, most };
            let (gained, grown) = growth.after(growth.time(units));
            prop_assert!((gained - units).abs() < 1e-6 * units.max(1.0), "{gained} {units}");
            prop_assert!(grown <= most && grown >= growth.pace);
        }

        /// Whatever is asked, answered or refused when, no window holds more than its burst
        /// and its pace allow.
        #[test]
        fn the_ceiling_holds(
            per_second in 1.0f64..200.0,
            burst in 1.0f64..50.0,
            steps in prop::collection::vec((0u64..200, 1u32..4, 0u8..12), 1..200),
        ) {
            let (mut rate, start) = (rate(per_second, burst), Instant::now());
            let mut now = start;
            let mut passed: Vec<(Instant, u32)> = Vec::new();
            for (pause, units, what) in steps {
                now += millis(pause);
                match what {
                    0 => rate.refused(now, millis(pause), now, f64::from(units) / 4.0),
                    1 => rate.answered(units, now),
                    _ if rate.ready_at(units, now) == now => {
                        rate.charge(units, now);
                        passed.push((now, units));
                    }
                    _ => {}
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
