//! The guards around a backend, seen by callers: who suffers from what another does.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use keyward::{
    client::Client,
    error::{Error, Reason},
    wire,
};
use tokio::{task::JoinSet, time::sleep};
use tonic::Request;

use super::{
    calls::reason,
    support::{
        fake::Fake,
        pki,
        sidecar::{NODE, Parts, Sidecar, dek, eventually, wrapped_deks},
    },
};

fn node(sidecar: &Sidecar) -> Client {
    sidecar.tls_client(sidecar.pki.client("node", vec![pki::uri(NODE)]))
}

fn waiting(sidecar: &Sidecar, class: &str, n: usize) -> impl Fn() -> bool {
    let (metrics, series) = (Arc::clone(&sidecar.metrics), format!("class=\"{class}\"}} {n}.0\n"));
    move || metrics.render().contains(&series)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_of_much_does_not_shut_out_one_of_little() {
    let sidecar = Sidecar::start_of(Parts { fake: Fake::of(1), ..Parts::default() }, |_| {}).await;
    let (busy, modest) = (sidecar.client(), node(&sidecar));
    let mut wrapped = wrapped_deks(&busy, 60).await;
    let few = wrapped.split_off(55);
    sidecar.fake.hold.send_replace(true);
    let mut calls = JoinSet::new();
    let mut call = |client: &Client, wrapped| {
        let client = client.clone();
        calls.spawn(async move { client.unwrap(&wrapped, b"").await.map(drop) });
    };
    wrapped.into_iter().for_each(|wrapped| call(&busy, wrapped));
    eventually("the busy one waits", waiting(&sidecar, "foreground", 54)).await;
    few.into_iter().for_each(|wrapped| call(&modest, wrapped));
    eventually("both wait", waiting(&sidecar, "foreground", 59)).await;
    sidecar.fake.hold.send_replace(false);
    while let Some(done) = calls.join_next().await {
        done.unwrap().unwrap();
    }
    let order = sidecar.fake.unwrapped();
    let last = order.iter().rposition(|number| *number >= 55).unwrap();
    assert!(last < 15, "{order:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_ciphertexts_cost_their_sender_alone() {
    let sidecar = Sidecar::start().await;
    let modest = node(&sidecar);
    let good = sidecar.client().wrap("orders", &dek(), b"").await.unwrap();
    let mut refused = 0;
    for n in 0..200u8 {
        let mut bad = good.clone();
        bad.ciphertext[..2].copy_from_slice(&[n, 0xa5]);
        let request = wire::UnwrapRequest { wrapped: Some(bad), context: vec![], session: vec![] };
        let status = sidecar.raw().unwrap(request).await.unwrap_err();
        match reason(&status).as_str() {
            "CIPHERTEXT_INVALID" => {}
            "OVERLOADED" => refused += 1,
            other => panic!("{other}"),
        }
    }
    assert!(refused >= 50, "{refused}");
    assert!(modest.unwrap(&good, b"").await.is_ok());
    let breaker = r#"keyward_breaker_state{backend="fake",state="closed"} 1.0"#;
    assert!(sidecar.metrics.render().contains(breaker));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_does_not_answer_is_left_alone_and_memory_answers() {
    let sidecar = Sidecar::start().await;
    let wrapped = wrapped_deks(&sidecar.client(), 20).await;
    sidecar.client().unwrap(&wrapped[0], b"").await.unwrap();
    let unreachable = || Error::new(Reason::BackendUnreachable, "the cable is out");
    sidecar.fake.failures.lock().unwrap().extend((0..1000).map(|_| unreachable()));
    let before = sidecar.fake.unwraps();
    for wrapped in wrapped[1..].iter().cycle().take(200) {
        let request = wire::UnwrapRequest {
            wrapped: Some(wrapped.clone()),
            context: vec![],
            session: vec![],
        };
        let status = sidecar.raw().unwrap(request).await.unwrap_err();
        assert_eq!(reason(&status), "BACKEND_UNREACHABLE");
    }
    let asked = sidecar.fake.unwraps() - before;
    assert!((5..50).contains(&asked), "{asked} of 200 went to the backend");
    sidecar.client().unwrap(&wrapped[0], b"").await.unwrap();
    sidecar.fake.failures.lock().unwrap().clear();
    // The client waits for as long as it is told to; one of its calls finds the backend back.
    sidecar.client().unwrap(&wrapped[1], b"").await.unwrap();
    let breaker = r#"keyward_breaker_state{backend="fake",state="closed"} 1.0"#;
    assert!(sidecar.metrics.render().contains(breaker));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_little_time_is_told_at_once_that_it_will_not_do() {
    let sidecar = Sidecar::start_of(Parts { fake: Fake::of(1), ..Parts::default() }, |_| {}).await;
    let client = sidecar.client();
    let mut wrapped = wrapped_deks(&client, 12).await;
    let (last, first) = (wrapped.pop().unwrap(), wrapped.remove(0));
    let hold = Duration::from_millis(300);
    // One that takes long, so that it is known how long they take.
    sidecar.fake.hold.send_replace(true);
    let slow = tokio::spawn({
        let client = client.clone();
        async move { client.unwrap(&first, b"").await.map(drop) }
    });
    eventually("it is asked", || sidecar.fake.running() == 1).await;
    sleep(hold).await;
    sidecar.fake.hold.send_replace(false);
    slow.await.unwrap().unwrap();
    sidecar.fake.hold.send_replace(true);
    let patient: Vec<_> = wrapped
        .into_iter()
        .map(|wrapped| {
            let client = client.clone();
            tokio::spawn(async move { client.unwrap(&wrapped, b"").await.map(drop) })
        })
        .collect();
    eventually("they wait", waiting(&sidecar, "foreground", 9)).await;
    let mut request =
        Request::new(wire::UnwrapRequest { wrapped: Some(last), context: vec![], session: vec![] });
    request.set_timeout(Duration::from_secs(2));
    let began = Instant::now();
    let status = sidecar.raw().unwrap(request).await.unwrap_err();
    assert_eq!(reason(&status), "OVERLOADED");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    sidecar.fake.hold.send_replace(false);
    for patient in patient {
        patient.await.unwrap().unwrap();
    }
}
