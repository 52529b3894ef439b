//! `grpc.health.v1.Health`: SERVING while the sidecar is ready and does not drain. Each KEK is
//! a service too, `kek/NAME`, for those who may describe it: SERVING while it is, besides.
//!
//! Ours instead of the library's, which starts SERVING, and whose watchers would hold
//! a drain up to its end: here they are told NOT_SERVING and let go. So are they when their
//! connection has to end: a purge waits for it.

use std::{fmt, future::pending, sync::Arc};

use arc_swap::ArcSwap;
use futures_util::{StreamExt, stream, stream::BoxStream};
use tokio::sync::{
    broadcast::{self, error::RecvError},
    watch,
};
use tonic::{Extensions, Request, Response, Status, async_trait, server::NamedService};
use tonic_health::pb::{
    self, HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_server::HealthServer,
};

use crate::{
    api,
    auth::{Identity, Policy},
    carriers::Urgency,
    engine::{Engine, News},
    kek::{Condition, KekName},
    op::Op,
    wire::key_wrap_server::KeyWrapServer,
};

/// The name of our service, as health checks ask for it.
const SERVICE: &str = <KeyWrapServer<api::Api> as NamedService>::NAME;

/// What the name of a KEK's service begins with.
const KEK_PREFIX: &str = "kek/";

#[derive(Clone, Debug)]
pub(super) struct Health {
    keks: Arc<dyn Keks>,
    ready: watch::Receiver<bool>,
    draining: watch::Receiver<bool>,
}

/// What health asks about KEKs.
pub(super) trait Keks: fmt::Debug + Send + Sync {
    /// Whether a KEK is served; `None` if there is none of this name that `who` may describe.
    fn is_served(&self, who: &Arc<Identity>, name: &KekName) -> Option<bool>;

    /// To listen for when it may be another answer.
    fn news(&self) -> broadcast::Receiver<News>;
}

/// The KEKs of an engine, as far as a policy lets callers see them.
#[derive(Debug)]
pub(super) struct Permitted {
    pub(super) engine: Arc<Engine>,
    pub(super) policy: Arc<ArcSwap<Policy>>,
}

impl Keks for Permitted {
    fn is_served(&self, who: &Arc<Identity>, name: &KekName) -> Option<bool> {
        let permit = self.policy.load().permit(who, Op::Describe, name).ok()?;
        let stand = self.engine.stand(permit).ok()?;
        Some(stand.condition == Condition::Serving)
    }

    fn news(&self) -> broadcast::Receiver<News> {
        self.engine.news()
    }
}

/// Whose health is asked for.
#[derive(Clone, Debug)]
enum Subject {
    /// The sidecar as a whole.
    Sidecar,
    /// A KEK, as this caller may see it.
    Kek(KekName, Arc<Identity>),
}

impl Health {
    pub(super) fn new(
        keks: Arc<dyn Keks>,
        ready: watch::Receiver<bool>,
        draining: watch::Receiver<bool>,
    ) -> HealthServer<Self> {
        HealthServer::new(Self { keks, ready, draining })
    }

    /// What `service` stands for; `None` if there is no such service for this caller.
    fn subject(&self, service: &str, extensions: &Extensions) -> Option<Subject> {
        if service.is_empty() || service == SERVICE {
            return Some(Subject::Sidecar);
        }
        let name = KekName::parse(service.strip_prefix(KEK_PREFIX)?)?;
        let who = api::peer(extensions).ok()?.who().clone();
        self.keks.is_served(&who, &name)?;
        Some(Subject::Kek(name, who))
    }

    fn status(&self, subject: &Subject) -> ServingStatus {
        let up = *self.ready.borrow() && !*self.draining.borrow();
        let served = match subject {
            Subject::Sidecar => up,
            // One KEK need not wait for others to be ready.
            Subject::Kek(name, who) => {
                !*self.draining.borrow() && self.keks.is_served(who, name) == Some(true)
            }
        };
        match served {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        }
    }

    /// Resolves when the status may be another one.
    async fn changed(&mut self) {
        let Self { ready, draining, .. } = self;
        let ready = async {
            // Without a sender it stays as it is.
            if ready.changed().await.is_err() {
                pending::<()>().await;
            }
        };
        tokio::select! {
            () = ready => {}
            _ = draining.changed() => {}
        }
    }
}

/// Who watches, and over a connection that may have to end.
struct Watcher {
    health: Health,
    subject: Subject,
    /// What happens to KEKs, if it is about one.
    news: Option<broadcast::Receiver<News>>,
    closing: watch::Receiver<Urgency>,
    told: Option<ServingStatus>,
}

impl Watcher {
    /// The status, once it is another one than was told; `None` when it is to let go.
    async fn next(&mut self) -> Option<ServingStatus> {
        let mut ends = false;
        loop {
            let status = self.health.status(&self.subject);
            if self.told != Some(status) {
                self.told = Some(status);
                return Some(status);
            }
            if ends || *self.health.draining.borrow() {
                return None;
            }
            // A drain ends connections too; it is in the status before that, and told first.
            ends = tokio::select! {
                () = self.health.changed() => false,
                () = news_of(&mut self.news, &self.subject) => false,
                () = ending(&mut self.closing) => true,
            };
        }
    }
}

/// Resolves when something happened to the KEK that it is about, or may have.
async fn news_of(news: &mut Option<broadcast::Receiver<News>>, subject: &Subject) {
    let (Some(news), Subject::Kek(name, _)) = (news, subject) else { return pending().await };
    loop {
        match news.recv().await {
            Ok(news) if news.stand.kek != *name => {}
            Ok(_) | Err(RecvError::Lagged(_)) => return,
            Err(RecvError::Closed) => return pending().await,
        }
    }
}

/// Resolves when the connection has to end, or is gone.
pub(super) async fn ending(closing: &mut watch::Receiver<Urgency>) {
    let _gone = closing.wait_for(|urgency| *urgency != Urgency::None).await;
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[async_trait]
impl pb::health_server::Health for Health {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let subject = self
            .subject(&request.get_ref().service, request.extensions())
            .ok_or_else(|| Status::not_found("no such service"))?;
        Ok(Response::new(answer(self.status(&subject))))
    }

    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let mut closing = api::peer(request.extensions())?.closing();
        // Before the first look, so that nothing comes between.
        let news = self.keks.news();
        let Some(subject) = self.subject(&request.get_ref().service, request.extensions()) else {
            // The protocol wants the stream kept open, in case the service appears.
            let unknown = stream::once(async { Ok(answer(ServingStatus::ServiceUnknown)) });
            let mut draining = self.draining.clone();
            let end = async move {
                tokio::select! {
                    () = super::drain::wait_for(&mut draining) => {}
                    () = ending(&mut closing) => {}
                }
            };
            let stream = unknown.chain(stream::pending()).take_until(end);
            return Ok(Response::new(stream.boxed()));
        };
        let news = matches!(subject, Subject::Kek(..)).then_some(news);
        let watcher = Watcher { health: self.clone(), subject, news, closing, told: None };
        let states = stream::unfold(watcher, |mut watcher| async move {
            let status = watcher.next().await?;
            Some((Ok(answer(status)), watcher))
        });
        Ok(Response::new(states.boxed()))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        time::SystemTime,
    };

    use super::*;
    use crate::{
        api::Peer,
        carriers::Carrier,
        engine::Stand,
        kek::{Event, EventKind},
    };
    use pb::health_server::Health as _;

    fn health() -> (watch::Sender<bool>, watch::Sender<bool>, Health) {
        health_with(Arc::default())
    }

    fn health_with(keks: Arc<Orders>) -> (watch::Sender<bool>, watch::Sender<bool>, Health) {
        let (ready, ready_seen) = watch::channel(false);
        let (draining, draining_seen) = watch::channel(false);
        (ready, draining, Health { keks, ready: ready_seen, draining: draining_seen })
    }

    /// One KEK, "orders", which user 7 may describe.
    #[derive(Debug)]
    struct Orders {
        served: AtomicBool,
        crier: broadcast::Sender<News>,
    }

    impl Default for Orders {
        fn default() -> Self {
            Self { served: AtomicBool::new(true), crier: broadcast::channel(4).0 }
        }
    }

    impl Orders {
        fn turn(&self, served: bool) {
            self.served.store(served, Ordering::SeqCst);
            let kek = KekName::parse("orders").unwrap();
            let (kind, condition) = match served {
                true => (EventKind::Restored, Condition::Serving),
                false => (EventKind::Revoked, Condition::Dark),
            };
            let event = Event { kind, version: None, reason: None, expires: None };
            let stand = Stand { kek, condition, reason: None, current: None };
            self.crier.send(News { event, at: SystemTime::now(), stand }).unwrap();
        }
    }

    impl Keks for Orders {
        fn is_served(&self, who: &Arc<Identity>, name: &KekName) -> Option<bool> {
            let may = matches!(**who, Identity::Unix { uid: 7, .. }) && name.as_str() == "orders";
            may.then(|| self.served.load(Ordering::SeqCst))
        }

        fn news(&self) -> broadcast::Receiver<News> {
            self.crier.subscribe()
        }
    }

    fn ask(service: &str) -> Request<HealthCheckRequest> {
        Request::new(HealthCheckRequest { service: service.to_owned() })
    }

    /// As [`ask`], over the connection of `carrier`.
    fn ask_over(carrier: &Carrier, service: &str) -> Request<HealthCheckRequest> {
        ask_as(7, carrier, service)
    }

    fn ask_as(uid: u32, carrier: &Carrier, service: &str) -> Request<HealthCheckRequest> {
        let mut request = ask(service);
        let who = Identity::Unix { uid, gid: 8 };
        request.extensions_mut().insert(Peer::new(who, carrier.clone()));
        request
    }

    async fn check(health: &Health) -> i32 {
        let whole = health.check(ask("")).await.unwrap().into_inner().status;
        let service = health.check(ask("keyward.v1.KeyWrap")).await.unwrap().into_inner().status;
        assert_eq!(whole, service);
        whole
    }

    #[tokio::test]
    async fn it_serves_when_ready_and_not_draining() {
        let (ready, draining, health) = health();
        assert_eq!(check(&health).await, ServingStatus::NotServing as i32);
        ready.send_replace(true);
        assert_eq!(check(&health).await, ServingStatus::Serving as i32);
        draining.send_replace(true);
        assert_eq!(check(&health).await, ServingStatus::NotServing as i32);
        assert_eq!(health.check(ask("other")).await.unwrap_err().code(), tonic::Code::NotFound);
    }

    #[tokio::test]
    async fn a_watcher_sees_each_change_and_is_let_go() {
        let (ready, draining, health) = health();
        let carrier = Carrier::new();
        let mut states = health.watch(ask_over(&carrier, "")).await.unwrap().into_inner();
        assert_eq!(states.next().await.unwrap().unwrap().status(), ServingStatus::NotServing);
        ready.send_replace(true);
        assert_eq!(states.next().await.unwrap().unwrap().status(), ServingStatus::Serving);
        draining.send_replace(true);
        assert_eq!(states.next().await.unwrap().unwrap().status(), ServingStatus::NotServing);
        assert!(states.next().await.is_none());
    }

    #[tokio::test]
    async fn a_watcher_of_an_unknown_service_does_not_hold_a_drain_up() {
        let (_ready, draining, health) = health();
        let carrier = Carrier::new();
        let mut states = health.watch(ask_over(&carrier, "other")).await.unwrap().into_inner();
        assert_eq!(states.next().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);
        draining.send_replace(true);
        assert!(states.next().await.is_none());
    }

    #[tokio::test]
    async fn a_watcher_does_not_hold_its_connection_s_end_up() {
        let (_ready, _draining, health) = health();
        for service in ["", "other"] {
            let carrier = Carrier::new();
            let mut states = health.watch(ask_over(&carrier, service)).await.unwrap().into_inner();
            assert!(states.next().await.is_some());
            carrier.close(Urgency::Wipe);
            assert!(states.next().await.is_none(), "{service:?}");
        }
    }

    #[tokio::test]
    async fn a_kek_is_a_service_for_those_who_may_describe_it() {
        let (keks, carrier) = (Arc::<Orders>::default(), Carrier::new());
        let (_ready, draining, health) = health_with(Arc::clone(&keks));
        let check = async |uid, service| {
            let checked = health.check(ask_as(uid, &carrier, service)).await;
            checked.map(|answer| answer.into_inner().status())
        };
        // It need not wait for others to be ready.
        assert_eq!(check(7, "kek/orders").await.unwrap(), ServingStatus::Serving);
        for (uid, service) in [(8, "kek/orders"), (7, "kek/others"), (7, "kek/"), (7, "kek/a b")] {
            let refused = check(uid, service).await.unwrap_err();
            assert_eq!(refused.code(), tonic::Code::NotFound, "{uid} {service}");
        }
        let watch = health.watch(ask_over(&carrier, "kek/orders")).await;
        let mut states = watch.unwrap().into_inner();
        let mut next = async || states.next().await.map(|state| state.unwrap().status());
        assert_eq!(next().await, Some(ServingStatus::Serving));
        keks.turn(false);
        assert_eq!(next().await, Some(ServingStatus::NotServing));
        keks.turn(true);
        assert_eq!(next().await, Some(ServingStatus::Serving));
        draining.send_replace(true);
        assert_eq!(next().await, Some(ServingStatus::NotServing));
        assert_eq!(next().await, None);
    }
}
