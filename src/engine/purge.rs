//! Wipe what is cached; take a KEK away and give it back.

use tracing::info;

use super::{
    Engine, Running,
    custody::{CARRIERS_CLOSE_WITHIN, Purged},
};
use crate::{
    auth::Permit,
    carriers::{Carrier, Closed},
    error::Error,
    kek::KekName,
    observe::Purge,
    op::Op,
};

impl Engine {
    /// Wipes what is cached under the permitted KEKs, and then closes the connections that
    /// carried their DEKs, with one wait for all. `own` is the caller's connection: it is
    /// told to close when the others have, and not waited for. The KEKs stay as they are:
    /// DEKs come from the backend again. An unwrap that is in work is answered, and leaves
    /// nothing in the cache. `Err` if there is no such KEK; the others are
    /// purged.
    ///
    /// To be run in a task of its own, so that a caller who leaves leaves nothing undone.
    pub async fn purge(&self, permits: Vec<Permit>, own: &Carrier) -> Result<Purged, Error> {
        let running: Result<Vec<_>, _> =
            permits.iter().map(|permit| Running::start(self, permit, Op::Purge)).collect();
        let (mut purged, mut wiped, mut failed) = (Purged::default(), Vec::new(), None);
        for running in running? {
            match self.wipe(running.permit.kek()) {
                Ok(deks) => {
                    purged.deks += deks;
                    wiped.push(running);
                }
                Err(error) => failed = running.end::<()>(Err(error)).err(),
            }
        }
        let keks: Vec<_> = wiped.iter().map(|running| running.permit.kek()).collect();
        let closed = self.custody.carriers.close_for(&keks, Some(own), CARRIERS_CLOSE_WITHIN).await;
        let Closed { told, left_open } = closed;
        info!(keks = keks.len(), told, left_open, "purged, and closed the connections");
        for running in wiped {
            running.end(Ok(()))?;
        }
        (purged.connections, purged.left_open) = (told, left_open);
        failed.map_or(Ok(purged), Err)
    }

    /// Wipes what is cached under a KEK. Returns how many DEKs that were.
    fn wipe(&self, name: &KekName) -> Result<usize, Error> {
        let kek = self.kek(name)?;
        let deks = kek.purge(&self.custody);
        kek.metrics.purged(Purge::Operator);
        Ok(deks)
    }

    /// Takes a KEK away until [`Self::restore`]. When it returns nothing of it is cached,
    /// no call that was in work is answered with a DEK, and the connections that carried
    /// its DEKs are closed.
    pub async fn revoke(&self, name: &KekName) -> Result<Purged, Error> {
        let deks = self.kek(name)?.revoke(&self.custody);
        let closed = self.custody.close_carriers(name).await;
        Ok(Purged { deks, connections: closed.told, left_open: closed.left_open })
    }

    /// Gives a revoked KEK back: it is served once it has proven itself anew.
    pub fn restore(&self, name: &KekName) -> Result<(), Error> {
        self.kek(name)?.restore(&self.custody);
        Ok(())
    }
}
