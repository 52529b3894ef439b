//! Which sidecar a call goes to. A pure decision: `now` is a value.
//!
//! Sidecars are in order of preference. The first that is up is called; one that failed is
//! left alone for a while, longer each time, and asked for its health before it is called
//! again. If none is up, the one whose turn comes first is called all the same: nothing is
//! gained by not trying.

use std::time::Duration;

use tokio::time::Instant;

/// How long a sidecar is left alone that failed once.
const FIRST: Duration = Duration::from_millis(100);
/// And at most.
const LONGEST: Duration = Duration::from_secs(5);

/// What is known of a sidecar.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Standing {
    /// Failures in a row.
    failures: u32,
    /// When to ask again; `None` if it is up.
    again: Option<Instant>,
}

impl Standing {
    pub(super) fn is_up(self) -> bool {
        self.again.is_none()
    }
}

/// How a sidecar stands that has just failed. `jitter` is from 0 to 1.
pub(super) fn after_failure(standing: Standing, now: Instant, jitter: f64) -> Standing {
    let failures = standing.failures.saturating_add(1);
    let pause = FIRST.saturating_mul(1 << (failures - 1).min(6)).min(LONGEST);
    let pause = pause.mul_f64(1.0 + jitter.clamp(0.0, 1.0) / 2.0);
    Standing { failures, again: Some(now + pause) }
}

/// The same, of which a call has found out. That one is down already says nothing new: of many
/// calls that fail together, one counts.
pub(super) fn after_failed_call(standing: Standing, now: Instant, jitter: f64) -> Standing {
    if standing.is_up() { after_failure(standing, now, jitter) } else { standing }
}

/// How a sidecar stands while it is asked how it is; `None` if it is up, or not its turn.
pub(super) fn to_be_asked(standing: Standing, now: Instant) -> Option<Standing> {
    let again = standing.again.filter(|again| *again <= now)?;
    // The answer will say; meanwhile nobody else asks.
    Some(Standing { again: Some(again.max(now) + LONGEST), ..standing })
}

/// Which of the sidecars to call, for the `attempt`th time, counted from 0: of those that
/// are up the first, then the next; if none is, the one whose turn comes first, then the next.
pub(super) fn pick(standings: &[Standing], attempt: u32) -> usize {
    let mut order: Vec<usize> = (0..standings.len()).collect();
    if standings.iter().any(|standing| standing.is_up()) {
        order.retain(|sidecar| standings[*sidecar].is_up());
    } else {
        order.sort_by_key(|sidecar| standings[*sidecar].again);
    }
    order[attempt as usize % order.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: Standing = Standing { failures: 0, again: None };

    fn down(now: Instant, failures: u32) -> Standing {
        (0..failures).fold(UP, |standing, _| after_failure(standing, now, 0.0))
    }

    #[test]
    fn the_first_that_is_up_is_called_and_then_the_next() {
        let now = Instant::now();
        let standings = [down(now, 1), UP, UP];
        assert_eq!([0, 1, 2].map(|attempt| pick(&standings, attempt)), [1, 2, 1]);
        assert_eq!([0, 1].map(|attempt| pick(&[UP], attempt)), [0, 0]);
    }

    #[test]
    fn if_none_is_up_the_one_whose_turn_comes_first_is_called() {
        let now = Instant::now();
        let standings = [down(now, 3), down(now, 1), down(now, 2)];
        assert_eq!([0, 1, 2, 3].map(|attempt| pick(&standings, attempt)), [1, 2, 0, 1]);
    }

    #[test]
    fn one_that_fails_again_and_again_is_left_alone_for_longer_and_not_for_ever() {
        let now = Instant::now();
        let pauses: Vec<_> =
            (1..40).map(|failures| down(now, failures).again.unwrap() - now).collect();
        assert_eq!((pauses[0], pauses[1]), (FIRST, FIRST * 2));
        assert!(pauses.is_sorted() && pauses.iter().all(|pause| *pause <= LONGEST), "{pauses:?}");
        let late = after_failure(down(now, 39), now, 1.0).again.unwrap() - now;
        assert_eq!(late, LONGEST.mul_f64(1.5));
    }

    #[test]
    fn calls_that_fail_together_count_as_one() {
        let now = Instant::now();
        let first = after_failed_call(UP, now, 0.0);
        assert_eq!(first, down(now, 1));
        assert_eq!((0..64).fold(first, |standing, _| after_failed_call(standing, now, 0.0)), first);
    }

    #[test]
    fn only_one_asks_and_only_when_it_is_time() {
        let now = Instant::now();
        assert_eq!(to_be_asked(UP, now), None);
        let standing = down(now, 1);
        assert_eq!(to_be_asked(standing, now), None);
        let then = now + FIRST;
        let asked = to_be_asked(standing, then).unwrap();
        assert_eq!(to_be_asked(asked, then), None);
        assert!(!asked.is_up());
    }
}
