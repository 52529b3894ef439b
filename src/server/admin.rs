//! Metrics and health over plain HTTP/1.1, on a listener of its own, for those who
//! watch the sidecar and cannot (or should not) call it.
//!
//! It knows no caller and does nothing but tell: names of KEKs and numbers, no secret; and,
//! if it is set to, take hints that a key in a vault is worth a look (`key_events.rs`).
//!
//! Invariants: what a peer can take is bounded: connections, time, bytes, and one
//! request for each connection. (A scraper comes every few seconds; there is nothing to
//! gain from keeping its connection.) Silent peers keep nobody out: beyond the limit the
//! oldest connection is closed. It shares no bound with callers, so that nobody here can
//! take a place from one there; it shares their threads, so the page of metrics, which takes
//! the longer the more KEKs there are, is made at most once a second. It answers until the
//! drain has ended.

use std::{
    convert::Infallible,
    future::poll_fn,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use http::{
    Method, Request, Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
};
use hyper::{
    body::{Body as _, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{
    SetupError,
    key_events::{self, Notice},
    places::{Place, Places},
    tcp,
};
use crate::{
    engine::Engine,
    observe::{METRICS_CONTENT_TYPE, Metrics, Throttle},
};

/// Connections at once. Beyond it the oldest is closed for a new one.
pub(super) const CONNECTIONS_MAX: usize = 64;
/// How long a peer may take to send its request.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);
/// How long a connection may take in all, with a peer that reads slowly.
const CONNECTION_WITHIN: Duration = Duration::from_secs(30);
/// The request's line and headers, in bytes.
const HEAD_MAX_BYTES: usize = 16 * 1024;
/// Headers of a request.
const HEADERS_MAX: usize = 64;
/// How old the page of metrics may be.
const METRICS_FRESH: Duration = Duration::from_secs(1);
/// After an error of `accept`, such as no file descriptors left.
const PAUSE: Duration = Duration::from_millis(200);

/// Where events of key vaults go.
const EVENTS: &str = "/events";

const TEXT: &str = "text/plain; charset=utf-8";

/// What the pages tell.
#[derive(Clone, Debug)]
pub(super) struct Pages {
    metrics: Arc<Metrics>,
    ready: watch::Receiver<bool>,
    draining: watch::Receiver<bool>,
    /// The page of metrics that was made last, and when.
    made: Arc<Mutex<Option<(Instant, String)>>>,
    /// Who looks at keys that events name, if events are taken.
    doorbell: Option<Arc<Engine>>,
}

/// A bound listener.
#[derive(Debug)]
pub(super) struct AdminListener {
    listener: TcpListener,
    address: SocketAddr,
}

impl AdminListener {
    /// Binds. Must be called inside a Tokio runtime.
    pub(super) fn bind(address: SocketAddr) -> Result<Self, SetupError> {
        let (listener, address) = tcp::listen(address, "server.admin")?;
        if !address.ip().is_loopback() {
            warn!(%address, "metrics are served beyond this host, to anybody: they name the KEKs");
        }
        Ok(Self { listener, address })
    }

    /// Where it listens, with the port that the kernel chose if the settings say 0.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until it is dropped, which cuts every connection.
    pub(super) async fn run(self, pages: Pages) {
        let (full, broken) = (Throttle::default(), Throttle::default());
        let places = Places::new(CONNECTIONS_MAX);
        let mut connections = JoinSet::new();
        loop {
            let accepted = self.listener.accept().await;
            // What is left of those that have ended.
            while connections.try_join_next().is_some() {}
            match accepted {
                Ok((stream, _peer)) => {
                    let (place, evicts) = places.take();
                    if evicts && let Some(skipped) = full.allow(Instant::now()) {
                        let limit = CONNECTIONS_MAX;
                        warn!(limit, skipped, "admin: too many connections: closing the oldest");
                    }
                    connections.spawn(serve_while(place, stream, pages.clone()));
                }
                Err(error) => {
                    if let Some(skipped) = broken.allow(Instant::now()) {
                        warn!(skipped, "admin: cannot accept a connection: {error}");
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Answers one request, unless the place goes to another.
async fn serve_while(mut place: Place, stream: TcpStream, pages: Pages) {
    tokio::select! {
        () = place.lost() => {}
        () = serve(stream, pages) => {}
    }
}

/// Answers one request.
async fn serve(io: impl AsyncRead + AsyncWrite + Unpin + Send, pages: Pages) {
    let answer = service_fn(|request: Request<Incoming>| {
        let pages = &pages;
        async move { Ok::<_, Infallible>(pages.answer_to(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_WITHIN)
        .max_buf_size(HEAD_MAX_BYTES)
        .max_headers(HEADERS_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(io), answer);
    match timeout(CONNECTION_WITHIN, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!("an admin connection broke: {error}"),
        Err(_elapsed) => debug!("an admin connection took too long"),
    }
}

/// Has the keys looked at that an event names.
async fn ring(doorbell: &Engine, body: Incoming) -> Response<String> {
    let Some(body) = whole(body).await else {
        return text(StatusCode::PAYLOAD_TOO_LARGE, "an event has at most 64 KiB\n");
    };
    match key_events::read(&body) {
        None => text(StatusCode::BAD_REQUEST, "that is no event of Azure Event Grid\n"),
        Some(Notice::Validation(answer)) => of_type("application/json", StatusCode::OK, answer),
        Some(Notice::Keys(keys)) => {
            let looked_at: usize = keys.iter().map(|key| doorbell.suspect(key)).sum();
            info!(keys = keys.len(), looked_at, "events of a key vault");
            text(StatusCode::OK, "ok\n")
        }
    }
}

/// A body that is not too long, within the time that its connection has.
async fn whole(mut body: Incoming) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let Ok(data) = frame.ok()?.into_data() else { continue };
        if bytes.len() + data.len() > key_events::BODY_MAX {
            return None;
        }
        bytes.extend_from_slice(&data);
    }
    Some(bytes)
}

fn welcome(request: &Request<Incoming>) -> Response<String> {
    let mut answer = text(StatusCode::OK, "");
    if let Some(origin) = request.headers().get("webhook-request-origin") {
        answer.headers_mut().insert("webhook-allowed-origin", origin.clone());
    }
    answer
}

impl Pages {
    pub(super) fn new(
        metrics: Arc<Metrics>,
        ready: watch::Receiver<bool>,
        draining: watch::Receiver<bool>,
        doorbell: Option<Arc<Engine>>,
    ) -> Self {
        Self { metrics, ready, draining, made: Arc::default(), doorbell }
    }

    /// The answer to a request, whose body is read only if it is an event.
    async fn answer_to(&self, request: Request<Incoming>) -> Response<String> {
        let doorbell = self.doorbell.as_ref().filter(|_| request.uri().path() == EVENTS);
        match (doorbell, request.method()) {
            (Some(doorbell), &Method::POST) => ring(doorbell, request.into_body()).await,
            // How CloudEvents asks whether events are wanted.
            (Some(_), &Method::OPTIONS) => welcome(&request),
            _ => self.answer(request.method(), request.uri().path()),
        }
    }

    fn answer(&self, method: &Method, path: &str) -> Response<String> {
        let page: fn(&Self) -> Response<String> = match path {
            "/metrics" => Self::metrics,
            "/healthz" => |_| text(StatusCode::OK, "ok\n"),
            "/readyz" => Self::readiness,
            _ => return text(StatusCode::NOT_FOUND, "not found: /metrics, /healthz, /readyz\n"),
        };
        if method != Method::GET {
            let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n");
            refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
            return refusal;
        }
        page(self)
    }

    fn metrics(&self) -> Response<String> {
        of_type(METRICS_CONTENT_TYPE, StatusCode::OK, self.page_of_metrics(Instant::now()))
    }

    /// The page, made anew if the last one is too old by `now`.
    fn page_of_metrics(&self, now: Instant) -> String {
        // A panic leaves the last page, which is whole.
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        match &*made {
            Some((when, page)) if now.saturating_duration_since(*when) < METRICS_FRESH => {
                page.clone()
            }
            _ => {
                let page = self.metrics.render();
                *made = Some((now, page.clone()));
                page
            }
        }
    }

    /// As gRPC health: ready, and not draining.
    fn readiness(&self) -> Response<String> {
        if *self.draining.borrow() {
            text(StatusCode::SERVICE_UNAVAILABLE, "draining\n")
        } else if *self.ready.borrow() {
            text(StatusCode::OK, "ready\n")
        } else {
            text(StatusCode::SERVICE_UNAVAILABLE, "not every KEK is proven yet\n")
        }
    }
}

fn text(status: StatusCode, text: &str) -> Response<String> {
    of_type(TEXT, status, text.to_owned())
}

fn of_type(kind: &'static str, status: StatusCode, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    // What was true a moment ago helps nobody.
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        time::Instant,
    };

    fn pages() -> (watch::Sender<bool>, watch::Sender<bool>, Pages) {
        let (ready, draining) = (watch::Sender::new(false), watch::Sender::new(false));
        let metrics = Arc::new(Metrics::new(["orders"], ["hsm"]));
        let pages = Pages::new(metrics, ready.subscribe(), draining.subscribe(), None);
        (ready, draining, pages)
    }

    fn connect() -> DuplexStream {
        let (near, far) = duplex(256);
        tokio::spawn(serve(near, pages().2));
        far
    }

    async fn read(mut stream: DuplexStream) -> String {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[test]
    fn each_page_has_its_status_and_type() {
        let (_ready, _draining, pages) = pages();
        for (method, path, status, kind) in [
            (Method::GET, "/metrics", 200, METRICS_CONTENT_TYPE),
            (Method::GET, "/healthz", 200, TEXT),
            (Method::GET, "/", 404, TEXT),
            (Method::GET, "/metrics/", 404, TEXT),
            (Method::POST, "/nowhere", 404, TEXT),
            (Method::POST, "/metrics", 405, TEXT),
            (Method::HEAD, "/healthz", 405, TEXT),
        ] {
            let answer = pages.answer(&method, path);
            assert_eq!(answer.status(), status, "{method} {path}");
            assert_eq!(answer.headers()[CONTENT_TYPE], kind, "{method} {path}");
            assert_eq!(answer.headers().contains_key(ALLOW), status == 405, "{method} {path}");
        }
    }

    #[test]
    fn it_is_ready_as_long_as_grpc_health_says_so() {
        let (ready, draining, pages) = pages();
        let told = || {
            let answer = pages.answer(&Method::GET, "/readyz");
            (answer.status().as_u16(), answer.into_body())
        };
        assert_eq!(told(), (503, "not every KEK is proven yet\n".to_owned()));
        ready.send_replace(true);
        assert_eq!(told(), (200, "ready\n".to_owned()));
        draining.send_replace(true);
        assert_eq!(told(), (503, "draining\n".to_owned()));
    }

    #[test]
    fn the_page_of_metrics_is_made_at_most_once_a_second() {
        use crate::observe::Closed;

        let (_ready, _draining, pages) = pages();
        let start = std::time::Instant::now();
        let first = pages.page_of_metrics(start);
        // Something changes that the page tells.
        pages.metrics.connection_closed(Closed::Age);
        let clone = pages.clone();
        assert_eq!(clone.page_of_metrics(start + METRICS_FRESH / 2), first);
        let second = clone.page_of_metrics(start + METRICS_FRESH);
        assert_ne!(second, first);
        assert_eq!(pages.page_of_metrics(start + METRICS_FRESH * 3 / 2), second);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_is_cut() {
        let before = Instant::now();
        assert_eq!(read(connect()).await, "");
        assert_eq!(before.elapsed().as_secs(), REQUEST_WITHIN.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_trickles_is_cut() {
        let mut stream = connect();
        let before = Instant::now();
        stream.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
        while stream.write_all(b"x: y\r\n").await.is_ok() {
            sleep(Duration::from_secs(1)).await;
            assert!(before.elapsed() < REQUEST_WITHIN * 2);
        }
        assert!(before.elapsed() >= REQUEST_WITHIN);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_read_is_cut() {
        let (near, mut far) = duplex(256);
        let before = Instant::now();
        let served = tokio::spawn(serve(near, pages().2));
        far.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").await.unwrap();
        served.await.unwrap();
        assert_eq!(before.elapsed().as_secs(), CONNECTION_WITHIN.as_secs());
    }

    #[tokio::test]
    async fn a_connection_answers_one_request() {
        let mut stream = connect();
        let requests = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2);
        stream.write_all(&requests).await.unwrap();
        let answer = read(stream).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("connection: close\r\n") && answer.ends_with("\r\n\r\nok\n"));
        assert_eq!(answer.matches("HTTP/1.1").count(), 1);
    }

    #[tokio::test]
    async fn a_head_that_is_too_long_is_refused() {
        let mut stream = connect();
        let _may_be_cut_before = stream
            .write_all(format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(HEAD_MAX_BYTES)).as_bytes())
            .await;
        let mut answer = Vec::new();
        let _may_be_reset = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
}
