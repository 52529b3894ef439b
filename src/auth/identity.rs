//! Who a caller is, as far as the transport proved it.
//!
//! An identity is made only from what the kernel (socket credentials) or the TLS
//! handshake (a verified certificate) vouches for. There is no "anonymous": a
//! connection whose credential cannot be read has no identity and is closed.

use std::fmt;

/// Most names that one certificate may carry. A certificate with more is refused,
/// because a policy is matched against each.
pub const SAN_MAX: usize = 32;

/// Who a caller is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// A process on this host, by the credentials of its socket (`SO_PEERCRED`):
    /// effective user and primary group at the time it connected.
    Unix {
        /// User id.
        uid: u32,
        /// Primary group id.
        gid: u32,
    },
    /// The holder of a verified client certificate, by its subject alternative
    /// names. The subject's common name is not looked at (RFC 9525).
    Tls {
        /// At least one, at most [`SAN_MAX`].
        names: Vec<San>,
    },
}

/// A subject alternative name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum San {
    /// A DNS name, in lower case.
    Dns(String),
    /// A URI, such as a SPIFFE id.
    Uri(String),
}

impl fmt::Display for San {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => write!(f, "dns:{}", name.escape_debug()),
            Self::Uri(uri) => write!(f, "{}", uri.escape_debug()),
        }
    }
}

/// For logs: names come from a certificate that our own authority signed, but are
/// escaped all the same.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix { uid, gid } => write!(f, "uid:{uid},gid:{gid}"),
            Self::Tls { names } => {
                for (i, name) in names.iter().enumerate() {
                    let comma = if i == 0 { "" } else { "," };
                    write!(f, "{comma}{name}")?;
                }
                Ok(())
            }
        }
    }
}
