//! The configured KEKs and what is known of their versions.
//!
//! Writers are [`Kek::verify`] (in `rounds.rs`), which reads the backend, and
//! [`Kek::revoke`] (in `change.rs`); each swaps a new [`Known`] in. Readers (`known.rs`) take
//! a snapshot and never wait.
//!
//! Invariants: a version's lease lives for as long as the same key material keeps proving
//! itself, and ends the moment that a newer `Known` no longer vouches for it. A KEK that
//! was revoked stays so, whatever a reading that was in work says.

mod change;
mod known;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicU64},
    },
    time::Instant,
};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, Semaphore};

pub(super) use known::{Held, Known, Leased};

use super::{
    census::{Bookkeeper, Rows},
    rounds::proofs_at_once,
    tolls::Tolls,
    watch::{Crier, Lookout},
};
use crate::{
    backend::Backend,
    guard::Guard,
    kek::{Algorithm, KekName, KeyRef, Mode, NewestDisabled},
    observe::{KekMetrics, Metrics},
};
use change::{Revocation, unread};

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
