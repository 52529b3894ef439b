//! The lease of a KEK version: how long what is known of its right to be used may be
//! relied upon.
//!
//! A [`Lease`] is granted when the version has proven itself, by a private-key operation
//! on its backend and by its attributes, and renewed each time that it does so again, or
//! where that is dear ([`fleet`]) by its attributes alone for a while.
//! Whoever releases a DEK checks it twice: before the backend is asked, and again before
//! the DEK is handed out. Both checks are one atomic load and a comparison.
//!
//! ```text
//!  granted ──proof──▶ LIVE ──the proof grows old──▶ LAPSED: refuse
//!                      │ ▲                             ▲
//!    no answer to ask  ▼ │ proof                       │ the grace is over
//!                     OUTAGE: cached DEKs only ────────┘
//!
//!  from anywhere ──denied, revoked──▶ ENDED, for good
//! ```
//!
//! It knows no backend and no clock (`now` is a value), and nothing is stored: after a
//! restart nothing is proven.
//!
//! Invariants: an ended lease never lives again, a version that regains its right gets
//! another one. So an unwrap that began before a revocation holds an ended lease, and
//! is not answered after it, whatever happened meanwhile. A lease that nobody renews
//! lapses by itself.

pub mod fleet;

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// How long leases last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// A proof is good for this long. Renewal begins well before.
    pub interval: Duration,
    /// How long past that cached DEKs are still released while the backend cannot be
    /// asked.
    pub outage_grace: Duration,
}

/// What a lease allows at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Everything.
    Live,
    /// The backend could not be asked: what is cached may be released, and nothing else
    /// tried.
    Outage,
    /// Nothing, until the version proves itself again.
    Lapsed {
        /// Whether that is because the backend could not be asked for so long.
        outage: bool,
    },
    /// Nothing ever again.
    Ended,
}

impl Standing {
    /// Whether a DEK may be handed out, or kept.
    pub fn allows_release(self) -> bool {
        matches!(self, Self::Live | Self::Outage)
    }
}

/// One grant. Shared by the calls that rely on it.
#[derive(Debug)]
pub struct Lease {
    id: u64,
    /// When the proof that it rests on was asked for, in ms since [`EPOCH`].
    proven_at: AtomicU64,
    /// When the last private-key operation was asked for that succeeded, likewise.
    operated_at: AtomicU64,
    /// The moment, in ms since [`EPOCH`], until which it is good, times two, plus one in
    /// an outage; [`ENDED`] once it ended. This word alone decides.
    until: AtomicU64,
}

const ENDED: u64 = 0;

/// What moments are counted from: a little before [`start_counting`], so that none is 0.
/// A moment before it is taken for it.
static EPOCH: LazyLock<Instant> = LazyLock::new(|| {
    let now = Instant::now();
    now.checked_sub(Duration::from_secs(1)).unwrap_or(now)
});

/// To be called before the first proof is asked for. Otherwise the count would begin with
/// the first lease, and a proof that took long would pass for a younger one.
pub fn start_counting() {
    LazyLock::force(&EPOCH);
}

fn millis(at: Instant) -> u64 {
    let since = at.saturating_duration_since(*EPOCH).as_millis();
    // Far enough from the end of the range that nothing below overflows.
    u64::try_from(since).unwrap_or(u64::MAX).clamp(1, u64::MAX >> 8)
}

fn span(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).min(u64::MAX >> 8)
}

impl Lease {
    /// A lease on a proof by an operation that was asked for at `proven_at`.
    pub fn grant(proven_at: Instant, terms: Terms) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let proven_at = millis(proven_at);
        Arc::new(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            proven_at: AtomicU64::new(proven_at),
            operated_at: AtomicU64::new(proven_at),
            until: AtomicU64::new((proven_at + span(terms.interval)) << 1),
        })
    }

    /// Different for every grant of this process. What is cached under it belongs to it.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The version proved itself again, asked at `proven_at`. False if the lease has
    /// ended: it stays so.
    pub fn renew(&self, proven_at: Instant, terms: Terms) -> bool {
        let proven_at = millis(proven_at);
        self.proven_at.fetch_max(proven_at, Ordering::Relaxed);
        self.set((proven_at + span(terms.interval)) << 1)
    }

    /// A private-key operation succeeded that was asked for at `at`. By itself that renews
    /// nothing: it shows that the key works, not what its attributes say.
    pub fn operated(&self, at: Instant) {
        self.operated_at.fetch_max(millis(at), Ordering::Relaxed);
    }

    /// How long ago the last operation was asked for that succeeded.
    pub fn since_operation(&self, now: Instant) -> Duration {
        let operated_at = self.operated_at.load(Ordering::Relaxed);
        Duration::from_millis(millis(now).saturating_sub(operated_at))
    }

    /// The backend could not be asked. What is cached may be released for the grace.
    pub fn note_outage(&self, terms: Terms) -> bool {
        let proven_at = self.proven_at.load(Ordering::Relaxed);
        self.set((proven_at + span(terms.interval) + span(terms.outage_grace)) << 1 | 1)
    }

    /// Ends the lease for good.
    pub fn end(&self) {
        // SeqCst, as the load in `standing`: who ends a lease and then purges must not
        // be overtaken by who checks it and then releases.
        self.until.store(ENDED, Ordering::SeqCst);
    }

    /// What it allows at `now`.
    pub fn standing(&self, now: Instant) -> Standing {
        let word = self.until.load(Ordering::SeqCst);
        let outage = word & 1 == 1;
        match word {
            ENDED => Standing::Ended,
            _ if millis(now) > word >> 1 => Standing::Lapsed { outage },
            _ if outage => Standing::Outage,
            _ => Standing::Live,
        }
    }

    /// Whether it has not ended.
    pub fn is_granted(&self) -> bool {
        self.until.load(Ordering::SeqCst) != ENDED
    }

    /// How old the proof is that it rests on.
    pub fn age(&self, now: Instant) -> Duration {
        let proven_at = self.proven_at.load(Ordering::Relaxed);
        Duration::from_millis(millis(now).saturating_sub(proven_at))
    }

    fn set(&self, word: u64) -> bool {
        let not_ended = |old| (old != ENDED).then_some(word);
        self.until.fetch_update(Ordering::SeqCst, Ordering::SeqCst, not_ended).is_ok()
    }
}

/// How long to wait before a lease whose proof was asked for `age` ago is renewed.
/// `jitter` is a number from 0 to 1 that keeps a fleet from asking in step. What is left
/// of the interval after that, at least a quarter, is for the proof itself.
pub fn renew_in(age: Duration, terms: Terms, jitter: f64) -> Duration {
    terms.interval.mul_f64(0.55 + 0.2 * jitter.clamp(0.0, 1.0)).saturating_sub(age)
}

/// The longest pause before a backend that could not be asked is asked again: a quarter of
/// the interval where others ask it too, so that a fleet does not keep down what comes up
/// again; otherwise a second.
pub fn patience(terms: Terms, shared: bool) -> Duration {
    match shared {
        true => terms.interval / 4,
        false => first_pause(terms),
    }
}

/// How long to wait before a backend that could not be asked is asked again, after so many
/// `failures` before this one: each pause is twice as long as the one before, and none
/// longer than `patience`.
pub fn retry_in(terms: Terms, failures: u32, patience: Duration, jitter: f64) -> Duration {
    let first = first_pause(terms);
    let pause = first.saturating_mul(1 << failures.min(16)).min(patience.max(first));
    pause.mul_f64(0.8 + 0.4 * jitter.clamp(0.0, 1.0))
}

fn first_pause(terms: Terms) -> Duration {
    (terms.interval / 20).clamp(Duration::from_millis(50), Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TERMS: Terms =
        Terms { interval: Duration::from_secs(30), outage_grace: Duration::from_secs(600) };

    fn after(start: Instant, secs: f64) -> Instant {
        start + Duration::from_secs_f64(secs)
    }

    #[test]
    fn a_lease_that_nobody_renews_lapses() {
        let start = Instant::now();
        let lease = Lease::grant(start, TERMS);
        assert_eq!(lease.standing(after(start, 29.9)), Standing::Live);
        assert_eq!(lease.standing(after(start, 30.1)), Standing::Lapsed { outage: false });
        assert!(lease.renew(after(start, 40.0), TERMS));
        assert_eq!(lease.standing(after(start, 69.9)), Standing::Live);
        assert_eq!(lease.age(after(start, 50.0)), Duration::from_secs(10));
    }

    #[test]
    fn an_outage_counts_from_the_last_proof() {
        let start = Instant::now();
        let lease = Lease::grant(start, TERMS);
        assert!(lease.note_outage(TERMS));
        assert!(lease.note_outage(TERMS), "again and again, it gets no longer");
        assert_eq!(lease.standing(after(start, 629.9)), Standing::Outage);
        assert_eq!(lease.standing(after(start, 630.1)), Standing::Lapsed { outage: true });
        assert!(lease.renew(after(start, 700.0), TERMS));
        assert_eq!(lease.standing(after(start, 701.0)), Standing::Live);
    }

    #[test]
    fn each_grant_is_another() {
        let now = Instant::now();
        assert_ne!(Lease::grant(now, TERMS).id(), Lease::grant(now, TERMS).id());
    }

    #[test]
    fn renewal_begins_early_enough() {
        for jitter in [0.0, 0.5, 1.0, 7.0] {
            let wait = renew_in(Duration::ZERO, TERMS, jitter);
            assert!(wait >= TERMS.interval / 2 && wait <= TERMS.interval * 3 / 4, "{wait:?}");
        }
        assert_eq!(renew_in(Duration::from_secs(60), TERMS, 0.0), Duration::ZERO);
        let soon = Terms { interval: Duration::from_secs(1), ..TERMS };
        let alone =
            |terms, failures, jitter| retry_in(terms, failures, patience(terms, false), jitter);
        assert!(alone(soon, 0, 0.0) >= Duration::from_millis(40));
        for failures in [0, 1, 100] {
            assert!(alone(TERMS, failures, 1.0) <= Duration::from_millis(1200));
        }
    }

    #[test]
    fn a_backend_that_others_ask_too_is_asked_less_and_less_often() {
        let pause = |failures| retry_in(TERMS, failures, patience(TERMS, true), 0.5);
        assert_eq!(pause(0), Duration::from_secs(1));
        assert_eq!(pause(2), Duration::from_secs(4));
        assert_eq!(pause(u32::MAX), TERMS.interval / 4);
    }

    #[test]
    fn operations_are_remembered_by_the_latest() {
        let start = Instant::now();
        let lease = Lease::grant(start, TERMS);
        lease.operated(after(start, 20.0));
        lease.operated(after(start, 10.0));
        assert_eq!(lease.since_operation(after(start, 25.0)), Duration::from_secs(5));
        assert!(lease.renew(after(start, 25.0), TERMS));
        assert_eq!(lease.since_operation(after(start, 25.0)), Duration::from_secs(5));
        assert_eq!(lease.standing(after(start, 56.0)), Standing::Lapsed { outage: false });
    }

    #[derive(Clone, Debug)]
    enum Step {
        Pass(u64),
        Prove,
        Outage,
        End,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..400_u64).prop_map(Step::Pass),
            2 => Just(Step::Prove),
            2 => Just(Step::Outage),
            1 => Just(Step::End),
        ]
    }

    proptest! {
        #[test]
        fn it_allows_what_the_rules_allow(steps in prop::collection::vec(step(), 0..40)) {
            let start = Instant::now();
            let (mut now, mut proven, mut outage, mut ended) = (start, start, false, false);
            let lease = Lease::grant(start, TERMS);
            for step in steps {
                match step {
                    Step::Pass(secs) => now += Duration::from_secs(secs),
                    Step::Prove => {
                        prop_assert_eq!(lease.renew(now, TERMS), !ended);
                        (proven, outage) = (now, false);
                    }
                    Step::Outage => {
                        prop_assert_eq!(lease.note_outage(TERMS), !ended);
                        outage = true;
                    }
                    Step::End => {
                        lease.end();
                        ended = true;
                    }
                }
                let age = now - proven;
                let good_for = TERMS.interval + if outage { TERMS.outage_grace } else { Duration::ZERO };
                let expected = match (ended, outage) {
                    (true, _) => Standing::Ended,
                    (_, outage) if age > good_for => Standing::Lapsed { outage },
                    (_, true) => Standing::Outage,
                    (_, false) => Standing::Live,
                };
                prop_assert_eq!(lease.standing(now), expected);
                prop_assert_eq!(lease.is_granted(), !ended);
            }
        }
    }
}
