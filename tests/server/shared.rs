//! Streams that callers of one client share without knowing.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use keyward::op::UNWRAP_STREAM_WINDOW;
use tokio::time::timeout;

use crate::support::{
    pki,
    sidecar::{NODE, Parts, Sidecar, dek, eventually, wrapped_deks},
};

const SOON: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn each_caller_has_its_own_answer_over_both_transports_and_deliveries() {
    let sidecar = Sidecar::start().await;
    let files = sidecar.pki.client("node", vec![pki::uri(NODE)]);
    for client in [sidecar.client(), sidecar.plain_client(), sidecar.tls_client(files)] {
        let made = (0..300).map(|_| client.generate("orders", 32, b"c"));
        let made = futures_util::future::try_join_all(made).await.unwrap();
        let made = Arc::new(made);
        for _ in 0..3 {
            let callers = (0..300).map(|caller| {
                let (client, made) = (client.clone(), Arc::clone(&made));
                tokio::spawn(async move {
                    let (dek, wrapped) = &made[caller];
                    let unwrapped = client.unwrap(wrapped, b"c").await.unwrap();
                    assert!(unwrapped.ct_eq(dek.expose()));
                    let error = client.unwrap(wrapped, b"other").await.unwrap_err();
                    assert_eq!(error.reason(), "CIPHERTEXT_INVALID");
                })
            });
            for caller in join_all(callers).await {
                caller.unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_behind_what_waits_for_the_hsm() {
    let sidecar = Sidecar::start().await;
    let client = sidecar.client();
    let hot = client.wrap("orders", &dek(), b"").await.unwrap();
    client.unwrap(&hot, b"").await.unwrap();
    // More than all shared streams take.
    let cold = wrapped_deks(&client, 5 * UNWRAP_STREAM_WINDOW).await;
    sidecar.fake.hold.send_replace(true);
    let waiting: Vec<_> = cold
        .into_iter()
        .map(|wrapped| {
            let client = client.clone();
            tokio::spawn(async move { client.unwrap(&wrapped, b"").await })
        })
        .collect();
    eventually("they wait", || sidecar.fake.running() > 0).await;
    for _ in 0..50 {
        let answer = timeout(SOON, client.unwrap(&hot, b"")).await.expect("it is answered");
        assert!(answer.unwrap().ct_eq(dek().expose()));
    }
    sidecar.fake.hold.send_replace(false);
    for waiting in waiting {
        assert!(waiting.await.unwrap().is_ok());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_gives_its_place_back_once_it_is_answered() {
    let sidecar = Sidecar::start().await;
    let client = sidecar.client().with_deadline(Duration::from_millis(200));
    let cold = wrapped_deks(&client, 2 * UNWRAP_STREAM_WINDOW).await;
    sidecar.fake.hold.send_replace(true);
    let late = join_all(cold.iter().map(|wrapped| client.unwrap(wrapped, b""))).await;
    assert!(late.iter().all(|late| late.as_ref().unwrap_err().reason() == "DEADLINE_EXCEEDED"));
    sidecar.fake.hold.send_replace(false);
    eventually("the HSM is done", || sidecar.fake.running() == 0).await;
    let client = client.with_deadline(SOON);
    let again = join_all(cold.iter().map(|wrapped| client.unwrap(wrapped, b""))).await;
    assert!(again.iter().all(Result::is_ok));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_last_client_ends_the_connection() {
    let sidecar = Sidecar::start().await;
    let client = sidecar.client();
    let wrapped = client.wrap("orders", &dek(), b"").await.unwrap();
    let other = client.clone();
    client.unwrap(&wrapped, b"").await.unwrap();
    let connections = || sidecar.metrics.render().contains("\nkeyward_connections 1");
    assert!(connections());
    drop(client);
    other.unwrap(&wrapped, b"").await.unwrap();
    drop(other);
    eventually("the connection has ended", || !connections()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_stream_outlives_its_connections() {
    let parts = Parts { connection_age: Duration::from_millis(300), ..Parts::default() };
    let sidecar = Sidecar::start_of(parts, |_| {}).await;
    let client = sidecar.client();
    let wrapped = client.wrap("orders", &dek(), b"").await.unwrap();
    let callers: Vec<_> = (0..64)
        .map(|_| {
            let (client, wrapped) = (client.clone(), wrapped.clone());
            tokio::spawn(async move {
                let began = std::time::Instant::now();
                while began.elapsed() < Duration::from_secs(3) {
                    let dek_again = client.unwrap(&wrapped, b"").await.expect("no caller notices");
                    assert!(dek_again.ct_eq(dek().expose()));
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    let metrics = sidecar.metrics.render();
    let line = metrics.lines().find(|line| line.contains("cause=\"age\"")).unwrap();
    let closed: u64 = line.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(closed >= 5, "{line}");
}
