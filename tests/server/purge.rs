//! Purges and revocations under load, and what they do to connections.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use keyward::{
    auth::Policy,
    carriers::Carrier,
    client::Item,
    engine::Purged,
    error::Reason,
    kek::KekName,
    op::Op,
    wire::{
        PurgeCacheRequest, PurgeCacheResponse, UnwrapRequest, WrapRequest,
        admin_client::AdminClient, key_wrap_client::KeyWrapClient,
    },
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic::{Status, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::{v1, v1alpha};

use super::{
    calls::reason,
    support::sidecar::{
        Parts, Sidecar, UNGRANTED, dek, eventually, grant, own_uid, permit, wrapped_deks,
    },
};

const MINUTE: Duration = Duration::from_secs(60);

async fn purge(sidecar: &Sidecar, kek: &str) -> Result<PurgeCacheResponse, Status> {
    let request = PurgeCacheRequest { kek: kek.into() };
    Ok(AdminClient::new(sidecar.channel()).purge_cache(request).await?.into_inner())
}

async fn revoke(sidecar: &Sidecar, kek: &KekName) -> Purged {
    let revoked = sidecar.engine.revoke(permit(Op::Revoke, kek), &Carrier::new()).await.unwrap();
    assert!(!revoked.kept, "there is no state directory");
    revoked.purged
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_wipes_and_closes_who_carried_and_nobody_else() {
    let sidecar = Sidecar::start().await;
    let (one, two) = (sidecar.plain_client(), sidecar.plain_client());
    let wrapped = wrapped_deks(&one, 3).await;
    for wrapped in &wrapped {
        one.unwrap(wrapped, b"").await.unwrap();
    }
    // Only "orders-2" went over the other connection.
    let other = two.wrap("orders-2", &dek(), b"").await.unwrap();
    two.unwrap(&other, b"").await.unwrap();
    let purged = purge(&sidecar, "orders").await.unwrap();
    assert_eq!(purged, PurgeCacheResponse { deks: 3, connections: 1, left_open: 0, sessions: 0 });
    let unwraps = sidecar.fake.unwraps();
    for wrapped in &wrapped {
        one.unwrap(wrapped, b"").await.expect("the client connects again by itself");
    }
    two.unwrap(&other, b"").await.unwrap();
    assert_eq!(sidecar.fake.unwraps() - unwraps, 3, "the other KEK's DEK is still there");

    let purged = purge(&sidecar, "").await.unwrap();
    assert_eq!(purged, PurgeCacheResponse { deks: 4, connections: 2, left_open: 0, sessions: 0 });
}

/// An unwrap of one and the same DEK of each KEK over `channel`, after which both are cached.
async fn unwrap_both(channel: &Channel) {
    let mut raw = KeyWrapClient::new(channel.clone());
    for kek in ["orders", "orders-2"] {
        let request =
            WrapRequest { kek: kek.into(), dek: vec![7; 32], context: vec![], sealed: None };
        let wrapped = raw.wrap(request).await.unwrap().into_inner().wrapped.take();
        raw.unwrap(UnwrapRequest { wrapped, context: vec![], session: vec![] }).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_purges_over_the_connection_of_its_deks_gets_an_answer_and_then_goes() {
    let sidecar = Sidecar::start().await;
    let (own, other) = (sidecar.channel(), sidecar.channel());
    unwrap_both(&own).await;
    unwrap_both(&other).await;
    let began = Instant::now();
    let mut admin = AdminClient::new(own);
    let all = PurgeCacheRequest { kek: String::new() };
    let purged = admin.purge_cache(all).await.unwrap().into_inner();
    assert_eq!(purged, PurgeCacheResponse { deks: 2, connections: 2, left_open: 0, sessions: 0 });
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let closed = r#"keyward_connections_closed_total{cause="purge"} 2"#;
    eventually("both are closed", || sidecar.metrics.render().contains(closed)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_whose_caller_leaves_is_done_to_its_end() {
    let sidecar = Sidecar::start().await;
    let stubborn = sidecar.channel();
    unwrap_both(&stubborn).await;
    // A call in work keeps its connection from ending until it is cut.
    sidecar.fake.hold.send_replace(true);
    let wrapped = sidecar.client().wrap("orders", &dek(), b"").await.unwrap();
    let request = UnwrapRequest { wrapped: Some(wrapped), context: vec![], session: vec![] };
    let call = tokio::spawn(async move { KeyWrapClient::new(stubborn).unwrap(request).await });
    eventually("it is in work", || sidecar.fake.running() == 1).await;
    let left = timeout(Duration::from_millis(300), purge(&sidecar, "")).await;
    assert!(left.is_err(), "it waits for the connection");
    let text = sidecar.metrics.render();
    assert!(text.contains("keyward_cache_entries 0"), "all is wiped at once:\n{text}");
    let done = |kek: &str| {
        let labels = format!(r#"{{kek="{kek}",op="purge",outcome="OK"}}"#);
        sidecar.metrics.render().contains(&format!("keyward_operations_total{labels} 1"))
    };
    eventually("it is done to its end", || done("orders") && done("orders-2")).await;
    call.await.unwrap().unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_health_or_reflects_does_not_hold_a_purge_up() {
    let sidecar = Sidecar::start().await;
    let channel = sidecar.channel();
    let mut raw = KeyWrapClient::new(channel.clone());
    let request =
        WrapRequest { kek: "orders".into(), dek: vec![7; 32], context: vec![], sealed: None };
    raw.wrap(request).await.unwrap();
    // Each of them would go on for ever.
    let ask = HealthCheckRequest::default();
    let mut watched = HealthClient::new(channel.clone()).watch(ask).await.unwrap().into_inner();
    assert!(watched.message().await.unwrap().is_some());
    let mut reflected = v1::server_reflection_client::ServerReflectionClient::new(channel.clone())
        .server_reflection_info(stream::pending())
        .await
        .unwrap()
        .into_inner();
    let mut reflected_alpha =
        v1alpha::server_reflection_client::ServerReflectionClient::new(channel)
            .server_reflection_info(stream::pending())
            .await
            .unwrap()
            .into_inner();
    let began = Instant::now();
    let purged = purge(&sidecar, "orders").await.unwrap();
    assert_eq!((purged.connections, purged.left_open), (1, 0));
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert!(watched.message().await.unwrap().is_none(), "it ends in order");
    assert!(reflected.message().await.unwrap().is_none());
    assert!(reflected_alpha.message().await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_may_purge_does() {
    let sidecar = Sidecar::start().await;
    let who = format!("uid:{}", own_uid());
    let policy = keyward::auth::Policy::new(vec![
        grant(&who, &[Op::Wrap, Op::Unwrap], "*"),
        grant(&who, &[Op::Purge], "orders-2"),
    ]);
    sidecar.policy.store(Arc::new(policy));
    for kek in ["orders", "no-such-kek"] {
        assert_eq!(reason(&purge(&sidecar, kek).await.unwrap_err()), "PERMISSION_DENIED");
    }
    assert_eq!(reason(&purge(&sidecar, "/").await.unwrap_err()), "REQUEST_INVALID");
    let client = sidecar.client();
    for kek in ["orders", "orders-2"] {
        let wrapped = client.wrap(kek, &dek(), b"").await.unwrap();
        client.unwrap(&wrapped, b"").await.unwrap();
    }
    assert_eq!(purge(&sidecar, "").await.unwrap().deks, 1, "all that it may, and no more");
    sidecar.policy.store(Arc::new(keyward::auth::Policy::default()));
    assert_eq!(reason(&purge(&sidecar, "").await.unwrap_err()), "PERMISSION_DENIED");
}

#[tokio::test(flavor = "multi_thread")]
async fn purges_cost_callers_nothing_but_time() {
    let sidecar = Sidecar::start().await;
    let client = sidecar.client();
    let wrapped = wrapped_deks(&client, 16).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut load = JoinSet::new();
    for wrapped in wrapped {
        let (client, stop) = (client.clone(), Arc::clone(&stop));
        load.spawn(async move {
            let mut answered = 0_usize;
            while !stop.load(Ordering::Relaxed) {
                client.unwrap(&wrapped, b"").await.expect("no caller notices");
                answered += 1;
            }
            answered
        });
    }
    for _ in 0..20 {
        sleep(Duration::from_millis(50)).await;
        assert_eq!(purge(&sidecar, "orders").await.unwrap().left_open, 0);
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(answered) = load.join_next().await {
        assert!(answered.unwrap() > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_over_another_connection() {
    let sidecar = Sidecar::start().await;
    let client = sidecar.client();
    let wrapped = wrapped_deks(&client, 50).await;
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let items = stream::iter(0..2000_u64).then(move |id| {
        let item = Item { id, wrapped: wrapped[id as usize % 50].clone(), context: vec![] };
        counted.fetch_add(1, Ordering::Relaxed);
        async move {
            sleep(Duration::from_micros(500)).await;
            item
        }
    });
    let mut answers = client.unwrap_stream(items, MINUTE).await.unwrap();
    let mut purging = JoinSet::new();
    let channel = sidecar.channel();
    purging.spawn(async move {
        let mut admin = AdminClient::new(channel);
        for _ in 0..5 {
            sleep(Duration::from_millis(100)).await;
            admin.purge_cache(PurgeCacheRequest { kek: "orders".into() }).await.unwrap();
        }
    });
    let mut seen = std::collections::HashSet::new();
    while let Some(answer) = answers.next().await {
        let answer = answer.expect("the stream does not end");
        assert!(answer.outcome.is_ok());
        assert!(seen.insert(answer.id), "item {} was answered twice", answer.id);
    }
    assert_eq!(seen.len(), 2000);
    purging.join_next().await.unwrap().unwrap();
    let closed = sidecar.metrics.render();
    assert!(closed.contains("cause=\"purge\"} "), "{closed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_grow_old_are_replaced_without_an_error() {
    let parts = Parts { connection_age: Duration::from_millis(300), ..Parts::default() };
    let sidecar = Sidecar::start_of(parts, |_| {}).await;
    let client = sidecar.client();
    let wrapped = wrapped_deks(&client, 1).await.remove(0);
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        client.unwrap(&wrapped, b"").await.expect("no caller notices");
    }
    let metrics = sidecar.metrics.render();
    let line = metrics.lines().find(|line| line.contains("cause=\"age\"")).unwrap();
    let closed: u64 = line.rsplit(' ').next().unwrap().parse().unwrap();
    assert!((5..=15).contains(&closed), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_released_after_a_revocation() {
    let sidecar = Sidecar::start().await;
    let kek = KekName::parse("orders").unwrap();
    for round in 0..5 {
        let wrapped = wrapped_deks(&sidecar.client(), 64).await;
        let revoked = Arc::new(AtomicBool::new(false));
        let mut load = JoinSet::new();
        for (caller, wrapped) in wrapped.into_iter().enumerate() {
            // Some from memory, some from the backend, over many connections.
            let client = match caller % 4 {
                0 | 1 => sidecar.client(),
                _ => sidecar.plain_client(),
            };
            let revoked = Arc::clone(&revoked);
            load.spawn(async move {
                let mut answered = 0_usize;
                loop {
                    let mut asked = wrapped.clone();
                    if caller % 2 == 0 {
                        asked = client.wrap("orders", &dek(), b"").await.unwrap_or(asked);
                    }
                    // What left the sidecar before may still be on its way to us.
                    let begun_after = revoked.load(Ordering::SeqCst);
                    match client.unwrap(&asked, b"").await {
                        Ok(_) => {
                            assert!(!begun_after, "released after");
                            answered += 1;
                        }
                        Err(error) => {
                            assert_eq!(error.reason(), "KEK_REVOKED", "{error}");
                            return answered;
                        }
                    }
                }
            });
        }
        sleep(Duration::from_millis(100)).await;
        let purged = revoke(&sidecar, &kek).await;
        revoked.store(true, Ordering::SeqCst);
        assert!(purged.connections > 0 && purged.sessions > 0, "{purged:?}");
        assert_eq!(purged.left_open, 0);
        let mut answered = 0;
        while let Some(caller) = load.join_next().await {
            answered += caller.unwrap();
        }
        assert!(answered > 0, "there was no load");
        let entries = sidecar.metrics.render();
        assert!(entries.contains("keyward_cache_entries 0"), "{entries}");
        let client = sidecar.client();
        let refused = client.wrap("orders", &dek(), b"").await.unwrap_err();
        assert_eq!(refused.reason(), "KEK_REVOKED", "round {round}");
        assert!(client.wrap("orders-2", &dek(), b"").await.is_ok(), "another KEK is not touched");

        sidecar.engine.restore(permit(Op::Restore, &kek)).await.unwrap();
        let soon = Instant::now() + Duration::from_secs(5);
        sidecar.engine.verify(&kek, soon).await.unwrap();
        assert!(client.wrap("orders", &dek(), b"").await.is_ok());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unwrap_from_before_a_revocation_is_not_answered_after_it() {
    let sidecar = Sidecar::start().await;
    let kek = KekName::parse("orders").unwrap();
    let client = sidecar.client();
    let wrapped = wrapped_deks(&client, 1).await.remove(0);
    sidecar.fake.hold.send_replace(true);
    // Not our client: it would ask again.
    let mut raw = sidecar.raw();
    let request = UnwrapRequest { wrapped: Some(wrapped), context: vec![], session: vec![] };
    let call = tokio::spawn(async move { raw.unwrap(request).await });
    eventually("it is in work", || sidecar.fake.running() == 1).await;
    // Not to be waited for: it waits for the call's connection.
    let (engine, permit_to_revoke) = (Arc::clone(&sidecar.engine), permit(Op::Revoke, &kek));
    let revoking =
        tokio::spawn(async move { engine.revoke(permit_to_revoke, &Carrier::new()).await });
    sleep(Duration::from_millis(50)).await;
    sidecar.engine.restore(permit(Op::Restore, &kek)).await.unwrap();
    sidecar.engine.verify(&kek, Instant::now() + Duration::from_secs(5)).await.unwrap();
    sidecar.fake.hold.send_replace(false);
    // The KEK is allowed again, but this call holds the lease of before.
    let refused = call.await.unwrap().unwrap_err();
    assert_eq!(reason(&refused), "KEK_UNPROVEN");
    revoking.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_from_before_a_revocation_counts_for_nothing_after_it() {
    let sidecar = Sidecar::start().await;
    let kek = KekName::parse("orders").unwrap();
    let soon = Instant::now() + Duration::from_secs(30);
    sidecar.fake.hold_proofs.send_replace(true);
    let (engine, name) = (Arc::clone(&sidecar.engine), kek.clone());
    let proving = tokio::spawn(async move { engine.verify(&name, soon).await });
    eventually("it is asked", || sidecar.fake.hold_proofs.receiver_count() > 0).await;
    revoke(&sidecar, &kek).await;
    sidecar.engine.restore(permit(Op::Restore, &kek)).await.unwrap();
    sidecar.fake.hold_proofs.send_replace(false);
    let unproven = proving.await.unwrap().unwrap_err();
    assert_eq!(unproven.reason(), Reason::KekUnproven);
    sidecar.engine.verify(&kek, soon).await.unwrap();
    assert!(sidecar.client().wrap("orders", &dek(), b"").await.is_ok());
}

/// What a storage node sees, and what only an operator may do.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_takes_a_kek_away_and_gives_it_back_over_grpc() {
    let sidecar = Sidecar::start().await;
    let (node, operator) = (sidecar.client(), sidecar.client());
    let wrapped = wrapped_deks(&node, 2).await;
    for wrapped in &wrapped {
        node.unwrap(wrapped, b"").await.unwrap();
    }
    let other = operator.wrap("orders-2", &dek(), b"").await.unwrap();
    let revoked = operator.revoke("orders").await.unwrap();
    assert_eq!((revoked.purged.deks, revoked.purged.left_open, revoked.kept), (2, 0, false));
    for refused in [
        node.unwrap(&wrapped[0], b"").await.map(drop),
        node.wrap("orders", &dek(), b"").await.map(drop),
        node.rewrap(&wrapped[0], b"").await.map(drop),
    ] {
        assert_eq!(refused.unwrap_err().reason(), "KEK_REVOKED");
    }
    node.unwrap(&other, b"").await.expect("another KEK is not touched");
    // However often it is proven.
    let kek = KekName::parse("orders").unwrap();
    sidecar.engine.verify(&kek, Instant::now() + MINUTE).await.unwrap_err();
    assert_eq!(operator.revoke("orders").await.unwrap().purged.deks, 0);
    operator.restore("orders").await.unwrap();
    operator.restore("orders").await.expect("it is there already");
    sidecar.engine.verify(&kek, Instant::now() + MINUTE).await.unwrap();
    node.unwrap(&wrapped[0], b"").await.expect("it is the same key");
    for error in [
        operator.revoke("nobodys").await.unwrap_err(),
        operator.restore("nobodys").await.unwrap_err(),
        operator.revoke(UNGRANTED).await.unwrap_err(),
    ] {
        assert_eq!(error.reason(), "PERMISSION_DENIED", "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_purge_may_not_revoke() {
    let sidecar = Sidecar::start().await;
    let uid = format!("uid:{}", own_uid());
    let policy = Policy::new(vec![grant(&uid, &[Op::Purge, Op::Restore], "orders")]);
    sidecar.policy.store(Arc::new(policy));
    let client = sidecar.client();
    assert_eq!(client.revoke("orders").await.unwrap_err().reason(), "PERMISSION_DENIED");
    client.restore("orders").await.unwrap();
    client.purge(Some("orders")).await.unwrap();
}
