//! The documented quotas, with their weights, on a held clock.

use std::time::Duration;

use proptest::{collection::vec, prelude::*};
use serde_json::json;

use crate::{
    client::Client,
    keyvault::{
        FakeVault, Settings,
        message::encode,
        operation::Operation,
        state::Kind,
        throttle::{Throttle, Touched, cost},
    },
    scene,
};

/// How many GETs of a key are answered before the first 429, and then for how long that
/// goes on: a whole window.
async fn admitted(vault: &FakeVault, client: &Client, key: &str) -> u32 {
    let mut admitted = 0;
    loop {
        let reply = client.get(&format!("/keys/{key}")).await;
        match reply.status {
            200 => admitted += 1,
            429 => {
                reply.is(429, "Throttled", "");
                assert!(reply.message().ends_with("Reason: VaultRequestTypeLimitReached"));
                // As captured: without a word about when to come back.
                assert!(reply.header("retry-after").is_empty());
                break;
            }
            other => panic!("{other}"),
        }
    }
    assert!(vault.quota_used() > 0.99, "{}", vault.quota_used());
    vault.clock().advance(Duration::from_millis(9_999));
    assert_eq!(client.get(&format!("/keys/{key}")).await.status, 429);
    vault.clock().advance(Duration::from_millis(1));
    assert_eq!(vault.quota_used(), 0.0);
    admitted
}

#[tokio::test]
async fn a_4096_bit_hsm_key_is_eight_times_as_dear_as_one_of_2048() {
    let (vault, client) = scene(Settings::premium());
    vault.clock().hold();
    vault.create_rsa("large", 4096);
    vault.create_rsa("small", 2048);
    assert_eq!(admitted(&vault, &client, "large").await, 250);
    // The sum counts: 248 of the large leave 16 of the small.
    for _ in 0..248 {
        client.get("/keys/large").await.ok();
    }
    for _ in 0..16 {
        client.get("/keys/small").await.ok();
    }
    assert_eq!(client.get("/keys/small").await.status, 429);
    // Cryptography is paid from the same.
    let body = json!({ "alg": "RSA-OAEP-256", "value": encode([1; 32]) });
    assert_eq!(client.post("/keys/small//wrapkey", body).await.status, 429);
    // Lists and management are not.
    client.get("/keys").await.ok();
    vault.set_retry_after(Some(3));
    let reply = client.get("/keys/small").await;
    assert_eq!((reply.status, reply.header("retry-after")), (429, "3"));
}

#[tokio::test]
async fn sizes_and_protection_have_their_prices() {
    let (vault, client) = scene(Settings::premium());
    vault.clock().hold();
    vault.create_rsa("hsm-3072", 3072);
    assert_eq!(admitted(&vault, &client, "hsm-3072").await, 500);
    let (vault, client) = scene(Settings::standard());
    vault.clock().hold();
    vault.create_rsa("software-4096", 4096);
    assert_eq!(admitted(&vault, &client, "software-4096").await, 500);
}

#[tokio::test]
async fn keys_are_made_slowly() {
    let (vault, client) = scene(Settings::premium());
    vault.clock().hold();
    let make = async |kty: &str| {
        let body = json!({ "kty": kty, "key_size": if kty == "RSA" { 2048 } else { 128 } });
        client.post("/keys/k/create", body).await.status
    };
    for _ in 0..10 {
        assert_eq!(make("oct-HSM").await, 200);
    }
    assert_eq!(make("oct-HSM").await, 429);
    assert_eq!(make("RSA").await, 429);
    vault.clock().advance(Duration::from_secs(10));
    assert_eq!(make("RSA").await, 200);
    assert_eq!(vault.record().answered(Operation::Create, 429), 2);
}

#[tokio::test]
async fn whether_refused_requests_count_is_a_setting() {
    let (vault, client) = scene(Settings::premium());
    vault.clock().hold();
    vault.create_rsa("k", 4096);
    for counts in [false, true] {
        vault.set_refused_counts(counts);
        for _ in 0..250 {
            client.get("/keys/k").await.ok();
        }
        vault.clock().advance(Duration::from_secs(5));
        assert_eq!(client.get("/keys/k").await.status, 429);
        // The first 250 are paid off; whether the one after them is, is the question.
        vault.clock().advance(Duration::from_secs(5));
        let used = vault.quota_used();
        assert_eq!(used > 0.0, counts, "{used}");
        vault.clock().advance(Duration::from_secs(10));
    }
}

#[tokio::test]
async fn a_managed_hsm_throttles_no_cryptography() {
    let (vault, client) = scene(Settings::managed_hsm());
    vault.clock().hold();
    vault.create_rsa("k", 4096);
    for _ in 0..300 {
        client.get("/keys/k").await.ok();
    }
    assert_eq!(vault.quota_used(), 0.0);
    // But it makes one key a second.
    let body = json!({ "kty": "oct-HSM", "key_size": 256 });
    client.post("/keys/aes/create", body.clone()).await.ok();
    assert_eq!(client.post("/keys/aes/create", body.clone()).await.status, 429);
    vault.clock().advance(Duration::from_secs(1));
    client.post("/keys/aes/create", body).await.ok();
    for _ in 0..10 {
        client.send("POST", "/keys/aes/backup", None).await.ok();
    }
    assert_eq!(client.send("POST", "/keys/aes/backup", None).await.status, 429);
}

proptest! {
    /// Against the definition: a request is admitted exactly if what was admitted in the ten
    /// seconds before it leaves room for it.
    #[test]
    fn no_ten_seconds_hold_more_than_the_quota(
        requests in vec((0_u64..400, any::<bool>(), 0_usize..3), 1..900),
    ) {
        let mut throttle = Throttle::new();
        let mut now = Duration::from_secs(1_700_000_000);
        let mut admitted: Vec<(Duration, u32)> = Vec::new();
        for (millis, hsm, size) in requests {
            now += Duration::from_millis(millis / 20);
            let (bits, weight) = [(2048, 1), (3072, 4), (4096, 8)][size];
            let units = weight * if hsm { 2 } else { 1 };
            let price = cost(Kind::Premium, Operation::Unwrap, Some(Touched { hsm, bits }));
            let recent = admitted.iter().filter(|(at, _)| *at + Duration::from_secs(10) > now);
            let fits = recent.map(|(_, units)| units).sum::<u32>() + units <= 4000;
            prop_assert_eq!(throttle.admit(now, price.unwrap()), fits);
            if fits {
                admitted.push((now, units));
            }
        }
    }
}
