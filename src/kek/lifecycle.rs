//! The life cycle: may this version be used for this, now?
//!
//! [`Version::usable`] is the only maker of [`UsableVersion`]. It fails closed: a
//! version that is not proven is not usable, whatever else is known of it.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::VersionInfo;
use crate::error::{Error, Reason};

/// How old the proof of a version may be for a wrap that the backend does not see
/// (RSA wraps in software). Past it the backend has been out of sight for so long
/// that the key may be gone, and a DEK wrapped under it lost.
pub const PROOF_MAX_AGE: Duration = Duration::from_secs(600);

/// What a version is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Wrap a DEK.
    Wrap,
    /// Unwrap a DEK. The backend itself is asked, so an old proof does no harm.
    Unwrap,
}

/// Whether the private key has shown that it works, by a real decryption.
#[derive(Clone, Debug)]
pub enum Proof {
    /// Not tried yet, or never with success.
    Unproven,
    /// Last time that it did.
    Proven {
        /// When the proving operation was sent.
        at: SystemTime,
    },
    /// It was tried and refused for a reason that only an operator can mend.
    Failed(Error),
}

/// What can be said of a version at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Wraps (if current) and unwraps.
    Active,
    /// Before its start date.
    NotYetValid,
    /// Past its end date.
    Expired,
    /// The backend does not let it decrypt.
    Disabled,
    /// Not proven.
    Unproven,
    /// Failed its self-test.
    Unusable,
}

impl State {
    /// The name, as in the protocol.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::NotYetValid => "NOT_YET_VALID",
            Self::Expired => "EXPIRED",
            Self::Disabled => "DISABLED",
            Self::Unproven => "UNPROVEN",
            Self::Unusable => "UNUSABLE",
        }
    }
}

/// A version and its proof.
#[derive(Clone, Debug)]
pub struct Version {
    info: Arc<VersionInfo>,
    proof: Proof,
}

/// A version that the life cycle allowed for one purpose, at the moment it was
/// asked. Do not keep it: ask again for the next operation.
#[derive(Debug)]
pub struct UsableVersion {
    info: Arc<VersionInfo>,
}

impl UsableVersion {
    /// What the backend reported of it.
    pub fn info(&self) -> &VersionInfo {
        &self.info
    }
}

impl AsRef<VersionInfo> for Version {
    fn as_ref(&self) -> &VersionInfo {
        &self.info
    }
}

impl Version {
    /// A version as a backend reported it, with what is known of its proof.
    pub fn new(info: Arc<VersionInfo>, proof: Proof) -> Self {
        Self { info, proof }
    }

    /// What the backend reported.
    pub fn info(&self) -> &Arc<VersionInfo> {
        &self.info
    }

    /// What is known of its proof.
    pub fn proof(&self) -> &Proof {
        &self.proof
    }

    /// The state at `now`. What the key says of itself goes before its proof: an
    /// expired key is expired, whether or not it still decrypts.
    pub fn state(&self, now: SystemTime) -> State {
        let Self { info, proof } = self;
        if !info.enabled {
            State::Disabled
        } else if info.validity.not_before.is_some_and(|start| now < start) {
            State::NotYetValid
        } else if info.validity.not_after.is_some_and(|end| now >= end) {
            State::Expired
        } else {
            match proof {
                Proof::Proven { .. } => State::Active,
                Proof::Unproven => State::Unproven,
                Proof::Failed(_) => State::Unusable,
            }
        }
    }

    /// Whether it may be used for `purpose` at `now`.
    pub fn usable(&self, purpose: Purpose, now: SystemTime) -> Result<UsableVersion, Error> {
        let id = &self.info.id;
        let error = match self.state(now) {
            State::Active if self.proof_too_old(purpose, now) => Error::new(
                Reason::KekUnproven,
                format!("version {id} has not been proven for {} s", PROOF_MAX_AGE.as_secs()),
            )
            .with_fix(
                "see whether the HSM can be reached; the sidecar proves the key again by itself",
            ),
            State::Active => return Ok(UsableVersion { info: Arc::clone(&self.info) }),
            State::Unproven => Error::new(
                Reason::KekUnproven,
                format!("version {id} has not passed its self-test yet"),
            ),
            State::Unusable => match &self.proof {
                Proof::Failed(error) => error.clone(),
                _ => Error::new(Reason::KekUnproven, format!("version {id} failed its self-test")),
            },
            State::Disabled => Error::new(
                Reason::KekDisabled,
                format!("the backend does not let version {id} decrypt"),
            )
            .with_fix("set CKA_DECRYPT or CKA_UNWRAP on the key, or enable it in the vault"),
            State::Expired => {
                Error::new(Reason::KekExpired, format!("version {id} is past its end date"))
                    .with_fix("extend the key's end date")
            }
            State::NotYetValid => {
                Error::new(Reason::KekNotYetValid, format!("version {id} is before its start date"))
            }
        };
        Err(error)
    }

    fn proof_too_old(&self, purpose: Purpose, now: SystemTime) -> bool {
        match (purpose, &self.proof) {
            (Purpose::Unwrap, _) => false,
            // A proof from the future means that the clock went back: not old.
            (Purpose::Wrap, Proof::Proven { at }) => {
                now.duration_since(*at).is_ok_and(|age| age > PROOF_MAX_AGE)
            }
            (Purpose::Wrap, _) => true,
        }
    }
}

/// The version that wraps at `now`: the newest whose time has come and that passed
/// its self-test. If that one is disabled or expired there is none, because falling
/// back to an older version would undo what its owner decided.
pub fn current<'a>(
    newest_first: impl Iterator<Item = &'a Version>,
    now: SystemTime,
) -> Result<UsableVersion, Error> {
    let mut why_not = None;
    for version in newest_first {
        if decides(version.state(now)) {
            return version.usable(Purpose::Wrap, now);
        }
        why_not.get_or_insert(version);
    }
    match why_not {
        Some(version) => version.usable(Purpose::Wrap, now),
        None => Err(Error::new(Reason::KekNotFound, "the KEK has no version")),
    }
}

/// What it means that the newest version of a KEK is disabled. (An older one that is
/// disabled never concerns another.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NewestDisabled {
    /// Its owner took the whole KEK away: no version of it does anything.
    #[default]
    Revokes,
    /// Nothing is wrapped; older versions unwrap.
    StopsWraps,
}

/// Whether the owner took the whole KEK away, by disabling the version that would be
/// [`current`] at `now`; `Err` says so.
pub fn check_not_taken_away<'a>(
    newest_first: impl Iterator<Item = &'a Version>,
    rule: NewestDisabled,
    now: SystemTime,
) -> Result<(), Error> {
    let mut states = newest_first.map(|version| (version, version.state(now)));
    match (rule, states.find(|(_, state)| decides(*state))) {
        (NewestDisabled::Revokes, Some((version, State::Disabled))) => Err(Error::new(
            Reason::KekDisabled,
            format!("the newest version, {}, is disabled: that revokes the KEK", version.info.id),
        )
        .with_fix(
            "enable it; or set newest_disabled = \"stops-wraps\" to unwrap with older versions",
        )),
        _ => Ok(()),
    }
}

/// Whether the newest version of this state is the one that counts. Others are passed
/// over: they have not begun.
fn decides(state: State) -> bool {
    match state {
        State::Active | State::Disabled | State::Expired => true,
        State::NotYetValid | State::Unproven | State::Unusable => false,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::version::tests::info, *};
    use crate::kek::VersionSet;

    fn at(secs: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(secs)
    }

    fn version(change: impl FnOnce(&mut VersionInfo), proof: Proof) -> Version {
        let mut info = info("1", None);
        change(&mut info);
        Version::new(Arc::new(info), proof)
    }

    fn refusal(version: &Version, purpose: Purpose, now: SystemTime) -> Reason {
        version.usable(purpose, now).unwrap_err().reason()
    }

    #[test]
    fn an_unproven_version_is_refused() {
        let version = version(|_| (), Proof::Unproven);
        assert_eq!(refusal(&version, Purpose::Unwrap, at(0)), Reason::KekUnproven);
        assert_eq!(refusal(&version, Purpose::Wrap, at(0)), Reason::KekUnproven);
    }

    #[test]
    fn validity_is_a_half_open_interval() {
        let version = version(
            |info| {
                info.validity.not_before = Some(at(100));
                info.validity.not_after = Some(at(200));
            },
            Proof::Proven { at: at(100) },
        );
        assert_eq!(refusal(&version, Purpose::Unwrap, at(99)), Reason::KekNotYetValid);
        assert!(version.usable(Purpose::Unwrap, at(100)).is_ok());
        assert!(version.usable(Purpose::Unwrap, at(199)).is_ok());
        assert_eq!(refusal(&version, Purpose::Unwrap, at(200)), Reason::KekExpired);
    }

    #[test]
    fn a_disabled_key_is_refused_though_it_was_proven() {
        let version = version(|info| info.enabled = false, Proof::Proven { at: at(5) });
        assert_eq!(refusal(&version, Purpose::Unwrap, at(5)), Reason::KekDisabled);
    }

    #[test]
    fn an_old_proof_is_enough_to_ask_the_backend_but_not_to_wrap_without_it() {
        let version = version(|_| (), Proof::Proven { at: at(1_000) });
        let late = at(1_001) + PROOF_MAX_AGE;
        assert!(version.usable(Purpose::Unwrap, late).is_ok());
        assert_eq!(refusal(&version, Purpose::Wrap, late), Reason::KekUnproven);
        assert!(version.usable(Purpose::Wrap, at(1_000) + PROOF_MAX_AGE).is_ok());
        assert!(version.usable(Purpose::Wrap, at(0)).is_ok(), "the clock went back");
    }

    fn current_of(versions: Vec<Version>, now: SystemTime) -> Result<String, Reason> {
        current(VersionSet::new(versions).unwrap().iter(), now)
            .map(|version| version.info().id.to_string())
            .map_err(|error| error.reason())
    }

    fn named(id: &str, start_day: u64, proof: Proof) -> Version {
        Version::new(Arc::new(info(id, Some(start_day))), proof)
    }

    #[test]
    fn the_newest_proven_version_whose_time_has_come_is_current() {
        let now = at(10 * 86_400);
        let proven = || Proof::Proven { at: now };
        let failed = || Proof::Failed(Error::new(Reason::BackendMisconfigured, "no"));
        let versions = || vec![named("old", 1, proven()), named("mid", 2, proven())];
        assert_eq!(current_of(versions(), now), Ok("mid".into()));
        for (id, day, proof) in
            [("future", 11, proven()), ("untried", 9, Proof::Unproven), ("failed", 9, failed())]
        {
            let mut versions = versions();
            versions.push(named(id, day, proof));
            assert_eq!(current_of(versions, now), Ok("mid".into()), "{id}");
        }
        assert_eq!(current_of(vec![], now), Err(Reason::KekNotFound));
        assert_eq!(current_of(vec![named("f", 11, proven())], now), Err(Reason::KekNotYetValid));
    }

    #[test]
    fn a_newest_version_that_was_disabled_is_not_passed_over() {
        let now = at(10 * 86_400);
        let mut disabled = info("new", Some(9));
        disabled.enabled = false;
        let disabled = Version::new(Arc::new(disabled), Proof::Proven { at: now });
        let versions = vec![named("old", 1, Proof::Proven { at: now }), disabled];
        assert_eq!(current_of(versions, now), Err(Reason::KekDisabled));
    }

    #[test]
    fn a_newest_version_that_is_disabled_takes_the_kek_away_if_that_is_the_rule() {
        let now = at(10 * 86_400);
        let proven = || Proof::Proven { at: now };
        let disabled = |id: &str, day| {
            let mut info = info(id, Some(day));
            info.enabled = false;
            Version::new(Arc::new(info), proven())
        };
        let taken = |versions: Vec<Version>, rule| {
            let versions = VersionSet::new(versions).unwrap();
            let checked = check_not_taken_away(versions.iter(), rule, now);
            checked.err().map(|error| error.reason())
        };
        use NewestDisabled::{Revokes, StopsWraps};
        let newest = || vec![named("old", 1, proven()), disabled("new", 9)];
        assert_eq!(taken(newest(), Revokes), Some(Reason::KekDisabled));
        assert_eq!(taken(newest(), StopsWraps), None);
        let older = || vec![disabled("old", 1), named("new", 9, proven())];
        assert_eq!(taken(older(), Revokes), None);
        // A version that has not begun hides nobody's decision.
        let mut versions = newest();
        versions.push(named("future", 11, proven()));
        versions.push(named("untried", 9, Proof::Unproven));
        assert_eq!(taken(versions, Revokes), Some(Reason::KekDisabled));
        assert_eq!(taken(vec![], Revokes), None);
    }

    #[test]
    fn a_failed_self_test_says_why() {
        let cause = Error::new(Reason::BackendMisconfigured, "OAEP with SHA-256 is refused");
        let version = version(|_| (), Proof::Failed(cause));
        assert_eq!(refusal(&version, Purpose::Unwrap, at(0)), Reason::BackendMisconfigured);
    }
}
