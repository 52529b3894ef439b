//! What the operator sets of the server.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// `[server]` and the limits that it enforces. At least one of `socket` and `tcp` is
/// given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The Unix socket.
    pub socket: Option<SocketSettings>,
    /// TCP with mutual TLS.
    pub tcp: Option<TcpSettings>,
    /// Metrics and health over plain HTTP.
    pub admin: Option<SocketAddr>,
    /// Whether events of key vaults are taken there, too.
    pub key_events: bool,
    /// Connections at once, over both listeners; beyond it new ones are closed at once.
    pub connections: usize,
    /// Sessions of sealed delivery at once.
    pub sessions: usize,
    /// About how long a connection lives; clients open another without noticing. Each gets
    /// up to a tenth less, so that they do not all end together.
    pub connection_age: Duration,
    /// How long a session of sealed delivery goes on.
    pub session_age: Duration,
    /// How long calls in work may still take after SIGTERM.
    pub drain: Duration,
}

/// The Unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketSettings {
    /// Its path.
    pub path: PathBuf,
    /// Its mode, such as `0o660`.
    pub mode: u32,
    /// Its owner, if not the sidecar's own user.
    pub owner: Option<u32>,
    /// Its group, if not the sidecar's own.
    pub group: Option<u32>,
}

/// TCP with mutual TLS 1.3. There is no TCP without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpSettings {
    /// Address and port.
    pub listen: SocketAddr,
    /// Who we are and whom we let in.
    pub tls: TlsFiles,
}

/// PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, followed by its intermediates.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities whose client certificates are accepted.
    pub client_ca: PathBuf,
}
