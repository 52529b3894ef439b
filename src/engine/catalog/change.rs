//! What changes about a KEK: what a reading found, what an operator took away and gave back,
//! and what is wiped for it.
//!
//! Invariants: what was revoked stays so, whatever a reading says that was in work; when a lease
//! ends, so does what is cached under it.

use std::{
    sync::{Arc, MutexGuard, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use tracing::warn;

use super::{Kek, Known};
use crate::{
    engine::custody::Custody,
    error::{Error, Reason},
    kek::KekName,
    lease::{Lease, Standing},
    observe::Purge,
};

/// Whether an operator took the KEK away.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Revocation {
    revoked: bool,
    /// How often that changed: what was asked for before a change is not taken over.
    changes: u64,
}

impl Kek {
    /// Takes the KEK away until [`Self::restore`]. When it returns, nothing of it is
    /// cached, and no call that has not been answered will be. The connections that carried
    /// its DEKs are the caller's to close. Returns how many DEKs were wiped.
    pub(in crate::engine) fn revoke(&self, custody: &Custody) -> usize {
        let mut revocation = self.revocation();
        revocation.revoked = true;
        revocation.changes += 1;
        let known = Known::trouble(revoked_error(&self.spec.name));
        let wiped = self.replace(known, Purge::Revoked, custody).unwrap_or_default();
        drop(revocation);
        self.look_over();
        wiped
    }

    /// Whether an operator took it away.
    pub(in crate::engine) fn is_revoked(&self) -> bool {
        self.revocation().revoked
    }

    /// Gives a revoked KEK back: it has to prove itself like a new one.
    pub(in crate::engine) fn restore(&self, custody: &Custody) {
        let mut revocation = self.revocation();
        if revocation.revoked {
            revocation.revoked = false;
            revocation.changes += 1;
            self.replace(Known::trouble(unread(&self.spec.name)), Purge::Revoked, custody);
            drop(revocation);
            self.look_over();
            self.suspicion.notify_one();
        }
    }

    /// Wipes what is cached of it, though its leases go on. An unwrap that is in work is
    /// answered, but not cached any more. Returns how many DEKs were wiped.
    pub(in crate::engine) fn purge(&self, custody: &Custody) -> usize {
        // First the count, then the leases, then the wiping: an unwrap that begins under a
        // lease of after this line has the new count, and one of before it is refused by
        // the cache, or was taken in already and is found there.
        self.purges.fetch_add(1, Ordering::SeqCst);
        let leases: Vec<u64> = self.known().leases().map(|lease| lease.id()).collect();
        custody.wipe(&leases)
    }

    /// How often it was purged: what the backend was asked for under another count is not
    /// cached.
    pub(in crate::engine) fn purges(&self) -> u64 {
        self.purges.load(Ordering::SeqCst)
    }

    /// How old the oldest proof of its versions is; zero if it has none.
    pub(in crate::engine) fn proof_age(&self, now: Instant) -> Duration {
        self.known().leases().map(|lease| lease.age(now)).max().unwrap_or_default()
    }

    /// Wipes what is cached under leases that lapsed, once. They may be renewed: the DEKs
    /// then come from the backend again. Returns how many DEKs that were.
    pub(in crate::engine) fn wipe_lapsed(&self, custody: &Arc<Custody>, now: Instant) -> usize {
        let known = self.known();
        let lapsed = |lease: &&Arc<Lease>| matches!(lease.standing(now), Standing::Lapsed { .. });
        let lapsed: Vec<u64> = known.leases().filter(lapsed).map(|lease| lease.id()).collect();
        let mut wiped = self.wiped.lock().unwrap_or_else(PoisonError::into_inner);
        let news = lapsed.iter().any(|id| !wiped.contains(id));
        wiped.clone_from(&lapsed);
        if !news {
            return 0;
        }
        let deks = custody.wipe(&lapsed);
        self.metrics.purged(Purge::OutageOver);
        warn!(kek = %self.spec.name, wiped = deks, "a lease lapsed: the DEKs under it are wiped");
        custody.let_carriers_go(&self.spec.name);
        deks
    }

    /// How often the KEK was revoked or restored; for [`Self::learn`].
    pub(in crate::engine) fn changes(&self) -> u64 {
        self.revocation().changes
    }

    fn revocation(&self) -> MutexGuard<'_, Revocation> {
        self.revocation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what a reading found that began under this count of changes, unless the
    /// KEK is revoked, or was meanwhile.
    pub(in crate::engine) fn learn(&self, known: Known, asked_under: u64, custody: &Arc<Custody>) {
        let revocation = self.revocation();
        if !revocation.revoked
            && revocation.changes == asked_under
            && self.replace(known, Purge::Denied, custody).is_some()
        {
            custody.let_carriers_go(&self.spec.name);
        }
        drop(revocation);
        self.look_over();
        self.tell_amiss();
    }

    /// Swaps `known` in and ends the leases that it does not go on with. Returns how many
    /// DEKs were wiped for that; `None` if no lease ended.
    fn replace(&self, known: Known, cause: Purge, custody: &Custody) -> Option<usize> {
        let known = Arc::new(known);
        let before = self.known.swap(Arc::clone(&known));
        let goes_on = |lease: &Arc<Lease>| known.leases().any(|kept| kept.id() == lease.id());
        let ended: Vec<_> = before.leases().filter(|lease| !goes_on(lease)).collect();
        if ended.is_empty() {
            return None;
        }
        let wiped = custody.end(ended.into_iter());
        self.metrics.purged(cause);
        warn!(kek = %self.spec.name, wiped, "a version lost its right to be used: its DEKs are wiped");
        Some(wiped)
    }
}

pub(super) fn unread(name: &KekName) -> Error {
    Error::new(Reason::KekUnproven, format!("KEK {name} has not been read from its backend yet"))
}

fn revoked_error(name: &KekName) -> Error {
    Error::new(Reason::KekRevoked, format!("an operator revoked KEK {name} on this sidecar"))
        .with_fix("an operator can restore it")
}
