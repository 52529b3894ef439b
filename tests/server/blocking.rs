//! The client for programs without a runtime: threads that wait, over real gRPC.

use std::{
    thread,
    time::{Duration, Instant},
};

use keyward::client::{Error, Item, KekEventKind, blocking};

use super::support::sidecar::{Sidecar, dek, wrapped_deks};

const SOON: Duration = Duration::from_secs(10);

/// Runs what waits in a thread that no runtime owns.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = tokio::sync::oneshot::channel();
    thread::spawn(move || drop(tell.send(work())));
    told.await.expect("the thread came to its end")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_waits_for_its_answer() {
    let sidecar = Sidecar::start().await;
    let client = sidecar.client().blocking().unwrap();
    let called = {
        let client = client.clone();
        move || {
            let wrapped = client.wrap("orders", &dek(), b"ctx").unwrap();
            assert!(client.unwrap(&wrapped, b"ctx").unwrap().ct_eq(dek().expose()));
            let (generated, under) = client.generate("orders", 48, b"").unwrap();
            assert!(client.unwrap(&under, b"").unwrap().ct_eq(generated.expose()));
            let provisioned = client.generate_wrapped("orders", 16, b"").unwrap();
            assert_eq!(client.unwrap(&provisioned, b"").unwrap().len(), 16);
            assert!(!client.rewrap(&wrapped, b"ctx").unwrap().changed);
            assert_eq!(client.get_kek("orders").unwrap().name, "orders");
            assert_eq!(client.list_keks().unwrap().len(), 2);
            let refused = client.get_kek("orders-none").unwrap_err();
            assert_eq!(refused.reason(), "KEK_NOT_FOUND");
            assert_eq!(client.reload(Some("orders")).unwrap().len(), 1);
            let before = client.purge(Some("orders")).unwrap().deks;
            assert!(before > 0);
            assert!(!client.revoke("orders").unwrap().kept, "there is no directory for it");
            assert_eq!(client.unwrap(&wrapped, b"ctx").unwrap_err().reason(), "KEK_REVOKED");
            client.restore("orders").unwrap();
        }
    };
    apart(called).await;
    // Also where a runtime could be in the way: it is held up, and nothing else.
    assert_eq!(client.get_kek("orders").unwrap().name, "orders");
    drop(client);
}

#[tokio::test(flavor = "multi_thread")]
async fn threads_share_one_client_and_streams_are_iterators() {
    let sidecar = Sidecar::start().await;
    let wrapped = wrapped_deks(&sidecar.client(), 200).await;
    let client = sidecar.client().blocking().unwrap();
    let threads: Vec<_> = (0..16)
        .map(|first| {
            let (client, wrapped) = (client.clone(), wrapped.clone());
            apart(move || {
                for (number, wrapped) in wrapped.iter().enumerate().skip(first) {
                    let dek = client.unwrap(wrapped, b"").unwrap();
                    assert_eq!(dek.expose()[..8], (number as u64).to_be_bytes());
                }
            })
        })
        .collect();
    futures_util::future::join_all(threads).await;
    let items = |wrapped: &[_]| -> Vec<Item> {
        let item = |(id, wrapped): (usize, &_)| {
            let wrapped = keyward::client::WrappedDek::clone(wrapped);
            Item { id: id as u64, wrapped, context: Vec::new() }
        };
        wrapped.iter().enumerate().map(item).collect()
    };
    let (unwrap, rewrap) = (items(&wrapped), items(&wrapped));
    apart(move || {
        let answers: Vec<_> = client.unwrap_stream(unwrap, SOON).unwrap().collect();
        assert_eq!(answers.len(), 200);
        for answer in answers {
            let answer = answer.unwrap();
            assert_eq!(answer.outcome.unwrap().expose()[..8], answer.id.to_be_bytes());
        }
        let answers = client.rewrap_stream(rewrap, SOON).unwrap();
        assert!(answers.map(|answer| answer.unwrap().outcome.unwrap()).all(|it| !it.changed));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_is_waited_for_as_long_as_one_likes() {
    let sidecar = Sidecar::start().await;
    let client: blocking::Client = sidecar.client().blocking().unwrap();
    apart(move || {
        let mut events = client.watch_keks(&["orders"]).unwrap();
        let mut next = || events.next_within(SOON).unwrap().unwrap();
        assert_eq!(next().kind(), KekEventKind::State);
        let before = Instant::now();
        let nothing: Result<_, Error> = events.next_within(Duration::from_millis(50)).unwrap();
        assert_eq!(nothing.unwrap_err().reason(), "DEADLINE_EXCEEDED");
        assert!(before.elapsed() >= Duration::from_millis(50));
        client.revoke("orders").unwrap();
        assert_eq!(events.next().unwrap().unwrap().kind(), KekEventKind::Revoked);
    })
    .await;
}
