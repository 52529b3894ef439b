//! Whether a failed call is sent again, and when. A pure decision.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

use crate::op::Op;

/// Most often that one call is sent and may have been worked on.
pub const ATTEMPTS_MAX: u32 = 3;

/// The pause before a call is sent again that did not come to the sidecar, at first.
const RECONNECT_AFTER: Duration = Duration::from_millis(5);
/// And at most.
const RECONNECT_AFTER_MAX: Duration = Duration::from_millis(250);

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// There is no connection.
    NotSent,
    /// The sidecar stops and did not work on it. It says when it may be back.
    NotTaken(Option<Duration>),
    /// Its connection ended in order before the sidecar read it. The next one may be had at once.
    Parted,
    /// Its connection ended: it may have been worked on or not.
    Broken,
    /// The session that it was sealed under is gone; nothing was done.
    Session,
    /// The sidecar answered, and says when sending it again can help, if it can.
    Said(Option<Duration>),
}

impl Trouble {
    /// Whether it says that the sidecar is not there, or about to go.
    pub(super) fn is_of_the_sidecar(self) -> bool {
        matches!(self, Self::NotSent | Self::NotTaken(_) | Self::Broken)
    }

    /// Whether it says that the connection is not there any more.
    pub(super) fn is_of_the_connection(self) -> bool {
        self.is_of_the_sidecar() || self == Self::Parted
    }
}

/// The attempts at one call.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    /// That may have been worked on.
    worked_on: u32,
    /// That were not, since one that may have been.
    not_sent: u32,
    all: u32,
}

impl Attempts {
    /// How many there were.
    pub(super) fn all(&self) -> u32 {
        self.all
    }

    /// The pause before the next attempt; `None` if there is none. One has just failed with
    /// `trouble`; `others` says whether another sidecar is up, `patient` whether a sidecar that
    /// is not there is waited for; `left` is what is left of the deadline; `jitter` is a number
    /// from 0 to 1, different for every caller, so that those who failed together do not come
    /// back together.
    pub(super) fn next(
        &mut self,
        op: Op,
        trouble: Trouble,
        others: bool,
        patient: bool,
        left: Duration,
        jitter: f64,
    ) -> Option<Duration> {
        self.all += 1;
        let after = match trouble {
            // The next connection, or session, is good, as a rule.
            Trouble::Parted | Trouble::Session if self.not_sent == 0 => {
                self.not_sent = 1;
                Duration::ZERO
            }
            Trouble::NotSent | Trouble::NotTaken(_) | Trouble::Parted | Trouble::Session => {
                // Each other sidecar has its turn, and then it is a matter of patience.
                let turn = others && self.not_sent < ATTEMPTS_MAX;
                if trouble == Trouble::NotSent && !patient && !turn {
                    return None;
                }
                let after = match trouble {
                    Trouble::NotTaken(Some(after)) => after,
                    _ => Duration::ZERO,
                };
                self.not_sent += 1;
                let doubled = RECONNECT_AFTER.saturating_mul(1 << (self.not_sent - 1).min(10));
                let pause = doubled.min(RECONNECT_AFTER_MAX).max(after);
                let elsewhere = others && trouble.is_of_the_sidecar();
                if elsewhere { Duration::ZERO } else { pause }
            }
            Trouble::Broken | Trouble::Said(_) => {
                self.worked_on += 1;
                self.not_sent = 0;
                let after = match trouble {
                    Trouble::Said(after) => after?,
                    _ => RECONNECT_AFTER,
                };
                if !op.spec().idempotent {
                    return None;
                }
                // Never sooner than asked for; later with every attempt.
                after.min(left).saturating_mul(1 << (self.worked_on - 1).min(10))
            }
        };
        if self.worked_on >= ATTEMPTS_MAX {
            return None;
        }
        let pause = after.mul_f64(1.0 + jitter.clamp(0.0, 1.0) / 2.0);
        // An attempt that cannot be answered in time is not made.
        (pause < left).then_some(pause)
    }
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
    const AFTER: Duration = Duration::from_millis(100);
    const NOT_SENT: Trouble = Trouble::NotSent;
    const SAID: Trouble = Trouble::Said(Some(AFTER));

    /// The pauses after each of these troubles, one after another.
    fn pauses(troubles: &[Trouble], patient: bool, left: Duration) -> Vec<Option<Duration>> {
        let mut attempts = Attempts::default();
        let next =
            |trouble: &Trouble| attempts.next(Op::Unwrap, *trouble, false, patient, left, 0.0);
        troubles.iter().map(next).collect()
    }

    #[test]
    fn only_what_the_sidecar_says_can_help_is_sent_again() {
        assert_eq!(pauses(&[Trouble::Said(None)], true, LONG), [None]);
        assert_eq!(pauses(&[SAID; 3], true, LONG), [Some(AFTER), Some(AFTER * 2), None]);
        assert_eq!(
            pauses(&[Trouble::Broken, SAID, SAID], true, LONG),
            [Some(RECONNECT_AFTER), Some(AFTER * 2), None]
        );
    }

    #[test]
    fn what_was_not_sent_is_sent_for_as_long_as_there_is_time_by_who_is_patient() {
        let patient = pauses(&[NOT_SENT; 50], true, LONG);
        assert_eq!(patient[0], Some(RECONNECT_AFTER));
        assert!(patient.iter().flatten().is_sorted());
        assert_eq!(patient[49], Some(RECONNECT_AFTER_MAX));
        assert_eq!(pauses(&[NOT_SENT], false, LONG), [None]);
        assert_eq!(pauses(&[NOT_SENT], true, RECONNECT_AFTER), [None]);
        assert_eq!(
            pauses(&[NOT_SENT, SAID, NOT_SENT, SAID], true, LONG),
            [Some(RECONNECT_AFTER), Some(AFTER), Some(RECONNECT_AFTER), Some(AFTER * 2)],
            "only what may have been worked on counts"
        );
        assert_eq!(pauses(&[Trouble::NotTaken(Some(AFTER))], true, LONG), [Some(AFTER)]);
    }

    #[test]
    fn whose_connection_or_session_ended_comes_again_at_once_and_then_with_pauses() {
        let expected = [0, 10, 20, 40].map(|ms| Some(Duration::from_millis(ms)));
        for trouble in [Trouble::Parted, Trouble::Session] {
            assert_eq!(pauses(&[trouble; 4], false, LONG), expected);
        }
    }

    #[test]
    fn another_sidecar_is_called_at_once_also_by_who_is_not_patient() {
        let mut attempts = Attempts::default();
        let mut next = |others| attempts.next(Op::Unwrap, NOT_SENT, others, false, LONG, 1.0);
        assert_eq!(
            [true, true, false].map(&mut next),
            [Some(Duration::ZERO); 2].into_iter().chain([None]).collect::<Vec<_>>()[..]
        );
    }

    #[test]
    fn an_attempt_that_would_come_too_late_is_not_made() {
        let next = |after, left, jitter| {
            let said = Trouble::Said(Some(after));
            Attempts::default().next(Op::Unwrap, said, false, true, left, jitter)
        };
        let left = Duration::from_millis(120);
        assert_eq!(next(AFTER, left, 0.0), Some(AFTER));
        assert_eq!(next(AFTER, left, 1.0), None);
        assert_eq!(next(Duration::MAX, left, 1.0), None);
        assert_eq!(next(AFTER, Duration::ZERO, 0.0), None);
    }

    proptest! {
        #[test]
        fn pauses_are_no_sooner_than_asked_and_within_the_deadline_and_come_to_an_end(
            steps in prop::collection::vec((0..5_u8, 0..100_000_u64, any::<bool>()), 1..40),
            left_ms in 0..100_000_u64,
            jitter in 0.0..=1.0_f64,
            patient in any::<bool>(),
        ) {
            let left = Duration::from_millis(left_ms);
            let mut attempts = Attempts::default();
            let mut worked_on = 0;
            for (kind, after_ms, others) in steps {
                let after = Duration::from_millis(after_ms);
                let trouble = match kind {
                    0 => NOT_SENT,
                    1 => Trouble::Broken,
                    2 => Trouble::Session,
                    3 => Trouble::Said(Some(after)),
                    _ => Trouble::Parted,
                };
                worked_on += u32::from(kind == 1 || kind == 3);
                match attempts.next(Op::Wrap, trouble, others, patient, left, jitter) {
                    Some(pause) => {
                        prop_assert!(pause < left && worked_on < ATTEMPTS_MAX);
                        prop_assert!(kind != 3 || after <= pause);
                        prop_assert!(kind != 0 || patient || others);
                    }
                    None => break,
                }
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
