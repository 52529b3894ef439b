//! Servers that do not mean well, or do not know better, and our client: it errs in time, and
//! takes in no more than it has room for.

use std::{
    collections::BTreeMap,
    future::Future,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream};
use h2::server::SendResponse;
use keyward::{
    client::{Client, Delivery, Endpoint, Error, Item, WrappedDek},
    wire,
};
use prost::Message;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic::codegen::{Bytes, http};

use super::support::sidecar::dek;

/// The deadline of calls, and how much later than that they may err on a busy machine.
const DEADLINE: Duration = Duration::from_millis(700);
const SLACK: Duration = Duration::from_millis(1500);
/// What a client may take in of a server that sends without end: its windows, its buffers and
/// the kernel's, of each connection that it tries.
const TAKES_AT_MOST: u64 = 16 * 1024 * 1024;

/// Calls that fail wait longer and longer before they come again.
const CONNECTIONS_MAX: u64 = 300;

/// A server that does the same to everybody who connects.
struct Server {
    _dir: TempDir,
    path: PathBuf,
    connections: Arc<AtomicU64>,
    /// Bytes that were written to clients.
    written: Arc<AtomicU64>,
    _serving: JoinSet<()>,
}

impl Server {
    fn start<F>(serve: impl Fn(UnixStream, Arc<AtomicU64>) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("hostile.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (connections, written) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut serving = JoinSet::new();
        let (count, bytes) = (Arc::clone(&connections), Arc::clone(&written));
        serving.spawn(async move {
            let mut clients = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                clients.spawn(serve(stream, Arc::clone(&bytes)));
            }
        });
        Self { _dir: dir, path, connections, written, _serving: serving }
    }

    /// One that says these bytes once, and then these for ever.
    fn saying(once: Vec<u8>, for_ever: Vec<u8>) -> Self {
        Self::start(move |mut stream, written| {
            let (once, for_ever) = (once.clone(), for_ever.clone());
            async move {
                let (mut read, mut write) = stream.split();
                let says = async {
                    write.write_all(&settings(&[])).await?;
                    // By then the client has asked something.
                    sleep(Duration::from_millis(50)).await;
                    write.write_all(&once).await?;
                    while !for_ever.is_empty() {
                        write.write_all(&for_ever).await?;
                        written.fetch_add(for_ever.len() as u64, Ordering::Relaxed);
                    }
                    std::future::pending::<std::io::Result<()>>().await
                };
                let mut heard = [0; 4096];
                let hears = async { while read.read(&mut heard).await.is_ok_and(|n| n > 0) {} };
                tokio::select! {
                    _cut = says => {}
                    () = hears => {}
                }
            }
        })
    }

    /// One that speaks HTTP/2 and answers each call so.
    fn answering<F>(
        answer: impl Fn(http::Request<h2::RecvStream>, SendResponse<Bytes>) -> F
        + Clone
        + Send
        + Sync
        + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::start(move |stream, _| {
            let answer = answer.clone();
            async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                let mut calls = JoinSet::new();
                while let Some(Ok((request, respond))) = connection.accept().await {
                    calls.spawn(answer(request, respond));
                }
            }
        })
    }

    fn client(&self) -> Client {
        Client::new(&Endpoint::unix(&self.path)).unwrap().with_deadline(DEADLINE)
    }

    /// Has every kind of call made at once; each must err in time. The reasons that they gave.
    async fn asked(&self) -> BTreeMap<&'static str, String> {
        let reasons = self.asked_by_all().await;
        let written = self.written.load(Ordering::Relaxed);
        assert!(written <= TAKES_AT_MOST, "the clients took {written} bytes in");
        reasons
    }

    async fn asked_by_all(&self) -> BTreeMap<&'static str, String> {
        let sealed = self.client();
        let plain = self.client().with_delivery(Delivery::Plain);
        let apart = plain.clone().with_calls_apart();
        let wrapped = WrappedDek { ciphertext: vec![7; 256], ..Default::default() };
        let mut calls = JoinSet::new();
        let mut call = |name, call: BoxFuture<'static, Result<(), String>>| {
            calls.spawn(async move {
                let began = Instant::now();
                (name, call.await, began.elapsed())
            });
        };
        for (name, client) in [("sealed", &sealed), ("shared", &plain), ("apart", &apart)] {
            let (client, wrapped) = (client.clone(), wrapped.clone());
            call(name, async move { outcome(client.unwrap(&wrapped, b"").await) }.boxed());
        }
        let client = sealed.clone();
        call("wrap", async move { outcome(client.wrap("orders", &dek(), b"").await) }.boxed());
        let client = plain.clone();
        call("generate", async move { outcome(client.generate("orders", 32, b"").await) }.boxed());
        let client = apart.clone();
        call("list", async move { outcome(client.list_keks().await) }.boxed());
        let client = apart.clone();
        call("watch", async move { watch(client).await }.boxed());
        for (name, client) in [("stream", plain), ("sealed stream", sealed)] {
            let wrapped = wrapped.clone();
            call(name, async move { unwrap_stream(client, wrapped).await }.boxed());
        }
        let mut reasons = BTreeMap::new();
        while let Some(called) = calls.join_next().await {
            let (name, answer, took) = called.expect("no call panics");
            let reason = answer.expect_err(name);
            assert!(took <= DEADLINE + SLACK, "{name} took {took:?}: {reason}");
            reasons.insert(name, reason);
        }
        let connections = self.connections.load(Ordering::Relaxed);
        assert!(connections <= CONNECTIONS_MAX, "the clients came {connections} times");
        reasons
    }
}

fn outcome<T>(answer: Result<T, Error>) -> Result<(), String> {
    answer.map(drop).map_err(|error| error.reason().to_owned())
}

/// A watch has no deadline itself: nothing may happen for long.
async fn watch(client: Client) -> Result<(), String> {
    let mut events = client.watch_keks(&[]).await.map_err(|error| error.reason().to_owned())?;
    match timeout(DEADLINE, events.next()).await {
        Ok(Some(event)) => outcome(event),
        Ok(None) => Err("ENDED".to_owned()),
        Err(_elapsed) => Err("NOTHING".to_owned()),
    }
}

async fn unwrap_stream(client: Client, wrapped: WrappedDek) -> Result<(), String> {
    let item = |id| Item { id, wrapped: wrapped.clone(), context: Vec::new() };
    let items: Vec<_> = (0..100).map(item).collect();
    let answers = client.unwrap_stream(stream::iter(items), DEADLINE).await;
    let mut answers = answers.map_err(|error| error.reason().to_owned())?;
    while let Some(answer) = answers.next().await {
        outcome(answer.map(|answer| answer.outcome).and_then(|outcome| outcome))?;
    }
    Err("ENDED".to_owned())
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let value = |(id, value): &(u16, u32)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    frame(4, 0, 0, &values.iter().flat_map(value).collect::<Vec<u8>>())
}

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What a client hears of a connection that is not HTTP/2, or is cut.
const UNREACHABLE: &str = Error::SIDECAR_UNREACHABLE;

#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_is_waited_for_until_the_deadline() {
    let server = Server::start(|stream, _| async move {
        sleep(Duration::from_secs(60)).await;
        drop(stream);
    });
    let reasons = server.asked().await;
    assert!(reasons.values().all(|reason| reason == "DEADLINE_EXCEEDED"), "{reasons:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_hangs_up_at_once_is_not_called_without_a_pause() {
    let server = Server::start(|stream, _| async move { drop(stream) });
    let reasons = server.asked().await;
    assert!(reasons.values().all(|reason| reason == UNREACHABLE), "{reasons:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_http_2_is_an_error_at_once() {
    let texts: [&[u8]; 3] = [b"HTTP/1.1 400 Bad Request\r\n\r\n", &[0xff; 4096], &[0; 4096]];
    for text in texts {
        let server = Server::saying(text.to_vec(), Vec::new());
        let reasons = server.asked().await;
        let errs = |reason: &String| [UNREACHABLE, "DEADLINE_EXCEEDED"].contains(&reason.as_str());
        assert!(reasons.values().all(errs), "{reasons:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_frames_end_the_connection() {
    let frames = [
        // A window that overflows, of the connection and of a call.
        frame(8, 0, 0, &0x7fff_ffff_u32.to_be_bytes()),
        frame(8, 0, 1, &0x7fff_ffff_u32.to_be_bytes()),
        // No window at all, and more than there can be; frames larger than there are.
        settings(&[(4, 0)]),
        settings(&[(4, u32::MAX)]),
        settings(&[(5, 1)]),
        // A header table of four gigabytes, and no calls.
        settings(&[(1, u32::MAX), (3, 0)]),
        // Pushed at whoever wants nothing pushed.
        frame(5, END_HEADERS, 1, &[0, 0, 0, 2, 0x88]),
        // To calls that nobody made: an answer, data, an end.
        frame(1, END_HEADERS | END_STREAM, 4001, &[0x88]),
        frame(0, END_STREAM, 4001, &[1; 100]),
        frame(3, 0, 4001, &[0, 0, 0, 1]),
        // Headers that are none.
        frame(1, END_HEADERS, 1, &[0xff; 200]),
        // What goes on where nothing began.
        frame(9, END_HEADERS, 1, &[0x88]),
        // Goodbye, to calls that were never made.
        frame(7, 0, 0, &[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]),
        frame(7, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 11]),
        // Too short, too long, unknown.
        frame(6, 0, 0, &[0; 7]),
        frame(0, 0, 1, &[0; 17_000]),
        frame(200, 0xff, 1, &[7; 1000]),
    ];
    for once in frames {
        let server = Server::saying(once.clone(), Vec::new());
        let reasons = server.asked().await;
        assert_eq!(reasons.len(), 9, "{once:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_without_end_are_not_read_without_end() {
    // A literal header that is not indexed, again and again.
    let header = [&[0, 3][..], b"x-y", &[100], &[b'z'; 100]].concat();
    let many = header.repeat(150);
    let server = Server::saying(frame(1, 0, 1, &many), frame(9, 0, 1, &many));
    let reasons = server.asked().await;
    assert_eq!(reasons.len(), 9);
    assert!(server.written.load(Ordering::Relaxed) < 4 * 1024 * 1024);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_no_answer_may_be_said_for_ever_and_calls_err_all_the_same() {
    // Frames that say nothing cost the client a read each, and no memory: the server may go on
    // as long as it likes, and what it has written is not counted.
    for for_ever in
        [frame(6, 0, 0, &[7; 8]), frame(200, 0, 0, &[7; 64]), settings(&[]), frame(0, 0, 1, &[])]
    {
        let server = Server::saying(Vec::new(), for_ever.repeat(100));
        let before = resident_bytes();
        let asked = server.asked_by_all().await;
        let grown = resident_bytes().saturating_sub(before);
        assert_eq!(asked.len(), 9);
        assert!(grown < TAKES_AT_MOST, "{grown} bytes");
    }
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
}

/// A gRPC message.
fn message(message: &impl Message) -> Bytes {
    let encoded = message.encode_to_vec();
    [&[0][..], &(encoded.len() as u32).to_be_bytes(), &encoded].concat().into()
}

fn grpc() -> http::Response<()> {
    http::Response::builder().header("content-type", "application/grpc").body(()).unwrap()
}

fn trailers(status: &str) -> http::HeaderMap {
    http::HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        http::HeaderValue::from_str(status).unwrap(),
    )])
}

/// Answers a call with these bytes and this status, whatever it was.
async fn answers(mut respond: SendResponse<Bytes>, bytes: Bytes, status: Option<&str>) {
    let Ok(mut body) = respond.send_response(grpc(), false) else { return };
    let _the_client_left = body.send_data(bytes, status.is_none());
    if let Some(status) = status {
        let _the_client_left = body.send_trailers(trailers(status));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_calls_and_answers_none_is_waited_for_until_the_deadline() {
    let server = Server::answering(|_request, respond| async move {
        sleep(Duration::from_secs(60)).await;
        drop(respond);
    });
    let reasons = server.asked().await;
    assert!(reasons.values().all(|reason| reason == "DEADLINE_EXCEEDED"), "{reasons:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_refuses_every_call_is_asked_again_with_pauses() {
    let calls = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&calls);
    let server = Server::answering(move |_request, mut respond| {
        count.fetch_add(1, Ordering::Relaxed);
        async move { respond.send_reset(h2::Reason::REFUSED_STREAM) }
    });
    server.asked().await;
    let calls = calls.load(Ordering::Relaxed);
    assert!((9..=200).contains(&calls), "nine calls became {calls}");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_none_are_invalid() {
    let nonsense: [(Bytes, Option<&'static str>); 8] = [
        (Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff]), None),
        (Bytes::from_static(&[0, 0, 0, 0, 5, 1, 2]), Some("0")),
        (Bytes::from_static(&[1, 0, 0, 0, 1, 7]), Some("0")),
        (Bytes::from_static(&[0, 0, 0, 0, 3, 0xff, 0xff, 0xff]), Some("0")),
        (Bytes::new(), Some("0")),
        (Bytes::new(), Some("no number")),
        (Bytes::new(), Some("4294967295")),
        (Bytes::from(vec![0xee; 300_000]), Some("0")),
    ];
    for (bytes, status) in nonsense {
        let (sent, told) = (bytes.clone(), status);
        let server =
            Server::answering(move |_request, respond| answers(respond, sent.clone(), told));
        let reasons = server.asked().await;
        assert!(reasons.values().all(|reason| reason != "OK"), "{reasons:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn data_without_end_is_not_read_without_end() {
    let written = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&written);
    let server = Server::answering(move |_request, mut respond| {
        let count = Arc::clone(&count);
        async move {
            let Ok(mut body) = respond.send_response(grpc(), false) else { return };
            // One message of four gigabytes.
            let mut part = Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff]);
            loop {
                body.reserve_capacity(part.len());
                match std::future::poll_fn(|cx| body.poll_capacity(cx)).await {
                    Some(Ok(room)) if room >= part.len() => {}
                    Some(Ok(_)) => continue,
                    _ => return,
                }
                count.fetch_add(part.len() as u64, Ordering::Relaxed);
                if body.send_data(part, false).is_err() {
                    return;
                }
                part = Bytes::from_static(&[7; 16 * 1024]);
            }
        }
    });
    server.asked().await;
    let written = written.load(Ordering::Relaxed);
    assert!(written <= TAKES_AT_MOST, "the clients took {written} bytes in");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_what_was_never_asked_is_nobodys() {
    let server = Server::answering(|request, respond| async move {
        let outcome = Some(wire::unwrap_stream_response::Outcome::Dek(vec![7; 32]));
        let mut answer = wire::UnwrapStreamResponse::default();
        (answer.id, answer.outcome) = (1_000_000, outcome);
        let stream = request.uri().path().ends_with("Stream");
        let bytes = if stream { message(&answer) } else { Bytes::new() };
        answers(respond, bytes, Some("0")).await;
    });
    let reasons = server.asked().await;
    for way in ["shared", "stream"] {
        assert_eq!(reasons[way], Error::ANSWER_INVALID, "{reasons:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_nobody_agreed_on_seals_nothing() {
    let server = Server::answering(|_request, respond| async move {
        let answer = wire::OpenSessionResponse {
            session: vec![1; 16],
            public_key: vec![2; 32],
            sealed_keys: vec![3; 80],
            ..Default::default()
        };
        answers(respond, message(&answer), Some("0")).await;
    });
    let reasons = server.asked().await;
    for way in ["sealed", "wrap", "sealed stream"] {
        assert_eq!(reasons[way], Error::ANSWER_INVALID, "{reasons:?}");
    }
}
