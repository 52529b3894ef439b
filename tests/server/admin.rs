//! Metrics and health over HTTP.

use std::{net::SocketAddr, time::Duration};

use keyward::server;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use super::support::sidecar::{Sidecar, UNGRANTED, dek, eventually};

/// After this long the page of metrics tells what happened since it was last asked for.
const PAGE_FRESH: Duration = Duration::from_millis(1100);

/// The whole answer to `head`; empty if the connection was closed without one.
async fn ask(admin: SocketAddr, head: &str) -> String {
    let mut stream = TcpStream::connect(admin).await.unwrap();
    let _may_be_closed = stream.write_all(head.as_bytes()).await;
    let mut answer = Vec::new();
    let read = timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
    let _may_be_reset = read.expect("the connection is closed");
    String::from_utf8(answer).unwrap()
}

async fn get(admin: SocketAddr, path: &str) -> (u16, String) {
    let answer = ask(admin, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a whole answer");
    let status = head.split(' ').nth(1).expect("a status").parse().unwrap();
    (status, body.to_owned())
}

/// The value of a series, by its whole name with labels.
fn value(text: &str, series: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map(|value| value.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_what_callers_did() {
    let sidecar = Sidecar::start().await;
    let client = sidecar.client();
    let wrapped = client.wrap("orders", &dek(), b"").await.unwrap();
    client.unwrap(&wrapped, b"").await.unwrap();
    client.unwrap(&wrapped, b"another context").await.unwrap_err();
    // Neither a KEK that is not there nor one that is somebody else's.
    client.wrap("nothing-of-ours", &dek(), b"").await.unwrap_err();
    client.wrap(UNGRANTED, &dek(), b"").await.unwrap_err();
    let (status, text) = get(sidecar.admin, "/metrics").await;
    assert_eq!(status, 200);
    assert!(!text.contains("nothing-of-ours"), "{text}");
    let operation = |kek: &str, op: &str, outcome: &str| {
        let labels = format!(r#"{{kek="{kek}",op="{op}",outcome="{outcome}"}}"#);
        value(&text, &format!("keyward_operations_total{labels}"))
    };
    assert_eq!(operation("orders", "wrap", "OK"), Some(1.0), "{text}");
    assert_eq!(operation("orders", "unwrap", "OK"), Some(1.0));
    assert_eq!(operation("orders", "unwrap", "CIPHERTEXT_INVALID"), Some(1.0));
    assert_eq!(operation("orders-2", "unwrap", "OK"), Some(0.0));
    assert_eq!(operation("-", "wrap", "PERMISSION_DENIED"), Some(1.0));
    assert_eq!(operation(UNGRANTED, "wrap", "PERMISSION_DENIED"), Some(1.0));
    for (series, expected) in [
        (r#"keyward_operation_seconds_count{op="wrap"}"#, 3.0),
        (r#"keyward_hsm_operations_total{backend="fake",operation="wrap",outcome="ok"}"#, 1.0),
        (r#"keyward_hsm_operations_total{backend="fake",operation="prove",outcome="ok"}"#, 3.0),
        (r#"keyward_hsm_operations_in_flight{backend="fake"}"#, 0.0),
        ("keyward_connections", 1.0),
    ] {
        assert_eq!(value(&text, series), Some(expected), "{series} in\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_whose_caller_leaves_is_abandoned() {
    let sidecar = Sidecar::start().await;
    let client = sidecar.client();
    let wrapped = client.wrap("orders", &dek(), b"").await.unwrap();
    sidecar.fake.hold.send_replace(true);
    let call = tokio::spawn(async move { client.unwrap(&wrapped, b"").await });
    eventually("it is in work", || sidecar.fake.running() == 1).await;
    let in_flight = r#"keyward_hsm_operations_in_flight{backend="fake"}"#;
    assert_eq!(value(&get(sidecar.admin, "/metrics").await.1, in_flight), Some(1.0));
    call.abort();
    eventually("it is dropped", || sidecar.fake.running() == 0).await;
    sleep(PAGE_FRESH).await;
    let text = get(sidecar.admin, "/metrics").await.1;
    assert_eq!(value(&text, in_flight), Some(0.0));
    let abandoned =
        r#"keyward_hsm_operations_total{backend="fake",operation="unwrap",outcome="abandoned"}"#;
    assert_eq!(value(&text, abandoned), Some(1.0), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_turns_with_the_sidecar_and_health_does_not() {
    let mut sidecar = Sidecar::start().await;
    let admin = sidecar.admin;
    assert_eq!(get(admin, "/healthz").await, (200, "ok\n".into()));
    assert_eq!(get(admin, "/readyz").await, (503, "not every KEK is proven yet\n".into()));
    sidecar.ready.send_replace(true);
    assert_eq!(get(admin, "/readyz").await, (200, "ready\n".into()));

    // A call in work holds the drain up, for those who watch to see it.
    let client = sidecar.client();
    let wrapped = client.wrap("orders", &dek(), b"").await.unwrap();
    sidecar.fake.hold.send_replace(true);
    let call = tokio::spawn(async move { client.unwrap(&wrapped, b"").await });
    eventually("it is in work", || sidecar.fake.running() == 1).await;
    sidecar.stop();
    let socket = sidecar.socket();
    eventually("the socket is gone", || !socket.exists()).await;
    assert_eq!(get(admin, "/readyz").await, (503, "draining\n".into()));
    assert_eq!(get(admin, "/healthz").await, (200, "ok\n".into()));
    sidecar.fake.hold.send_replace(false);
    call.await.unwrap().unwrap();
    sidecar.ended().await;
    assert!(TcpStream::connect(admin).await.is_err(), "it ends with the server");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_the_drain_ends_are_counted() {
    let mut sidecar = Sidecar::start().await;
    let (first, second) = (sidecar.client(), sidecar.client());
    first.list_keks().await.unwrap();
    let wrapped = second.wrap("orders", &dek(), b"").await.unwrap();
    sidecar.fake.hold.send_replace(true);
    let call = tokio::spawn(async move { second.unwrap(&wrapped, b"").await });
    eventually("it is in work", || sidecar.fake.running() == 1).await;
    sidecar.stop();
    let drained = r#"keyward_connections_closed_total{cause="drain"}"#;
    let mut text = String::new();
    for _ in 0..100 {
        text = get(sidecar.admin, "/metrics").await.1;
        if value(&text, "keyward_connections") == Some(1.0) {
            break;
        }
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(value(&text, drained), Some(1.0), "the idle one has left:\n{text}");
    sidecar.fake.hold.send_replace(false);
    call.await.unwrap().unwrap();
    sidecar.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_a_page_is_refused() {
    let sidecar = Sidecar::start().await;
    for (head, expected) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 404 "),
        ("GET /metrics/x HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 404 "),
        ("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", "HTTP/1.1 405 "),
        ("DELETE /readyz HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 405 "),
        ("nonsense\r\n\r\n", "HTTP/1.1 400 "),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ""),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n", "HTTP/1.1 400 "),
    ] {
        let answer = ask(sidecar.admin, head).await;
        assert!(answer.starts_with(expected), "{head:?}: {answer}");
        assert!(!answer.contains(" 200 ") && !answer.contains("keyward_"), "{head:?}: {answer}");
    }
    assert_eq!(get(sidecar.admin, "/healthz").await.0, 200);
    sidecar.client().list_keks().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_keep_nobody_out_and_callers_feel_nothing() {
    // Fewer places for callers than silent peers on the other listener.
    let sidecar = Sidecar::start_with(|settings| settings.connections = 2, &["orders"]).await;
    let mut silent = Vec::new();
    for _ in 0..64 {
        silent.push(TcpStream::connect(sidecar.admin).await.unwrap());
    }
    // They are accepted in the order in which they came, so this one is the 65th.
    assert_eq!(get(sidecar.admin, "/healthz").await, (200, "ok\n".into()));
    let oldest = timeout(Duration::from_secs(4), silent[0].read(&mut [0; 1])).await;
    assert!(matches!(oldest, Ok(Ok(0) | Err(_))), "the oldest has lost its place: {oldest:?}");
    let next = timeout(Duration::from_millis(100), silent[1].read(&mut [0; 1])).await;
    assert!(next.is_err(), "one is enough");
    sidecar.client().list_keks().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_fails_the_start() {
    let sidecar = Sidecar::start().await;
    let mut settings = sidecar.settings.clone();
    settings.admin = Some(sidecar.admin);
    settings.socket.as_mut().unwrap().path = sidecar.dir.path().join("second.sock");
    let (socket, what) = (settings.socket.clone().unwrap().path, sidecar.served());
    let error = server::serve(&settings, what, std::future::pending(), |_| {}).await.unwrap_err();
    assert_eq!(error.what(), format!("cannot listen on {}", sidecar.admin));
    assert!(error.fix().unwrap().contains("server.admin"), "{error:?}");
    assert!(!socket.exists(), "nothing listens");
}
