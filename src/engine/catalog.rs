//! The configured KEKs and what is known of their versions.
//!
//! Writers are [`Kek::verify`] (in `rounds.rs`), which reads the backend, and
//! [`Kek::revoke`]; each swaps a new [`Known`] in. Readers take a snapshot and never wait.
//!
//! Invariants: a version's lease lives for as long as the same key material keeps proving
//! itself, and ends the moment that a newer `Known` no longer vouches for it. A KEK that
//! was revoked stays so, whatever a reading that was in work says.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, Semaphore};
use tracing::warn;

use super::{
    census::{Bookkeeper, Row, Rows},
    custody::Custody,
    rounds::proofs_at_once,
    tolls::Tolls,
    watch::{Crier, Lookout},
};
use crate::{
    backend::Backend,
    clock,
    error::{Error, Reason},
    guard::Guard,
    kek::{
        Algorithm, KekName, KeyRef, Mode, NewestDisabled, Purpose, UsableVersion, Version,
        VersionId, VersionInfo, VersionSet, check_not_taken_away, current,
    },
    lease::{Lease, Standing},
    observe::{KekMetrics, Metrics, Purge},
};

/// A KEK as configured.
#[derive(Clone)]
pub struct KekSpec {
    /// What callers call it.
    pub name: KekName,
    /// Where it lives.
    pub backend: Arc<dyn Backend>,
    /// What the backend calls it.
    pub key: KeyRef,
    /// What new DEKs are wrapped with.
    pub algorithm: Algorithm,
    /// What it means that its newest version is disabled.
    pub newest_disabled: NewestDisabled,
    /// Who owns it.
    pub mode: Mode,
}

/// A configured KEK and what is known of it.
pub(super) struct Kek {
    pub(super) spec: KekSpec,
    pub(super) metrics: Arc<KekMetrics>,
    /// To its backend; shared with the other KEKs there.
    pub(super) guard: Guard,
    known: ArcSwap<Known>,
    /// Places for proofs at its backend; shared like the guard, whose queue proofs do not
    /// wait in.
    pub(super) proofs: Arc<Semaphore>,
    /// What the leases at its backend cost; shared likewise.
    pub(super) tolls: Arc<Tolls>,
    /// How often in a row the backend denied the whole KEK and was not believed yet.
    pub(super) denials: AtomicU32,
    /// Held while the backend is asked, so that two readings do not race.
    pub(super) reading: tokio::sync::Mutex<()>,
    /// Held while `known` is replaced.
    revocation: Mutex<Revocation>,
    /// Leases that lapsed and whose DEKs were wiped since.
    wiped: Mutex<Vec<u64>>,
    /// How often it was purged.
    purges: AtomicU64,
    /// Rung when an operation met a key that is not what is known of it.
    pub(super) suspicion: Notify,
    /// When a hint from outside was last followed.
    pub(super) hinted: Mutex<Option<Instant>>,
    pub(super) lookout: Lookout,
    pub(super) rows: Rows,
}

/// Whether an operator took the KEK away.
#[derive(Clone, Copy, Debug, Default)]
struct Revocation {
    revoked: bool,
    /// How often that changed: what was asked for before a change is not taken over.
    changes: u64,
}

/// What is known of a KEK's versions.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) versions: VersionSet<Leased>,
    /// Why none of them may be used, and there may be none, if the backend said so.
    pub(super) trouble: Option<Error>,
}

/// A version and the lease on it.
#[derive(Debug)]
pub(super) struct Leased {
    pub(super) version: Version,
    /// `None` while it is not proven, or was denied.
    pub(super) lease: Option<Arc<Lease>>,
    /// When it was last asked to prove itself, whatever came of it.
    pub(super) asked: Option<Instant>,
    /// How often in a row the backend denied it and was not believed yet.
    pub(super) denials: u32,
    /// How it is used; the same for as long as the KEK is known.
    pub(super) row: Arc<Row>,
}

/// A version that may be used now, and the lease that says so.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) version: UsableVersion,
    pub(super) lease: Arc<Lease>,
    /// Whether the backend is out of reach, so that only what is cached may be released.
    pub(super) outage: bool,
}

/// What KEKs of one backend share.
#[derive(Clone)]
struct Way {
    guard: Guard,
    proofs: Arc<Semaphore>,
    tolls: Arc<Tolls>,
}

impl Way {
    fn to(backend: &Arc<dyn Backend>) -> Self {
        let room = backend.room();
        Self {
            guard: Guard::new(Arc::clone(backend)),
            proofs: Arc::new(Semaphore::new(proofs_at_once(room))),
            tolls: Arc::new(Tolls::new(room)),
        }
    }
}

pub(super) struct Catalog {
    keks: BTreeMap<KekName, Arc<Kek>>,
    /// One for each backend.
    guards: Vec<Guard>,
}

impl Catalog {
    pub(super) fn new(
        specs: Vec<KekSpec>,
        metrics: &Metrics,
        crier: &Crier,
        books: &Bookkeeper,
    ) -> Self {
        // KEKs of one backend share what stands around it.
        let mut ways: Vec<(Arc<dyn Backend>, Way)> = Vec::new();
        let mut keks = BTreeMap::new();
        for spec in specs {
            let known = ways.iter().find(|(backend, _)| Arc::ptr_eq(backend, &spec.backend));
            let way = match known {
                Some((_, way)) => way.clone(),
                None => {
                    let way = Way::to(&spec.backend);
                    ways.push((Arc::clone(&spec.backend), way.clone()));
                    way
                }
            };
            let rows = books.rows(&spec.name);
            let name = spec.name.clone();
            keks.insert(name, Arc::new(Kek::new(spec, way, metrics, crier.clone(), rows)));
        }
        Self { keks, guards: ways.into_iter().map(|(_, way)| way.guard).collect() }
    }

    /// What stands around each backend.
    pub(super) fn guards(&self) -> impl Iterator<Item = &Guard> {
        self.guards.iter()
    }

    pub(super) fn get(&self, name: &KekName) -> Option<&Arc<Kek>> {
        self.keks.get(name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &KekName> {
        self.keks.keys()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Kek>> {
        self.keks.values()
    }
}

impl Kek {
    fn new(spec: KekSpec, way: Way, metrics: &Metrics, crier: Crier, rows: Rows) -> Self {
        let known = Known::trouble(unread(&spec.name));
        let Way { guard, proofs, tolls } = way;
        Self {
            metrics: metrics.kek(spec.name.as_str()),
            spec,
            guard,
            proofs,
            tolls,
            denials: AtomicU32::new(0),
            known: ArcSwap::from_pointee(known),
            reading: tokio::sync::Mutex::default(),
            revocation: Mutex::default(),
            wiped: Mutex::default(),
            purges: AtomicU64::new(0),
            suspicion: Notify::new(),
            hinted: Mutex::default(),
            lookout: Lookout::new(crier),
            rows,
        }
    }

    pub(super) fn known(&self) -> arc_swap::Guard<Arc<Known>> {
        self.known.load()
    }

    /// The version that wraps now.
    pub(super) fn current(&self) -> Result<Held, Error> {
        self.current_of(&self.known(), clock::now(), SystemTime::now())
    }

    pub(super) fn current_of(
        &self,
        known: &Known,
        now: Instant,
        at: SystemTime,
    ) -> Result<Held, Error> {
        if let Some(trouble) = &known.trouble {
            return Err(trouble.clone());
        }
        let usable = current(known.versions.iter().map(|leased| &leased.version), at)?;
        let leased = known.versions.get(&usable.info().id);
        self.hold(usable, leased.and_then(|leased| leased.lease.as_ref()), now)
    }

    /// The version of that name, for unwrapping.
    pub(super) fn version(&self, id: &VersionId, now: Instant) -> Result<Held, Error> {
        let known = self.known();
        if let Some(trouble) = &known.trouble {
            return Err(trouble.clone());
        }
        let leased = known.versions.get(id).ok_or_else(|| {
            Error::new(
                Reason::KekVersionNotFound,
                format!("KEK {} has no version {id}", self.spec.name),
            )
            .with_fix("`keyward kek show` lists its versions; the backend may have lost this one")
        })?;
        self.held(&leased.version, leased.lease.as_ref(), now, SystemTime::now())
    }

    /// A version, for unwrapping.
    pub(super) fn held(
        &self,
        version: &Version,
        lease: Option<&Arc<Lease>>,
        now: Instant,
        at: SystemTime,
    ) -> Result<Held, Error> {
        self.hold(version.usable(Purpose::Unwrap, at)?, lease, now)
    }

    fn hold(
        &self,
        version: UsableVersion,
        lease: Option<&Arc<Lease>>,
        now: Instant,
    ) -> Result<Held, Error> {
        let unproven = || self.unproven(&version.info().id);
        let lease = lease.ok_or_else(unproven)?;
        match lease.standing(now) {
            Standing::Live => Ok(Held { version, lease: Arc::clone(lease), outage: false }),
            Standing::Outage => Ok(Held { version, lease: Arc::clone(lease), outage: true }),
            Standing::Lapsed { outage: true } => Err(self.unreachable()),
            Standing::Lapsed { outage: false } | Standing::Ended => Err(unproven()),
        }
    }

    /// The second check: whether what was held when the call began may be acted on still.
    pub(super) fn confirm(&self, held: &Held) -> Result<(), Error> {
        // Not the clock of the first check: the caller may have waited since.
        let now = clock::now();
        match held.lease.standing(now) {
            Standing::Live | Standing::Outage => Ok(()),
            Standing::Lapsed { outage: true } => Err(self.unreachable()),
            Standing::Lapsed { outage: false } => Err(self.unproven(&held.version.info().id)),
            // What is known by now says why. If nothing is wrong any more, the version got
            // its right back, but this call is from before.
            Standing::Ended => {
                let id = &held.version.info().id;
                Err(self.version(id, now).err().unwrap_or_else(|| self.unproven(id)))
            }
        }
    }

    fn unproven(&self, version: &VersionId) -> Error {
        Error::new(
            Reason::KekUnproven,
            format!(
                "there is no recent proof that version {version} of KEK {} is still allowed",
                self.spec.name
            ),
        )
        .with_fix("the sidecar asks the backend again by itself; its log says what came of it")
    }

    /// What is told while the backend is out of reach to who needs it.
    pub(super) fn unreachable(&self) -> Error {
        Error::new(
            Reason::BackendUnreachable,
            format!("backend {} does not answer", self.spec.backend.name()),
        )
        .with_fix("see whether the HSM can be reached; the sidecar goes on by itself once it can")
    }

    /// Passes `result` on and, if it says that the backend's key is not what is known
    /// of it, or that the backend is out of reach, has the KEK read again soon.
    pub(super) fn notice<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        let suspicious = |reason| {
            matches!(
                reason,
                Reason::KekMismatch
                    | Reason::KekVersionNotFound
                    | Reason::KekDisabled
                    | Reason::KekRevoked
                    | Reason::BackendUnreachable
            )
        };
        if result.as_ref().is_err_and(|error| suspicious(error.reason())) {
            self.suspicion.notify_one();
        }
        result
    }

    /// Takes the KEK away until [`Self::restore`]. When it returns, nothing of it is
    /// cached, and no call that has not been answered will be. The connections that carried
    /// its DEKs are the caller's to close. Returns how many DEKs were wiped.
    pub(super) fn revoke(&self, custody: &Custody) -> usize {
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
    pub(super) fn is_revoked(&self) -> bool {
        self.revocation().revoked
    }

    /// Gives a revoked KEK back: it has to prove itself like a new one.
    pub(super) fn restore(&self, custody: &Custody) {
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
    pub(super) fn purge(&self, custody: &Custody) -> usize {
        // First the count, then the leases, then the wiping: an unwrap that begins under a
        // lease of after this line has the new count, and one of before it is refused by
        // the cache, or was taken in already and is found there.
        self.purges.fetch_add(1, Ordering::SeqCst);
        let leases: Vec<u64> = self.known().leases().map(|lease| lease.id()).collect();
        custody.wipe(&leases)
    }

    /// How often it was purged: what the backend was asked for under another count is not
    /// cached.
    pub(super) fn purges(&self) -> u64 {
        self.purges.load(Ordering::SeqCst)
    }

    /// How old the oldest proof of its versions is; zero if it has none.
    pub(super) fn proof_age(&self, now: Instant) -> Duration {
        self.known().leases().map(|lease| lease.age(now)).max().unwrap_or_default()
    }

    /// Wipes what is cached under leases that lapsed, once. They may be renewed: the DEKs
    /// then come from the backend again. Returns how many DEKs that were.
    pub(super) fn wipe_lapsed(&self, custody: &Arc<Custody>, now: Instant) -> usize {
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
    pub(super) fn changes(&self) -> u64 {
        self.revocation().changes
    }

    fn revocation(&self) -> MutexGuard<'_, Revocation> {
        self.revocation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what a reading found that began under this count of changes, unless the
    /// KEK is revoked, or was meanwhile.
    pub(super) fn learn(&self, known: Known, asked_under: u64, custody: &Arc<Custody>) {
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

fn unread(name: &KekName) -> Error {
    Error::new(Reason::KekUnproven, format!("KEK {name} has not been read from its backend yet"))
}

fn revoked_error(name: &KekName) -> Error {
    Error::new(Reason::KekRevoked, format!("an operator revoked KEK {name} on this sidecar"))
        .with_fix("an operator can restore it")
}

impl Known {
    pub(super) fn trouble(error: Error) -> Self {
        Self { versions: VersionSet::default(), trouble: Some(error) }
    }

    /// What a round found of each version. If its owner took the KEK away, the versions are
    /// there to be seen, and none has a lease.
    pub(super) fn of(mut versions: VersionSet<Leased>, rule: NewestDisabled) -> Self {
        let newest_first = versions.iter().map(|leased| &leased.version);
        let trouble = check_not_taken_away(newest_first, rule, SystemTime::now()).err();
        if trouble.is_some() {
            versions.iter_mut().for_each(|leased| leased.lease = None);
        }
        Self { versions, trouble }
    }

    pub(super) fn leases(&self) -> impl Iterator<Item = &Arc<Lease>> {
        self.versions.iter().filter_map(|leased| leased.lease.as_ref())
    }
}

impl AsRef<VersionInfo> for Leased {
    fn as_ref(&self) -> &VersionInfo {
        self.version.info()
    }
}

impl fmt::Debug for KekSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, backend, key, algorithm, newest_disabled: _, mode: _ } = self;
        write!(f, "KekSpec({name}: {} {key} {algorithm})", backend.name())
    }
}

impl fmt::Debug for Kek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}", self.spec, self.known.load())
    }
}
