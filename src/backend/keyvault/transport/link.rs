//! One connection: dialled, protected, and wiped of what went through it.
//!
//! It knows bytes, not HTTP. Names under `localhost` are this machine, whatever a resolver
//! would say (RFC 6761, 6.3).

use std::{
    future::poll_fn,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use zeroize::Zeroize;

use super::{super::fault::Fault, Origin};

/// Longest that each of looking a name up, connecting to one address, and agreeing on TLS
/// may take. A caller's own deadline is usually shorter.
const STEP_MAX: Duration = Duration::from_secs(5);

/// Most addresses of a name that are tried.
const ADDRESSES_MAX: usize = 4;

/// A connection.
pub(super) struct Link {
    stream: Stream,
    /// Bytes that came so far.
    pub(super) received: u64,
    /// When it was opened.
    pub(super) opened: Instant,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Link {
    /// Opens a connection.
    pub(super) async fn open(origin: &Origin, tls: &Arc<ClientConfig>) -> Result<Self, Fault> {
        let tcp = connect(&origin.host, origin.port).await?;
        // Requests are small and waited for.
        tcp.set_nodelay(true).map_err(|_| Fault::Connect)?;
        let stream = match origin.tls {
            true => Stream::Tls(Box::new(protect(tcp, &origin.host, tls).await?)),
            false => Stream::Plain(tcp),
        };
        Ok(Self { stream, received: 0, opened: Instant::now() })
    }

    /// Whether nothing has come since the last answer: no end, and no bytes that nobody
    /// asked for.
    pub(super) async fn is_quiet(&mut self) -> bool {
        let mut byte = [0; 1];
        poll_fn(|cx| {
            let mut buffer = ReadBuf::new(&mut byte);
            Poll::Ready(Pin::new(&mut *self).poll_read(cx, &mut buffer).is_pending())
        })
        .await
    }

    /// Wipes what TLS keeps of the bytes that it decrypted. False if it would not let us:
    /// then the connection must go.
    pub(super) fn scrub(&mut self) -> bool {
        let Stream::Tls(stream) = &mut self.stream else { return false };
        // Records are decrypted where they were received, and stay there until others
        // come. To receive, rustls gives its reader all of that buffer behind what it has
        // not processed yet.
        let wiped = stream.get_mut().1.read_tls(&mut Wiper);
        matches!(wiped, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// Receives nothing, and leaves zeros.
struct Wiper;

impl io::Read for Wiper {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        buffer.zeroize();
        Err(io::ErrorKind::WouldBlock.into())
    }
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, Fault> {
    for address in addresses(host, port).await? {
        if let Ok(Ok(stream)) = timeout(STEP_MAX, TcpStream::connect(address)).await {
            return Ok(stream);
        }
    }
    Err(Fault::Connect)
}

async fn addresses(host: &str, port: u16) -> Result<Vec<SocketAddr>, Fault> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    if is_loopback(host) {
        let both = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        return Ok(both.map(|address| SocketAddr::new(address, port)).to_vec());
    }
    let found = timeout(STEP_MAX, lookup_host((host, port))).await;
    let found: Vec<_> = match found {
        Ok(Ok(found)) => found.take(ADDRESSES_MAX).collect(),
        Ok(Err(_)) | Err(_) => Vec::new(),
    };
    if found.is_empty() { Err(Fault::Name) } else { Ok(found) }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.ends_with(".localhost")
}

async fn protect(
    tcp: TcpStream,
    host: &str,
    tls: &Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, Fault> {
    let name = ServerName::try_from(host.to_owned()).map_err(|_| Fault::Certificate)?;
    let connecting = TlsConnector::from(Arc::clone(tls)).connect(name, tcp);
    match timeout(STEP_MAX, connecting).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(match error.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(rustls::Error::InvalidCertificate(_)) => Fault::Certificate,
            _ => Fault::Tls,
        }),
        Err(_) => Err(Fault::Tls),
    }
}

impl AsyncRead for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        };
        self.received += (buffer.filled().len() - before) as u64;
        polled
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
impl Link {
    /// What TLS has in the buffer that it decrypts in.
    pub(super) fn leftovers(&mut self) -> Vec<u8> {
        struct Looker(Vec<u8>);
        impl io::Read for Looker {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.0.extend_from_slice(buffer);
                Err(io::ErrorKind::WouldBlock.into())
            }
        }
        let mut looker = Looker(Vec::new());
        let Stream::Tls(stream) = &mut self.stream else { panic!("no TLS") };
        let _would_block = stream.get_mut().1.read_tls(&mut looker);
        looker.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_under_localhost_are_this_machine() {
        for host in ["localhost", "kv.vault.localhost"] {
            assert!(addresses(host, 1).await.unwrap().iter().all(|found| found.ip().is_loopback()));
        }
        for host in ["localhost.example", "notlocalhost"] {
            assert!(!is_loopback(host), "{host}");
        }
        let literal = addresses("169.254.169.254", 80).await.unwrap();
        assert_eq!(literal, ["169.254.169.254:80".parse().unwrap()]);
    }

    #[tokio::test]
    async fn nobody_there_is_a_fault() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(connect("localhost", closed.port()).await.err(), Some(Fault::Connect));
    }
}
