//! What the engine answers into wire messages.

use std::time::{Duration, SystemTime};

use crate::{
    engine::{KekDescription, News, Source, Stand, VersionDescription},
    envelope::{Dek, WrappedDek},
    error::{Error, Reason},
    kek::{
        Algorithm, Assurance, Condition, Event, EventKind, KekName, PublicKey, State, VersionId,
        VersionInfo,
    },
    wire,
};

/// Whether public keys are told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum PublicKeys {
    /// They are.
    With,
    /// They are left out, so that a list of many KEKs stays small.
    Without,
}

/// The bytes of a DEK, moved into a message that wipes itself.
pub(super) fn dek(dek: Dek) -> Vec<u8> {
    dek.into_secret().into_wiped_elsewhere()
}

pub(super) fn cache_outcome(source: Source) -> wire::CacheOutcome {
    match source {
        Source::Cache => wire::CacheOutcome::Hit,
        Source::Backend => wire::CacheOutcome::Miss,
        Source::Shared => wire::CacheOutcome::Shared,
    }
}

pub(super) fn wrapped(wrapped: WrappedDek) -> wire::WrappedDek {
    let WrappedDek { kek, version, algorithm, ciphertext, fingerprint } = wrapped;
    wire::WrappedDek {
        kek: kek.as_str().to_owned(),
        version: version.as_str().to_owned(),
        algorithm: self::algorithm(algorithm).into(),
        ciphertext,
        kek_fingerprint: fingerprint.map_or_else(Vec::new, |bytes| bytes.as_bytes().to_vec()),
    }
}

pub(super) fn algorithm(algorithm: Algorithm) -> wire::Algorithm {
    match algorithm {
        Algorithm::RsaOaep => wire::Algorithm::RsaOaep,
        Algorithm::RsaOaep256 => wire::Algorithm::RsaOaep256,
        Algorithm::RsaOaep384 => wire::Algorithm::RsaOaep384,
        Algorithm::RsaOaep512 => wire::Algorithm::RsaOaep512,
        Algorithm::A256Kw => wire::Algorithm::A256kw,
        Algorithm::A256Kwp => wire::Algorithm::A256kwp,
        Algorithm::A128Kw => wire::Algorithm::A128kw,
        Algorithm::A192Kw => wire::Algorithm::A192kw,
    }
}

pub(super) fn kek(description: &KekDescription, keys: PublicKeys) -> wire::Kek {
    let KekDescription {
        name,
        backend,
        backend_kind,
        algorithm,
        current,
        versions,
        condition,
        reason,
        node,
        since,
    } = description;
    let keeper = versions
        .iter()
        .find(|version| Some(&version.info.id) == current.as_ref())
        .map(|version| &version.info.assurance);
    wire::Kek {
        name: name.as_str().to_owned(),
        backend: backend.clone(),
        algorithm: self::algorithm(*algorithm).into(),
        current_version: version_name(current.as_ref()),
        versions: versions.iter().map(|version| self::version(version, keys)).collect(),
        assurance: Some(assurance(backend_kind, keeper)),
        condition: self::condition(*condition).into(),
        reason: reason_name(*reason),
        census_node: node.clone(),
        census_since: Some(timestamp(*since)),
    }
}

/// What happened to a KEK.
pub(super) fn news(News { event, at, stand }: News) -> wire::KekEvent {
    let Event { kind, version, reason, expires } = event;
    wire::KekEvent {
        kind: event_kind(kind).into(),
        version: version_name(version.as_ref()),
        reason: reason_name(reason),
        expires_at: expires.map(timestamp),
        ..self::stand(stand, at)
    }
}

/// How a KEK stands, as an event.
pub(super) fn stand(stand: Stand, at: SystemTime) -> wire::KekEvent {
    let Stand { kek, condition, reason, current } = stand;
    wire::KekEvent {
        kek: kek.as_str().to_owned(),
        kind: wire::KekEventKind::State.into(),
        version: String::new(),
        reason: reason_name(reason),
        at: Some(timestamp(at)),
        condition: self::condition(condition).into(),
        current_version: version_name(current.as_ref()),
        expires_at: None,
    }
}

/// What came of reading a KEK.
pub(super) fn reloaded(
    kek: &KekName,
    current: Option<&VersionId>,
    error: Option<Error>,
) -> wire::ReloadedKek {
    wire::ReloadedKek {
        kek: kek.as_str().to_owned(),
        current_version: version_name(current),
        error: error.map(Into::into),
    }
}

fn version_name(id: Option<&VersionId>) -> String {
    id.map_or_else(String::new, |id| id.as_str().to_owned())
}

fn reason_name(reason: Option<Reason>) -> String {
    reason.map_or_else(String::new, |reason| reason.as_str().to_owned())
}

fn condition(condition: Condition) -> wire::KekCondition {
    match condition {
        Condition::Serving => wire::KekCondition::Serving,
        Condition::Grace => wire::KekCondition::Grace,
        Condition::Dark => wire::KekCondition::Dark,
    }
}

fn event_kind(kind: EventKind) -> wire::KekEventKind {
    match kind {
        EventKind::VersionAdded => wire::KekEventKind::VersionAdded,
        EventKind::CurrentChanged => wire::KekEventKind::CurrentChanged,
        EventKind::Expiring => wire::KekEventKind::Expiring,
        EventKind::Unreachable => wire::KekEventKind::Unreachable,
        EventKind::Revoked => wire::KekEventKind::Revoked,
        EventKind::Restored => wire::KekEventKind::Restored,
    }
}

fn assurance(backend_kind: &str, of_current: Option<&Assurance>) -> wire::Assurance {
    let Assurance {
        device,
        sensitive,
        extractable,
        always_sensitive,
        never_extractable,
        local,
        recovery: _,
    } = of_current.cloned().unwrap_or_default();
    wire::Assurance {
        backend_kind: backend_kind.to_owned(),
        device,
        sensitive,
        extractable,
        always_sensitive,
        never_extractable,
        local,
    }
}

fn version(version: &VersionDescription, keys: PublicKeys) -> wire::KekVersion {
    let VersionDescription { info, state, proven_at, usage } = version;
    let VersionInfo { id, bits, fingerprint, public_key, validity, .. } = &**info;
    let public_key = public_key.as_ref().filter(|_| keys == PublicKeys::With);
    wire::KekVersion {
        version: id.as_str().to_owned(),
        state: self::state(*state).into(),
        bits: *bits,
        fingerprint: fingerprint.as_bytes().to_vec(),
        not_before: validity.not_before.map(timestamp),
        not_after: validity.not_after.map(timestamp),
        public_key: public_key.map(PublicKey::spki).unwrap_or_default().to_vec(),
        proven_at: proven_at.map(timestamp),
        usage: Some(wire::VersionUsage {
            unwraps: usage.unwraps,
            last: usage.last.map(timestamp),
            callers: usage.callers.count(),
            caller_bits: match keys {
                PublicKeys::With => usage.callers.to_bytes().to_vec(),
                PublicKeys::Without => Vec::new(),
            },
        }),
    }
}

fn state(state: State) -> wire::KekState {
    match state {
        State::Active => wire::KekState::Active,
        State::NotYetValid => wire::KekState::NotYetValid,
        State::Expired => wire::KekState::Expired,
        State::Disabled => wire::KekState::Disabled,
        State::Unproven => wire::KekState::Unproven,
        State::Unusable => wire::KekState::Unusable,
    }
}

/// At most some hundred years, which no duration of ours reaches.
pub(super) fn duration(duration: Duration) -> prost_types::Duration {
    duration.try_into().unwrap_or_default()
}

fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    time.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_has_the_same_name_on_the_wire() {
        for condition in Condition::ALL {
            assert_eq!(super::condition(condition).as_str_name(), condition.as_str());
        }
        for (kind, name) in [
            (EventKind::VersionAdded, "VERSION_ADDED"),
            (EventKind::CurrentChanged, "CURRENT_CHANGED"),
            (EventKind::Expiring, "EXPIRING"),
            (EventKind::Unreachable, "UNREACHABLE"),
            (EventKind::Revoked, "REVOKED"),
            (EventKind::Restored, "RESTORED"),
        ] {
            assert_eq!((kind.as_str(), event_kind(kind).as_str_name()), (name, name));
        }
    }

    #[test]
    fn states_have_the_same_names_on_the_wire() {
        for state in [
            State::Active,
            State::NotYetValid,
            State::Expired,
            State::Disabled,
            State::Unproven,
            State::Unusable,
        ] {
            assert_eq!(super::state(state).as_str_name(), state.as_str());
        }
    }
}
