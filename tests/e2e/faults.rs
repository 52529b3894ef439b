//! The faults of `tests/faults.rs` once more, from where the user stands: over gRPC, under
//! load, without a restart.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use keyward::{client::Error, secret::Secret};
use tokio::task::JoinSet;

use super::{
    home::{Home, on_each_home},
    served::{FIRST, KEK, Served},
};

on_each_home! {
    asynchronous: the_backend_goes_away_under_load_and_comes_back;
}

const DEK: [u8; 32] = [0x42; 32];

/// What callers have met.
#[derive(Default)]
struct Met {
    good: AtomicUsize,
    unreachable: AtomicUsize,
}

impl Met {
    fn note(&self, outcome: Result<Secret, Error>) {
        match outcome {
            Ok(dek) => {
                assert!(dek.ct_eq(&DEK), "another key was used");
                self.good.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                assert_eq!(error.reason(), "BACKEND_UNREACHABLE", "{error}");
                assert!(error.retry_after().is_some(), "it says when to try again");
                self.unreachable.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn good(&self) -> usize {
        self.good.load(Ordering::Relaxed)
    }

    async fn wait_for_good(&self, more: usize, served: &Served) {
        let wanted = self.good() + more;
        let until = Instant::now() + Duration::from_secs(20);
        while self.good() < wanted {
            assert!(Instant::now() < until, "no good answers:\n{}", served.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn the_backend_goes_away_under_load_and_comes_back(home: Home) {
    let served = Served::start_on(home);
    let client = served.client();
    let dek = Secret::copy_of(&DEK);
    let cached = client.wrap(KEK, &dek, b"").await.expect("a wrapped DEK");
    let stop = Arc::new(AtomicBool::new(false));
    let (hits, misses) = (Arc::new(Met::default()), Arc::new(Met::default()));
    let mut load = JoinSet::new();
    for _ in 0..4 {
        let (client, cached) = (client.clone(), cached.clone());
        let (stop, hits) = (Arc::clone(&stop), Arc::clone(&hits));
        load.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                hits.note(client.unwrap(&cached, b"").await);
            }
        });
    }
    for _ in 0..2 {
        // Half of the outage: with more, the client would try until it is over.
        let client = client.clone().with_deadline(Duration::from_secs(2));
        let (stop, misses) = (Arc::clone(&stop), Arc::clone(&misses));
        load.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                // RSA wraps without the HSM, and each time to something else.
                let fresh = client.wrap(KEK, &Secret::copy_of(&DEK), b"").await;
                misses.note(client.unwrap(&fresh.expect("a wrapped DEK"), b"").await);
            }
        });
    }
    hits.wait_for_good(20, &served).await;
    misses.wait_for_good(5, &served).await;
    served.house.take_away();
    // Four lease intervals, so that nothing but the grace lets hits through.
    tokio::time::sleep(Duration::from_secs(4)).await;
    hits.wait_for_good(100, &served).await;
    served.house.bring_back();
    misses.wait_for_good(20, &served).await;
    hits.wait_for_good(100, &served).await;
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = load.join_next().await {
        ended.expect("no caller saw a wrong answer");
    }
    assert!(misses.unreachable.load(Ordering::Relaxed) > 0, "the backend was never away");
    assert_eq!(hits.unreachable.load(Ordering::Relaxed), 0, "what is cached was refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_deleted_and_made_again_is_another_key() {
    let served = Served::start();
    let client = served.client();
    let dek = Secret::copy_of(&DEK);
    let wrapped = client.wrap(KEK, &dek, b"").await.expect("a wrapped DEK");
    served.delete_version(FIRST);
    let gone = client.unwrap(&wrapped, b"").await.expect_err("the key is gone");
    assert!(["KEK_VERSION_NOT_FOUND", "KEK_NOT_FOUND"].contains(&gone.reason()), "{gone}");
    served.add_version(FIRST);
    let until = Instant::now() + Duration::from_secs(10);
    let renewed = loop {
        match client.wrap(KEK, &dek, b"").await {
            Ok(renewed) if renewed.kek_fingerprint != wrapped.kek_fingerprint => break renewed,
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
        assert!(Instant::now() < until, "the new key is not found:\n{}", served.log());
    };
    assert!(client.unwrap(&renewed, b"").await.expect("a DEK").ct_eq(&DEK));
    let old = client.unwrap(&wrapped, b"").await.expect_err("it was another key");
    assert_eq!(old.reason(), "KEK_MISMATCH");
    assert!(served.is_ready());
}
