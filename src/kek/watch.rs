//! What is worth telling of a KEK: the difference between how it stood and how it stands.
//!
//! Pure: a [`Sight`] is how the KEK stands at a moment, whatever brought it there, and a
//! [`Tracker`] says what has happened since the last one. So nothing that can be seen goes
//! untold, also what only the passing of time did.
//!
//! Invariant: who applies the events to what they knew knows the condition of the latest
//! sight, and, unless that is dark, its current version.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use super::VersionId;
use crate::error::Reason;

/// How long before its end date a version is told to be expiring: what Key Vault's
/// `KeyNearExpiry` gives, too.
pub const EXPIRY_NOTICE: Duration = Duration::from_secs(30 * 24 * 3600);

/// How a KEK stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// At least one version is under a live lease.
    Serving,
    /// The backend cannot be reached: what is cached is served until the grace ends.
    Grace,
    /// Nothing is served.
    Dark,
}

impl Condition {
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::Serving, Self::Grace, Self::Dark];

    /// The name, as in the protocol.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "SERVING",
            Self::Grace => "GRACE",
            Self::Dark => "DARK",
        }
    }
}

/// What can happen to a KEK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The backend has a version that it had not.
    VersionAdded,
    /// Another version wraps, or none does any more.
    CurrentChanged,
    /// A version comes to its end date.
    Expiring,
    /// The KEK cannot be proven, without anybody having taken it away. Told again when the
    /// grace is over.
    Unreachable,
    /// It was taken away: the KEK, or one version of it.
    Revoked,
    /// It is served, after it was not: the KEK, or one version of it.
    Restored,
}

impl EventKind {
    /// In the order of the enum.
    pub const NAMES: [&'static str; 6] =
        ["VERSION_ADDED", "CURRENT_CHANGED", "EXPIRING", "UNREACHABLE", "REVOKED", "RESTORED"];

    /// The name, as in the protocol.
    pub fn as_str(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

/// Something that happened to a KEK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What.
    pub kind: EventKind,
    /// Which version; `None` if it concerns the whole KEK, or if no version wraps any more.
    pub version: Option<VersionId>,
    /// Why, if something is not served.
    pub reason: Option<Reason>,
    /// The end date of a version that is expiring.
    pub expires: Option<SystemTime>,
}

impl Event {
    fn of(kind: EventKind, version: Option<VersionId>) -> Self {
        Self { kind, version, reason: None, expires: None }
    }
}

/// How a KEK stands at a moment.
#[derive(Clone, Debug, Default)]
pub struct Sight {
    /// Why none of its versions may be used, if that is so whatever they are.
    pub trouble: Option<Reason>,
    /// Newest first.
    pub versions: Vec<VersionSight>,
    /// The version that wraps.
    pub current: Option<VersionId>,
}

/// How a version stands at a moment.
#[derive(Clone, Debug)]
pub struct VersionSight {
    /// Its name.
    pub id: VersionId,
    /// Whether what is cached of it is released, and if so whether that is only because its
    /// backend is out of reach.
    pub released: Result<Released, Reason>,
    /// Its end date.
    pub not_after: Option<SystemTime>,
}

/// Under what the DEKs of a version are released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// A live lease.
    Live,
    /// The grace of an outage.
    Grace,
}

impl Sight {
    /// The condition, and why it is no better.
    pub fn condition(&self) -> (Condition, Option<Reason>) {
        let dark = |reason| (Condition::Dark, Some(reason));
        if let Some(reason) = self.trouble {
            return dark(reason);
        }
        let released = |wanted| self.versions.iter().any(|seen| seen.released == Ok(wanted));
        if released(Released::Live) {
            (Condition::Serving, None)
        } else if released(Released::Grace) {
            (Condition::Grace, Some(Reason::BackendUnreachable))
        } else {
            let newest = self.versions.first().and_then(|seen| seen.released.err());
            dark(newest.unwrap_or(Reason::KekNotFound))
        }
    }
}

/// Tells what has happened between one sight and the next.
#[derive(Debug)]
pub struct Tracker {
    stood: (Condition, Option<Reason>),
    /// The version that wrapped when it was last served; `None` until it was.
    current: Option<Option<VersionId>>,
    /// The versions that there were; `None` until there were any.
    seen: Option<BTreeSet<VersionId>>,
    /// Those of them that were served.
    served: BTreeSet<VersionId>,
    /// Those that were told to be taken away.
    lost: BTreeSet<VersionId>,
    /// The end dates that were told.
    expiring: BTreeMap<VersionId, SystemTime>,
}

impl Default for Tracker {
    /// Of a KEK that was not read yet.
    fn default() -> Self {
        Self {
            stood: (Condition::Dark, Some(Reason::KekUnproven)),
            current: None,
            seen: None,
            served: BTreeSet::new(),
            lost: BTreeSet::new(),
            expiring: BTreeMap::new(),
        }
    }
}

impl Tracker {
    /// What has happened, in the order to tell it in.
    pub fn look(&mut self, sight: &Sight, now: SystemTime) -> Vec<Event> {
        let mut events = Vec::new();
        self.versions(sight, &mut events);
        self.condition(sight, &mut events);
        if self.stood.0 != Condition::Dark {
            self.single_versions(sight, &mut events);
            self.current(sight, &mut events);
            self.ends(sight, now, &mut events);
        }
        events
    }

    fn versions(&mut self, sight: &Sight, events: &mut Vec<Event>) {
        if sight.versions.is_empty() {
            return;
        }
        let ids = sight.versions.iter().map(|seen| seen.id.clone());
        if let Some(seen) = &self.seen {
            let new = ids.clone().rev().filter(|id| !seen.contains(id));
            events.extend(new.map(|id| Event::of(EventKind::VersionAdded, Some(id))));
        }
        self.seen = Some(ids.collect());
    }

    fn condition(&mut self, sight: &Sight, events: &mut Vec<Event>) {
        let stands = sight.condition();
        if stands == self.stood {
            return;
        }
        let kind = match stands {
            (Condition::Serving, _) => EventKind::Restored,
            (_, Some(reason)) if takes_away(reason) => EventKind::Revoked,
            _ => EventKind::Unreachable,
        };
        events.push(Event { reason: stands.1, ..Event::of(kind, None) });
        self.stood = stands;
    }

    /// Versions that are taken away and given back while others are served.
    fn single_versions(&mut self, sight: &Sight, events: &mut Vec<Event>) {
        let mut gone = std::mem::take(&mut self.served);
        for VersionSight { id, released, .. } in &sight.versions {
            let was_served = gone.remove(id);
            match released {
                Ok(_) => {
                    self.served.insert(id.clone());
                    if self.lost.remove(id) {
                        events.push(Event::of(EventKind::Restored, Some(id.clone())));
                    }
                }
                Err(reason) if was_served && takes_away(*reason) => {
                    self.lose(id.clone(), *reason, events);
                }
                // What becomes of it is to be seen.
                Err(_) if was_served => _ = self.served.insert(id.clone()),
                Err(_) => {}
            }
        }
        for id in gone {
            self.lose(id, Reason::KekVersionNotFound, events);
        }
        // Nobody waits for a version any more that the backend does not have.
        if let Some(seen) = &self.seen {
            self.lost.retain(|id| seen.contains(id));
        }
    }

    fn lose(&mut self, id: VersionId, reason: Reason, events: &mut Vec<Event>) {
        let event = Event::of(EventKind::Revoked, Some(id.clone()));
        events.push(Event { reason: Some(reason), ..event });
        self.lost.insert(id);
    }

    fn current(&mut self, sight: &Sight, events: &mut Vec<Event>) {
        if self.current.as_ref().is_some_and(|current| *current != sight.current) {
            events.push(Event::of(EventKind::CurrentChanged, sight.current.clone()));
        }
        self.current = Some(sight.current.clone());
    }

    fn ends(&mut self, sight: &Sight, now: SystemTime, events: &mut Vec<Event>) {
        let mut expiring = BTreeMap::new();
        for VersionSight { id, released, not_after } in &sight.versions {
            let (Ok(_), Some(end)) = (released, *not_after) else { continue };
            if end.duration_since(now).is_ok_and(|left| left <= EXPIRY_NOTICE) {
                if self.expiring.get(id) != Some(&end) {
                    let event = Event::of(EventKind::Expiring, Some(id.clone()));
                    events.push(Event { expires: Some(end), ..event });
                }
                expiring.insert(id.clone(), end);
            }
        }
        self.expiring = expiring;
    }
}

/// Whether somebody took a key away, rather than that it could not be asked for.
fn takes_away(reason: Reason) -> bool {
    !reason.is_transient() && reason != Reason::KekUnproven
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn id(name: &str) -> VersionId {
        VersionId::parse(name).unwrap()
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + 20_000 * DAY
    }

    /// Versions newest first, of which the first that is served wraps.
    fn sight(versions: &[(&str, Result<Released, Reason>)]) -> Sight {
        let version = |(name, released): &(&str, _)| VersionSight {
            id: id(name),
            released: *released,
            not_after: None,
        };
        let versions: Vec<_> = versions.iter().map(version).collect();
        let current = versions.iter().find(|seen| seen.released.is_ok());
        Sight { trouble: None, current: current.map(|seen| seen.id.clone()), versions }
    }

    fn trouble(reason: Reason) -> Sight {
        Sight { trouble: Some(reason), ..Sight::default() }
    }

    const LIVE: Result<Released, Reason> = Ok(Released::Live);
    const GRACE: Result<Released, Reason> = Ok(Released::Grace);

    /// What is told of one sight after another.
    fn told(sights: &[Sight]) -> Vec<String> {
        let mut tracker = Tracker::default();
        let mut told = Vec::new();
        for sight in sights {
            for Event { kind, version, reason, .. } in tracker.look(sight, now()) {
                let version = version.map(|id| format!(" {id}")).unwrap_or_default();
                let reason = reason.map(|reason| format!(" {reason}")).unwrap_or_default();
                told.push(format!("{}{version}{reason}", kind.as_str()));
            }
        }
        told
    }

    #[test]
    fn a_kek_that_begins_to_be_served_is_told_once() {
        let served = sight(&[("2", LIVE), ("1", LIVE)]);
        assert_eq!(told(&[trouble(Reason::KekUnproven)]), [""; 0]);
        assert_eq!(told(&[served.clone(), served]), ["RESTORED"]);
    }

    #[test]
    fn a_rotation_is_a_version_and_then_a_change_of_the_current_one() {
        let before = sight(&[("1", LIVE)]);
        let found = sight(&[("2", Err(Reason::KekUnproven)), ("1", LIVE)]);
        let after = sight(&[("2", LIVE), ("1", LIVE)]);
        let all = ["RESTORED", "VERSION_ADDED 2", "CURRENT_CHANGED 2"];
        assert_eq!(told(&[before.clone(), found, after.clone()]), all);
        // While it was dark.
        let dark = trouble(Reason::KekRevoked);
        let all =
            ["RESTORED", "REVOKED KEK_REVOKED", "VERSION_ADDED 2", "RESTORED", "CURRENT_CHANGED 2"];
        assert_eq!(told(&[before, dark, after]), all);
    }

    #[test]
    fn an_outage_is_told_when_it_begins_when_the_grace_ends_and_when_it_is_over() {
        let served = sight(&[("1", LIVE)]);
        let grace = sight(&[("1", GRACE)]);
        let lapsed = sight(&[("1", Err(Reason::BackendUnreachable))]);
        let all = [
            "RESTORED",
            "UNREACHABLE BACKEND_UNREACHABLE",
            "UNREACHABLE BACKEND_UNREACHABLE",
            "RESTORED",
        ];
        assert_eq!(told(&[served.clone(), grace, lapsed, served]), all);
    }

    #[test]
    fn one_version_of_several_is_told_by_its_name() {
        let both = sight(&[("2", LIVE), ("1", LIVE)]);
        let disabled = sight(&[("2", LIVE), ("1", Err(Reason::KekDisabled))]);
        let gone = sight(&[("2", LIVE)]);
        let late = sight(&[("2", LIVE), ("1", Err(Reason::KekUnproven))]);
        assert_eq!(
            told(&[both.clone(), disabled, both.clone(), gone]),
            ["RESTORED", "REVOKED 1 KEK_DISABLED", "RESTORED 1", "REVOKED 1 KEK_VERSION_NOT_FOUND"]
        );
        assert_eq!(told(&[both.clone(), late, both]), ["RESTORED"], "nobody took it away");
    }

    #[test]
    fn what_cannot_wrap_any_more_is_told_though_it_unwraps() {
        let served = sight(&[("2", LIVE), ("1", LIVE)]);
        let stopped =
            Sight { current: None, ..sight(&[("2", Err(Reason::KekExpired)), ("1", LIVE)]) };
        let all = ["RESTORED", "REVOKED 2 KEK_EXPIRED", "CURRENT_CHANGED"];
        assert_eq!(told(&[served, stopped]), all);
    }

    #[test]
    fn an_end_date_is_told_once_and_again_when_it_is_another() {
        let mut tracker = Tracker::default();
        let mut expiring = |end| {
            let mut sight = sight(&[("1", LIVE)]);
            sight.versions[0].not_after = Some(end);
            let events = tracker.look(&sight, now()).into_iter();
            events
                .filter(|event| event.kind == EventKind::Expiring)
                .map(|event| event.expires)
                .next()
        };
        assert_eq!(expiring(now() + 31 * DAY), None);
        assert_eq!(expiring(now() + 30 * DAY), Some(Some(now() + 30 * DAY)));
        assert_eq!(expiring(now() + 30 * DAY), None);
        assert_eq!(expiring(now() + 400 * DAY), None);
        assert_eq!(expiring(now() + 3 * DAY), Some(Some(now() + 3 * DAY)));
    }

    fn any_released() -> impl Strategy<Value = Result<Released, Reason>> {
        prop_oneof![
            4 => Just(LIVE),
            1 => Just(GRACE),
            1 => Just(Err(Reason::KekDisabled)),
            1 => Just(Err(Reason::KekUnproven)),
            1 => Just(Err(Reason::BackendUnreachable)),
        ]
    }

    fn any_sight() -> impl Strategy<Value = Sight> {
        let trouble = prop_oneof![
            4 => Just(None),
            1 => prop_oneof![Just(Reason::KekRevoked), Just(Reason::KekUnproven)].prop_map(Some),
        ];
        let versions = prop::collection::vec(prop::option::of(any_released()), 4);
        (trouble, versions).prop_map(|(trouble, versions)| {
            let names = ["4", "3", "2", "1"].into_iter().zip(versions);
            let there: Vec<_> =
                names.filter_map(|(name, released)| Some((name, released?))).collect();
            let mut sight = sight(&there);
            if trouble.is_some() {
                (sight.trouble, sight.current) = (trouble, None);
            }
            sight
        })
    }

    proptest! {
        #[test]
        fn who_applies_the_events_knows_how_it_stands(
            sights in prop::collection::vec(any_sight(), 1..20),
        ) {
            let mut tracker = Tracker::default();
            let mut knows = (Condition::Dark, None);
            for sight in sights {
                let first = knows.1.is_none();
                let events = tracker.look(&sight, now());
                let (condition, _) = sight.condition();
                for Event { kind, version, .. } in &events {
                    match kind {
                        EventKind::Restored if version.is_none() => knows.0 = Condition::Serving,
                        EventKind::Revoked if version.is_none() => knows.0 = Condition::Dark,
                        // The condition goes along with the event.
                        EventKind::Unreachable => knows.0 = condition,
                        EventKind::CurrentChanged => knows.1 = Some(version.clone()),
                        _ => {}
                    }
                }
                prop_assert_eq!(knows.0, condition, "{:?}", &events);
                if condition != Condition::Dark {
                    // What is current at first is read, and no change.
                    if first {
                        knows.1 = Some(sight.current.clone());
                    }
                    prop_assert_eq!(knows.1.as_ref(), Some(&sight.current), "{:?}", &events);
                }
                // The same once more is nothing new.
                prop_assert_eq!(tracker.look(&sight, now()), vec![]);
            }
        }
    }
}
