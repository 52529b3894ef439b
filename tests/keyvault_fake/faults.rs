//! Faults below HTTP, and what is counted.

use std::{
    io::ErrorKind,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::time::timeout;

use crate::{
    client::Client,
    keyvault::{
        FakeVault, Settings, errors,
        faults::{Fault, On, Operation, Times, Tls},
        message::encode,
        server::Place,
    },
    scene,
};

fn vault() -> (FakeVault, Client) {
    let (vault, client) = scene(Settings::premium());
    vault.create_oct("k", 256);
    (vault, client)
}

async fn get(client: &Client) -> std::io::Result<crate::client::Reply> {
    client.try_send("GET", "/keys/k?api-version=7.6", None).await
}

#[tokio::test]
async fn late_and_slow_answers_are_right() {
    let (vault, client) = vault();
    let right = get(&client).await.unwrap().ok();
    let time = Duration::from_millis(200);
    vault.inject(On::Vault, Fault::Latency(time), Times::Next(1));
    let begun = Instant::now();
    assert_eq!(get(&client).await.unwrap().ok(), right);
    assert!(begun.elapsed() >= time);
    let pause = Duration::from_millis(20);
    vault.inject(On::Vault, Fault::Slow { piece: 64, pause }, Times::Next(1));
    let begun = Instant::now();
    let reply = get(&client).await.unwrap();
    assert_eq!(reply.ok(), right);
    assert!(begun.elapsed() >= pause * (reply.body.len() / 64) as u32);
}

#[tokio::test]
async fn connections_end_in_the_middle() {
    let (vault, client) = vault();
    for fault in [Fault::Reset, Fault::Close, Fault::Truncate] {
        vault.inject(On::Key("k".into()), fault.clone(), Times::Next(1));
        assert!(get(&client).await.is_err(), "{fault:?}");
        get(&client).await.unwrap().ok();
    }
    vault.inject(On::Operation(Operation::Get), Fault::Reset, Times::Next(1));
    let error = get(&client).await.unwrap_err();
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    let mut kinds = Vec::new();
    while let Some(error) = cause {
        kinds.extend(error.downcast_ref::<std::io::Error>().map(std::io::Error::kind));
        cause = error.source();
    }
    assert!(kinds.contains(&ErrorKind::ConnectionReset), "{error:?}");
    // Cut off before a status: 0. A truncated answer had one.
    assert_eq!(vault.record().answered(Operation::Get, 0), 3);
}

#[tokio::test]
async fn no_answer_at_all() {
    let (vault, client) = vault();
    vault.inject(On::Vault, Fault::Hang, Times::Next(1));
    assert!(timeout(Duration::from_millis(300), get(&client)).await.is_err());
    get(&client).await.unwrap().ok();
}

#[tokio::test]
async fn the_operation_is_done_and_the_answer_is_nonsense() {
    let (vault, client) = vault();
    vault.inject(On::Operation(Operation::Create), Fault::Body("{\"key\":".into()), Times::Next(1));
    let reply = client.post("/keys/new/create", json!({ "kty": "RSA" })).await;
    assert_eq!((reply.status, reply.body.as_slice()), (200, &b"{\"key\":"[..]));
    client.get("/keys/new").await.ok();
}

#[tokio::test]
async fn tls_fails() {
    let (vault, client) = vault();
    get(&client).await.unwrap().ok();
    let mut seen = std::collections::BTreeSet::new();
    for tls in [Tls::WrongName, Tls::UnknownAuthority, Tls::Expired, Tls::Closed, Tls::Plaintext] {
        vault.set_tls(tls);
        let error = get(&client).await.expect_err("no handshake");
        assert!(seen.insert(error.to_string()), "{tls:?} looks like another: {error}");
    }
    vault.set_tls(Tls::Right);
    get(&client).await.unwrap().ok();
    assert_eq!(vault.record().connections(), 7);
    assert_eq!(vault.count(Operation::Get), 2, "nothing was asked without a handshake");
}

#[tokio::test]
async fn entra_and_imds_fail_alone() {
    let (vault, client) = vault();
    vault.inject(On::Operation(Operation::Token), Fault::Close, Times::Always);
    let entra = client.without_token().at(&vault.authority());
    let path = format!("/{}/oauth2/v2.0/token", vault.tenant());
    assert!(entra.try_send("POST", &path, None).await.is_err());
    get(&client).await.unwrap().ok();
    vault.clear_faults();
    assert_eq!(entra.try_send("POST", &path, None).await.unwrap().status, 400);
}

#[tokio::test]
async fn one_request_of_so_many() {
    let (vault, client) = vault();
    vault.inject(On::Vault, Fault::Answer(errors::unavailable().answer()), Times::OneOf(3));
    let mut statuses = Vec::new();
    for _ in 0..7 {
        statuses.push(get(&client).await.unwrap().status);
    }
    assert_eq!(statuses, [200, 200, 503, 200, 200, 503, 200]);
}

#[tokio::test]
async fn places_go_offline_and_come_back() {
    let (vault, client) = vault();
    let imds = client.without_token().at(&vault.imds());
    vault.take_offline(Place::Vault);
    let error = get(&client).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(imds.get_with("/", &[]).await.status, 404);
    vault.bring_back(Place::Vault);
    get(&client).await.unwrap().ok();

    // A request that is under way is cut.
    vault.inject(On::Vault, Fault::Hang, Times::Next(1));
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { get(&client).await }
    });
    while vault.record().answered(Operation::Get, 0) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    vault.cut_connections(Place::Vault);
    let cut = timeout(Duration::from_secs(10), waiting).await.expect("it is cut");
    assert!(cut.unwrap().is_err());
    get(&client).await.unwrap().ok();
}

#[tokio::test]
async fn requests_are_counted_and_remembered() {
    let (vault, client) = vault();
    let version = vault.version("k", "").id;
    let body = json!({ "alg": "A256KW", "value": encode([0; 32]) });
    client.post(&format!("/keys/k/{version}/wrapkey"), body.clone()).await.ok();
    client.without_token().post("/keys/k//wrapkey", body.clone()).await;
    let reply = client.post("/keys/none//wrapkey", body.clone()).await;
    assert_eq!(vault.count(Operation::Wrap), 3);
    for (status, count) in [(200, 1), (401, 1), (404, 1), (500, 0)] {
        assert_eq!(vault.record().answered(Operation::Wrap, status), count);
    }
    let seen = vault.record().seen();
    let first = &seen[0];
    assert_eq!((first.key.as_str(), &first.version, first.status), ("k", &version, 200));
    assert!(first.authorized && !seen[1].authorized);
    assert_eq!(first.body, body.to_string().len());
    assert_eq!(seen[2].request_id, reply.header("x-ms-request-id"));
    assert_eq!(seen.iter().map(|seen| seen.connection).collect::<Vec<_>>(), [1, 2, 3]);
    vault.record().reset();
    assert_eq!((vault.count(Operation::Wrap), vault.record().seen().len()), (0, 0));
}
