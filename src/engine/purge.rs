//! Wipe what is cached; take a KEK away and give it back.

use std::sync::Arc;

use tokio::task::spawn_blocking;
use tracing::{error, info, warn};

use super::{Engine, Running, custody::Purged};
use crate::{
    auth::Permit,
    carriers::Carrier,
    error::{Error, Reason},
    kek::KekName,
    observe::Purge,
    op::Op,
};

/// What became of a revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// What was wiped and closed.
    pub purged: Purged,
    /// Whether it outlasts a restart.
    pub kept: bool,
}

impl Engine {
    /// Wipes what is cached under the permitted KEKs, and then closes the connections and
    /// sessions that carried their DEKs, with one wait for all. `own` is the caller's connection: it is
    /// told to close when the others have, and not waited for. The KEKs stay as they are:
    /// DEKs come from the backend again. An unwrap that is in work is answered, and leaves
    /// nothing in the cache. `Err` if there is no such KEK; the others are
    /// purged.
    ///
    /// To be run in a task of its own, so that a caller who leaves leaves nothing undone.
    pub async fn purge(&self, permits: Vec<Permit>, own: &Carrier) -> Result<Purged, Error> {
        let running: Result<Vec<_>, _> =
            permits.iter().map(|permit| Running::start(self, permit, Op::Purge)).collect();
        let (mut deks, mut wiped, mut failed) = (0, Vec::new(), None);
        for running in running? {
            match self.wipe(running.permit.kek()) {
                Ok(more) => {
                    deks += more;
                    wiped.push(running);
                }
                Err(error) => failed = running.end::<()>(Err(error)).err(),
            }
        }
        let keks: Vec<_> = wiped.iter().map(|running| running.permit.kek()).collect();
        let closed = self.custody.close_carriers(&keks, Some(own)).await;
        for running in wiped {
            running.end(Ok(()))?;
        }
        failed.map_or(Ok(Purged { deks, ..closed }), Err)
    }

    /// Wipes what is cached under a KEK. Returns how many DEKs that were.
    fn wipe(&self, name: &KekName) -> Result<usize, Error> {
        let kek = self.kek(name)?;
        let deks = kek.purge(&self.custody);
        kek.metrics.purged(Purge::Operator);
        Ok(deks)
    }

    /// Takes the permitted KEK away until [`Self::restore`], also over a restart. When it
    /// returns nothing of it is cached, no call that was in work is answered with a DEK, and
    /// the connections and sessions that carried its DEKs are closed; `own` is the caller's, as for
    /// [`Self::purge`]. First it is dark, then that is recorded: a disk that is full or hangs
    /// keeps no KEK alight.
    ///
    /// To be run in a task of its own, so that a caller who leaves leaves nothing undone.
    pub async fn revoke(&self, permit: Permit, own: &Carrier) -> Result<Revoked, Error> {
        let running = Running::start(self, &permit, Op::Revoke)?;
        let result = async {
            let name = permit.kek();
            let kek = self.kek(name)?;
            let deks = kek.revoke(&self.custody);
            let kept = {
                let _one_at_a_time = self.changing.lock().await;
                // A restoration that had the lock may have come between.
                kek.revoke(&self.custody);
                self.record(name, permit.who().to_string()).await
            };
            let closed = self.custody.close_carriers(&[name], Some(own)).await;
            warn!(kek = %name, who = %permit.who(), kept, "an operator revoked the KEK");
            Ok(Revoked { purged: Purged { deks, ..closed }, kept })
        }
        .await;
        running.end(result)
    }

    /// Records a revocation. Whether it outlasts a restart.
    async fn record(&self, name: &KekName, by: String) -> bool {
        let (revocations, kek) = (Arc::clone(&self.revocations), name.clone());
        let recorded = spawn_blocking(move || revocations.add(&kek, &by)).await;
        match recorded {
            Ok(Ok(kept)) => kept,
            Ok(Err(error)) => {
                let detail = error.detail().unwrap_or("-");
                error!(kek = %name, detail, "a revocation would not outlast a restart: {error}");
                false
            }
            Err(_) => false,
        }
    }

    /// Gives a revoked KEK back: it is served once it has proven itself anew. `Err` if it
    /// would be gone again after a restart: then it stays revoked.
    pub async fn restore(&self, permit: Permit) -> Result<(), Error> {
        let running = Running::start(self, &permit, Op::Restore)?;
        let result = async {
            let kek = self.kek(permit.kek())?;
            let _one_at_a_time = self.changing.lock().await;
            let (revocations, name) = (Arc::clone(&self.revocations), permit.kek().clone());
            let removed = spawn_blocking(move || revocations.remove(&name)).await;
            removed.map_err(|_| Error::new(Reason::Internal, "the sidecar has a defect"))??;
            kek.restore(&self.custody);
            info!(kek = %permit.kek(), who = %permit.who(), "an operator restored the KEK");
            Ok(())
        }
        .await;
        running.end(result)
    }

    /// Takes away what operators took away before the sidecar was restarted. To be called
    /// before the first proof. `Err` if that cannot be told: then nothing may be served.
    pub fn revoke_as_recorded(&self) -> Result<(), Error> {
        for name in self.revocations.all()? {
            // A KEK that is not configured now may be so again.
            if let Ok(kek) = self.kek(&name) {
                kek.revoke(&self.custody);
                warn!(kek = %name, "an operator revoked the KEK; `keyward kek restore` gives it back");
            }
        }
        Ok(())
    }
}
