//! Revocation against the engine alone, with no socket in between: real threads, and
//! hundreds of rounds.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
};

use keyward::{
    engine::{Source, Unwrapped},
    error::Reason,
};
use tokio::task::{JoinSet, yield_now};

use super::support::{
    bench::{Bench, dek},
    sidecar::eventually,
};

const ROUNDS: usize = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_call_gets_a_dek_between_a_revocation_and_the_restoration() {
    let bench = Bench::new().await;
    // Odd from when `revoke` has returned until just before `restore` is called.
    let epoch = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let (inside, outside) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut load = JoinSet::new();
    for n in 0..16_u64 {
        // Half ask for the same few, which are mostly in memory, half for new ones.
        let fresh = n % 2 == 1;
        let mut asked = if fresh { n << 32 } else { n % 4 };
        let mut wrapped = bench.wrap(asked).await.unwrap();
        let (bench, epoch, stop) = (Arc::clone(&bench), Arc::clone(&epoch), Arc::clone(&stop));
        let (inside, outside) = (Arc::clone(&inside), Arc::clone(&outside));
        load.spawn(async move {
            let mut from_memory = 0_usize;
            while !stop.load(SeqCst) {
                if fresh && let Ok(another) = bench.wrap(asked + 1).await {
                    (asked, wrapped) = (asked + 1, another);
                }
                let before = epoch.load(SeqCst);
                let result = bench.unwrap(&wrapped).await;
                // It began and ended in one and the same epoch.
                let within = epoch.load(SeqCst) == before;
                match result {
                    Ok(Unwrapped { dek: got, source }) => {
                        assert!(!within || before.is_multiple_of(2), "released while revoked");
                        assert!(got.secret().ct_eq(dek(asked).expose()), "another's DEK");
                        from_memory += usize::from(source == Source::Cache);
                        outside.fetch_add(1, SeqCst);
                    }
                    Err(error) => {
                        let allowed = [Reason::KekRevoked, Reason::KekUnproven];
                        assert!(allowed.contains(&error.reason()), "{error}");
                        if within && !before.is_multiple_of(2) {
                            assert_eq!(error.reason(), Reason::KekRevoked, "{error}");
                            inside.fetch_add(1, SeqCst);
                        }
                    }
                }
                yield_now().await;
            }
            from_memory
        });
    }
    for round in 0..ROUNDS {
        let answered = outside.load(SeqCst);
        eventually("callers are answered", || outside.load(SeqCst) >= answered + 32).await;
        // Some are at the backend meanwhile, and come back to a KEK that is revoked.
        bench.backend.hold.send_replace(true);
        eventually("some wait for the backend", || bench.backend.running() > 0).await;
        bench.revoke().await;
        epoch.fetch_add(1, SeqCst);
        bench.backend.hold.send_replace(false);
        eventually("they are back", || bench.backend.running() == 0).await;
        let refused = inside.load(SeqCst);
        eventually("callers are refused", || inside.load(SeqCst) >= refused + 32).await;
        assert_eq!(bench.entries(), "keyward_cache_entries 0.0", "round {round}");
        epoch.fetch_add(1, SeqCst);
        bench.restore().await;
        bench.prove().await;
    }
    stop.store(true, SeqCst);
    let mut from_memory = 0;
    while let Some(caller) = load.join_next().await {
        from_memory += caller.unwrap();
    }
    assert!(from_memory > ROUNDS, "the cache had no part in it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn calls_at_the_backend_end_empty_handed_though_the_kek_was_restored() {
    let bench = Bench::new().await;
    let mut wrapped = Vec::new();
    for n in 0..16 {
        wrapped.push(bench.wrap(n).await.unwrap());
    }
    for round in 0..ROUNDS {
        bench.backend.hold.send_replace(true);
        let mut calls = JoinSet::new();
        for wrapped in &wrapped {
            let (bench, wrapped) = (Arc::clone(&bench), wrapped.clone());
            calls.spawn(async move { bench.unwrap(&wrapped).await });
        }
        eventually("all are at the backend", || bench.backend.running() == wrapped.len()).await;
        bench.revoke().await;
        // In half of the rounds they come back to a KEK that is allowed again.
        let restored = round % 2 == 0;
        if restored {
            bench.restore().await;
            bench.prove().await;
        }
        bench.backend.hold.send_replace(false);
        while let Some(ended) = calls.join_next().await {
            let error = ended.unwrap().expect_err("it is from before the revocation");
            let expected = if restored { Reason::KekUnproven } else { Reason::KekRevoked };
            assert_eq!(error.reason(), expected, "round {round}: {error}");
        }
        assert_eq!(bench.entries(), "keyward_cache_entries 0.0", "round {round}");
        if !restored {
            bench.restore().await;
            bench.prove().await;
        }
        let again = bench.unwrap(&wrapped[0]).await.unwrap();
        assert_eq!(again.source, Source::Backend, "round {round}");
        bench.purge().await;
    }
}
