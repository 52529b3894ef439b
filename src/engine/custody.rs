//! What is held under leases, and how it is let go: the cache, the flights to fill it,
//! and the connections and sessions that DEKs went out on.
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
    carriers::{Carrier, Carriers, Closed},
    envelope::Dek,
    error::Error,
    kek::KekName,
    lease::{Lease, Terms},
};

/// How long connections that carried DEKs get to end, once they are to. What does not end
/// by itself is cut before that by the server.
const CARRIERS_CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// What an unwrap that several callers wait for came to.
pub(super) type Fetched = Result<Dek, Error>;

pub(super) struct Custody {
    pub(super) cache: Arc<Cache>,
    /// Connections.
    pub(super) carriers: Arc<Carriers>,
    /// Sessions of sealed delivery.
    pub(super) sessions: Arc<Carriers>,
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
    /// Sessions of sealed delivery that were ended.
    pub sessions: usize,
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

    /// Has what carried DEKs of `kek` closed, without waiting for it.
    pub(super) fn let_carriers_go(self: &Arc<Self>, kek: &KekName) {
        let (custody, kek) = (Arc::clone(self), kek.clone());
        tokio::spawn(async move { custody.close_carriers(&[&kek], None).await });
    }

    /// Closes the connections that carried DEKs of `keks`, ends the sessions that did, and
    /// waits for all of them, but for `own`, the connection of who waits for this. Says how
    /// many those were.
    pub(super) async fn close_carriers(&self, keks: &[&KekName], own: Option<&Carrier>) -> Purged {
        let (Closed { told, left_open }, sessions) = tokio::join!(
            self.carriers.close_for(keks, own, CARRIERS_CLOSE_WITHIN),
            self.sessions.close_for(keks, None, CARRIERS_CLOSE_WITHIN),
        );
        if told + sessions.told > 0 {
            info!(
                keks = keks.len(),
                told,
                left_open,
                sessions = sessions.told,
                "closed what carried DEKs"
            );
        }
        let left_open = left_open + sessions.left_open;
        Purged { deks: 0, connections: told, left_open, sessions: sessions.told }
    }
}
