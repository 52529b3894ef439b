//! Who sent a request, and over which connection.
//!
//! There is no anonymous caller: a request without a peer is refused, even though no
//! listener lets a connection without an identity through.

use std::sync::Arc;

use tokio::sync::watch;
use tonic::Extensions;
use tracing::error;

use crate::{
    auth::Identity,
    carriers::{Carrier, Urgency},
    error::{Error, Reason},
    kek::KekName,
    observe::Refusals,
};

/// What the server puts beside every request: the other end of its connection. Cheap to
/// clone, which every call does.
#[derive(Clone, Debug)]
pub struct Peer(Arc<Known>);

#[derive(Debug)]
struct Known {
    who: Arc<Identity>,
    carrier: Carrier,
    refusals: Refusals,
}

impl Peer {
    /// The peer of a connection.
    pub fn new(who: Identity, carrier: Carrier) -> Self {
        let who = Arc::new(who);
        let refusals = Refusals::new(Arc::clone(&who));
        Self(Arc::new(Known { who, carrier, refusals }))
    }

    /// Who it is.
    pub fn who(&self) -> &Arc<Identity> {
        &self.0.who
    }

    /// What is refused over the connection, to be recorded.
    pub(super) fn refusals(&self) -> &Refusals {
        &self.0.refusals
    }

    /// Notes that a DEK of `kek` may come or go over the connection. To be called before
    /// the engine is.
    pub(super) fn carries(&self, kek: &KekName) {
        self.0.carrier.mark(kek);
    }

    /// The connection's entry in the register.
    pub(super) fn carrier(&self) -> &Carrier {
        &self.0.carrier
    }

    /// Tells when the connection is about to end, and streams with it.
    pub fn closing(&self) -> watch::Receiver<Urgency> {
        self.0.carrier.closing()
    }
}

/// The peer that the server put beside the request.
pub fn peer(extensions: &Extensions) -> Result<Peer, Error> {
    extensions.get::<Peer>().cloned().ok_or_else(|| {
        error!("a request came without an identity: the listener has a defect");
        Error::new(Reason::PermissionDenied, "the caller is not known")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_without_an_identity_is_refused() {
        let refusal = peer(&Extensions::new()).unwrap_err();
        assert_eq!(refusal.reason(), Reason::PermissionDenied);
    }

    #[test]
    fn the_identity_is_the_one_that_the_server_gave() {
        let mut extensions = Extensions::new();
        extensions.insert(Peer::new(Identity::Unix { uid: 7, gid: 8 }, Carrier::new()));
        assert_eq!(**peer(&extensions).unwrap().who(), Identity::Unix { uid: 7, gid: 8 });
    }
}
