//! Rounds of proofs, against the engine alone: many versions, slow backends, a start-up
//! that takes long.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use keyward::{
    engine::{self, Source},
    error::{Error, Reason},
    lease::Terms,
};
use tokio::time::sleep;

use super::support::{
    bench::{Bench, HOUR},
    fake::Fake,
    sidecar::eventually,
};

/// A bench whose KEK has versions 1 to `versions`, over a backend that takes `at_once`.
fn with_versions(versions: u8, at_once: usize, terms: Terms) -> Arc<Bench> {
    let fake = Fake::of(at_once);
    (2..=versions).for_each(|n| fake.rotate(n));
    Bench::of(fake, terms)
}

fn proofs_take(bench: &Bench, time: Duration) {
    *bench.backend.proof_takes.lock().unwrap() = time;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_version_starves_where_a_round_is_too_short_for_all() {
    // A round is half a second: at two at once there is time for 20.
    let terms = Terms { interval: Duration::from_secs(2), outage_grace: HOUR };
    let bench = with_versions(30, 4, terms);
    bench.prove().await;
    proofs_take(&bench, Duration::from_millis(50));
    let keeping = tokio::spawn(engine::keep_proven(Arc::clone(&bench.engine)));
    // Long enough for a lease that nobody renews to show.
    sleep(Duration::from_secs(6)).await;
    let leases = bench.leases();
    assert_eq!(leases.len(), 30);
    let starved: Vec<_> = leases.iter().filter(|(_, (_, age))| *age > 3.0).collect();
    assert!(starved.is_empty(), "{starved:?}");
    assert_eq!(bench.backend.proving_peak(), 2, "the backend is callers' too");
    keeping.abort();
}

/// Asks three times a backend that must deny a key three times.
async fn is_believed_the_third_time(bench: &Bench, denies: impl Fn(&Fake, Option<Error>)) {
    let revoked = || Some(Error::new(Reason::KekRevoked, "403"));
    bench.backend.denials.store(3, Ordering::Relaxed);
    bench.prove().await;
    let wrapped = bench.wrap(1).await.unwrap();
    bench.unwrap(&wrapped).await.unwrap();
    let ask = || bench.engine.verify(&bench.kek, Instant::now() + HOUR);
    for _ in 0..2 {
        denies(&bench.backend, revoked());
        for _ in 0..2 {
            assert_eq!(ask().await.unwrap_err().reason(), Reason::KekRevoked);
            assert_eq!(bench.unwrap(&wrapped).await.unwrap().source, Source::Cache);
        }
        // Allowed in between, it counts from the beginning.
        denies(&bench.backend, None);
        ask().await.unwrap();
    }
    denies(&bench.backend, revoked());
    for _ in 0..3 {
        ask().await.unwrap_err();
    }
    assert_eq!(bench.entries(), "keyward_cache_entries 0.0");
    assert_eq!(bench.unwrap(&wrapped).await.unwrap_err().reason(), Reason::KekRevoked);
    denies(&bench.backend, None);
    ask().await.unwrap();
    assert_eq!(bench.unwrap(&wrapped).await.unwrap().source, Source::Backend);
}

#[tokio::test]
async fn a_backend_of_two_minds_is_believed_when_it_says_no_three_times() {
    let bench = with_versions(1, 4, Terms { interval: HOUR, outage_grace: HOUR });
    is_believed_the_third_time(&bench, Fake::deny).await;
    let bench = with_versions(1, 4, Terms { interval: HOUR, outage_grace: HOUR });
    is_believed_the_third_time(&bench, |fake, denial| {
        *fake.denied_proofs.lock().unwrap() = denial;
    })
    .await;
}

#[tokio::test]
async fn a_denial_that_is_not_believed_yet_makes_no_lease_longer() {
    let bench = with_versions(1, 4, Terms { interval: Duration::from_secs(1), outage_grace: HOUR });
    bench.backend.denials.store(1000, Ordering::Relaxed);
    bench.prove().await;
    let wrapped = bench.wrap(1).await.unwrap();
    bench.unwrap(&wrapped).await.unwrap();
    bench.backend.deny(Some(Error::new(Reason::KekRevoked, "403")));
    let keeping = tokio::spawn(engine::keep_proven(Arc::clone(&bench.engine)));
    sleep(Duration::from_millis(1500)).await;
    assert!(bench.unwrap(&wrapped).await.is_err(), "it is as old as it is");
    assert_eq!(bench.entries(), "keyward_cache_entries 0.0");
    keeping.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_that_was_too_short_is_no_outage_of_young_leases() {
    let bench = with_versions(10, 2, Terms { interval: HOUR, outage_grace: HOUR });
    bench.prove().await;
    proofs_take(&bench, Duration::from_millis(100));
    let soon = Instant::now() + Duration::from_millis(350);
    let late = bench.engine.verify(&bench.kek, soon).await.expect_err("there is no time for ten");
    assert_eq!(late.reason(), Reason::DeadlineExceeded);
    let leases = bench.leases();
    assert_eq!(leases.len(), 10);
    assert!(leases.values().all(|(state, _)| state == "live"), "{leases:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_proven_stays_so_while_a_start_up_waits_for_the_rest() {
    let terms = Terms { interval: Duration::from_secs(2), outage_grace: Duration::ZERO };
    let slow = Fake::new();
    slow.hold_proofs.send_replace(true);
    let bench = Bench::beside(Fake::new(), terms, Some(Arc::clone(&slow)));
    let (ready, is_ready) = std::sync::mpsc::channel();
    let ready = move || ready.send(()).unwrap();
    let proving = tokio::spawn(engine::prove(Arc::clone(&bench.engine), ready));
    eventually("the first is proven", || !bench.leases().is_empty()).await;
    let wrapped = bench.wrap(1).await.unwrap();
    assert_eq!(bench.unwrap(&wrapped).await.unwrap().source, Source::Backend);
    sleep(Duration::from_secs(5)).await;
    // Neither lapsed nor wiped, though the other one's first proof is still awaited.
    assert_eq!(bench.unwrap(&wrapped).await.unwrap().source, Source::Cache);
    assert!(is_ready.try_recv().is_err(), "it is not ready");
    slow.hold_proofs.send_replace(false);
    eventually("it is ready", || is_ready.try_recv().is_ok()).await;
    proving.abort();
}
