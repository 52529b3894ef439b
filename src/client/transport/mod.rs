//! The way of a call to the sidecar: HTTP/2 over one connection, opened when it is needed,
//! and opened again when it has ended.
//!
//! gRPC's own channel sends the head of a call, its message and its end one after another, and
//! may wake the sidecar for each. Here all of them are queued before the connection has its
//! turn, and leave in one write.
//!
//! It knows neither messages nor deadlines, and sends nothing again but what did not leave:
//! a call that found the connection ended before any of it was sent.
//!
//! Bounds: [`CALLS_MAX`] calls at once, for those that are more wait; heads of
//! [`HEAD_MAX_BYTES`]; what the sidecar may send before it is read.

mod outgoing;

use std::{
    fmt, io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use h2::{
    Ping, PingPong, RecvStream, SendStream,
    client::{Builder, Connection, ResponseFuture, SendRequest},
};
use http_body::Frame;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tonic::{
    Status,
    body::Body,
    codegen::{Bytes, Service, http},
};

use super::endpoint::{Connector, Wire};
use crate::wire;
use outgoing::{Outgoing, Pump};

/// How long connecting may take, with the TLS handshake.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_ANSWERED_WITHIN: Duration = Duration::from_secs(10);

/// Calls at once; streams count as one each.
const CALLS_MAX: usize = 8192;

/// Most bytes of headers that are read for one answer.
const HEAD_MAX_BYTES: u32 = 16 * 1024;

/// What the sidecar may send of one answer, and of all together, before it is read. A unary
/// answer is 64 KiB at most.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 2 * 1024 * 1024;

const USER_AGENT: http::HeaderValue =
    http::HeaderValue::from_static(concat!("keyward-client/", env!("CARGO_PKG_VERSION")));

const GRPC: http::HeaderValue = http::HeaderValue::from_static("application/grpc");
const TRAILERS: http::HeaderValue = http::HeaderValue::from_static("trailers");
const FOREGROUND: http::HeaderValue = http::HeaderValue::from_static(wire::FOREGROUND);

/// Why a call did not come to an answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// There is no connection.
    Connect(io::Error),
    /// The sidecar did not read the call: it had said goodbye, or refused it.
    Unread(h2::Error),
    /// The connection, or the call's part of it, ended.
    Broken(h2::Error),
}

impl Failure {
    /// What became of a call that had begun.
    pub(super) fn of(error: h2::Error) -> Self {
        // RFC 9113, sections 6.8 and 8.7: calls behind the last one that a GOAWAY names, and
        // those that were refused, were not processed.
        let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        match error.is_remote() && (error.is_go_away() || refused) {
            true => Self::Unread(error),
            false => Self::Broken(error),
        }
    }
}

/// A stream that ended in order before all was answered: what is on its way comes by another.
pub(super) fn closed() -> Status {
    Failure::Unread(h2::Reason::NO_ERROR.into()).into()
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let mut status = Self::unavailable(failure.to_string());
        status.set_source(Arc::new(failure));
        status
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect(_) => "cannot connect",
            Self::Unread(_) => "the call was not read",
            Self::Broken(_) => "the connection ended",
        })
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Connect(error) => Some(error),
            Self::Unread(error) | Self::Broken(error) => Some(error),
        }
    }
}

/// A way to one sidecar. Clones share the connection.
#[derive(Clone)]
pub(super) struct Transport(Arc<Shared>);

struct Shared {
    connector: Connector,
    live: Mutex<Option<SendRequest<Bytes>>>,
    /// Held while connecting, so that one does it for all.
    connecting: tokio::sync::Mutex<()>,
    places: Arc<Semaphore>,
}

impl Transport {
    /// Connects when the first call is made.
    pub(super) fn new(connector: Connector) -> Self {
        Self(Arc::new(Shared {
            connector,
            live: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            places: Arc::new(Semaphore::new(CALLS_MAX)),
        }))
    }
}

impl Transport {
    /// Opens a call of the method at `path` for who sends and reads its messages by himself.
    /// It has no deadline, and somebody waits for each of its messages.
    pub(super) async fn open_stream(
        &self,
        path: &'static str,
    ) -> Result<(SendStream<Bytes>, ResponseFuture), Failure> {
        let mut request = http::Request::post(path).body(()).expect("a path");
        let headers = request.headers_mut();
        headers.insert(http::header::CONTENT_TYPE, GRPC);
        headers.insert(http::header::TE, TRAILERS);
        headers.insert(wire::CLASS, FOREGROUND);
        let head = self.0.head(request.into_parts().0);
        let (answer, stream) = self.0.begin(&head).await?;
        Ok((stream, answer))
    }
}

impl Service<http::Request<Body>> for Transport {
    type Response = http::Response<Incoming>;
    type Error = Failure;
    type Future = BoxFuture<'static, Result<Self::Response, Failure>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        // Whoever calls waits in the call, which has a deadline.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        async move { shared.send(request).await }.boxed()
    }
}

impl Shared {
    async fn send(
        &self,
        request: http::Request<Body>,
    ) -> Result<http::Response<Incoming>, Failure> {
        let place = Arc::clone(&self.places).acquire_owned().await.expect("it is never closed");
        let (head, body) = request.into_parts();
        let mut body = Outgoing::begin(body).await;
        let head = self.head(head);
        let (response, mut stream) = self.begin(&head).await?;
        if let Some(first) = body.first.take() {
            stream.send_data(first, body.whole).map_err(Failure::of)?;
        }
        let pump = (!body.whole).then(|| Pump::start(stream, body.rest));
        let (head, receive) = response.await.map_err(Failure::of)?.into_parts();
        let incoming = Incoming { receive, told: false, _pump: pump, _place: place };
        Ok(http::Response::from_parts(head, incoming))
    }

    /// Queues the head of a call.
    async fn begin(
        &self,
        head: &http::Request<()>,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), Failure> {
        loop {
            let (mut sender, fresh) = match self.usable() {
                Some(sender) => (sender, false),
                None => self.sender().boxed().await?,
            };
            match sender.send_request(head.clone(), false) {
                Ok(sent) => return Ok(sent),
                // Nothing of it left.
                Err(_) if !fresh => self.forget(),
                Err(error) => return Err(Failure::Unread(error)),
            }
        }
    }

    fn head(&self, head: http::request::Parts) -> http::Request<()> {
        let mut uri = self.connector.origin().clone().into_parts();
        uri.path_and_query = head.uri.path_and_query().cloned();
        let mut request = http::Request::new(());
        *request.method_mut() = head.method;
        *request.version_mut() = http::Version::HTTP_2;
        *request.uri_mut() = http::Uri::from_parts(uri).expect("an origin and a path");
        *request.headers_mut() = head.headers;
        request.headers_mut().insert(http::header::USER_AGENT, USER_AGENT);
        request
    }

    /// Another connection, for those who found that the last one takes no call; and whether it
    /// was opened just now.
    async fn sender(&self) -> Result<(SendRequest<Bytes>, bool), Failure> {
        let _alone = self.connecting.lock().await;
        if let Some(sender) = self.usable() {
            return Ok((sender, false));
        }
        let late = || io::Error::new(io::ErrorKind::TimedOut, "connecting took too long");
        let opened = timeout(CONNECT_WITHIN, self.open()).await;
        let sender = opened.unwrap_or_else(|_| Err(Failure::Connect(late())))?;
        *self.live() = Some(sender.clone());
        Ok((sender, true))
    }

    fn usable(&self) -> Option<SendRequest<Bytes>> {
        let sender = self.live().clone()?;
        // Ready or failed: a clone has nothing of its own to wait for.
        sender.ready().now_or_never()?.ok()
    }

    fn forget(&self) {
        *self.live() = None;
    }

    fn live(&self) -> std::sync::MutexGuard<'_, Option<SendRequest<Bytes>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn open(&self) -> Result<SendRequest<Bytes>, Failure> {
        match self.connector.connect().await.map_err(Failure::Connect)? {
            Wire::Unix(stream) => shake_hands(stream).await,
            Wire::Tls(stream) => shake_hands(*stream).await,
        }
    }
}

async fn shake_hands<T>(stream: T) -> Result<SendRequest<Bytes>, Failure>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let shaking = Builder::new()
        .enable_push(false)
        .max_header_list_size(HEAD_MAX_BYTES)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .handshake(stream);
    let (sender, mut connection) = shaking.await.map_err(Failure::Broken)?;
    let pings = connection.ping_pong().expect("nobody took it");
    tokio::spawn(drive(connection, pings));
    Ok(sender)
}

/// Does the connection's work until it has ended, or does not answer.
async fn drive<T: AsyncRead + AsyncWrite + Unpin>(
    connection: Connection<T, Bytes>,
    mut pings: PingPong,
) {
    let silent = async {
        loop {
            sleep(PING_EVERY).await;
            let answered = timeout(PING_ANSWERED_WITHIN, pings.ping(Ping::opaque())).await;
            if !matches!(answered, Ok(Ok(_))) {
                return;
            }
        }
    };
    tokio::select! {
        _ended = connection => {}
        () = silent => {}
    }
}

/// An answer, as it comes. Dropped, it tells the sidecar that nobody wants the rest.
pub(super) struct Incoming {
    receive: RecvStream,
    /// Whether all data were read.
    told: bool,
    _pump: Option<Pump>,
    _place: OwnedSemaphorePermit,
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        if !self.told {
            match ready!(self.receive.poll_data(cx)) {
                Some(Ok(data)) => {
                    let released = self.receive.flow_control().release_capacity(data.len());
                    let frame = released.map(|()| Frame::data(data)).map_err(Failure::Broken);
                    return Poll::Ready(Some(frame));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(Failure::Broken(error)))),
                None => self.told = true,
            }
        }
        let trailers = ready!(self.receive.poll_trailers(cx)).map_err(Failure::Broken).transpose();
        Poll::Ready(trailers.map(|trailers| trailers.map(Frame::trailers)))
    }

    fn is_end_stream(&self) -> bool {
        self.receive.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http_body_util::{BodyExt, Full};
    use tokio::io::{DuplexStream, ReadBuf, duplex};

    use super::*;
    use crate::client::Endpoint;

    /// A connection that counts what is written at once.
    struct Counted(DuplexStream, Arc<AtomicUsize>);

    impl AsyncRead for Counted {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            into: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, into)
        }
    }

    impl AsyncWrite for Counted {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            from: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.1.fetch_add(1, Ordering::Relaxed);
            Pin::new(&mut self.0).poll_write(cx, from)
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            from: &[io::IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            self.1.fetch_add(1, Ordering::Relaxed);
            let whole: Vec<u8> = from.iter().flat_map(|part| part.iter().copied()).collect();
            Pin::new(&mut self.0).poll_write(cx, &whole)
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    /// Answers each call with what it said.
    async fn echo(stream: DuplexStream) {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(call) = connection.accept().await {
            let (request, mut respond) = call.unwrap();
            tokio::spawn(async move {
                let mut body = request.into_body();
                let mut said = Vec::new();
                while let Some(data) = body.data().await {
                    let data = data.unwrap();
                    body.flow_control().release_capacity(data.len()).unwrap();
                    said.extend_from_slice(&data);
                }
                let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
                stream.send_data(said.into(), true).unwrap();
            });
        }
    }

    async fn connected() -> (Transport, Arc<AtomicUsize>) {
        let (ours, theirs) = duplex(1024 * 1024);
        tokio::spawn(echo(theirs));
        let writes = Arc::new(AtomicUsize::new(0));
        let sender = shake_hands(Counted(ours, Arc::clone(&writes))).await.unwrap();
        let transport = Transport::new(Endpoint::unix("/nonexistent").connector().unwrap());
        *transport.0.live() = Some(sender);
        (transport, writes)
    }

    async fn call(transport: &Transport, body: Body) -> Vec<u8> {
        let request = http::Request::post("/service/Method").body(body).unwrap();
        let answer = transport.clone().call(request).await.unwrap();
        answer.into_body().collect().await.unwrap().to_bytes().to_vec()
    }

    #[tokio::test]
    async fn a_call_leaves_in_one_write() {
        let (transport, writes) = connected().await;
        let body = || Body::new(Full::new(Bytes::from_static(&[7; 600])));
        // The first ones come with the settings of the connection.
        for _ in 0..3 {
            assert_eq!(call(&transport, body()).await, [7; 600]);
        }
        for _ in 0..20 {
            let before = writes.load(Ordering::Relaxed);
            assert_eq!(call(&transport, body()).await, [7; 600]);
            assert_eq!(writes.load(Ordering::Relaxed) - before, 1);
        }
    }

    #[tokio::test]
    async fn a_body_of_many_parts_arrives_whole_and_in_order() {
        let (transport, _) = connected().await;
        let part = |n: u8| async move {
            tokio::task::yield_now().await;
            Ok::<_, tonic::Status>(Frame::data(Bytes::from(vec![n; 10_000])))
        };
        let parts = futures_util::stream::StreamExt::then(futures_util::stream::iter(0..200), part);
        let body = Body::new(http_body_util::StreamBody::new(parts));
        let expected: Vec<u8> = (0..200).flat_map(|n| [n; 10_000]).collect();
        assert_eq!(call(&transport, body).await, expected);
        assert_eq!(call(&transport, Body::empty()).await, [0; 0]);
    }

    #[tokio::test]
    async fn a_call_that_finds_its_connection_ended_asks_for_another() {
        let (transport, _) = connected().await;
        let (ours, theirs) = duplex(1024);
        let sender = shake_hands(ours).await.unwrap();
        *transport.0.live() = Some(sender);
        drop(theirs);
        tokio::task::yield_now().await;
        let request = http::Request::post("/service/Method").body(Body::empty()).unwrap();
        let failed = transport.clone().call(request).await.map(drop).unwrap_err();
        assert!(matches!(failed, Failure::Connect(_)), "{failed:?}");
    }

    #[tokio::test]
    async fn who_goes_away_gives_back_the_place() {
        let (transport, _) = connected().await;
        let parts = futures_util::stream::pending::<Result<Frame<Bytes>, tonic::Status>>();
        let body = Body::new(http_body_util::StreamBody::new(parts));
        let request = http::Request::post("/service/Method").body(body).unwrap();
        let waiting = timeout(Duration::from_millis(50), transport.clone().call(request)).await;
        assert!(waiting.is_err(), "nothing ends it");
        assert_eq!(transport.0.places.available_permits(), CALLS_MAX);
    }
}
