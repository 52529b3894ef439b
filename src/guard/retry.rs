//! Whether an operation that failed is tried once more, and when.
//!
//! Only where the backend did not answer or asked for patience, only while the budget
//! lasts, and only if there is time. All operations of a `Backend` may be repeated: they
//! leave nothing behind. Creating a key would, and does not go through here.
//!
//! The budget is shared by everything that goes to one backend: each first attempt pays a
//! tenth of a retry in. So a backend that fails is asked at most a tenth more often than
//! one that does not, however many callers there are.
//!
//! Pure: `now` is a value.

use std::time::{Duration, Instant};

use crate::error::{Error, Reason, Retry};

/// What a first attempt pays in, in retries.
const SHARE: f64 = 0.1;

/// Retries that can be saved up.
const SAVED_MAX: f64 = 10.0;

/// Pause before the first retry; doubled for each further one.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// Longest pause: what a server asks for beyond it is not waited for.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Retries that are left.
#[derive(Debug)]
pub(super) struct Budget(f64);

impl Budget {
    pub(super) fn new() -> Self {
        Self(SAVED_MAX)
    }

    /// A first attempt is made.
    pub(super) fn deposit(&mut self) {
        self.0 = (self.0 + SHARE).min(SAVED_MAX);
    }

    /// How long to wait before attempt number `attempt` (2 is the first retry) of at most
    /// `attempts`; `None` if there is to be none. `jitter` is 0 to 1.
    pub(super) fn withdraw(
        &mut self,
        error: &Error,
        attempt: u32,
        attempts: u32,
        now: Instant,
        deadline: Instant,
        jitter: f64,
    ) -> Option<Duration> {
        if attempt > attempts || !worth_it(error.reason()) || self.0 < 1.0 {
            return None;
        }
        let backoff = PAUSE_MIN.saturating_mul(1 << attempt.saturating_sub(2).min(5));
        let asked = match error.retry() {
            // A reason's usual hint is for callers, who have left by then.
            Retry::After(after) if error.reason() == Reason::Overloaded => after,
            _ => Duration::ZERO,
        };
        let pause = backoff.mul_f64(0.5 + 0.5 * jitter).max(asked);
        // What could not be answered after the pause is not worth it.
        if pause > PAUSE_MAX || now + 2 * pause >= deadline {
            return None;
        }
        self.0 -= 1.0;
        Some(pause)
    }
}

/// Whether another attempt may be answered otherwise.
fn worth_it(reason: Reason) -> bool {
    matches!(reason, Reason::BackendUnreachable | Reason::Overloaded)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn ask(budget: &mut Budget, error: &Error, attempt: u32) -> Option<Duration> {
        let now = Instant::now();
        budget.withdraw(error, attempt, 3, now, now + MINUTE, 1.0)
    }

    fn unreachable() -> Error {
        Error::new(Reason::BackendUnreachable, "x")
    }

    #[test]
    fn pauses_double_and_attempts_end() {
        let mut budget = Budget::new();
        let pauses = [2, 3, 4].map(|attempt| ask(&mut budget, &unreachable(), attempt));
        assert_eq!(pauses, [Some(PAUSE_MIN), Some(2 * PAUSE_MIN), None]);
    }

    #[test]
    fn only_trouble_is_tried_again() {
        for reason in Reason::ALL {
            let error = Error::new(reason, "x");
            let again = ask(&mut Budget::new(), &error, 2).is_some();
            let wanted = matches!(reason, Reason::BackendUnreachable | Reason::Overloaded);
            assert_eq!(again, wanted, "{reason}");
        }
    }

    #[test]
    fn what_the_backend_asks_for_is_waited_for_up_to_a_limit() {
        let after = |pause| Error::new(Reason::Overloaded, "x").with_retry(Retry::After(pause));
        let second = Duration::from_secs(1);
        assert_eq!(ask(&mut Budget::new(), &after(second), 2), Some(second));
        assert_eq!(ask(&mut Budget::new(), &after(MINUTE), 2), None);
    }

    #[test]
    fn nothing_is_tried_that_would_come_too_late() {
        let now = Instant::now();
        let mut budget = Budget::new();
        let soon = now + PAUSE_MIN;
        assert_eq!(budget.withdraw(&unreachable(), 2, 3, now, soon, 1.0), None);
        assert_eq!(budget.0, SAVED_MAX, "and nothing is paid for it");
    }

    #[test]
    fn in_the_long_run_a_tenth_is_tried_again() {
        let mut budget = Budget::new();
        let retried = (0..10_000)
            .filter(|_| {
                budget.deposit();
                ask(&mut budget, &unreachable(), 2).is_some()
            })
            .count();
        assert!((1_000..=1_010).contains(&retried), "{retried}");
    }
}
