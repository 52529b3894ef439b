//! The transport against servers that answer as they are told, well and badly.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use azure_core::http::Method;
use rustls::pki_types::PrivateKeyDer;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use super::{super::fault, *};

const HOST: &str = "kv.vault.localhost";

/// What a server does with each request, in turn; the last one for ever.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// Writes these bytes.
    Say(&'static [u8]),
    /// Writes these bytes and ends the connection.
    SayAndEnd(&'static [u8]),
    /// Answers, and ends the connection a moment later, without having said so.
    OkThenEnd,
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Ms-Request-Id: 7\r\n\r\nhello";

struct Server {
    wire: Wire,
    port: u16,
    connections: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<String>>>,
}

/// A server, and a wire that trusts it.
async fn server(acts: &'static [Act]) -> Server {
    let pair = rcgen::generate_simple_self_signed([HOST.to_owned()]).unwrap();
    let certificate = pair.cert.der().clone();
    let key = PrivateKeyDer::try_from(pair.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = Arc::new(AtomicUsize::new(0));
    let requests = Arc::new(Mutex::new(Vec::new()));
    let (counted, noted) = (Arc::clone(&connections), Arc::clone(&requests));
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            let (acceptor, noted) = (acceptor.clone(), Arc::clone(&noted));
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(tcp).await {
                    serve(stream, acts, &noted).await;
                }
            });
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, pair.cert.pem()).unwrap();
    let tls = tls::client_config(Some(&ca)).unwrap();
    let origin = Origin { tls: true, host: HOST.into(), port };
    Server { wire: Wire::new(vec![origin], tls, 4), port, connections, requests }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    acts: &'static [Act],
    noted: &Mutex<Vec<String>>,
) {
    loop {
        let Some(request) = read_request(&mut stream).await else { return };
        let number = {
            let mut noted = noted.lock().unwrap();
            noted.push(request);
            noted.len() - 1
        };
        let (bytes, end) = match acts[number.min(acts.len() - 1)] {
            Act::Say(bytes) => (bytes, false),
            Act::SayAndEnd(bytes) => (bytes, true),
            Act::OkThenEnd => (OK, true),
        };
        stream.write_all(bytes).await.unwrap();
        stream.flush().await.unwrap();
        if end {
            let _gone = stream.shutdown().await;
            return;
        }
    }
}

/// A request with a body of the length that it says.
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut text = Vec::new();
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).await.ok()?;
        text.push(byte[0]);
        if text.ends_with(b"\r\n\r\n") {
            break;
        }
    }
    let head = String::from_utf8(text).unwrap();
    let lower = head.to_ascii_lowercase();
    let length = lower
        .split_once("content-length: ")
        .map_or(0, |(_, rest)| rest.split("\r\n").next().unwrap().parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(head + &String::from_utf8(body).unwrap())
}

impl Server {
    async fn ask_at(&self, url: &str, repeatable: bool) -> Result<(u16, Vec<u8>), Fault> {
        let mut request = Request::new(Url::parse(url).unwrap(), Method::Post);
        request.insert_header("authorization", "Bearer x");
        request.set_body(Bytes::from_static(b"{}"));
        let mut context = Context::new();
        if repeatable {
            context.insert(Repeatable);
        }
        match self.wire.send(&context, &mut request, &[]).await {
            Ok(answer) => {
                let status = answer.status().into();
                let body = answer.into_body().collect().await.unwrap();
                Ok((status, body.to_vec()))
            }
            Err(error) => Err(fault::behind(&error).expect("a fault of ours")),
        }
    }

    async fn ask(&self) -> Result<(u16, Vec<u8>), Fault> {
        self.ask_at(&format!("https://{HOST}:{}/keys/a?api-version=1", self.port), true).await
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn a_connection_is_used_again_and_the_request_is_whole() {
    let server = server(&[Act::Say(OK)]).await;
    for _ in 0..5 {
        assert_eq!(server.ask().await, Ok((200, b"hello".to_vec())));
    }
    assert_eq!(server.connections(), 1);
    let request = server.requests.lock().unwrap()[4].clone();
    assert!(request.starts_with("POST /keys/a?api-version=1 HTTP/1.1\r\n"), "{request}");
    let lower = request.to_ascii_lowercase();
    assert!(lower.contains(&format!("\r\nhost: {HOST}:{}\r\n", server.port)), "{request}");
    assert!(lower.contains("\r\nauthorization: bearer x\r\n"), "{request}");
    assert!(request.ends_with("\r\n\r\n{}"), "{request}");
    server.wire.close();
    server.ask().await.unwrap();
    assert_eq!(server.connections(), 2, "what was idle is closed");
}

#[tokio::test]
async fn a_connection_that_the_other_end_closed_is_not_used() {
    let server = server(&[Act::OkThenEnd]).await;
    for number in 1..4 {
        assert_eq!(server.ask().await, Ok((200, b"hello".to_vec())));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(server.connections(), number);
    }
}

/// A server that reads a request on an idle connection and then ends it, as one that
/// closes it at the same moment.
#[tokio::test]
async fn what_died_before_it_answered_is_sent_once_more_if_that_does_no_harm() {
    static ACTS: [Act; 3] = [Act::Say(OK), Act::SayAndEnd(b""), Act::Say(OK)];
    let server = server(&ACTS).await;
    server.ask().await.unwrap();
    assert_eq!(server.ask().await, Ok((200, b"hello".to_vec())));
    assert_eq!((server.connections(), server.requests.lock().unwrap().len()), (2, 3));
}

#[tokio::test]
async fn what_may_have_left_something_behind_is_not_sent_again() {
    static ACTS: [Act; 3] = [Act::Say(OK), Act::SayAndEnd(b""), Act::Say(OK)];
    let server = server(&ACTS).await;
    server.ask().await.unwrap();
    let url = format!("https://{HOST}:{}/keys/a/create", server.port);
    assert_eq!(server.ask_at(&url, false).await, Err(Fault::Closed));
    assert_eq!(server.requests.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_new_connection_that_dies_is_not_tried_again() {
    let server = server(&[Act::SayAndEnd(b"")]).await;
    assert_eq!(server.ask().await, Err(Fault::Closed));
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn answers_that_are_broken_are_faults_and_their_connections_go() {
    static ENDLESS: [u8; 70_000] = [b'x'; 70_000];
    for (act, expected) in [
        (Act::SayAndEnd(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"), Fault::Closed),
        (Act::SayAndEnd(b"HTTP/1.1 200 OK\r\nContent-Le"), Fault::Closed),
        (Act::Say(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), Fault::NotHttp),
        (Act::Say(b"HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n"), Fault::TooLong),
        (
            Act::Say(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n"),
            Fault::NotHttp,
        ),
        (Act::Say(&ENDLESS), Fault::NotHttp),
    ] {
        let acts: &'static [Act] = Box::leak(Box::new([act]));
        let server = server(acts).await;
        assert_eq!(server.ask().await, Err(expected), "{act:?}");
        assert_eq!(server.ask().await, Err(expected), "{act:?}");
        assert_eq!(server.connections(), 2, "{act:?}");
    }
}

#[tokio::test]
async fn an_answer_without_a_length_is_bounded_too() {
    static HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = format!("{:x}\r\n{}\r\n", 40_000, "x".repeat(40_000));
    let answer = [HEAD, chunk.as_bytes(), chunk.as_bytes(), b"0\r\n\r\n"].concat();
    let acts: &'static [Act] = Box::leak(Box::new([Act::Say(Box::leak(answer.into()))]));
    assert_eq!(server(acts).await.ask().await, Err(Fault::TooLong));
}

#[tokio::test]
async fn nobody_else_is_asked() {
    let server = server(&[Act::Say(OK)]).await;
    for url in [
        format!("http://{HOST}:{}/", server.port),
        format!("https://{HOST}:{}/", server.port.wrapping_add(1)),
        format!("https://other.localhost:{}/", server.port),
        format!("https://{HOST}/"),
    ] {
        assert_eq!(server.ask_at(&url, true).await, Err(Fault::Stranger), "{url}");
    }
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn a_certificate_for_somebody_else_is_refused() {
    let server = server(&[Act::Say(OK)]).await;
    let other = Origin { tls: true, host: "other.localhost".into(), port: server.port };
    let strict = Wire::new(vec![other], Arc::clone(&server.wire.tls), 1);
    let server = Server { wire: strict, ..server };
    let url = format!("https://other.localhost:{}/", server.port);
    assert_eq!(server.ask_at(&url, true).await, Err(Fault::Certificate));
    assert!(server.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn redirects_are_answers_and_refusals_are_told() {
    static MOVED: &[u8] =
        b"HTTP/1.1 302 Found\r\nLocation: https://evil.example/\r\nContent-Length: 2\r\n\r\nno";
    static ACTS: [Act; 1] = [Act::Say(MOVED)];
    let mut server = server(&ACTS).await;
    let told = Arc::new(Mutex::new(Vec::new()));
    let telling = Arc::clone(&told);
    server.wire = server.wire.telling(move |status, body| {
        telling.lock().unwrap().push((status, body.to_vec()));
    });
    assert_eq!(server.ask().await, Ok((302, b"no".to_vec())));
    assert_eq!(*told.lock().unwrap(), [(302, b"no".to_vec())]);
}

/// Without the scrubbing the answer is there still: the test sees where it is.
#[tokio::test]
async fn nothing_of_an_answer_is_left_on_a_connection_that_is_kept() {
    const MARK: &[u8] = b"a-dek-in-plain-text";
    static ANSWER: &[u8] =
        b"HTTP/1.1 200 OK\r\nContent-Length: 38\r\n\r\na-dek-in-plain-texta-dek-in-plain-text";
    static ACTS: [Act; 1] = [Act::Say(ANSWER)];
    let seen = |link: &mut Link| link.leftovers().windows(MARK.len()).any(|some| some == MARK);
    let server = server(&ACTS).await;
    let mut link = Link::open(&server.wire.origins[0], &server.wire.tls).await.unwrap();
    link.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = vec![0; ANSWER.len()];
    link.read_exact(&mut answer).await.unwrap();
    assert!(seen(&mut link), "the test looks in the wrong place");
    assert!(link.scrub());
    assert!(!seen(&mut link));

    assert!(server.ask().await.unwrap().1.starts_with(MARK));
    let mut kept = server.wire.pool.take().await.expect("it is kept");
    assert!(!seen(&mut kept));
}
