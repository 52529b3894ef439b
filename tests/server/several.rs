//! A client of several sidecars: the Unix socket first, the next when that is not there, and
//! back once it says that it serves.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use keyward::{
    client::{Client, Endpoint, Error, Item},
    server::Settings,
};
use tokio::{sync::mpsc, time::sleep};
use tokio_stream::wrappers::ReceiverStream;

use super::support::{
    crowd::{Crowd, assert_unharmed},
    fake::Fake,
    pki,
    sidecar::{NODE, Parts, Sidecar, dek, eventually},
};

/// A sidecar over these KEKs, at this socket if one is named.
async fn sidecar(fake: &Arc<Fake>, change: impl FnOnce(&mut Settings)) -> Sidecar {
    let sidecar =
        Sidecar::start_of(Parts { fake: Arc::clone(fake), ..Parts::default() }, change).await;
    sidecar.ready.send_replace(true);
    sidecar
}

fn by_tcp(sidecar: &Sidecar) -> Endpoint {
    let files = sidecar.pki.client("node", vec![pki::uri(NODE)]);
    Endpoint::tls(format!("https://{}", sidecar.tcp), files, Some("localhost".into()))
}

/// Unwraps that a sidecar answered.
fn unwraps(sidecar: &Sidecar) -> u64 {
    let text = sidecar.metrics.render();
    let counts = text.lines().filter(|line| {
        line.starts_with("keyward_operations_total{") && line.contains("op=\"unwrap\"")
    });
    counts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_first_and_the_next_one_has_what_it_cannot() {
    let fake = Fake::new();
    let remote = sidecar(&fake, |_| {}).await;
    let local = sidecar(&fake, |_| {}).await;
    let socket = local.socket();
    // TCP is named first, and still comes second.
    let endpoints = [by_tcp(&remote), Endpoint::unix(&socket)];
    let client = Client::of_any(&endpoints).unwrap().with_calls_apart().failing_fast();
    let wrapped = client.wrap("orders", &dek(), b"").await.unwrap();
    let unwrap = async || client.unwrap(&wrapped, b"").await.map(|dek| dek.len());
    for _ in 0..20 {
        unwrap().await.unwrap();
    }
    assert_eq!((unwraps(&local), unwraps(&remote)), (20, 0));

    let _dir = local.ended().await;
    for _ in 0..20 {
        unwrap().await.unwrap();
    }
    assert_eq!(unwraps(&remote), 20);

    // Back, and not ready: whoever asks for its health is told so.
    let path = socket.clone();
    let at = |settings: &mut Settings| settings.socket.as_mut().unwrap().path = path;
    let local = sidecar(&fake, at).await;
    local.ready.send_replace(false);
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        unwrap().await.unwrap();
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(unwraps(&local), 0);
    local.ready.send_replace(true);
    let until = Instant::now() + Duration::from_secs(10);
    while unwraps(&local) == 0 {
        assert!(Instant::now() < until, "it does not go back");
        unwrap().await.unwrap();
        sleep(Duration::from_millis(5)).await;
    }

    // Both gone: who does not wait is told so.
    let _dirs = (local.ended().await, remote.ended().await);
    assert_eq!(unwrap().await.unwrap_err().reason(), Error::SIDECAR_UNREACHABLE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_and_a_watch_go_on_at_the_next_one() {
    let fake = Fake::new();
    let remote = sidecar(&fake, |_| {}).await;
    let local = sidecar(&fake, |_| {}).await;
    let endpoints = [Endpoint::unix(local.socket()), by_tcp(&remote)];
    let client = Client::of_any(&endpoints).unwrap();
    let wrapped = client.wrap("orders", &dek(), b"").await.unwrap();
    let (send, items) = mpsc::channel(8);
    let within = Duration::from_secs(30);
    let mut answers = client.unwrap_stream(ReceiverStream::new(items), within).await.unwrap();
    let mut events = client.watch_keks(&["orders"]).await.unwrap();
    events.next().await.unwrap().unwrap();
    let mut next = async |id| {
        let item = Item { id, wrapped: wrapped.clone(), context: Vec::new() };
        send.send(item).await.unwrap();
        let answer = answers.next().await.unwrap().unwrap();
        assert_eq!(answer.id, id);
        answer.outcome.unwrap();
    };
    next(1).await;
    let ended = tokio::spawn(local.ended());
    next(2).await;
    next(3).await;
    let _dir = ended.await.unwrap();
    // The state, told by another.
    let again = events.next().await.unwrap().unwrap();
    assert_eq!(again.kind(), keyward::client::KekEventKind::State);
    next(4).await;
    assert!(unwraps(&remote) > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_notices_that_they_come_and_go_in_turns() {
    let fake = Fake::new();
    let mut local = sidecar(&fake, |_| {}).await;
    let remote = sidecar(&fake, |_| {}).await;
    let socket = local.socket();
    let endpoints = [Endpoint::unix(&socket), by_tcp(&remote)];
    let client = Client::of_any(&endpoints).unwrap();
    let crowd = Crowd::start(&[client], "orders").await;
    let mut homes = Vec::new();
    for _ in 0..5 {
        let before = unwraps(&remote);
        homes.push(local.ended().await);
        eventually("the next one is asked", || unwraps(&remote) > before + 100).await;
        let path = socket.clone();
        let at = |settings: &mut Settings| settings.socket.as_mut().unwrap().path = path;
        local = sidecar(&fake, at).await;
        // It may be left alone for seconds, if it took some to come back.
        let until = Instant::now() + Duration::from_secs(20);
        while unwraps(&local) <= 100 {
            assert!(Instant::now() < until, "it is not asked again");
            sleep(Duration::from_millis(20)).await;
        }
    }
    assert_unharmed(&crowd.end().await, 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_end_in_order_drive_nobody_away() {
    let fake = Fake::new();
    let remote = sidecar(&fake, |_| {}).await;
    let local = sidecar(&fake, |settings| {
        settings.connection_age = Duration::from_millis(50);
    })
    .await;
    let endpoints = [Endpoint::unix(local.socket()), by_tcp(&remote)];
    let client = Client::of_any(&endpoints).unwrap();
    let wrapped = client.wrap("orders", &dek(), b"").await.unwrap();
    let until = Instant::now() + Duration::from_secs(2);
    let mut calls = 0;
    while Instant::now() < until {
        client.unwrap(&wrapped, b"").await.unwrap();
        calls += 1;
    }
    // Calls that just missed their connection go to the next. On a busy machine a connection may
    // be cut before it has ended, which counts, for a tenth of a second each time.
    let strayed = unwraps(&remote);
    assert!(calls > 100 && strayed < calls / 4, "{strayed} of {calls}");
}
