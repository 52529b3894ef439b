//! TCP with mutual TLS 1.3. There is no TCP without.
//!
//! Invariants: nothing of a connection reaches HTTP/2 before its certificate is
//! verified; handshakes, which cost a signature each, are bounded in time here and in
//! number by the accept loop. (A smaller bound of their own would let a few silent peers
//! keep everybody else waiting.)

use std::{
    io,
    net::{self, SocketAddr},
    time::Duration,
};

use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{SetupError, TcpSettings, accept::Listener, tls};
use crate::auth::Identity;

/// How long a handshake may take.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Connections that the kernel keeps for us to accept.
const BACKLOG: u32 = 1024;

/// A bound TCP socket.
pub(super) struct TcpListener {
    listener: tokio::net::TcpListener,
    address: SocketAddr,
    acceptor: TlsAcceptor,
}

impl TcpListener {
    /// Reads the TLS files and binds. Must be called inside a Tokio runtime.
    pub(super) fn bind(settings: &TcpSettings) -> Result<Self, SetupError> {
        let acceptor = tls::acceptor(&settings.tls)?;
        let (listener, address) = listen(settings.listen, "server.listen")?;
        Ok(Self { listener, address, acceptor })
    }

    /// Where it listens, with the port that the kernel chose if the settings say 0.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    async fn handshake(&self, raw: TcpStream) -> Result<(TlsStream<TcpStream>, Identity), String> {
        let stream = self.acceptor.accept(raw).await.map_err(|error| error.to_string())?;
        let (_, session) = stream.get_ref();
        if session.alpn_protocol() != Some(tls::ALPN_H2) {
            return Err("the client does not speak HTTP/2 (no ALPN h2)".to_owned());
        }
        let chain = session.peer_certificates().unwrap_or_default();
        let who = tls::identity(chain.first().ok_or("the client gave no certificate")?)?;
        Ok((stream, who))
    }
}

/// Binds `address`, which the setting called `key` names. Returns where it listens,
/// with the port that the kernel chose if `address` says 0.
pub(super) fn listen(
    address: SocketAddr,
    key: &str,
) -> Result<(tokio::net::TcpListener, SocketAddr), SetupError> {
    let bound = bind(address).and_then(|listener| {
        let address = listener.local_addr()?;
        Ok((listener, address))
    });
    bound.map_err(|error| {
        SetupError::new(format!("cannot listen on {address}"), error)
            .with_fix(format!("see whether another program uses the port; set {key}"))
    })
}

fn bind(address: SocketAddr) -> io::Result<tokio::net::TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    // So that a restart need not wait for the connections of the last one to time out.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

impl Listener for TcpListener {
    type Raw = (TcpStream, net::SocketAddr);
    type Io = TlsStream<TcpStream>;

    fn name(&self) -> &'static str {
        "tcp"
    }

    async fn accept(&self) -> io::Result<Self::Raw> {
        self.listener.accept().await
    }

    async fn identify(&self, raw: Self::Raw) -> Result<(Self::Io, Identity), String> {
        let (stream, peer) = raw;
        // Without it answers wait for the client's delayed acknowledgement: 40 ms.
        stream.set_nodelay(true).map_err(|error| format!("{peer}: {error}"))?;
        match timeout(HANDSHAKE_WITHIN, self.handshake(stream)).await {
            Ok(Ok(identified)) => Ok(identified),
            Ok(Err(why)) => Err(format!("{peer}: {why}")),
            Err(_elapsed) => Err(format!("{peer}: no TLS handshake in time")),
        }
    }
}
