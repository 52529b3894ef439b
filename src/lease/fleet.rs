//! How often a sidecar looks after its leases where many sidecars share what a backend
//! may be asked for.
//!
//! A vault counts what it is asked, of everybody together. A thousand sidecars that each
//! have a 4096-bit key prove itself twice a minute are 33 operations a second against a
//! vault that allows 25, before a single DEK is unwrapped. So:
//!
//! 1. Leases get [`SHARE`] of the quota, divided by the sidecars; the rest is for DEKs.
//! 2. While that is enough, every round has every version prove itself by an operation.
//! 3. When it is not, most rounds look at the attributes only, and a version proves itself
//!    at least once in [`RARELY`] intervals. (An unwrap for a caller proves as much.)
//! 4. When that is not enough either, the interval grows, up to [`INTERVAL_MAX`].
//!
//! With `N` sidecars, `r` units for a look at every KEK of the backend, `c` for an operation
//! with every version, and `a` units in a second for all leases together, a round every
//! `PERIOD` of the interval needs
//!
//! ```text
//! an operation in every round:   interval >= N (r + c) / (PERIOD a)
//! a rare one:                    interval >= N (r / PERIOD + c / RARE_PERIOD) / a
//! ```
//!
//! Pure: it knows no backend and no clock.

use std::time::Duration;

/// The part of a shared quota that leases may take: so far below a half that they stay below
/// it when many happen to come at once.
pub const SHARE: f64 = 0.4;

/// How many intervals an operation may be ago where operations are rare.
pub const RARELY: u32 = 4;

/// The longest that an interval grows: past it an RSA KEK could not wrap any more
/// (`kek::PROOF_MAX_AGE`).
pub const INTERVAL_MAX: Duration = Duration::from_secs(600);

/// The time between two operations where they are rare, in intervals: at least what
/// [`Pace::operation_is_due`] comes to on the average.
const RARE_PERIOD: f64 = RARELY as f64 - 2.0;

/// The time between two rounds, in intervals, on the average of `renew_in`.
const PERIOD: f64 = 0.65;

/// What the leases on one backend cost, in its units.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Toll {
    /// To see how every KEK stands.
    pub looks: f64,
    /// To have every version prove itself by an operation.
    pub operations: f64,
}

/// What a backend gives to all sidecars that share it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quota {
    /// How many share it, this one among them.
    pub sidecars: u32,
    /// Units in a second, for all of them.
    pub per_second: f64,
}

/// How often leases are looked after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// How long a lease is good for: within this time a key that is disabled, deleted,
    /// expired or out of bounds is found out.
    pub interval: Duration,
    /// How long ago the last operation may be.
    pub operation_within: Duration,
}

impl Pace {
    /// An operation in every round.
    pub fn of(interval: Duration) -> Self {
        Self { interval, operation_within: interval }
    }

    /// As often as `wanted`, or as the quota allows.
    pub fn within(wanted: Duration, toll: Toll, quota: Quota) -> Self {
        let allowance = (quota.per_second * SHARE).max(f64::MIN_POSITIVE);
        let (sidecars, Toll { looks, operations }) = (f64::from(quota.sidecars), toll);
        let always = sidecars * (looks + operations) / (PERIOD * allowance);
        if always <= wanted.as_secs_f64() {
            return Self::of(wanted);
        }
        let rarely = sidecars * (looks / PERIOD + operations / RARE_PERIOD) / allowance;
        // A shorter one than was asked for is nobody's wish; a longer one than the longest
        // may be, if it was asked for.
        let rarely = Duration::from_secs_f64(rarely.min(INTERVAL_MAX.as_secs_f64()));
        let interval = rarely.max(wanted);
        Self { interval, operation_within: interval * RARELY }
    }

    /// Whether the last operation is so long ago that one is due, at the latest when the next
    /// round might come only after its time. `jitter`, 0 to 1, has it be due up to two intervals
    /// earlier: a fleet that operated at one time must not do so again.
    pub fn operation_is_due(self, ago: Duration, jitter: f64) -> bool {
        let before = self.interval.mul_f64(1.0 + 2.0 * jitter.clamp(0.0, 1.0));
        ago >= self.operation_within.saturating_sub(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WANTED: Duration = Duration::from_secs(30);
    /// A key of 4096 bits in the HSM of a vault.
    const LARGE: Toll = Toll { looks: 16.0, operations: 16.0 };

    fn fleet(sidecars: u32) -> Quota {
        Quota { sidecars, per_second: 400.0 }
    }

    /// What the fleet spends, in parts of the quota.
    fn load(pace: Pace, toll: Toll, quota: Quota) -> f64 {
        let interval = pace.interval.as_secs_f64();
        let looks = toll.looks / (PERIOD * interval);
        let operations = match pace.operation_within == pace.interval {
            true => toll.operations / (PERIOD * interval),
            false => toll.operations / (RARE_PERIOD * interval),
        };
        f64::from(quota.sidecars) * (looks + operations) / quota.per_second
    }

    #[test]
    fn a_few_sidecars_prove_their_keys_as_often_as_they_like() {
        assert_eq!(Pace::within(WANTED, LARGE, fleet(50)), Pace::of(WANTED));
        assert!(Pace::of(WANTED).operation_is_due(Duration::ZERO, 0.0));
    }

    #[test]
    fn more_of_them_operate_less_often_and_look_as_often() {
        let pace = Pace::within(WANTED, LARGE, fleet(120));
        assert_eq!(pace, Pace { interval: WANTED, operation_within: 4 * WANTED });
        let due = |secs, jitter| pace.operation_is_due(Duration::from_secs(secs), jitter);
        assert!(!due(89, 0.0) && due(90, 0.0));
        assert!(!due(29, 1.0) && due(30, 1.0));
    }

    #[test]
    fn a_thousand_take_longer_and_leave_more_than_half() {
        let pace = Pace::within(WANTED, LARGE, fleet(1000));
        assert!((200..210).contains(&pace.interval.as_secs()), "{pace:?}");
        assert!(load(pace, LARGE, fleet(1000)) < 0.5);
    }

    #[test]
    fn whatever_is_asked_for_is_not_made_shorter() {
        let hour = Duration::from_secs(3600);
        assert_eq!(Pace::within(hour, LARGE, fleet(1_000_000)).interval, hour);
        assert_eq!(Pace::within(WANTED, LARGE, fleet(1_000_000)).interval, INTERVAL_MAX);
        assert_eq!(Pace::within(WANTED, Toll::default(), fleet(1000)), Pace::of(WANTED));
    }

    proptest! {
        /// Unless the interval would have to be longer than the longest, what leases take is
        /// below half of the quota, whatever the fleet and its keys.
        #[test]
        fn leases_take_less_than_half(
            sidecars in 1_u32..20_000, looks in 0.0_f64..200.0, operations in 0.0_f64..2000.0,
            wanted in 1_u64..600,
        ) {
            let (toll, quota) = (Toll { looks, operations }, fleet(sidecars));
            let pace = Pace::within(Duration::from_secs(wanted), toll, quota);
            prop_assert!(pace.interval >= Duration::from_secs(wanted));
            prop_assert!(pace.operation_within >= pace.interval);
            if pace.interval < INTERVAL_MAX {
                prop_assert!(load(pace, toll, quota) < 0.5);
            }
        }
    }
}
