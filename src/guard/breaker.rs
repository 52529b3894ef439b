//! The breaker: stops asking a backend that does not answer, and finds out when it does.
//!
//! While it is open, what is not in memory is refused at once instead of waiting for a
//! deadline, and what is in memory is served: a brown-out, not a black-out. Then a single
//! operation is let through to see. The keepers of the leases ask the backend too, and a
//! proof that succeeds closes the breaker as well.
//!
//! Pure: `now` is a value. It knows no error: whoever records an outcome says whether the
//! backend answered. A bad ciphertext, a refusal, a key that is gone are answers.
//!
//! Invariants: at most one probe is under way; it never stays open longer than
//! [`OPEN_MAX`] without letting one through.

use std::time::{Duration, Instant};

/// Failures in a row that open it.
const FAILURES: u32 = 5;

/// How long it stays open first; doubled each time the probe fails.
const OPEN_MIN: Duration = Duration::from_millis(500);

/// How long it stays open at most.
const OPEN_MAX: Duration = Duration::from_secs(15);

/// What may be done with an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Ask the backend.
    Go,
    /// Ask the backend, and say for certain what came of it: others wait for that.
    Probe,
    /// Refuse; it may be worth asking again after this time.
    Refuse(Duration),
}

/// How the breaker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// The backend answers.
    Closed,
    /// It does not.
    Open,
    /// One operation is under way to see whether it does again.
    HalfOpen,
}

impl Position {
    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        }
    }
}

/// One backend's breaker.
#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    /// Times in a row that it was opened.
    openings: u32,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed { failures: u32 },
    Open { until: Instant },
    HalfOpen,
}

impl Breaker {
    pub(super) fn new() -> Self {
        Self { state: State::Closed { failures: 0 }, openings: 0 }
    }

    pub(super) fn position(&self) -> Position {
        match self.state {
            State::Closed { .. } => Position::Closed,
            State::Open { .. } => Position::Open,
            State::HalfOpen => Position::HalfOpen,
        }
    }

    /// Whether an operation would be refused, without taking the probe's place.
    pub(super) fn refuses(&self, now: Instant) -> Option<Duration> {
        match self.state {
            State::Open { until } if now < until => Some(until - now),
            State::HalfOpen => Some(OPEN_MIN),
            _ => None,
        }
    }

    /// What may be done with an operation that is about to start.
    pub(super) fn ask(&mut self, now: Instant) -> Verdict {
        if let Some(wait) = self.refuses(now) {
            return Verdict::Refuse(wait);
        }
        match self.state {
            State::Closed { .. } => Verdict::Go,
            _ => {
                self.state = State::HalfOpen;
                Verdict::Probe
            }
        }
    }

    /// The backend answered, whatever it said.
    pub(super) fn answered(&mut self) {
        *self = Self::new();
    }

    /// The backend did not answer. `jitter`, 0 to 1, keeps a fleet out of step.
    pub(super) fn failed(&mut self, now: Instant, jitter: f64) {
        match &mut self.state {
            State::Closed { failures } if *failures + 1 < FAILURES => *failures += 1,
            // One that was under way when it opened says nothing new.
            State::Open { .. } => {}
            _ => {
                let open = OPEN_MIN.saturating_mul(1 << self.openings.min(5)).min(OPEN_MAX);
                self.openings = self.openings.saturating_add(1);
                self.state = State::Open { until: now + open.mul_f64(0.5 + 0.5 * jitter) };
            }
        }
    }

    /// The probe was given up before the backend could answer: the next one probes.
    pub(super) fn abandoned(&mut self, now: Instant) {
        if let State::HalfOpen = self.state {
            self.state = State::Open { until: now };
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::new();
        (0..FAILURES).for_each(|_| breaker.failed(now, 1.0));
        breaker
    }

    #[test]
    fn it_opens_after_failures_in_a_row_and_not_after_some_between_answers() {
        let (mut breaker, now) = (Breaker::new(), Instant::now());
        for _ in 0..10 {
            (0..FAILURES - 1).for_each(|_| breaker.failed(now, 1.0));
            breaker.answered();
        }
        assert_eq!(breaker.ask(now), Verdict::Go);
        assert_eq!(opened(now).ask(now), Verdict::Refuse(OPEN_MIN));
    }

    #[test]
    fn one_probe_decides() {
        let now = Instant::now();
        let (mut breaker, later) = (opened(now), now + OPEN_MIN);
        assert_eq!(breaker.ask(later), Verdict::Probe);
        assert!(matches!(breaker.ask(later), Verdict::Refuse(_)), "one at a time");
        breaker.failed(later, 1.0);
        assert_eq!(breaker.ask(later), Verdict::Refuse(2 * OPEN_MIN), "twice as long");
        assert_eq!(breaker.ask(later + 2 * OPEN_MIN), Verdict::Probe);
        breaker.answered();
        assert_eq!((breaker.ask(later), breaker.position()), (Verdict::Go, Position::Closed));
    }

    #[test]
    fn a_probe_that_is_given_up_makes_room_for_another() {
        let now = Instant::now();
        let (mut breaker, later) = (opened(now), now + OPEN_MIN);
        assert_eq!(breaker.ask(later), Verdict::Probe);
        breaker.abandoned(later);
        assert_eq!(breaker.ask(later), Verdict::Probe);
    }

    #[test]
    fn what_began_before_it_opened_does_not_keep_it_open() {
        let now = Instant::now();
        let mut breaker = opened(now);
        breaker.failed(now + OPEN_MIN / 2, 1.0);
        assert_eq!(breaker.ask(now + OPEN_MIN), Verdict::Probe);
    }

    proptest! {
        /// Whatever happens: one probe at a time, and never shut for longer than promised.
        #[test]
        fn it_always_lets_one_through_in_time(
            steps in prop::collection::vec((0u8..5, 0u64..20_000, 0.0f64..=1.0), 0..300),
        ) {
            let (mut breaker, mut now) = (Breaker::new(), Instant::now());
            let (mut probing, mut shut_since) = (false, None);
            for (step, pause, jitter) in steps {
                now += Duration::from_millis(pause);
                match step {
                    0 => breaker.failed(now, jitter),
                    1 => breaker.answered(),
                    2 => breaker.abandoned(now),
                    _ => match breaker.ask(now) {
                        Verdict::Probe => prop_assert!(!probing),
                        Verdict::Go => prop_assert_eq!(breaker.position(), Position::Closed),
                        Verdict::Refuse(wait) => prop_assert!(wait <= OPEN_MAX),
                    },
                }
                probing = breaker.position() == Position::HalfOpen;
                shut_since = (breaker.position() == Position::Open)
                    .then(|| shut_since.unwrap_or(now));
                if shut_since.is_some() {
                    prop_assert!(breaker.refuses(now + OPEN_MAX).is_none());
                }
            }
        }
    }
}
