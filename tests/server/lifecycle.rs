//! Start, readiness, drain, restart.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use keyward::client::{Error, Item};
use tokio::{net::UnixStream, time::sleep};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::{v1, v1alpha};

use super::support::sidecar::{Sidecar, dek, eventually, wrapped_deks};

#[tokio::test(flavor = "multi_thread")]
async fn health_says_not_serving_until_it_is_ready() {
    let mut sidecar = Sidecar::start().await;
    let mut health = HealthClient::new(sidecar.channel());
    let ask = |service: &str| HealthCheckRequest { service: service.into() };
    for service in ["", "keyward.v1.KeyWrap"] {
        let status = health.check(ask(service)).await.unwrap().into_inner().status();
        assert_eq!(status, ServingStatus::NotServing, "{service:?}");
    }
    let mut watched = health.watch(ask("")).await.unwrap().into_inner();
    let first = watched.message().await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::NotServing);
    sidecar.ready.send_replace(true);
    let second = watched.message().await.unwrap().unwrap();
    assert_eq!(second.status(), ServingStatus::Serving);
    let status = health.check(ask("keyward.v1.KeyWrap")).await.unwrap().into_inner().status();
    assert_eq!(status, ServingStatus::Serving);
    sidecar.stop();
    let third = watched.message().await.unwrap().unwrap();
    assert_eq!(third.status(), ServingStatus::NotServing);
    assert!(watched.message().await.unwrap().is_none(), "a watcher is let go");
    let started = Instant::now();
    sidecar.ended().await;
    assert!(started.elapsed() < Duration::from_secs(5), "and holds no drain up");
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_tells_both_kinds_of_clients() {
    use v1::server_reflection_request::MessageRequest as Ask;
    use v1alpha::server_reflection_request::MessageRequest as AskAlpha;
    let sidecar = Sidecar::start().await;
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(sidecar.channel());
    let ask = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(Ask::ListServices(String::new())),
    };
    let mut answers =
        client.server_reflection_info(stream::iter([ask])).await.unwrap().into_inner();
    let answer = format!("{:?}", answers.message().await.unwrap().unwrap());
    assert!(answer.contains("keyward.v1.KeyWrap") && answer.contains("grpc.health.v1.Health"));

    let mut client =
        v1alpha::server_reflection_client::ServerReflectionClient::new(sidecar.channel());
    let ask = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(AskAlpha::FileContainingSymbol("keyward.v1.KeyWrap".into())),
    };
    let mut answers =
        client.server_reflection_info(stream::iter([ask])).await.unwrap().into_inner();
    let answer = format!("{:?}", answers.message().await.unwrap().unwrap());
    assert!(answer.contains("FileDescriptorResponse"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_in_work_are_finished_and_no_new_connection_gets_in() {
    let mut sidecar = Sidecar::start().await;
    let client = sidecar.client();
    let mut different = wrapped_deks(&client, 9).await;
    let last = different.remove(8);
    sidecar.fake.hold.send_replace(true);
    let calls: Vec<_> = different
        .into_iter()
        .map(|wrapped| {
            let client = client.clone();
            tokio::spawn(async move { client.unwrap(&wrapped, b"").await })
        })
        .collect();
    // A stream with items in work, and more to come.
    let item = Item { id: 1, wrapped: last, context: vec![] };
    let endless = stream::iter([item]).chain(stream::pending());
    let mut answers = client.unwrap_stream(endless, Duration::from_secs(60)).await.unwrap();
    eventually("all are in work", || sidecar.fake.running() == 9).await;

    sidecar.stop();
    let socket = sidecar.socket();
    eventually("the socket is gone", || !socket.exists()).await;
    assert!(UnixStream::connect(&socket).await.is_err());
    assert_eq!(sidecar.fake.running(), 9, "what was in work goes on");

    sidecar.fake.hold.send_replace(false);
    for call in calls {
        assert!(call.await.unwrap().is_ok());
    }
    assert!(answers.next().await.unwrap().unwrap().outcome.is_ok());
    let end = answers.next().await.unwrap().unwrap_err();
    assert_eq!(end.reason(), "SHUTTING_DOWN", "{end}");
    assert!(end.retry_after().is_some());
    let started = Instant::now();
    sidecar.ended().await;
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_under_load_loses_no_call_that_it_took() {
    let sidecar = Sidecar::start().await;
    let client = sidecar.client();
    let wrapped = client.wrap("orders", &dek(), b"").await.unwrap();
    let (stopping, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let callers: Vec<_> = (0..16)
        .map(|_| {
            let (client, wrapped) = (client.clone(), wrapped.clone());
            let (stopping, answered) = (Arc::clone(&stopping), Arc::clone(&answered));
            tokio::spawn(async move {
                loop {
                    match client.unwrap(&wrapped, b"").await {
                        Ok(_) => answered.fetch_add(1, Ordering::Relaxed),
                        Err(error) => break (error, stopping.load(Ordering::SeqCst)),
                    };
                }
            })
        })
        .collect();
    eventually("there is load", || answered.load(Ordering::Relaxed) > 500).await;
    stopping.store(true, Ordering::SeqCst);
    sidecar.ended().await;
    for caller in callers {
        let (error, stopping) = caller.await.unwrap();
        assert!(stopping, "failed before the drain: {error}");
        let reasons = [Error::SIDECAR_UNREACHABLE, "SHUTTING_DOWN"];
        assert!(reasons.contains(&error.reason()), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_does_not_end_is_cut_after_the_drain() {
    let drain = Duration::from_millis(500);
    let mut sidecar = Sidecar::start_with(|settings| settings.drain = drain, &["orders"]).await;
    let client = sidecar.client();
    let wrapped = client.wrap("orders", &dek(), b"").await.unwrap();
    sidecar.fake.hold.send_replace(true);
    let fake = Arc::clone(&sidecar.fake);
    let call = tokio::spawn(async move { client.unwrap(&wrapped, b"").await });
    eventually("it is in work", || fake.running() == 1).await;
    let started = Instant::now();
    sidecar.stop();
    sidecar.ended().await;
    let took = started.elapsed();
    assert!(took >= drain && took < drain + Duration::from_secs(3), "{took:?}");
    assert!(call.await.unwrap().is_err());
    eventually("its work is dropped", || fake.running() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_does_not_hold_a_drain_up() {
    let sidecar = Sidecar::start().await;
    let client = sidecar.client();
    client.list_keks().await.unwrap();
    let silent = UnixStream::connect(sidecar.socket()).await.unwrap();
    sleep(Duration::from_millis(50)).await;
    let started = Instant::now();
    sidecar.ended().await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_connects_again_to_the_next_sidecar() {
    let first = Sidecar::start().await;
    let client = first.client();
    client.list_keks().await.unwrap();
    let socket = first.socket();
    let _dir = first.ended().await;
    assert_eq!(client.list_keks().await.unwrap_err().reason(), Error::SIDECAR_UNREACHABLE);
    let path = socket.clone();
    let _second = Sidecar::start_with(
        move |settings| settings.socket.as_mut().unwrap().path = path,
        &["orders"],
    )
    .await;
    assert_eq!(client.list_keks().await.unwrap().len(), 1);
}
