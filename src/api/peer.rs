//! Who sent a request.
//!
//! There is no anonymous caller: a request without an identity is refused, even
//! though no listener lets a connection without one through.

use std::sync::Arc;

use tonic::Extensions;
use tracing::error;

use crate::{
    auth::Identity,
    error::{Error, Reason},
};

/// The identity that the server put beside the request.
pub(super) fn identity(extensions: &Extensions) -> Result<Arc<Identity>, Error> {
    extensions.get::<Arc<Identity>>().cloned().ok_or_else(|| {
        error!("a request came without an identity: the listener has a defect");
        Error::new(Reason::PermissionDenied, "the caller is not known")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_without_an_identity_is_refused() {
        let refusal = identity(&Extensions::new()).unwrap_err();
        assert_eq!(refusal.reason(), Reason::PermissionDenied);
    }

    #[test]
    fn the_identity_is_the_one_that_the_server_gave() {
        let mut extensions = Extensions::new();
        extensions.insert(Arc::new(Identity::Unix { uid: 7, gid: 8 }));
        assert_eq!(*identity(&extensions).unwrap(), Identity::Unix { uid: 7, gid: 8 });
    }
}
