//! What can go wrong below HTTP, and between HTTP and what was asked for.
//!
//! The texts are fixed: nothing of what a server sent, and nothing of a request, is in
//! them, because the SDK logs them.

use std::fmt;

use crate::error::{Error, Reason};

/// Trouble of one exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The host's name has no address, or could not be asked for.
    Name,
    /// Nobody answers at its addresses.
    Connect,
    /// TLS was agreed on with somebody else: the certificate is not good for the host.
    Certificate,
    /// TLS could not be agreed on.
    Tls,
    /// The connection ended before the answer did.
    Closed,
    /// The answer is no HTTP/1.1.
    NotHttp,
    /// The answer is longer than any that was asked for.
    TooLong,
    /// Something was to be sent to a host that is none of this backend's.
    Stranger,
    /// A request that this transport does not send.
    Request,
    /// The answer is not what was asked for.
    Answer,
}

impl Fault {
    /// What happened, for the log.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Name => "the name of the host has no address",
            Self::Connect => "no connection to the host",
            Self::Certificate => "the certificate is not good for the host",
            Self::Tls => "no TLS with the host",
            Self::Closed => "the connection ended before the answer",
            Self::NotHttp => "the answer is no HTTP",
            Self::TooLong => "the answer is too long",
            Self::Stranger => "a request to a host that is not configured was refused",
            Self::Request => "a request that cannot be sent",
            Self::Answer => "the answer is not what was asked for",
        }
    }

    /// What a caller is told. All of these may be over in a moment, and none of them says
    /// anything about the key.
    pub(super) fn into_error(self) -> Error {
        let error = Error::new(Reason::BackendUnreachable, "the vault cannot be reached")
            .with_detail(self.as_str());
        match self {
            Self::Name => error.with_fix(
                "see whether the name of the vault can be resolved; that of a vault that was purged cannot",
            ),
            Self::Certificate => error.with_fix(
                "see whether `vault` is right and nothing stands between; `ca` sets the authorities to trust",
            ),
            Self::Connect | Self::Tls | Self::Closed => {
                error.with_fix("see whether the network and its firewalls let the sidecar reach the vault")
            }
            _ => error,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::error::Error for Fault {}

impl From<Fault> for azure_core::Error {
    fn from(fault: Fault) -> Self {
        Self::with_error(azure_core::error::ErrorKind::Io, fault, fault.as_str())
    }
}

/// The fault that an error of the SDK came from, if it was one.
pub(super) fn behind(error: &azure_core::Error) -> Option<Fault> {
    find(error).copied()
}

/// The error of this type that an error of the SDK came from, if it was one.
pub(super) fn find<E: std::error::Error + 'static>(error: &azure_core::Error) -> Option<&E> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    // As deep as the SDK nests, and then some.
    for _ in 0..16 {
        let this = cause?;
        if let Some(found) = this.downcast_ref::<E>() {
            return Some(found);
        }
        // What it wraps is not always its source.
        let wrapped = this.downcast_ref::<azure_core::Error>();
        if let Some(found) = wrapped.and_then(|wrapped| wrapped.downcast_ref::<E>()) {
            return Some(found);
        }
        cause = this.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use azure_core::error::ErrorKind;

    #[test]
    fn a_fault_is_found_again_however_deep_the_sdk_wraps_it() {
        for fault in [Fault::Name, Fault::Certificate, Fault::Closed] {
            let plain = azure_core::Error::from(fault);
            assert_eq!(behind(&plain), Some(fault));
            let wrapped = azure_core::Error::with_error(ErrorKind::Credential, plain, "x");
            let wrapped = azure_core::Error::with_error(ErrorKind::Other, wrapped, "y");
            assert_eq!(behind(&wrapped), Some(fault));
        }
        let other = azure_core::Error::with_message(ErrorKind::Io, "the certificate");
        assert_eq!(behind(&other), None);
    }
}
