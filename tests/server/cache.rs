//! Unwraps from memory: outcomes, shared operations, who goes first, leases, outages.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use keyward::{
    cache::CacheSettings,
    client::{Client, Item, WrappedDek},
    error::{Error, Reason},
    lease::Terms,
    wire::{self, CacheOutcome},
};
use tokio::{task::JoinSet, time::sleep};

use super::support::{
    fake::Fake,
    sidecar::{Parts, Sidecar, dek, eventually, wrapped_deks},
};

const MINUTE: Duration = Duration::from_secs(60);

async fn unwrap(sidecar: &Sidecar, wrapped: &WrappedDek) -> CacheOutcome {
    let request =
        wire::UnwrapRequest { wrapped: Some(wrapped.clone()), context: vec![], session: vec![] };
    sidecar.raw().unwrap(request).await.unwrap().into_inner().cache()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_unwrap_comes_from_memory() {
    let sidecar = Sidecar::start().await;
    let [one, other] = wrapped_deks(&sidecar.client(), 2).await.try_into().unwrap();
    assert_eq!(unwrap(&sidecar, &one).await, CacheOutcome::Miss);
    assert_eq!(unwrap(&sidecar, &one).await, CacheOutcome::Hit);
    assert_eq!(unwrap(&sidecar, &other).await, CacheOutcome::Miss);
    assert_eq!(sidecar.fake.unwraps(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cached_dek_is_bound_to_its_context_and_algorithm() {
    let sidecar = Sidecar::start().await;
    let client = sidecar.client();
    let mut wrapped = client.wrap("orders", &dek(), b"tenant a").await.unwrap();
    assert!(client.unwrap(&wrapped, b"tenant a").await.unwrap().ct_eq(dek().expose()));
    for context in [b"".as_slice(), b"tenant b"] {
        let error = client.unwrap(&wrapped, context).await.unwrap_err();
        assert_eq!(error.reason(), "CIPHERTEXT_INVALID");
    }
    // The fake takes any algorithm; the cache must not take one for another.
    wrapped.set_algorithm(wire::Algorithm::RsaOaep384);
    let before = sidecar.fake.unwraps();
    assert!(client.unwrap(&wrapped, b"tenant a").await.is_ok());
    assert_eq!(sidecar.fake.unwraps(), before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_ciphertext_is_asked_about_once() {
    let sidecar = Sidecar::start().await;
    let client = sidecar.client();
    let mut bad = client.wrap("orders", &dek(), b"").await.unwrap();
    bad.ciphertext[0] ^= 1;
    let first = client.unwrap(&bad, b"").await.unwrap_err();
    let second = client.unwrap(&bad, b"").await.unwrap_err();
    assert_eq!(first.reason(), "CIPHERTEXT_INVALID");
    assert_eq!(first, second, "the caller cannot tell which it was");
    assert_eq!(sidecar.fake.unwraps(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_callers_of_one_dek_cost_one_operation() {
    let sidecar = Sidecar::start().await;
    let wrapped = wrapped_deks(&sidecar.client(), 1).await.remove(0);
    sidecar.fake.hold.send_replace(true);
    let mut callers = JoinSet::new();
    for _ in 0..8 {
        let client = sidecar.client();
        for _ in 0..125 {
            let (client, wrapped) = (client.clone(), wrapped.clone());
            callers.spawn(async move { client.unwrap(&wrapped, b"").await.map(drop) });
        }
    }
    let joined = || {
        let metrics = sidecar.metrics.render();
        metrics.contains("keyward_unwraps_total{from=\"shared\",kek=\"orders\"} 999")
            || metrics.contains("keyward_unwraps_total{kek=\"orders\",from=\"shared\"} 999")
    };
    eventually("all wait", joined).await;
    sidecar.fake.hold.send_replace(false);
    while let Some(answered) = callers.join_next().await {
        answered.unwrap().unwrap();
    }
    assert_eq!(sidecar.fake.unwraps(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_goes_away_does_not_take_the_others_along() {
    let sidecar = Sidecar::start().await;
    let client = sidecar.client();
    let wrapped = wrapped_deks(&client, 1).await.remove(0);
    sidecar.fake.hold.send_replace(true);
    let leader = tokio::spawn({
        let (client, wrapped) = (client.clone(), wrapped.clone());
        async move { client.unwrap(&wrapped, b"").await }
    });
    eventually("it is in work", || sidecar.fake.running() == 1).await;
    let follower = tokio::spawn({
        let (client, wrapped) = (client.clone(), wrapped.clone());
        async move { client.unwrap(&wrapped, b"").await }
    });
    sleep(Duration::from_millis(100)).await;
    leader.abort();
    sleep(Duration::from_millis(100)).await;
    sidecar.fake.hold.send_replace(false);
    assert!(follower.await.unwrap().is_ok());
    assert_eq!(sidecar.fake.unwraps(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_call_goes_before_a_stream() {
    let sidecar = Sidecar::start_of(Parts { fake: Fake::of(2), ..Parts::default() }, |_| {}).await;
    let client = sidecar.client();
    let mut wrapped = wrapped_deks(&client, 61).await;
    let single = wrapped.remove(60);
    sidecar.fake.hold.send_replace(true);
    let boot = tokio::spawn({
        let client = client.clone();
        async move {
            let item = |(id, wrapped)| Item { id, wrapped, context: vec![] };
            let items = stream::iter((0_u64..).zip(wrapped).map(item));
            let mut answers = client.unwrap_stream(items, MINUTE).await.unwrap();
            while let Some(answer) = answers.next().await {
                assert!(answer.unwrap().outcome.is_ok());
            }
        }
    });
    let queued = || sidecar.metrics.render().contains("class=\"bulk\"} 58");
    eventually("the stream waits", queued).await;
    let call = tokio::spawn(async move { client.unwrap(&single, b"").await.map(drop) });
    sleep(Duration::from_millis(100)).await;
    assert_eq!(sidecar.fake.running(), 2, "the backend gets what it can work on");
    sidecar.fake.hold.send_replace(false);
    call.await.unwrap().unwrap();
    boot.await.unwrap();
    let order = sidecar.fake.unwrapped();
    assert_eq!(order.len(), 61);
    let place = order.iter().position(|number| *number == 60).unwrap();
    // Two were in work before it came, and whoever has a turn still has to be woken for it.
    assert!(place < 10, "{place} of {order:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_kind_of_call_leaves_less_of_the_backend_to_others() {
    let sidecar = Sidecar::start_of(Parts { fake: Fake::of(2), ..Parts::default() }, |_| {}).await;
    sidecar.fake.hold.send_replace(true);
    let calls: Vec<_> = (0..50)
        .map(|_| {
            let client = sidecar.client();
            tokio::spawn(async move { client.generate("orders", 32, b"").await.map(drop) })
        })
        .collect();
    eventually("the backend is busy", || sidecar.fake.running() == 2).await;
    sleep(Duration::from_millis(100)).await;
    sidecar.fake.hold.send_replace(false);
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(sidecar.fake.peak(), 2, "a queue of ours is in front of the backend's own");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_for_what_a_stream_waits_for_takes_it_along() {
    let sidecar = Sidecar::start_of(Parts { fake: Fake::of(1), ..Parts::default() }, |_| {}).await;
    let client = sidecar.client();
    let wrapped = wrapped_deks(&client, 40).await;
    let last = wrapped[39].clone();
    sidecar.fake.hold.send_replace(true);
    let item = |(id, wrapped)| Item { id, wrapped, context: vec![] };
    let items = stream::iter((0_u64..).zip(wrapped).map(item));
    let answers = client.unwrap_stream(items, MINUTE).await.unwrap();
    let boot = tokio::spawn(answers.map(|answer| answer.unwrap().id).collect::<Vec<_>>());
    let queued = || sidecar.metrics.render().contains("class=\"bulk\"} 39");
    eventually("the stream waits", queued).await;
    let call = tokio::spawn(async move { client.unwrap(&last, b"").await });
    let shared = || sidecar.metrics.render().contains("from=\"shared\"} 1");
    eventually("it shares the stream's", shared).await;
    sleep(Duration::from_millis(50)).await;
    sidecar.fake.hold.send_replace(false);
    call.await.unwrap().unwrap();
    let order = boot.await.unwrap();
    assert_eq!(order.len(), 40);
    let place = order.iter().position(|id| *id == 39).unwrap();
    assert!(place <= 2, "{place}: {order:?}");
    assert_eq!(sidecar.fake.unwraps(), 40, "it was unwrapped once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dek_in_use_is_unwrapped_anew_before_it_expires() {
    let cache =
        CacheSettings { capacity: 64, ttl: Duration::from_secs(2), idle: Duration::from_secs(2) };
    let sidecar = Sidecar::start_of(Parts { cache, ..Parts::default() }, |_| {}).await;
    let wrapped = wrapped_deks(&sidecar.client(), 1).await.remove(0);
    assert_eq!(unwrap(&sidecar, &wrapped).await, CacheOutcome::Miss);
    // Three lives long it is in use, and nobody ever waits for the backend.
    for _ in 0..120 {
        sleep(Duration::from_millis(50)).await;
        assert_eq!(unwrap(&sidecar, &wrapped).await, CacheOutcome::Hit);
    }
    let unwraps = sidecar.fake.unwraps();
    assert!((3..=6).contains(&unwraps), "{unwraps}");
}

fn unreachable() -> Error {
    Error::new(Reason::BackendUnreachable, "the fake was told to be away")
}

/// Whether the lease of "orders" is in `state`.
fn is(sidecar: &Sidecar, state: &str) -> bool {
    let state = format!("state=\"{state}\"");
    let metrics = sidecar.metrics.render();
    metrics.lines().any(|line| line.contains("kek=\"orders\"") && line.contains(&state))
}

const BRIEF: Terms =
    Terms { interval: Duration::from_secs(1), outage_grace: Duration::from_secs(3) };

/// What a caller meets who asks for a DEK.
async fn met(client: &Client, wrapped: &WrappedDek) -> String {
    match client.unwrap(wrapped, b"").await {
        Ok(_) => "ok".to_owned(),
        Err(error) => error.reason().to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_bridged_for_the_grace_and_no_longer() {
    let parts = Parts { terms: BRIEF, keep_proven: true, ..Parts::default() };
    let sidecar = Sidecar::start_of(parts, |_| {}).await;
    let client = sidecar.client().with_deadline(Duration::from_millis(500));
    let [cached, other] = wrapped_deks(&client, 2).await.try_into().unwrap();
    assert_eq!(met(&client, &cached).await, "ok");
    sidecar.fake.deny(Some(unreachable()));
    let noticed = || is(&sidecar, "outage");
    eventually("it is noticed", noticed).await;
    let before = sidecar.fake.unwraps();
    assert_eq!(met(&client, &cached).await, "ok");
    assert_eq!(met(&client, &other).await, "BACKEND_UNREACHABLE");
    assert_eq!(sidecar.fake.unwraps(), before, "a backend that is away is not asked");

    let over = || is(&sidecar, "lapsed");
    eventually("the grace is over", over).await;
    assert_eq!(met(&client, &cached).await, "BACKEND_UNREACHABLE");
    let wiped = || sidecar.metrics.render().contains("keyward_cache_entries 0");
    eventually("nothing is kept", wiped).await;

    sidecar.fake.deny(None);
    let back = || is(&sidecar, "live");
    eventually("it is back", back).await;
    assert_eq!(met(&client, &cached).await, "ok");
    assert_eq!(met(&client, &other).await, "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_kek_is_dark_at_once_and_light_again_by_itself() {
    let parts = Parts { terms: BRIEF, keep_proven: true, ..Parts::default() };
    let sidecar = Sidecar::start_of(parts, |_| {}).await;
    let client = sidecar.client();
    let cached = wrapped_deks(&client, 1).await.remove(0);
    assert_eq!(met(&client, &cached).await, "ok");
    sidecar.fake.deny(Some(Error::new(Reason::KekNotFound, "the fake was told to lose it")));
    let denied = std::time::Instant::now();
    while met(&client, &cached).await == "ok" {
        assert!(denied.elapsed() <= BRIEF.interval, "it is released after the lease is over");
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(met(&client, &cached).await, "KEK_NOT_FOUND");
    let wiped = || sidecar.metrics.render().contains("keyward_cache_entries 0");
    eventually("nothing is kept", wiped).await;
    let before = sidecar.fake.unwraps();
    sidecar.fake.deny(None);
    let patient = client.with_deadline(MINUTE);
    while met(&patient, &cached).await != "ok" {
        assert!(denied.elapsed() < MINUTE);
        sleep(Duration::from_millis(20)).await;
    }
    assert!(sidecar.fake.unwraps() > before, "it comes from the backend again");
}
