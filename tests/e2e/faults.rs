//! The faults of `tests/faults.rs` once more, from where the user stands: over gRPC, under
//! load, without a restart.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use keyward::secret::Secret;

use super::served::{KEK, Served};

const DEK: [u8; 32] = [0x42; 32];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_token_goes_away_under_load_and_comes_back() {
    let served = Served::start();
    let client = served.client();
    let wrapped = client.wrap(KEK, &Secret::copy_of(&DEK), b"").await.expect("a wrapped DEK");
    let stop = Arc::new(AtomicBool::new(false));
    let (good, unreachable) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (client, wrapped, stop) = (client.clone(), wrapped.clone(), Arc::clone(&stop));
            let (good, unreachable) = (Arc::clone(&good), Arc::clone(&unreachable));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    match client.unwrap(&wrapped, b"").await {
                        Ok(dek) => {
                            assert!(dek.ct_eq(&DEK), "another key was used");
                            good.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => {
                            assert_eq!(error.reason(), "BACKEND_UNREACHABLE", "{error}");
                            assert!(error.retry_after().is_some(), "it says when to try again");
                            unreachable.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let away = served.token.dir.path().join("away");
    fs::rename(served.token.storage(), &away).expect("the token goes away");
    tokio::time::sleep(Duration::from_secs(4)).await;
    fs::rename(&away, served.token.storage()).expect("the token comes back");
    let before = good.load(Ordering::Relaxed);
    let until = Instant::now() + Duration::from_secs(20);
    while good.load(Ordering::Relaxed) < before + 100 {
        assert!(Instant::now() < until, "it did not recover:\n{}", served.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.store(true, Ordering::Relaxed);
    for task in load {
        task.await.expect("no caller saw a wrong answer");
    }
    assert!(unreachable.load(Ordering::Relaxed) > 0, "the token was never away");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_deleted_and_made_again_is_another_key() {
    let served = Served::start();
    let client = served.client();
    let dek = Secret::copy_of(&DEK);
    let wrapped = client.wrap(KEK, &dek, b"").await.expect("a wrapped DEK");
    served.delete_version("0a");
    let gone = client.unwrap(&wrapped, b"").await.expect_err("the key is gone");
    assert!(["KEK_VERSION_NOT_FOUND", "KEK_NOT_FOUND"].contains(&gone.reason()), "{gone}");
    served.add_version("0a");
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
