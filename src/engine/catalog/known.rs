//! What is known of a KEK's versions, and what may be done with them by it: the first check of
//! every call, and the second.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use super::Kek;
use crate::{
    clock,
    engine::census::Row,
    error::{Error, Reason},
    kek::{
        NewestDisabled, Purpose, UsableVersion, Version, VersionId, VersionInfo, VersionSet,
        check_not_taken_away, current,
    },
    lease::{Lease, Standing},
};

/// What is known of a KEK's versions.
#[derive(Debug, Default)]
pub(in crate::engine) struct Known {
    pub(in crate::engine) versions: VersionSet<Leased>,
    /// Why none of them may be used, and there may be none, if the backend said so.
    pub(in crate::engine) trouble: Option<Error>,
}

/// A version and the lease on it.
#[derive(Debug)]
pub(in crate::engine) struct Leased {
    pub(in crate::engine) version: Version,
    /// `None` while it is not proven, or was denied.
    pub(in crate::engine) lease: Option<Arc<Lease>>,
    /// When it was last asked to prove itself, whatever came of it.
    pub(in crate::engine) asked: Option<Instant>,
    /// How often in a row the backend denied it and was not believed yet.
    pub(in crate::engine) denials: u32,
    /// How it is used; the same for as long as the KEK is known.
    pub(in crate::engine) row: Arc<Row>,
}

/// A version that may be used now, and the lease that says so.
#[derive(Debug)]
pub(in crate::engine) struct Held {
    pub(in crate::engine) version: UsableVersion,
    pub(in crate::engine) lease: Arc<Lease>,
    /// Whether the backend is out of reach, so that only what is cached may be released.
    pub(in crate::engine) outage: bool,
}

impl Known {
    pub(in crate::engine) fn trouble(error: Error) -> Self {
        Self { versions: VersionSet::default(), trouble: Some(error) }
    }

    /// What a round found of each version. If its owner took the KEK away, the versions are
    /// there to be seen, and none has a lease.
    pub(in crate::engine) fn of(mut versions: VersionSet<Leased>, rule: NewestDisabled) -> Self {
        let newest_first = versions.iter().map(|leased| &leased.version);
        let trouble = check_not_taken_away(newest_first, rule, SystemTime::now()).err();
        if trouble.is_some() {
            versions.iter_mut().for_each(|leased| leased.lease = None);
        }
        Self { versions, trouble }
    }

    pub(in crate::engine) fn leases(&self) -> impl Iterator<Item = &Arc<Lease>> {
        self.versions.iter().filter_map(|leased| leased.lease.as_ref())
    }
}

impl AsRef<VersionInfo> for Leased {
    fn as_ref(&self) -> &VersionInfo {
        self.version.info()
    }
}

impl Kek {
    /// The version that wraps now.
    pub(in crate::engine) fn current(&self) -> Result<Held, Error> {
        self.current_of(&self.known(), clock::now(), SystemTime::now())
    }

    pub(in crate::engine) fn current_of(
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
    pub(in crate::engine) fn version(&self, id: &VersionId, now: Instant) -> Result<Held, Error> {
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
    pub(in crate::engine) fn held(
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
    pub(in crate::engine) fn confirm(&self, held: &Held) -> Result<(), Error> {
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
    pub(in crate::engine) fn unreachable(&self) -> Error {
        Error::new(
            Reason::BackendUnreachable,
            format!("backend {} does not answer", self.spec.backend.name()),
        )
        .with_fix("see whether the HSM can be reached; the sidecar goes on by itself once it can")
    }

    /// Passes `result` on and, if it says that the backend's key is not what is known
    /// of it, or that the backend is out of reach, has the KEK read again soon.
    pub(in crate::engine) fn notice<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
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
}
