//! Unwraps that something overtakes on their way, against the engine alone.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use keyward::{
    engine::{Source, Unwrapped},
    envelope::WrappedDek,
    error::{Error, Reason},
    guard::Class,
    lease::Terms,
};
use tokio::{task::JoinHandle, time::sleep_until};

use super::support::{
    bench::{Bench, HOUR},
    fake::Fake,
    sidecar::eventually,
};

#[tokio::test(flavor = "multi_thread")]
async fn what_a_purge_overtakes_is_answered_and_not_kept() {
    let bench = Bench::new().await;
    let wrapped = bench.wrap(1).await.unwrap();
    bench.backend.hold.send_replace(true);
    let call = tokio::spawn({
        let (bench, wrapped) = (Arc::clone(&bench), wrapped.clone());
        async move { bench.unwrap(&wrapped).await }
    });
    eventually("it is at the backend", || bench.backend.running() == 1).await;
    bench.purge().await;
    bench.backend.hold.send_replace(false);
    assert_eq!(call.await.unwrap().unwrap().source, Source::Backend);
    assert_eq!(bench.entries(), "keyward_cache_entries 0.0", "it is back after the purge");
    // The purge is over: what is asked for by now is kept.
    for source in [Source::Backend, Source::Cache] {
        assert_eq!(bench.unwrap(&wrapped).await.unwrap().source, source);
    }
}

/// The first proof of a process is as old as the question, as all others are. Needs a
/// process of its own to mean something.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_proof_that_took_long_is_not_good_for_longer() {
    let terms = Terms { interval: Duration::from_secs(4), outage_grace: HOUR };
    let bench = Bench::of(Fake::new(), terms);
    bench.backend.hold_proofs.send_replace(true);
    let asked = Instant::now();
    let proving = tokio::spawn({
        let bench = Arc::clone(&bench);
        async move { bench.prove().await }
    });
    sleep_until((asked + Duration::from_secs(3)).into()).await;
    bench.backend.hold_proofs.send_replace(false);
    proving.await.unwrap();
    let wrapped = bench.wrap(1).await.unwrap();
    bench.unwrap(&wrapped).await.unwrap();
    // 2 s too long, if the count began with the lease.
    sleep_until((asked + Duration::from_millis(4200)).into()).await;
    assert_eq!(bench.unwrap(&wrapped).await.unwrap_err().reason(), Reason::KekUnproven);
}

type Call = JoinHandle<Result<Unwrapped, Error>>;

/// Two calls for the same DEK that wait for one flight, the first of which began it.
async fn leader_and_follower(bench: &Arc<Bench>, wrapped: &WrappedDek) -> (Call, Call) {
    let call = |class| {
        let (bench, wrapped) = (Arc::clone(bench), wrapped.clone());
        tokio::spawn(async move { bench.unwrap_in(class, &wrapped).await })
    };
    let leader = call(Class::Bulk);
    eventually("it is at the backend", || bench.backend.running() == 1).await;
    let follower = call(Class::Foreground);
    eventually("they share it", || bench.metrics.render().contains("from=\"shared\"} 1")).await;
    (leader, follower)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_shares_a_flight_does_not_share_its_deadline() {
    for reason in [Reason::DeadlineExceeded, Reason::Overloaded] {
        let bench = Bench::new().await;
        let wrapped = bench.wrap(1).await.unwrap();
        bench.backend.hold.send_replace(true);
        let (leader, follower) = leader_and_follower(&bench, &wrapped).await;
        bench.backend.failures.lock().unwrap().push_back(Error::new(reason, "the leader's"));
        bench.backend.hold.send_replace(false);
        assert_eq!(leader.await.unwrap().unwrap_err().reason(), reason);
        assert_eq!(follower.await.unwrap().unwrap().source, Source::Backend);
        assert_eq!(bench.backend.unwraps(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whose_second_flight_fails_too_is_told_so() {
    let bench = Bench::new().await;
    let wrapped = bench.wrap(1).await.unwrap();
    bench.backend.hold.send_replace(true);
    let (leader, follower) = leader_and_follower(&bench, &wrapped).await;
    for _ in 0..3 {
        let error = Error::new(Reason::Overloaded, "the backend is full");
        bench.backend.failures.lock().unwrap().push_back(error);
    }
    bench.backend.hold.send_replace(false);
    for call in [leader, follower] {
        assert_eq!(call.await.unwrap().unwrap_err().reason(), Reason::Overloaded);
    }
    assert_eq!(bench.backend.unwraps(), 2, "once more, and no more than once");
}
