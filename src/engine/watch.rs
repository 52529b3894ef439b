//! How KEKs stand, and what happens to them, for those who watch.
//!
//! Every KEK is looked at several times a second, and at once when it was read, revoked or
//! restored. What its tracker (`kek::Tracker`) then tells is counted, logged and passed to
//! whoever listens; nothing here changes anything.
//!
//! Invariant: who listens first and asks then how a KEK stands misses nothing.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::{Instant, SystemTime},
};

use tokio::sync::broadcast;
use tracing::{info, warn};

use super::{
    Engine, Running,
    catalog::{Held, Kek, Known, Leased},
};
use crate::{
    auth::Permit,
    clock,
    error::{Error, Reason},
    kek::{
        Condition, Event, EventKind, Finding, KekName, Level, Released, Requirement, Sight,
        Tracker, VersionId, VersionSight, findings,
    },
    op::Op,
};

/// News that a listener may be behind by. One that is further is told so, and asks how the
/// KEKs stand.
const NEWS_KEPT: usize = 1024;

/// How a KEK stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stand {
    /// The KEK.
    pub kek: KekName,
    /// Its condition.
    pub condition: Condition,
    /// Why it is no better.
    pub reason: Option<Reason>,
    /// The version that wraps.
    pub current: Option<VersionId>,
}

/// What happened to a KEK, and how it stands since.
#[derive(Clone, Debug)]
pub struct News {
    /// What happened.
    pub event: Event,
    /// When it was seen.
    pub at: SystemTime,
    /// How the KEK stands.
    pub stand: Stand,
}

/// Passes news on. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Crier(broadcast::Sender<News>);

impl Crier {
    pub(super) fn new() -> Self {
        Self(broadcast::channel(NEWS_KEPT).0)
    }
}

/// Looks at one KEK, and tells what is new.
#[derive(Debug)]
pub(super) struct Lookout {
    tracker: Mutex<Tracker>,
    /// What was told to be amiss with which version.
    amiss: Mutex<BTreeSet<(VersionId, Requirement)>>,
    crier: Crier,
}

impl Lookout {
    pub(super) fn new(crier: Crier) -> Self {
        Self { tracker: Mutex::default(), amiss: Mutex::default(), crier }
    }
}

impl Engine {
    /// Listens to what happens to all KEKs.
    pub fn news(&self) -> broadcast::Receiver<News> {
        self.crier.0.subscribe()
    }

    /// How the permitted KEK stands.
    pub fn stand(&self, permit: Permit) -> Result<Stand, Error> {
        let running = Running::start(self, &permit, Op::Describe)?;
        running.end(self.kek(permit.kek()).map(|kek| kek.stand()))
    }
}

impl Kek {
    /// Tells what is new since it was looked at last.
    pub(super) fn look_over(&self) {
        let Lookout { tracker, crier, .. } = &self.lookout;
        // A panic leaves what was told before, which is told again at worst.
        let mut tracker = tracker.lock().unwrap_or_else(PoisonError::into_inner);
        let at = SystemTime::now();
        // Under the lock, so that news comes in the order of what was seen.
        let sight = self.sight(clock::now(), at);
        let events = tracker.look(&sight, at);
        if events.is_empty() {
            return;
        }
        let stand = self.stand_of(&sight);
        for event in events {
            self.metrics.happened(event.kind);
            log(&event, &stand);
            // Nobody needs to listen.
            drop(crier.0.send(News { event, at, stand: stand.clone() }));
        }
    }

    /// Logs what of the requirements (`kek::findings`) the version that wraps does not meet,
    /// once, and again if it was mended in between.
    pub(super) fn tell_amiss(&self) {
        let Ok(Held { version, .. }) = self.current() else { return };
        let (info, kek) = (version.info(), &self.spec.name);
        let findings = findings(info, SystemTime::now());
        let amiss = findings.iter().filter(|finding| finding.level != Level::Pass);
        let mut told = self.lookout.amiss.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now_amiss = BTreeSet::new();
        for Finding { requirement, level, what, fix } in amiss {
            let (id, requirement) = (info.id.clone(), *requirement);
            if !told.contains(&(id.clone(), requirement)) {
                let (version, requirement) = (&id, requirement.as_str());
                match level {
                    Level::Fail => {
                        warn!(%kek, %version, requirement, fix, "not as it should be: {what}")
                    }
                    _ => info!(%kek, %version, requirement, fix, "could be better: {what}"),
                }
            }
            now_amiss.insert((id, requirement));
        }
        *told = now_amiss;
    }

    pub(super) fn stand(&self) -> Stand {
        self.stand_of(&self.sight(clock::now(), SystemTime::now()))
    }

    fn stand_of(&self, sight: &Sight) -> Stand {
        let (condition, reason) = sight.condition();
        let current = sight.current.clone();
        Stand { kek: self.spec.name.clone(), condition, reason, current }
    }

    fn sight(&self, now: Instant, at: SystemTime) -> Sight {
        let known = self.known();
        let Known { versions, trouble } = &**known;
        let trouble = trouble.as_ref().map(Error::reason);
        let version = |Leased { version, lease, .. }: &Leased| {
            let held = match trouble {
                Some(reason) => Err(reason),
                None => self.held(version, lease.as_ref(), now, at).map_err(|error| error.reason()),
            };
            VersionSight {
                id: version.info().id.clone(),
                released: held.map(|Held { outage, .. }| match outage {
                    true => Released::Grace,
                    false => Released::Live,
                }),
                not_after: version.info().validity.not_after,
            }
        };
        Sight {
            trouble,
            versions: versions.iter().map(version).collect(),
            current: self
                .current_of(&known, now, at)
                .ok()
                .map(|held| held.version.info().id.clone()),
        }
    }
}

fn log(event: &Event, stand: &Stand) {
    let Event { kind, version, reason, expires: _ } = event;
    let (kek, event) = (&stand.kek, kind.as_str());
    let version = version.as_ref().map_or("-", VersionId::as_str);
    let reason = reason.map_or("-", Reason::as_str);
    let condition = stand.condition.as_str();
    match kind {
        EventKind::VersionAdded | EventKind::CurrentChanged | EventKind::Restored => {
            info!(%kek, event, version, reason, condition, "a KEK changed");
        }
        EventKind::Expiring | EventKind::Unreachable | EventKind::Revoked => {
            warn!(%kek, event, version, reason, condition, "a KEK changed");
        }
    }
}
