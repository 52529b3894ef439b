//! One round with a backend: which versions a KEK has, and whether each still proves itself.
//!
//! Several are proven at once, and first those that were not asked for longest: a round
//! that is too short for all leaves none of them out for ever. It knows no schedule (that
//! is `prover.rs`) and grants nothing by itself: what it found is for the catalogue to take
//! over.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use futures_util::{StreamExt, stream};
use tokio::time::timeout_at;

use super::{
    catalog::{Kek, KekSpec, Known, Leased},
    custody::Custody,
};
use crate::{
    backend::Room,
    error::{Error, Reason},
    kek::{Proof, State, Version, VersionInfo, VersionSet},
    lease::{Lease, Terms, renew_in},
};

/// How many proofs a backend is given at once, of all its KEKs: half of what keeps it
/// busy, so that callers do not wait behind more.
pub(super) fn proofs_at_once(room: Room) -> usize {
    room.at_once.div_ceil(2).max(1)
}

impl Kek {
    /// Reads the versions from the backend, has each prove itself, and renews, grants or
    /// ends their leases by what came of it.
    ///
    /// `Err` only if the backend could not be asked: what was known then stays, and
    /// grows older. What the backend did say, good or bad, is taken over.
    pub(super) async fn verify(
        &self,
        custody: &Arc<Custody>,
        deadline: Instant,
    ) -> Result<(), Error> {
        let Ok(_one_at_a_time) = timeout_at(deadline.into(), self.reading.lock()).await else {
            // Another round has been at it for all that time.
            self.known().leases().for_each(|lease| late(lease, custody.terms));
            return Err(no_time());
        };
        let asked_under = self.changes();
        let (guard, KekSpec { name, backend, key, algorithm }) = (&self.guard, &self.spec);
        let before = Arc::clone(&self.known());
        let found = match guard.versions(key, *algorithm, deadline).await {
            Ok(found) => found,
            Err(error) if error.reason().is_transient() => {
                before.leases().for_each(|lease| _ = lease.note_outage(custody.terms));
                return Err(error);
            }
            Err(error) => {
                self.learn(Known::trouble(error), asked_under, custody);
                return Ok(());
            }
        };
        let earlier = |info: &VersionInfo| {
            let leased = before.versions.get(&info.id);
            leased.filter(|leased| leased.version.info().fingerprint == info.fingerprint)
        };
        let mut found: Vec<_> = found.into_iter().map(|info| (earlier(&info), info)).collect();
        // Those that never were, first of all.
        found.sort_by_key(|(earlier, _)| earlier.and_then(|leased| leased.asked));
        let proofs: Vec<_> = found
            .into_iter()
            .map(|(earlier, info)| self.prove(info, earlier, custody, deadline))
            .collect();
        // Not all of them in the queue for places, or another KEK would wait behind them all.
        let at_once = proofs_at_once(backend.room());
        let proven: Vec<_> = stream::iter(proofs).buffer_unordered(at_once).collect().await;
        let (versions, troubles): (Vec<_>, Vec<_>) = proven.into_iter().unzip();
        let known = match VersionSet::new(versions) {
            Ok(versions) => Known { versions, trouble: None },
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

    /// Has one version prove itself. Also says why it could not be asked, if so.
    async fn prove(
        &self,
        info: VersionInfo,
        earlier: Option<&Leased>,
        custody: &Custody,
        deadline: Instant,
    ) -> (Leased, Option<Error>) {
        let place = timeout_at(deadline.into(), self.proofs.acquire()).await;
        // Not the moment that the backend gives: a call that waited in its queue
        // proves nothing of the time before.
        let now = Instant::now();
        let (asked, proof) = match place {
            Ok(_place) if now < deadline => {
                (Some(now), self.guard.prove(&info, self.spec.algorithm, deadline).await)
            }
            _ => (earlier.and_then(|leased| leased.asked), Err(no_time())),
        };
        let (proof, lease, trouble) = match proof {
            Ok(at) => (Proof::Proven { at }, Some(renewed(earlier, now, custody)), None),
            Err(error) if error.reason().is_transient() => {
                let (proof, lease) = out_of_reach(earlier, &error, custody);
                (proof, lease, Some(error))
            }
            Err(error) => (Proof::Failed(error), None, None),
        };
        let version = Version::new(Arc::new(info), proof);
        // What is expired or disabled has no right to be used, though it still works.
        let lease = lease.filter(|_| version.state(SystemTime::now()) == State::Active);
        (Leased { version, lease, asked }, trouble)
    }
}

fn no_time() -> Error {
    Error::new(Reason::DeadlineExceeded, "there was no time to have every version prove itself")
        .with_fix("give the lease a longer `interval`, or the KEK fewer versions")
}

/// The lease of a version that has just proven itself.
fn renewed(earlier: Option<&Leased>, asked: Instant, custody: &Custody) -> Arc<Lease> {
    let earlier = earlier.and_then(|leased| leased.lease.as_ref());
    match earlier.filter(|lease| lease.renew(asked, custody.terms)) {
        Some(lease) => Arc::clone(lease),
        None => Lease::grant(asked, custody.terms),
    }
}

/// What remains of a version that could not be asked: what it had.
fn out_of_reach(
    earlier: Option<&Leased>,
    error: &Error,
    custody: &Custody,
) -> (Proof, Option<Arc<Lease>>) {
    let Some(Leased { version, lease, .. }) = earlier else { return (Proof::Unproven, None) };
    if let Some(lease) = lease {
        match error.reason() {
            Reason::DeadlineExceeded => late(lease, custody.terms),
            _ => _ = lease.note_outage(custody.terms),
        }
    }
    (version.proof().clone(), lease.clone())
}

/// There was no time for the version of this lease. That may be for the others' sake: it is
/// an outage only once the lease should have been renewed by now.
fn late(lease: &Lease, terms: Terms) {
    if renew_in(lease.age(Instant::now()), terms, 0.0).is_zero() {
        lease.note_outage(terms);
    }
}
