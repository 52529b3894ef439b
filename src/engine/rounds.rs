//! One round with a backend: which versions a KEK has, and whether each still proves itself.
//!
//! Several are proven at once, and first those that were not asked for longest: a round
//! that is too short for all leaves none of them out for ever. Where operations are dear
//! (`lease::fleet`) a version that worked a short time ago, for us or for a caller, and
//! stands as it did, need not do it again: its attributes renew its lease.
//!
//! A backend that may be of two minds about a key must deny it several times before that
//! is believed. Until then its leases go on as they are, which is not for long: nothing
//! renews them.
//!
//! It knows no schedule (that is `prover.rs`) and grants nothing by itself: what it found
//! is for the catalogue to take over.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Instant, SystemTime},
};

use futures_util::{StreamExt, stream};
use tokio::time::timeout_at;

use super::{
    catalog::{Kek, KekSpec, Known, Leased},
    custody::Custody,
};
use crate::{
    backend::{Room, jitter},
    clock,
    error::{Error, Reason},
    kek::{Proof, State, Version, VersionInfo, VersionSet},
    lease::{Lease, Terms, fleet::Pace, patience, renew_in},
};

/// How closely a round looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Every version proves itself by an operation.
    Thorough,
    /// Those do that have not for long.
    AsDue,
}

/// How many proofs a backend is given at once, of all its KEKs: half of what keeps it
/// busy, so that callers do not wait behind more.
pub(super) fn proofs_at_once(room: Room) -> usize {
    room.at_once.div_ceil(2).max(1)
}

/// A round and what it goes by.
struct Round<'a> {
    kek: &'a Kek,
    look: Look,
    pace: Pace,
    terms: Terms,
    /// When the attributes were asked for, on both clocks.
    asked: Instant,
    asked_at: SystemTime,
    deadline: Instant,
}

impl Kek {
    /// How often its leases are looked after.
    pub(super) fn pace(&self, custody: &Custody) -> Pace {
        self.tolls.pace(custody.terms.interval)
    }

    /// How long its leases last.
    pub(super) fn terms(&self, custody: &Custody) -> Terms {
        Terms { interval: self.pace(custody).interval, ..custody.terms }
    }

    /// Reads the versions from the backend, has each prove itself, and renews, grants or
    /// ends their leases by what came of it.
    ///
    /// `Err` if the backend could not be asked, or denied what it is not believed to deny
    /// yet: what was known then stays, and grows older. What the backend did say, good or
    /// bad, is taken over.
    pub(super) async fn verify(
        &self,
        custody: &Arc<Custody>,
        look: Look,
        deadline: Instant,
    ) -> Result<(), Error> {
        let Ok(_one_at_a_time) = timeout_at(deadline.into(), self.reading.lock()).await else {
            // Another round has been at it for all that time.
            let error = no_time();
            self.could_not_ask(&error, custody);
            return Err(error);
        };
        let asked_under = self.changes();
        let before = Arc::clone(&self.known());
        let (asked, asked_at) = (clock::now(), SystemTime::now());
        let KekSpec { name, backend, key, algorithm, newest_disabled, mode } = &self.spec;
        let units = self.tolls.look(name);
        let found = match self.guard.versions(key, *algorithm, units, deadline).await {
            Ok(found) => found,
            Err(error) if error.reason().is_transient() => {
                self.could_not_ask(&error, custody);
                return Err(error);
            }
            Err(error) => {
                let denials = self.denials.fetch_add(1, Ordering::Relaxed) + 1;
                if before.leases().any(releases) && !self.believes(denials) {
                    return Err(error);
                }
                self.learn(Known::trouble(error), asked_under, custody);
                return Ok(());
            }
        };
        self.denials.store(0, Ordering::Relaxed);
        self.tolls.note(name, found.iter().map(|info| self.guard.units(info)));
        let found: Vec<_> = match mode.rules() {
            Some(rules) => found.into_iter().map(|info| rules.limit(info)).collect(),
            None => found,
        };
        let pace = self.pace(custody);
        let terms = Terms { interval: pace.interval, ..custody.terms };
        let round = Round { kek: self, look, pace, terms, asked, asked_at, deadline };
        let earlier = |info: &VersionInfo| {
            let leased = before.versions.get(&info.id);
            leased.filter(|leased| leased.version.info().fingerprint == info.fingerprint)
        };
        let mut found: Vec<_> = found.into_iter().map(|info| (earlier(&info), info)).collect();
        // Those that never were, first of all.
        found.sort_by_key(|(earlier, _)| earlier.and_then(|leased| leased.asked));
        let proofs: Vec<_> =
            found.into_iter().map(|(earlier, info)| round.renew(info, earlier)).collect();
        // Not all of them in the queue for places, or another KEK would wait behind them all.
        let at_once = proofs_at_once(backend.room());
        let proven: Vec<_> = stream::iter(proofs).buffer_unordered(at_once).collect().await;
        let (versions, troubles): (Vec<_>, Vec<_>) = proven.into_iter().unzip();
        let known = match VersionSet::new(versions) {
            Ok(versions) => Known::of(versions, *newest_disabled),
            Err(twin) => Known::trouble(
                Error::new(
                    Reason::BackendMisconfigured,
                    format!("two versions of KEK {name} are both called {twin}"),
                )
                .with_fix("give each key of this label a CKA_ID of its own"),
            ),
        };
        self.learn(known, asked_under, custody);
        troubles.into_iter().flatten().next().map_or(Ok(()), Err)
    }

    /// Whether a denial is believed that is number `denials` in a row.
    fn believes(&self, denials: u32) -> bool {
        denials >= self.spec.backend.room().denials
    }

    /// The whole KEK could not be asked for.
    fn could_not_ask(&self, error: &Error, custody: &Custody) {
        if self.denials.load(Ordering::Relaxed) > 0 {
            // Fail closed: what was said last was no.
            return;
        }
        let terms = self.terms(custody);
        let shared = self.tolls.are_shared();
        self.known().leases().for_each(|lease| unreached(lease, error, terms, shared));
    }
}

impl Round<'_> {
    /// Renews the lease of one version, by its attributes if that will do. Also says why it
    /// could not be asked, or is not believed, if so.
    async fn renew(&self, info: VersionInfo, earlier: Option<&Leased>) -> (Leased, Option<Error>) {
        let row = self.kek.rows.row(&info.id);
        let leased =
            |version, lease| Leased { version, lease, asked: Some(self.asked), denials: 0, row };
        if let Some(lease) = earlier.and_then(|earlier| self.is_known_to_work(&info, earlier)) {
            let version = Version::new(Arc::new(info), Proof::Proven { at: self.asked_at });
            lease.renew(self.asked, self.terms);
            return (leased(version, Some(Arc::clone(lease))), None);
        }
        let had = earlier.map_or(Proof::Unproven, |earlier| earlier.version.proof().clone());
        let version = Version::new(Arc::new(info.clone()), had);
        match version.state(SystemTime::now()) {
            // It may not be used whatever it can do.
            State::NotYetValid | State::Expired | State::Disabled => (leased(version, None), None),
            _ => self.prove(info, earlier).await,
        }
    }

    /// The lease of a version that need not prove itself by an operation: it worked a short
    /// time ago, and stands as it did then.
    fn is_known_to_work<'a>(
        &self,
        info: &VersionInfo,
        earlier: &'a Leased,
    ) -> Option<&'a Arc<Lease>> {
        let before = earlier.version.info();
        let as_before = before.enabled == info.enabled && before.validity == info.validity;
        let lease = earlier.lease.as_ref().filter(|lease| {
            releases(lease)
                && !self.pace.operation_is_due(lease.since_operation(clock::now()), jitter())
                && earlier.denials == 0
        })?;
        (self.look == Look::AsDue && as_before && self.is_active(&earlier.version)).then_some(lease)
    }

    /// Has one version prove itself by an operation.
    async fn prove(&self, info: VersionInfo, earlier: Option<&Leased>) -> (Leased, Option<Error>) {
        let (kek, deadline) = (self.kek, self.deadline);
        let place = timeout_at(deadline.into(), kek.proofs.acquire()).await;
        // Not the moment that the backend gives: a call that waited in its queue
        // proves nothing of the time before.
        let now = clock::now();
        let (asked, proof) = match place {
            Ok(_place) if now < deadline => {
                (Some(now), kek.guard.prove(&info, kek.spec.algorithm, deadline).await)
            }
            _ => (earlier.and_then(|leased| leased.asked), Err(no_time())),
        };
        let mut denials = earlier.map_or(0, |leased| leased.denials);
        let (proof, lease, trouble) = match proof {
            Ok(at) => {
                denials = 0;
                (Proof::Proven { at }, Some(renewed(earlier, now, self.terms)), None)
            }
            Err(error) if error.reason().is_transient() => {
                let (proof, lease) = self.out_of_reach(earlier, &error);
                (proof, lease, Some(error))
            }
            Err(error) => {
                denials += 1;
                match earlier.filter(|_| !kek.believes(denials)).and_then(lease_in_use) {
                    Some((earlier, lease)) => {
                        (earlier.version.proof().clone(), Some(Arc::clone(lease)), Some(error))
                    }
                    None => (Proof::Failed(error), None, None),
                }
            }
        };
        let row = kek.rows.row(&info.id);
        let version = Version::new(Arc::new(info), proof);
        // What is expired or disabled has no right to be used, though it still works.
        let lease = lease.filter(|_| self.is_active(&version));
        (Leased { version, lease, asked, denials, row }, trouble)
    }

    fn is_active(&self, version: &Version) -> bool {
        version.state(SystemTime::now()) == State::Active
    }

    /// What remains of a version that could not be asked: what it had.
    fn out_of_reach(&self, earlier: Option<&Leased>, error: &Error) -> (Proof, Option<Arc<Lease>>) {
        let Some(Leased { version, lease, denials, .. }) = earlier else {
            return (Proof::Unproven, None);
        };
        // Fail closed: if what was said last was no, its lease lapses.
        if let Some(lease) = lease
            && *denials == 0
        {
            unreached(lease, error, self.terms, self.kek.tolls.are_shared());
        }
        (version.proof().clone(), lease.clone())
    }
}

fn no_time() -> Error {
    Error::new(Reason::DeadlineExceeded, "there was no time to have every version prove itself")
        .with_fix("give the lease a longer `interval`, or the KEK fewer versions")
}

fn releases(lease: &Arc<Lease>) -> bool {
    lease.standing(clock::now()).allows_release()
}

/// A version and its lease, if that still allows something.
fn lease_in_use(leased: &Leased) -> Option<(&Leased, &Arc<Lease>)> {
    let lease = leased.lease.as_ref().filter(|lease| releases(lease))?;
    Some((leased, lease))
}

/// The lease of a version that has just proven itself.
fn renewed(earlier: Option<&Leased>, asked: Instant, terms: Terms) -> Arc<Lease> {
    let earlier = earlier.and_then(|leased| leased.lease.as_ref());
    match earlier.filter(|lease| lease.renew(asked, terms)) {
        Some(lease) => {
            lease.operated(asked);
            Arc::clone(lease)
        }
        None => Lease::grant(asked, terms),
    }
}

/// The version of this lease could not be asked, or not in time.
fn unreached(lease: &Lease, error: &Error, terms: Terms, shared: bool) {
    let outage = match error.reason() {
        // That may be for the others' sake: it is an outage only once the lease should have
        // been renewed by now.
        Reason::DeadlineExceeded => renew_in(lease.age(clock::now()), terms, 0.0).is_zero(),
        // The backend is there, and busy: as long as there is time to ask it again, nothing
        // is lost.
        Reason::Overloaded => lease.age(clock::now()) + patience(terms, shared) >= terms.interval,
        _ => true,
    };
    if outage {
        lease.note_outage(terms);
    }
}
