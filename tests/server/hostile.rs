//! Those who do not mean well, or do not know better.

use std::time::Duration;

use keyward::{server::raise_nofile_limit, wire};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};
use tonic::{Code, Request, Status, client::Grpc, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

use super::{
    calls::reason,
    support::{
        pki,
        sidecar::{NODE, Sidecar, dek},
    },
};

/// Sends `message` to any method.
async fn send<M: prost::Message + Default + 'static>(
    sidecar: &Sidecar,
    path: &'static str,
    message: M,
) -> Status {
    let mut grpc = Grpc::new(sidecar.channel());
    grpc.ready().await.unwrap();
    let codec = ProstCodec::<M, wire::UnwrapResponse>::default();
    grpc.unary(Request::new(message), PathAndQuery::from_static(path), codec).await.unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_that_does_not_exist_has_a_reason() {
    let sidecar = Sidecar::start().await;
    for path in ["/keyward.v1.KeyWrap/Nope", "/keyward.v1.Other/Wrap", "/x", "/"] {
        let status = send(&sidecar, path, wire::GetKekRequest::default()).await;
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::Unimplemented, "UNIMPLEMENTED")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_message_are_an_invalid_request() {
    let sidecar = Sidecar::start().await;
    // Field 2 of GenerateDek is a number, not bytes.
    let message = wire::WrapRequest {
        kek: "orders".into(),
        dek: vec![0xff; 40],
        context: vec![],
        sealed: None,
    };
    let status = send(&sidecar, "/keyward.v1.KeyWrap/GenerateDek", message).await;
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::InvalidArgument, "REQUEST_INVALID")
    );
    let status = send(
        &sidecar,
        "/grpc.health.v1.Health/Check",
        wire::GetKekRequest { name: "unknown".into() },
    )
    .await;
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "REQUEST_INVALID"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_five_mebibytes_is_refused_and_the_connection_lives() {
    let sidecar = Sidecar::start().await;
    let mut raw = sidecar.raw();
    for len in [65 * 1024, 5 * 1024 * 1024] {
        let request = wire::WrapRequest {
            kek: "orders".into(),
            dek: dek().expose().to_vec(),
            context: vec![7; len],
            sealed: None,
        };
        let status = raw.wrap(request).await.unwrap_err();
        let expected = (Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
        assert_eq!((status.code(), reason(&status).as_str()), expected, "{len}");
    }
    raw.list_keks(wire::ListKeksRequest::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_ends_only_its_own_connection() {
    let sidecar = Sidecar::start().await;
    let client = sidecar.client();
    let wrapped = client.wrap("orders", &dek(), b"").await.unwrap();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let garbage: Vec<u8> = (0..4096_u32).map(|n| (n * 37 % 251) as u8).collect();
    let broken_frame = [preface.as_slice(), &[0xff; 64]].concat();
    let http1 = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(4);
    for bytes in [garbage, broken_frame, http1] {
        let mut stream = UnixStream::connect(sidecar.socket()).await.unwrap();
        let _may_be_closed = stream.write_all(&bytes).await;
        let end = timeout(Duration::from_secs(5), stream.read_to_end(&mut Vec::new())).await;
        assert!(end.is_ok(), "the connection is closed");
        assert!(client.unwrap(&wrapped, b"").await.is_ok());
    }
    // Garbage instead of a TLS handshake.
    let mut stream = tokio::net::TcpStream::connect(sidecar.tcp).await.unwrap();
    stream.write_all(&[0x42; 600]).await.unwrap();
    let end = timeout(Duration::from_secs(5), stream.read_to_end(&mut Vec::new())).await;
    assert!(end.is_ok());
    assert!(client.unwrap(&wrapped, b"").await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_idle_connections_are_no_trouble() {
    // Both ends of each are in this process.
    assert!(raise_nofile_limit().is_none_or(|limit| limit > 2500));
    let sidecar = Sidecar::start().await;
    let client = sidecar.client();
    let mut idle = Vec::new();
    for n in 0..1000 {
        if n % 10 == 0 {
            idle.push(UnixStream::connect(sidecar.socket()).await.unwrap());
        } else {
            // The preface and an empty SETTINGS frame: HTTP/2, but nothing to do.
            let mut stream = UnixStream::connect(sidecar.socket()).await.unwrap();
            stream
                .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
                .await
                .unwrap();
            idle.push(stream);
        }
    }
    let wrapped = client.wrap("orders", &dek(), b"").await.unwrap();
    assert!(client.unwrap(&wrapped, b"").await.is_ok());
    assert!(sidecar.client().unwrap(&wrapped, b"").await.is_ok(), "new connections too");
    drop(idle);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_are_closed_at_once_and_the_rest_live() {
    let sidecar = Sidecar::start_with(|settings| settings.connections = 3, &["orders"]).await;
    let client = sidecar.client();
    client.list_keks().await.unwrap();
    let first = UnixStream::connect(sidecar.socket()).await.unwrap();
    // Both listeners share the limit.
    let second = sidecar.tls_client(sidecar.pki.client("node", vec![pki::uri(NODE)]));
    second.list_keks().await.unwrap();
    let mut third = UnixStream::connect(sidecar.socket()).await.unwrap();
    let read = timeout(Duration::from_secs(2), third.read(&mut [0; 1])).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)));
    client.list_keks().await.unwrap();
    drop((first, second));
    tokio::time::sleep(Duration::from_millis(100)).await;
    sidecar.client().list_keks().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_strangers_take_nobody_s_place() {
    let sidecar = Sidecar::start_with(|settings| settings.connections = 3, &["orders"]).await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(tokio::net::TcpStream::connect(sidecar.tcp).await.unwrap());
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let files = sidecar.pki.client("node", vec![pki::uri(NODE)]);
    let (local, node) = (sidecar.client(), sidecar.tls_client(files));
    // Much sooner than the silent ones are given up.
    let soon = Duration::from_secs(4);
    timeout(soon, local.list_keks()).await.expect("not kept waiting").unwrap();
    timeout(soon, node.list_keks()).await.expect("not kept waiting").unwrap();
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_silent_strangers_than_places_keep_nobody_out() {
    // Both ends of each are in this process.
    assert!(raise_nofile_limit().is_none_or(|limit| limit > 3000));
    let sidecar = Sidecar::start().await;
    let mut silent = Vec::new();
    for _ in 0..1100 {
        silent.push(tokio::net::TcpStream::connect(sidecar.tcp).await.unwrap());
    }
    // All are accepted, in the order in which they came.
    let oldest = timeout(Duration::from_secs(4), silent[0].read(&mut [0; 1])).await;
    let files = sidecar.pki.client("node", vec![pki::uri(NODE)]);
    let node = sidecar.tls_client(files);
    // Much sooner than the silent ones are given up.
    timeout(Duration::from_secs(4), node.list_keks()).await.expect("not kept waiting").unwrap();
    assert!(matches!(oldest, Ok(Ok(0) | Err(_))), "the oldest has lost its place: {oldest:?}");
    let newest = timeout(Duration::from_millis(100), silent[1099].read(&mut [0; 1])).await;
    assert!(newest.is_err(), "the newest has not");
}
