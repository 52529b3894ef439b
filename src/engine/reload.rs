//! Have KEKs read from their backends at once, instead of at the next poll.

use std::{
    sync::PoisonError,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};

use super::{Engine, Running, catalog::Kek, rounds::Look};
use crate::{
    auth::Permit,
    error::Error,
    kek::{KekName, VersionId},
    op::Op,
};

/// KEKs that are read at once. Their proofs share their backends' places with all others.
const AT_ONCE: usize = 16;

/// How often a hint from outside has a KEK looked at.
const HINT_EVERY: Duration = Duration::from_secs(10);

/// What came of reading a KEK.
#[derive(Debug)]
pub struct Reloaded {
    /// The KEK.
    pub kek: KekName,
    /// The version that wraps; `Err` says why none does, or why it could not be read.
    pub current: Result<VersionId, Error>,
}

impl Engine {
    /// Reads the permitted KEKs, and has each of their versions prove itself. One that cannot
    /// be read fails alone. In order of name.
    pub async fn reload(&self, permits: Vec<Permit>, deadline: Instant) -> Vec<Reloaded> {
        let reload = |permit: Permit| async move {
            let name = permit.kek().clone();
            let current = async {
                let mut running = Running::start(self, &permit, Op::Reload)?;
                let reloaded = match self.kek(&name) {
                    Ok(kek) => self.read(kek, deadline).await,
                    Err(error) => Err(error),
                };
                running.version = reloaded.as_ref().ok().cloned();
                running.end(reloaded)
            };
            Reloaded { current: current.await, kek: name }
        };
        let reloads: Vec<_> = permits.into_iter().map(reload).collect();
        let mut reloaded: Vec<_> = stream::iter(reloads).buffer_unordered(AT_ONCE).collect().await;
        reloaded.sort_by(|a: &Reloaded, b| a.kek.cmp(&b.kek));
        reloaded
    }

    /// Has the KEKs looked at soon whose key in a vault is called so: a hint that something
    /// happened to it, from whoever. Each at most once in ten seconds. Returns how many.
    pub fn suspect(&self, key: &str) -> usize {
        let now = Instant::now();
        let of_key = self.catalog.iter().filter(|kek| {
            kek.spec.backend.service().is_some() && kek.spec.key.label.eq_ignore_ascii_case(key)
        });
        let due = of_key.filter(|kek| {
            let mut hinted = kek.hinted.lock().unwrap_or_else(PoisonError::into_inner);
            let due = hinted.is_none_or(|at| now.duration_since(at) >= HINT_EVERY);
            if due {
                *hinted = Some(now);
            }
            due
        });
        due.inspect(|kek| kek.suspicion.notify_one()).count()
    }

    async fn read(&self, kek: &Kek, deadline: Instant) -> Result<VersionId, Error> {
        // What is revoked here says so, whatever its backend says.
        if !kek.is_revoked() {
            kek.verify(&self.custody, Look::Thorough, deadline).await?;
        }
        kek.current().map(|held| held.version.info().id.clone())
    }
}
