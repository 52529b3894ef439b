//! WatchKeks, Reload and the health of a KEK, over real gRPC.

use std::time::Duration;

use futures_util::StreamExt;
use keyward::{
    api::{self, Peer},
    auth::{Identity, Policy},
    carriers::Carrier,
    client::{Events, KekCondition, KekEvent, KekEventKind},
    engine::Engine,
    error::{Error, Reason},
    kek::KekName,
    op::{Op, WATCHED_MAX, WATCHERS_MAX},
    server::Served,
    wire::{WatchKeksRequest, key_wrap_client::KeyWrapClient},
};
use tokio::time::timeout;
use tonic::{Code, body::Body, client::GrpcService};

use super::{
    calls::reason,
    support::{
        fake::Fake,
        pki,
        sidecar::{Sidecar, UNGRANTED, dek, grant, own_uid},
    },
};

const SOON: Duration = Duration::from_secs(10);

async fn next(events: &mut Events) -> KekEvent {
    let event = timeout(SOON, events.next()).await.expect("something happens");
    event.expect("the watch goes on").expect("an event")
}

/// Kind, KEK, version, condition and current version of the next event.
async fn told(events: &mut Events) -> (KekEventKind, String, String, KekCondition, String) {
    let event = next(events).await;
    assert!(event.at.is_some());
    let (kind, condition) = (event.kind(), event.condition());
    (kind, event.kek, event.version, condition, event.current_version)
}

fn an_event(
    kind: KekEventKind,
    version: &str,
    condition: KekCondition,
    current: &str,
) -> (KekEventKind, String, String, KekCondition, String) {
    (kind, "orders".into(), version.into(), condition, current.into())
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_watches_is_told_how_it_stands_and_then_what_happens() {
    use KekCondition::{Dark, Serving};
    use KekEventKind::{CurrentChanged, Restored, Revoked, State, VersionAdded};
    let sidecar = Sidecar::start().await;
    let client = sidecar.client();
    let mut events = client.watch_keks(&["orders"]).await.unwrap();
    assert_eq!(told(&mut events).await, an_event(State, "", Serving, "01"));

    sidecar.fake.rotate(2);
    let reloaded = client.reload(Some("orders")).await.unwrap();
    assert_eq!(reloaded.len(), 1);
    assert_eq!(
        (reloaded[0].kek.as_str(), reloaded[0].current.as_deref().unwrap()),
        ("orders", "02")
    );
    assert_eq!(told(&mut events).await, an_event(VersionAdded, "02", Serving, "02"));
    assert_eq!(told(&mut events).await, an_event(CurrentChanged, "02", Serving, "02"));

    client.revoke("orders").await.unwrap();
    let event = next(&mut events).await;
    assert_eq!((event.kind(), event.reason.as_str()), (Revoked, "KEK_REVOKED"));
    assert_eq!((event.condition(), event.current_version.as_str()), (Dark, ""));
    let refused = client.reload(Some("orders")).await.unwrap();
    assert_eq!(refused[0].current.as_ref().unwrap_err().reason(), "KEK_REVOKED");
    client.restore("orders").await.unwrap();
    // It is to be proven first, which says nothing of whose doing that is.
    assert_eq!(next(&mut events).await.reason, "KEK_UNPROVEN");
    client.reload(Some("orders")).await.unwrap();
    assert_eq!(told(&mut events).await, an_event(Restored, "", Serving, "02"));

    // One version of two.
    sidecar.fake.disable(1);
    client.reload(Some("orders")).await.unwrap();
    let event = next(&mut events).await;
    assert_eq!((event.kind(), event.version.as_str()), (Revoked, "01"));
    assert_eq!((event.reason.as_str(), event.condition()), ("KEK_DISABLED", Serving));
    // The newest takes all with it.
    sidecar.fake.disable(2);
    client.reload(Some("orders")).await.unwrap();
    let event = next(&mut events).await;
    assert_eq!((event.kind(), event.version.as_str()), (Revoked, ""));
    assert_eq!((event.reason.as_str(), event.condition()), ("KEK_DISABLED", Dark));
    assert_eq!(client.get_kek("orders").await.unwrap().condition(), Dark);

    let counted = sidecar.metrics.render();
    for (event, n) in [("REVOKED", 3), ("VERSION_ADDED", 1), ("CURRENT_CHANGED", 1)] {
        let line = format!("keyward_kek_events_total{{kek=\"orders\",event=\"{event}\"}} {n}");
        assert!(counted.contains(&line), "{line}\n{counted}");
    }
    let line = "keyward_kek_condition{kek=\"orders\",condition=\"DARK\"} 1.0";
    assert!(counted.contains(line), "{counted}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_told_of_a_kek_that_they_may_not_describe() {
    let sidecar = Sidecar::start().await;
    let client = sidecar.client();
    let mut events = client.watch_keks(&[]).await.unwrap();
    assert_eq!(next(&mut events).await.kek, "orders");
    assert_eq!(next(&mut events).await.kek, "orders-2");
    for name in [UNGRANTED, "treasurf"] {
        let refused = client.watch_keks(&["orders", name]).await.err().expect("a refusal");
        assert_eq!(refused.reason(), "PERMISSION_DENIED");
    }
    let unknown = client.watch_keks(&["orders-3"]).await.err().expect("a refusal");
    assert_eq!(unknown.reason(), "KEK_NOT_FOUND");
    let files = sidecar.pki.client("reader", vec![pki::uri("spiffe://example.org/reader/1")]);
    let refused = sidecar.tls_client(files).watch_keks(&[]).await.err().expect("a refusal");
    assert_eq!(refused.reason(), "PERMISSION_DENIED");
    // The policy of the moment decides.
    let other = grant(&format!("uid:{}", own_uid()), &[Op::Describe, Op::Reload], "orders-2");
    sidecar.policy.store(Policy::new(vec![other]).into());
    sidecar.fake.rotate(2);
    let all = ["orders", UNGRANTED].map(|name| KekName::parse(name).unwrap());
    for name in &all {
        verify(&sidecar.engine, name).await;
    }
    client.reload(Some("orders-2")).await.unwrap();
    let event = next(&mut events).await;
    assert_eq!((event.kek.as_str(), event.kind()), ("orders-2", KekEventKind::VersionAdded));
}

async fn verify(engine: &Engine, name: &KekName) {
    let _state = engine.verify(name, keyward::clock::now() + SOON).await;
}

/// Many events: a version that is there, and is not.
async fn flicker(fake: &Fake, engine: &Engine, times: usize) {
    let orders = KekName::parse("orders").unwrap();
    for _ in 0..times {
        fake.disable(1);
        verify(engine, &orders).await;
        fake.enable(1);
        verify(engine, &orders).await;
    }
}

/// The service itself, with no transport that could hold what is told and not read.
fn without_transport(
    sidecar: &Sidecar,
) -> KeyWrapClient<impl GrpcService<Body, ResponseBody = Body>> {
    let Served { engine, sessions, policy, metrics, ready } = sidecar.served();
    let service = api::services(engine, sessions, policy, metrics, ready).key_wrap;
    let peer = Peer::new(Identity::Unix { uid: own_uid(), gid: 0 }, Carrier::new());
    KeyWrapClient::new(tower::service_fn(move |mut request: http::Request<Body>| {
        request.extensions_mut().insert(peer.clone());
        tower::Service::call(&mut service.clone(), request)
    }))
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_too_slow_is_told_how_it_stands_instead() {
    let sidecar = Sidecar::start().await;
    let mut client = without_transport(&sidecar);
    let names = vec!["orders".to_owned()];
    let mut told = client.watch_keks(WatchKeksRequest { names }).await.unwrap().into_inner();
    let mut next = async || {
        let told = timeout(SOON, told.message()).await.expect("something is told");
        told.unwrap().unwrap().event.unwrap().kind()
    };
    assert_eq!(next().await, KekEventKind::State);
    flicker(&sidecar.fake, &sidecar.engine, 100).await;
    for _ in 0..100 {
        assert_eq!(next().await, KekEventKind::Revoked);
        assert_eq!(next().await, KekEventKind::Restored);
    }
    // More than is kept for one who does not read.
    flicker(&sidecar.fake, &sidecar.engine, 600).await;
    assert_eq!(next().await, KekEventKind::State);
    flicker(&sidecar.fake, &sidecar.engine, 1).await;
    assert_eq!(next().await, KekEventKind::Revoked);
    assert_eq!(next().await, KekEventKind::Restored);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_outlives_its_connection_and_misses_nothing() {
    let sidecar = Sidecar::start().await;
    let client = sidecar.plain_client();
    let mut events = client.watch_keks(&["orders"]).await.unwrap();
    assert_eq!(next(&mut events).await.kind(), KekEventKind::State);
    // It carried a DEK, so a purge closes it.
    client.wrap("orders", &dek(), b"").await.unwrap();
    let purged = client.purge(Some("orders")).await.unwrap();
    assert_eq!((purged.connections, purged.left_open), (1, 0));
    assert_eq!(next(&mut events).await.kind(), KekEventKind::State);
    flicker(&sidecar.fake, &sidecar.engine, 1).await;
    assert_eq!(next(&mut events).await.kind(), KekEventKind::Revoked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_ends_when_the_sidecar_stops() {
    let mut sidecar = Sidecar::start().await;
    let mut events = sidecar.client().watch_keks(&["orders"]).await.unwrap();
    assert_eq!(next(&mut events).await.kind(), KekEventKind::State);
    sidecar.stop();
    let end = timeout(SOON, events.next()).await.expect("it ends").expect("with an error");
    // It looked for another connection, and there was none.
    assert_eq!(end.unwrap_err().reason(), "SIDECAR_UNREACHABLE");
    sidecar.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_bounds_to_what_is_watched() {
    let sidecar = Sidecar::start().await;
    let names = vec!["orders".to_owned(); WATCHED_MAX + 1];
    let status = sidecar.raw().watch_keks(WatchKeksRequest { names }).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::InvalidArgument, "REQUEST_INVALID".into()));
    let mut watching = Vec::new();
    let refused = loop {
        // A connection has fewer streams than may be watched on.
        let client = sidecar.client();
        let mut refused = None;
        for _ in 0..64 {
            match client.watch_keks(&["orders"]).await {
                Ok(mut events) => {
                    next(&mut events).await;
                    watching.push(events);
                }
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            }
        }
        if let Some(refused) = refused {
            break refused;
        }
    };
    assert_eq!((watching.len(), refused.reason()), (WATCHERS_MAX, "OVERLOADED"));
    // Whoever goes makes room.
    watching.clear();
    let client = sidecar.client();
    let again = timeout(SOON, async { while client.watch_keks(&["orders"]).await.is_err() {} });
    again.await.expect("there is room again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_says_of_each_kek_what_came_of_it() {
    let sidecar = Sidecar::start().await;
    let client = sidecar.client();
    let names = |reloaded: Vec<keyward::client::Reloaded>| -> Vec<_> {
        reloaded
            .into_iter()
            .map(|one| (one.kek, one.current.map_err(|e| e.reason().to_owned())))
            .collect()
    };
    client.revoke("orders").await.unwrap();
    let all = names(client.reload(None).await.unwrap());
    let expected =
        [("orders", Err("KEK_REVOKED")), ("orders-2", Ok("01"))].map(|(name, current)| {
            (name.to_owned(), current.map(str::to_owned).map_err(str::to_owned))
        });
    assert_eq!(all, expected);
    assert_eq!(client.reload(Some("orders-3")).await.unwrap_err().reason(), "KEK_NOT_FOUND");
    assert_eq!(client.reload(Some(UNGRANTED)).await.unwrap_err().reason(), "PERMISSION_DENIED");
    // What is known stays, when the backend cannot be asked.
    let away = Error::new(Reason::BackendUnreachable, "the fake is away");
    sidecar.fake.deny(Some(away));
    let reloaded = names(client.reload(Some("orders-2")).await.unwrap());
    assert_eq!(reloaded[0].1, Err("BACKEND_UNREACHABLE".to_owned()));
    sidecar.fake.deny(None);
    assert_eq!(names(client.reload(Some("orders-2")).await.unwrap())[0].1, Ok("01".to_owned()));
    let files = sidecar.pki.client("reader", vec![pki::uri("spiffe://example.org/reader/1")]);
    let refused = sidecar.tls_client(files).reload(None).await.unwrap_err();
    assert_eq!(refused.reason(), "PERMISSION_DENIED");
}
