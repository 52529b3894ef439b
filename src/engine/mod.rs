//! The use cases: wrap, unwrap, generate, rewrap, describe.
//!
//! Each takes a [`Permit`], so a caller that was not authorised cannot reach them,
//! and each writes its line of the operation log. The engine knows no transport and
//! no vendor. The way of an unwrap is one straight line:
//! catalogue -> life cycle and lease -> cache, or guard -> backend -> envelope -> lease.

mod caretaker;
mod catalog;
mod census;
mod custody;
mod describe;
mod generate;
mod prover;
mod purge;
mod reload;
mod rewrap;
mod rounds;
mod samples;
mod startup;
mod tolls;
mod unwrap;
mod watch;
mod wrap;

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

pub use catalog::KekSpec;
pub use custody::Purged;
pub use describe::{KekDescription, VersionDescription};
pub use prover::keep_proven;
pub use purge::Revoked;
pub use reload::Reloaded;
pub use rewrap::Rewrapped;
pub use startup::prove;
pub use unwrap::{Source, Unwrapped};
pub use watch::{News, Stand};

use crate::{
    auth::Permit,
    cache::{Cache, Flights},
    carriers::Carriers,
    error::{Error, Reason},
    guard::{Ask, Class, Sender},
    kek::{KekName, VersionId},
    kept::{Ledger, Revocations},
    lease::{self, Terms},
    observe::{Metrics, Record},
    op::Op,
};
use catalog::{Catalog, Kek};
use census::Bookkeeper;
use custody::Custody;
use rounds::Look;
use watch::Crier;

/// Unwraps by the backend that may be under way at once, for different DEKs.
const FLIGHTS_MAX: usize = 16 * 1024;

/// What outlasts a restart.
#[derive(Debug)]
pub struct Kept {
    /// What operators took away.
    pub revocations: Revocations,
    /// What was counted.
    pub ledger: Ledger,
}

impl Kept {
    /// Nothing does.
    pub fn nothing() -> Self {
        Self { revocations: Revocations::unkept(), ledger: Ledger::unkept() }
    }
}

/// The use cases over the configured KEKs.
pub struct Engine {
    catalog: Catalog,
    custody: Arc<Custody>,
    revocations: Arc<Revocations>,
    /// Held while an operator's revocation or restoration is recorded and taken over, so that
    /// the record and the KEK do not come to disagree.
    changing: tokio::sync::Mutex<()>,
    metrics: Arc<Metrics>,
    crier: Crier,
    bookkeeper: Bookkeeper,
    /// Makes numbers of callers that no caller can choose.
    callers: RandomState,
}

impl Engine {
    /// An engine for these KEKs, none of them proven yet. The names are distinct;
    /// `config` sees to that.
    pub fn new(
        keks: Vec<KekSpec>,
        terms: Terms,
        cache: Arc<Cache>,
        kept: Kept,
        metrics: Arc<Metrics>,
    ) -> Self {
        lease::start_counting();
        let (carriers, sessions) = (Arc::default(), Arc::default());
        let flights = Flights::new(FLIGHTS_MAX);
        let custody = Arc::new(Custody { cache, carriers, sessions, terms, flights });
        let crier = Crier::new();
        let Kept { revocations, ledger } = kept;
        let callers = RandomState::new();
        let node = [SystemTime::now(), SystemTime::UNIX_EPOCH].map(|salt| callers.hash_one(salt));
        let bookkeeper = Bookkeeper::open(ledger, format!("{:016x}{:016x}", node[0], node[1]));
        let catalog = Catalog::new(keks, &metrics, &crier, &bookkeeper);
        let revocations = Arc::new(revocations);
        let changing = tokio::sync::Mutex::default();
        Self { catalog, custody, revocations, changing, metrics, crier, bookkeeper, callers }
    }

    /// The register of connections, for who opens some.
    pub fn carriers(&self) -> &Arc<Carriers> {
        &self.custody.carriers
    }

    /// The register of sessions of sealed delivery, for who opens some.
    pub fn sessions(&self) -> &Arc<Carriers> {
        &self.custody.sessions
    }

    /// Wipes what has expired or lapsed by `now`, and tells what time has changed. To be
    /// called several times a second.
    pub fn tend(&self, now: Instant) {
        self.custody.cache.sweep(now);
        for kek in self.catalog.iter() {
            kek.wipe_lapsed(&self.custody, now);
            kek.look_over();
        }
    }

    /// The configured KEKs, in order of name.
    pub fn names(&self) -> impl Iterator<Item = &KekName> {
        self.catalog.names()
    }

    /// Whether there is a KEK of this name.
    pub fn has(&self, name: &KekName) -> bool {
        self.catalog.get(name).is_some()
    }

    /// Whether an operator took the KEK of this name away.
    pub fn is_revoked(&self, name: &KekName) -> bool {
        self.catalog.get(name).is_some_and(|kek| kek.is_revoked())
    }

    /// Reads the versions of one KEK from its backend and proves each. `Err` says why
    /// the KEK cannot wrap now.
    pub async fn verify(&self, name: &KekName, deadline: Instant) -> Result<(), Error> {
        let kek = self.kek(name)?;
        kek.verify(&self.custody, Look::Thorough, deadline).await?;
        kek.current().map(|_| ())
    }

    /// Who asks, what for and until when, as the guards know it.
    fn ask(&self, permit: &Permit, class: Class, deadline: Instant) -> Ask {
        Ask { class, sender: Sender(self.callers.hash_one(permit.who())), deadline }
    }

    fn kek(&self, name: &KekName) -> Result<&Arc<Kek>, Error> {
        self.catalog.get(name).ok_or_else(|| {
            Error::new(Reason::KekNotFound, format!("no KEK is called {name}"))
                .with_fix("`keyward kek list` shows the KEKs of this sidecar")
        })
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.catalog.iter()).finish()
    }
}

/// What one operation writes into the log while it runs.
struct Running<'a> {
    metrics: &'a Metrics,
    permit: &'a Permit,
    started: Instant,
    version: Option<VersionId>,
    /// Whether the cache answered.
    cached: bool,
    ended: bool,
}

impl<'a> Running<'a> {
    /// Starts an operation. A permit for another operation is a defect of the caller
    /// of the engine and is refused.
    fn start(engine: &'a Engine, permit: &'a Permit, op: Op) -> Result<Self, Error> {
        if permit.op() != op {
            return Err(Error::new(Reason::Internal, "a permit was used for another operation"));
        }
        let (metrics, started) = (&*engine.metrics, Instant::now());
        Ok(Self { metrics, permit, started, version: None, cached: false, ended: false })
    }

    fn took(&self) -> Duration {
        self.started.elapsed()
    }

    /// Writes the line and passes the result on.
    fn end<T>(mut self, result: Result<T, Error>) -> Result<T, Error> {
        self.ended = true;
        self.record(result.as_ref().map(|_| ()));
        result
    }

    fn record(&self, outcome: Result<(), &Error>) {
        self.metrics.record(&Record {
            op: self.permit.op(),
            who: self.permit.who(),
            kek: self.permit.kek().as_str(),
            version: self.version.as_ref().map(VersionId::as_str),
            cached: self.cached,
            took: self.took(),
            outcome,
        });
    }
}

/// An operation whose caller went away leaves its line too.
impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let gone = Error::new(Reason::DeadlineExceeded, "the caller went away");
            self.record(Err(&gone));
        }
    }
}
