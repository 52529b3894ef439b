//! What the sidecar knows of a KEK, for those who may ask.

use std::{sync::Arc, time::SystemTime};

use super::{
    Engine, Running,
    catalog::{KekSpec, Leased},
    watch::Stand,
};
use crate::{
    auth::Permit,
    error::{Error, Reason},
    kek::{Algorithm, Condition, KekName, Proof, State, Usage, VersionId, VersionInfo},
    op::Op,
};

/// What is known of a KEK.
#[derive(Debug)]
pub struct KekDescription {
    /// What callers call it.
    pub name: KekName,
    /// Name of its backend.
    pub backend: String,
    /// Kind of its backend.
    pub backend_kind: &'static str,
    /// What new DEKs are wrapped with.
    pub algorithm: Algorithm,
    /// The version that wraps, if one does.
    pub current: Option<VersionId>,
    /// Newest first.
    pub versions: Vec<VersionDescription>,
    /// How it stands.
    pub condition: Condition,
    /// Why it stands no better.
    pub reason: Option<Reason>,
    /// The name of this node in the census.
    pub node: String,
    /// When it began to count.
    pub since: SystemTime,
}

/// What is known of a version.
#[derive(Debug)]
pub struct VersionDescription {
    /// As the backend reported it.
    pub info: Arc<VersionInfo>,
    /// Its state.
    pub state: State,
    /// When it last proved itself.
    pub proven_at: Option<SystemTime>,
    /// How it was used, since [`KekDescription::since`].
    pub usage: Usage,
}

impl Engine {
    /// Describes the permitted KEK.
    pub fn describe(&self, permit: Permit) -> Result<KekDescription, Error> {
        let running = Running::start(self, &permit, Op::Describe)?;
        let result = self.kek(permit.kek()).map(|kek| {
            let now = SystemTime::now();
            let KekSpec { name, backend, algorithm, .. } = &kek.spec;
            let known = kek.known();
            let versions =
                known.versions.iter().map(|Leased { version, row, .. }| VersionDescription {
                    info: Arc::clone(version.info()),
                    state: version.state(now),
                    proven_at: match version.proof() {
                        Proof::Proven { at } => Some(*at),
                        _ => None,
                    },
                    usage: row.usage(),
                });
            let Stand { condition, reason, current, .. } = kek.stand();
            KekDescription {
                name: name.clone(),
                backend: backend.name().to_owned(),
                backend_kind: backend.kind(),
                algorithm: *algorithm,
                current,
                versions: versions.collect(),
                condition,
                reason,
                node: self.bookkeeper.node().to_owned(),
                since: self.bookkeeper.since(),
            }
        });
        running.end(result)
    }
}
