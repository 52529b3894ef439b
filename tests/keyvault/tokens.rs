//! Tokens under load: they end, are refused and are renewed, and no call fails for it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use keyward::{
    backend::{Backend, keyvault::Service},
    error::Reason,
    kek::Algorithm,
};

use super::{only_version, reason, round_trip};
use crate::{
    azure::Azure,
    keyvault::{
        errors,
        faults::{Fault, On, Times},
        operation::Operation,
    },
};

const ALGORITHM: Algorithm = Algorithm::RsaOaep256;

/// Tokens of forty seconds are renewed after thirty.
#[tokio::test]
async fn a_token_that_ends_in_the_middle_of_load_fails_no_call() {
    let azure = Azure::start(Service::KeyVault);
    azure.fake.create_rsa("orders", 2048);
    azure.fake.set_token_lifetimes(Duration::from_secs(40), Duration::from_secs(40));
    let backend: Arc<dyn Backend> = Arc::new(azure.open());
    let info = only_version(backend.as_ref(), "orders", ALGORITHM).await;
    let (done, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (backend, info) = (Arc::clone(&backend), info.clone());
            let (done, calls) = (Arc::clone(&done), Arc::clone(&calls));
            tokio::spawn(async move {
                while !done.load(Ordering::Relaxed) {
                    round_trip(backend.as_ref(), &info, ALGORITHM).await.expect("no failed call");
                    calls.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(45)).await;
    done.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    assert!(calls.load(Ordering::Relaxed) > 100);
    assert_eq!(azure.fake.count(Operation::Token), 2, "renewed once, ahead of its end");
}

/// A vault that refuses a good token once gets a fresh one within the same call.
#[tokio::test]
async fn a_refused_token_is_replaced_within_the_call() {
    let azure = Azure::start(Service::KeyVault);
    azure.fake.create_rsa("orders", 2048);
    let backend = azure.open();
    let info = only_version(&backend, "orders", ALGORITHM).await;
    let refusal = || {
        Fault::Answer(errors::bad_token("it was withdrawn").answer().with(
            "WWW-Authenticate",
            format!("Bearer authorization=\"x\", resource=\"{}\"", azure.fake.audience()),
        ))
    };
    // A younger token is not to blame.
    azure.fake.inject(On::Operation(Operation::Unwrap), refusal(), Times::Next(1));
    round_trip(&backend, &info, ALGORITHM).await.expect("the second attempt");
    assert_eq!(azure.fake.count(Operation::Token), 1);
    tokio::time::sleep(Duration::from_secs(11)).await;
    azure.fake.inject(On::Operation(Operation::Unwrap), refusal(), Times::Next(1));
    round_trip(&backend, &info, ALGORITHM).await.expect("the second attempt");
    assert_eq!(azure.fake.count(Operation::Token), 2);
    azure.fake.inject(On::Operation(Operation::Unwrap), refusal(), Times::Always);
    let refused = round_trip(&backend, &info, ALGORITHM).await;
    assert_eq!(reason(refused), Reason::BackendMisconfigured);
}

/// The first request of a client shows neither a token nor a DEK, whatever it is for.
#[tokio::test]
async fn one_token_serves_a_herd_and_the_first_request_shows_nothing() {
    let azure = Azure::start(Service::ManagedHsm);
    azure.fake.create_oct("orders", 256);
    let backend = azure.open();
    let versions = (0..20).map(|_| only_version(&backend, "orders", Algorithm::A256Kw));
    futures_util::future::join_all(versions).await;
    assert_eq!(azure.fake.count(Operation::Token), 1);

    let info = only_version(&backend, "orders", Algorithm::A256Kw).await;
    let second = azure.open();
    azure.fake.record().reset();
    let payload = keyward::secret::Secret::new(vec![7; 32]);
    let usable = crate::support::usable(&info);
    second.wrap(&usable, Algorithm::A256Kw, &payload, super::soon()).await.expect("a DEK");
    let seen = azure.fake.record().seen();
    let asked_vault = |operation| !matches!(operation, Operation::Token | Operation::Discovery);
    let mut seen = seen.iter().filter(|seen| asked_vault(seen.operation));
    let first = seen.next().expect("a request");
    assert!(!first.authorized && first.body == 0 && first.status == 401, "{first:?}");
    assert!(seen.all(|seen| seen.authorized && seen.status == 200));
}

#[tokio::test]
async fn an_identity_that_is_deleted_does_no_harm_while_its_token_is_good() {
    let azure = Azure::start(Service::KeyVault);
    azure.fake.create_rsa("orders", 2048);
    let backend = azure.open();
    let info = only_version(&backend, "orders", ALGORITHM).await;
    azure.fake.delete_app(&azure.app);
    round_trip(&backend, &info, ALGORITHM).await.unwrap();
}
