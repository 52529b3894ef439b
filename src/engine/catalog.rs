//! The configured KEKs and what is known of their versions.
//!
//! One writer: [`Kek::verify`] reads the backend and swaps a new [`Known`] in, under
//! a lock that only it takes. Readers take a snapshot and never wait.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Instant, time::SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::{Mutex, Notify};

use crate::{
    backend::Backend,
    error::{Error, Reason},
    kek::{
        Algorithm, KekName, KeyRef, Proof, Purpose, UsableVersion, Version, VersionId, VersionInfo,
        VersionSet, current,
    },
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
}

/// A configured KEK and what is known of it.
pub(super) struct Kek {
    pub(super) spec: KekSpec,
    known: ArcSwap<Known>,
    /// Held while the backend is asked, so that two refreshes do not race.
    refreshing: Mutex<()>,
    /// Rung when an operation met a key that is not what is known of it.
    suspicion: Arc<Notify>,
}

/// What is known of a KEK's versions.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) versions: VersionSet<Version>,
    /// Why there are no versions, if the backend said so.
    pub(super) trouble: Option<Error>,
}

#[derive(Debug)]
pub(super) struct Catalog {
    keks: BTreeMap<KekName, Arc<Kek>>,
    /// Shared by all KEKs; the prover waits on it.
    pub(super) suspicion: Arc<Notify>,
}

impl Catalog {
    pub(super) fn new(specs: Vec<KekSpec>) -> Self {
        let suspicion = Arc::new(Notify::new());
        let keks = specs
            .into_iter()
            .map(|spec| {
                let name = spec.name.clone();
                (name, Arc::new(Kek::new(spec, Arc::clone(&suspicion))))
            })
            .collect();
        Self { keks, suspicion }
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
    fn new(spec: KekSpec, suspicion: Arc<Notify>) -> Self {
        let unread = Error::new(
            Reason::KekUnproven,
            format!("KEK {} has not been read from its backend yet", spec.name),
        );
        let known = Known { versions: VersionSet::default(), trouble: Some(unread) };
        Self { spec, known: ArcSwap::from_pointee(known), refreshing: Mutex::new(()), suspicion }
    }

    pub(super) fn known(&self) -> arc_swap::Guard<Arc<Known>> {
        self.known.load()
    }

    /// The version that wraps now.
    pub(super) fn current(&self, now: SystemTime) -> Result<UsableVersion, Error> {
        let known = self.known();
        if let Some(trouble) = &known.trouble {
            return Err(trouble.clone());
        }
        current(&known.versions, now)
    }

    /// The version of that name, for unwrapping.
    pub(super) fn version(&self, id: &VersionId, now: SystemTime) -> Result<UsableVersion, Error> {
        let known = self.known();
        if let Some(trouble) = &known.trouble {
            return Err(trouble.clone());
        }
        let version = known.versions.get(id).ok_or_else(|| {
            Error::new(
                Reason::KekVersionNotFound,
                format!("KEK {} has no version {id}", self.spec.name),
            )
            .with_fix("`keyward kek show` lists its versions; the backend may have lost this one")
        })?;
        version.usable(Purpose::Unwrap, now)
    }

    /// Passes `result` on and, if it says that the backend's key is not what is known
    /// of it, has the KEK read again soon.
    pub(super) fn notice<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = &result
            && matches!(error.reason(), Reason::KekMismatch | Reason::KekVersionNotFound)
        {
            self.suspicion.notify_one();
        }
        result
    }

    /// Reads the versions from the backend and proves each.
    ///
    /// `Err` only if the backend could not be asked: what was known then stays, and
    /// grows older. What the backend did say, good or bad, is taken over.
    pub(super) async fn verify(&self, deadline: Instant) -> Result<(), Error> {
        let _one_at_a_time = self.refreshing.lock().await;
        let KekSpec { backend, key, algorithm, .. } = &self.spec;
        let found = match backend.versions(key, *algorithm, deadline).await {
            Ok(found) => found,
            Err(error) if error.reason().is_transient() => return Err(error),
            Err(error) => return self.learn_trouble(error),
        };
        let before = self.known.load_full();
        let mut versions = Vec::with_capacity(found.len());
        let mut unreachable = None;
        for info in found {
            let proof = match backend.prove(&info, *algorithm, deadline).await {
                Ok(at) => Proof::Proven { at },
                Err(error) if error.reason().is_transient() => {
                    unreachable = Some(error);
                    last_proof(&before.versions, &info)
                }
                Err(error) => Proof::Failed(error),
            };
            versions.push(Version::new(Arc::new(info), proof));
        }
        match VersionSet::new(versions) {
            Ok(versions) => self.known.store(Arc::new(Known { versions, trouble: None })),
            Err(twin) => {
                return self.learn_trouble(
                    Error::new(
                        Reason::BackendMisconfigured,
                        format!("two versions of KEK {} are both called {twin}", self.spec.name),
                    )
                    .with_fix("give each key of this label a CKA_ID of its own"),
                );
            }
        }
        unreachable.map_or(Ok(()), Err)
    }

    fn learn_trouble(&self, error: Error) -> Result<(), Error> {
        let known = Known { versions: VersionSet::default(), trouble: Some(error) };
        self.known.store(Arc::new(known));
        Ok(())
    }
}

/// The proof that a version of the same key material had.
fn last_proof(before: &VersionSet<Version>, info: &VersionInfo) -> Proof {
    match before.get(&info.id) {
        Some(version) if version.info().fingerprint == info.fingerprint => version.proof().clone(),
        _ => Proof::Unproven,
    }
}

impl fmt::Debug for KekSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, backend, key, algorithm } = self;
        write!(f, "KekSpec({name}: {} {key} {algorithm})", backend.name())
    }
}

impl fmt::Debug for Kek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}", self.spec, self.known.load())
    }
}
