//! The listeners: TCP, TLS, HTTP/1.1, and the faults that a test has ordered.
//!
//! Refuses to know: what is asked. Every answer has a Content-Length, and connections
//! are kept.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, UNIX_EPOCH},
};

use futures_util::stream;
use http::{Response, header};
use http_body_util::{BodyExt, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request,
    body::{Bytes, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rustls::{ServerConfig, crypto::aws_lc_rs::default_provider};
use time::{OffsetDateTime, format_description::well_known::Rfc2822};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use super::{
    clock::Now,
    entra,
    faults::{Fault, Tls},
    gate::Gate,
    imds,
    message::{Answer, Asked, pairs},
    operation::{self, Operation, Route},
    pki::{Authority, Leaf},
    record::Seen,
    vault,
    world::World,
};

/// No request of the API is longer, restores included.
const BODY_MAX: usize = 1 << 20;

/// What stands behind a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Vault,
    Entra,
    /// Plain HTTP, as IMDS is.
    Imds,
}

/// The gate of each listener.
pub struct Gates {
    vault: Gate,
    entra: Gate,
    imds: Gate,
}

impl Gates {
    pub fn new() -> Self {
        Self { vault: Gate::new(), entra: Gate::new(), imds: Gate::new() }
    }

    pub fn of(&self, place: Place) -> &Gate {
        match place {
            Place::Vault => &self.vault,
            Place::Entra => &self.entra,
            Place::Imds => &self.imds,
        }
    }
}

/// How TLS can be spoken.
#[derive(Clone)]
pub struct Acceptors {
    right: TlsAcceptor,
    wrong_name: TlsAcceptor,
    unknown_authority: TlsAcceptor,
    expired: TlsAcceptor,
}

impl Acceptors {
    pub fn new(authority: &Authority, hosts: &[String]) -> Self {
        Self {
            right: acceptor(authority.leaf(hosts)),
            wrong_name: acceptor(authority.leaf(&["elsewhere.test".into()])),
            unknown_authority: acceptor(Authority::new().leaf(hosts)),
            expired: acceptor(authority.expired_leaf(hosts)),
        }
    }
}

fn acceptor(leaf: Leaf) -> TlsAcceptor {
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("protocol versions")
        .with_no_client_auth()
        .with_single_cert(vec![leaf.certificate], leaf.key)
        .expect("a certificate with its key");
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

/// Serves what stands behind a listener, for ever.
pub async fn serve(listener: TcpListener, place: Place, world: Arc<World>, tls: Acceptors) {
    let gate = world.gates.of(place);
    gate.accept(listener, |socket| {
        let (world, tls, mut cuts) = (Arc::clone(&world), tls.clone(), gate.cuts());
        tokio::spawn(async move {
            tokio::select! {
                // A connection that ends badly concerns its client alone, who sees it.
                _ended = connection(socket, place, world, tls) => {}
                _cut = cuts.changed() => {}
            }
        });
    })
    .await;
}

async fn connection(
    mut socket: TcpStream,
    place: Place,
    world: Arc<World>,
    tls: Acceptors,
) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let peer = socket.peer_addr()?;
    let number = match place {
        Place::Vault => world.record.connected(),
        Place::Entra | Place::Imds => 0,
    };
    // Set by the service when it wants the connection reset: this task holds the socket.
    let reset = Arc::new(AtomicBool::new(false));
    let handler = Handler { world, place, peer, number, reset: Arc::clone(&reset) };
    let fault = match place {
        Place::Vault => handler.world.faults.tls(),
        Place::Entra | Place::Imds => Tls::Right,
    };
    if place == Place::Imds {
        let socket = http(socket, handler).await;
        return end(&socket, &reset);
    }
    let acceptor = match fault {
        Tls::Right => tls.right,
        Tls::WrongName => tls.wrong_name,
        Tls::UnknownAuthority => tls.unknown_authority,
        Tls::Expired => tls.expired,
        Tls::Closed => return Ok(()),
        Tls::Plaintext => {
            return socket
                .write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                .await;
        }
    };
    let stream = http(acceptor.accept(socket).await?, handler).await;
    end(stream.get_ref().0, &reset)
}

/// Makes the close of a socket a reset, if that was ordered.
fn end(socket: &TcpStream, reset: &AtomicBool) -> io::Result<()> {
    match reset.load(Ordering::Acquire) {
        true => socket.set_zero_linger(),
        false => Ok(()),
    }
}

/// Speaks HTTP/1.1 until the connection ends, and gives the transport back.
async fn http<S>(stream: S, handler: Handler) -> S
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = service_fn(|request| handler.handle(request));
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // An error is a client that went away, or a fault that was ordered.
    drop(std::pin::Pin::new(&mut connection).await);
    connection.into_parts().io.into_inner()
}

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// One connection's way from a request to an answer.
struct Handler {
    world: Arc<World>,
    place: Place,
    peer: SocketAddr,
    number: u64,
    reset: Arc<AtomicBool>,
}

fn cut(why: &str) -> io::Error {
    io::Error::other(why)
}

impl Handler {
    fn route(&self, asked: &Asked) -> Route {
        match self.place {
            Place::Vault => operation::route(&asked.method, &asked.path),
            Place::Entra => entra::route(&asked.method, &asked.path),
            Place::Imds => imds::route(&asked.method, &asked.path),
        }
    }

    async fn handle(&self, request: Request<Incoming>) -> io::Result<Response<Body>> {
        let asked = read(request).await?;
        let route = self.route(&asked);
        let fault = self.world.faults.strike(&route);
        let seen = Seen {
            operation: route.operation,
            key: route.key.clone(),
            version: route.version.clone(),
            status: 0,
            authorized: asked.headers.contains_key(header::AUTHORIZATION),
            body: asked.body.len(),
            request_id: String::new(),
            connection: self.number,
        };
        match &fault {
            Some(Fault::Latency(time)) => tokio::time::sleep(*time).await,
            Some(Fault::Hang) => {
                self.world.record.add(seen);
                std::future::pending::<Infallible>().await;
                return Err(cut("nothing comes after for ever"));
            }
            Some(Fault::Reset | Fault::Close) => {
                let reset = matches!(fault, Some(Fault::Reset));
                self.reset.store(reset, Ordering::Release);
                self.world.record.add(seen);
                return Err(cut("an ordered fault"));
            }
            _ => {}
        }
        let mut answer = match &fault {
            Some(Fault::Answer(answer)) if self.place == Place::Vault => {
                let peer = self.peer.ip().to_string();
                vault::dress(&self.world, answer.clone(), &asked, &peer)
            }
            Some(Fault::Answer(answer)) => answer.clone(),
            _ => self.answer(route, asked).await?,
        };
        if let Some(Fault::Body(text)) = &fault {
            answer.body = text.clone().into_bytes();
        }
        answer.headers.push(("Date", http_date(self.world.clock.now())));
        let request_id = answer.headers.iter().find(|(name, _)| *name == "x-ms-request-id");
        let request_id = request_id.map(|(_, id)| id.clone()).unwrap_or_default();
        self.world.record.add(Seen { status: answer.status, request_id, ..seen });
        respond(answer, fault)
    }

    /// The right answer. Made on a thread that may block, as making keys does.
    async fn answer(&self, route: Route, asked: Asked) -> io::Result<Answer> {
        let (world, place, peer) = (Arc::clone(&self.world), self.place, self.peer.ip());
        let making =
            matches!(route.operation, Operation::Create | Operation::Rotate | Operation::Import);
        let answer = move || match place {
            Place::Vault => vault::answer(&world, &route, &asked, &peer.to_string()),
            Place::Entra => entra::answer(&world, &route, &asked),
            Place::Imds => imds::answer(&world, &route, &asked),
        };
        match making {
            true => tokio::task::spawn_blocking(answer).await.map_err(io::Error::other),
            false => Ok(answer()),
        }
    }
}

/// Reads a request to its end.
async fn read(request: Request<Incoming>) -> io::Result<Asked> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, BODY_MAX).collect().await.map_err(io::Error::other)?.to_bytes();
    Ok(Asked {
        method: head.method.as_str().into(),
        path: head.uri.path().into(),
        query: pairs(head.uri.query().unwrap_or_default()),
        headers: head.headers,
        body,
    })
}

/// A time as HTTP writes it (RFC 9110, 5.6.7).
fn http_date(now: Now) -> String {
    let date = OffsetDateTime::from(UNIX_EPOCH + now).format(&Rfc2822).expect("a date");
    date.replace("+0000", "GMT")
}

fn respond(answer: Answer, fault: Option<Fault>) -> io::Result<Response<Body>> {
    let len = answer.body.len();
    let mut response = Response::builder().status(answer.status).header("Content-Length", len);
    for (name, value) in &answer.headers {
        response = response.header(*name, value);
    }
    let body = Bytes::from(answer.body);
    let body = match fault {
        Some(Fault::Truncate) => in_pieces(body.slice(..len / 2), len, Duration::ZERO, true),
        Some(Fault::Slow { piece, pause }) => in_pieces(body, piece, pause, false),
        _ => in_pieces(body, len, Duration::ZERO, false),
    };
    response.body(body).map_err(io::Error::other)
}

/// A body in pieces with a pause before each, which ends in an error if it is `broken`.
fn in_pieces(body: Bytes, piece: usize, pause: Duration, broken: bool) -> Body {
    let pieces = stream::unfold((body, broken), move |(mut rest, broken)| async move {
        if rest.is_empty() {
            return broken.then(|| (Err(cut("an ordered fault")), (rest, false)));
        }
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let next = rest.split_to(piece.clamp(1, rest.len()));
        Some((Ok(Frame::data(next)), (rest, broken)))
    });
    StreamBody::new(pieces).boxed_unsync()
}
