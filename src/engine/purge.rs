//! Wipe what is cached; take a KEK away and give it back.

use super::{Engine, Running, custody::Purged};
use crate::{auth::Permit, error::Error, kek::KekName, observe::Purge, op::Op};

impl Engine {
    /// Wipes what is cached under the permitted KEK and closes the connections that
    /// carried its DEKs. The KEK stays as it is: DEKs come from the backend again.
    pub async fn purge(&self, permit: Permit) -> Result<Purged, Error> {
        let running = Running::start(self, &permit, Op::Purge)?;
        let result = async {
            let kek = self.kek(permit.kek())?;
            let leases: Vec<u64> = kek.known().leases().map(|lease| lease.id()).collect();
            let deks = self.custody.wipe(&leases);
            kek.metrics.purged(Purge::Operator);
            let closed = self.custody.close_carriers(permit.kek()).await;
            Ok(Purged { deks, connections: closed.told, left_open: closed.left_open })
        }
        .await;
        running.end(result)
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
