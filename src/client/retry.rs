//! Whether a failed call is sent again, and when. A pure decision.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

use crate::op::Op;

/// Most often that one call is sent.
pub const ATTEMPTS_MAX: u32 = 3;

/// The pause before the next attempt; `None` if there is none. `attempt` counts from
/// 1 and has just failed; `retry_after` is what the sidecar said; `left` is what is
/// left of the deadline; `jitter` is a number from 0 to 1, different for every caller,
/// so that those who failed together do not come back together.
pub(super) fn pause(
    op: Op,
    attempt: u32,
    retry_after: Option<Duration>,
    left: Duration,
    jitter: f64,
) -> Option<Duration> {
    let after = retry_after?;
    if attempt >= ATTEMPTS_MAX || !op.spec().idempotent {
        return None;
    }
    // Never sooner than asked for; later with every attempt.
    let after = after.min(left).saturating_mul(1 << (attempt - 1));
    let pause = after.mul_f64(1.0 + jitter.clamp(0.0, 1.0) / 2.0);
    // An attempt that cannot be answered in time is not made.
    (pause < left).then_some(pause)
}

/// A number from 0 to 1. Good enough to spread callers, and for nothing else.
pub(super) fn jitter() -> f64 {
    let random = RandomState::new().build_hasher().finish();
    (random >> 32) as f64 / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LONG: Duration = Duration::from_secs(3600);
    const AFTER: Option<Duration> = Some(Duration::from_millis(100));

    #[test]
    fn only_what_the_sidecar_says_can_help_is_sent_again() {
        assert_eq!(pause(Op::Unwrap, 1, None, LONG, 0.0), None);
        assert_eq!(pause(Op::Unwrap, 1, AFTER, LONG, 0.0), AFTER);
        assert_eq!(pause(Op::Unwrap, 2, AFTER, LONG, 0.0), Some(Duration::from_millis(200)));
        assert_eq!(pause(Op::Unwrap, 3, AFTER, LONG, 0.0), None);
    }

    #[test]
    fn an_attempt_that_would_come_too_late_is_not_made() {
        let left = Duration::from_millis(120);
        assert_eq!(pause(Op::Unwrap, 1, AFTER, left, 0.0), AFTER);
        assert_eq!(pause(Op::Unwrap, 1, AFTER, left, 1.0), None);
        assert_eq!(pause(Op::Unwrap, 1, Some(Duration::MAX), left, 1.0), None);
        assert_eq!(pause(Op::Unwrap, 1, AFTER, Duration::ZERO, 0.0), None);
    }

    proptest! {
        #[test]
        fn a_pause_is_no_sooner_than_asked_and_within_the_deadline(
            attempt in 1..10_u32,
            after_ms in 0..100_000_u64,
            left_ms in 0..100_000_u64,
            jitter in 0.0..=1.0_f64,
        ) {
            let (after, left) = (Duration::from_millis(after_ms), Duration::from_millis(left_ms));
            if let Some(pause) = pause(Op::Wrap, attempt, Some(after), left, jitter) {
                prop_assert!(attempt < ATTEMPTS_MAX && after <= pause && pause < left);
            }
        }
    }

    #[test]
    fn jitter_is_between_zero_and_one_and_not_always_the_same() {
        let drawn: Vec<_> = (0..100).map(|_| jitter()).collect();
        assert!(drawn.iter().all(|jitter| (0.0..=1.0).contains(jitter)));
        assert!(drawn.iter().any(|jitter| *jitter != drawn[0]));
    }
}
