//! What is held under leases, and how it is let go: the cache, the flights to fill it,
//! and the connections that DEKs went out on.
//!
//! Invariant: whoever ends a lease comes here, and in this order: the lease ends, then
//! what was cached under it is wiped, then the connections that carried it are closed. So
//! nothing that is checked after the first step is released, and what was released before
//! it is found by the other two. A purge, which leaves the leases as they are, counts up
//! (`Kek::purge`) where the others end a lease, to the same effect for the cache.

use std::{sync::Arc, time::Duration};

use tracing::info;

use crate::{
    cache::{Cache, Flights, Grant},
    carriers::{Carriers, Closed},
    envelope::Dek,
    error::Error,
    kek::KekName,
    lease::{Lease, Terms},
};

/// How long connections that carried DEKs get to end, once they are to. What does not end
/// by itself is cut before that by the server.
pub(super) const CARRIERS_CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// What an unwrap that several callers wait for came to.
pub(super) type Fetched = Result<Dek, Error>;

pub(super) struct Custody {
    pub(super) cache: Arc<Cache>,
    pub(super) carriers: Arc<Carriers>,
    pub(super) terms: Terms,
    pub(super) flights: Flights<Fetched>,
}

/// What became of a purge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// DEKs that were wiped.
    pub deks: usize,
    /// Connections that were told to close.
    pub connections: usize,
    /// Those of them that were still open at the end.
    pub left_open: usize,
}

impl Custody {
    /// Ends leases and wipes what was cached under them. Returns how many DEKs that were.
    pub(super) fn end<'a>(&self, leases: impl Iterator<Item = &'a Arc<Lease>>) -> usize {
        let end = |lease: &Arc<Lease>| {
            lease.end();
            lease.id()
        };
        let ended: Vec<u64> = leases.map(end).collect();
        self.wipe(&ended)
    }

    /// Wipes what was cached under leases, which go on. Returns how many DEKs that were.
    pub(super) fn wipe(&self, leases: &[u64]) -> usize {
        match leases.is_empty() {
            true => 0,
            false => self.cache.purge(|Grant(lease)| leases.contains(&lease)),
        }
    }

    /// Has the connections that carried DEKs of `kek` closed, without waiting for them.
    pub(super) fn let_carriers_go(self: &Arc<Self>, kek: &KekName) {
        let (custody, kek) = (Arc::clone(self), kek.clone());
        tokio::spawn(async move { custody.close_carriers(&kek).await });
    }

    /// Closes the connections that carried DEKs of `kek`, and waits for them.
    pub(super) async fn close_carriers(&self, kek: &KekName) -> Closed {
        let closed = self.carriers.close(kek, CARRIERS_CLOSE_WITHIN).await;
        if closed.told > 0 {
            info!(%kek, told = closed.told, left_open = closed.left_open,
                "closed the connections that carried DEKs of the KEK");
        }
        closed
    }
}
