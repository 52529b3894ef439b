//! `grpc.health.v1.Health`: SERVING while the sidecar is ready and does not drain.
//!
//! Ours instead of the library's, which starts SERVING, and whose watchers would hold
//! a drain up to its end: here they are told NOT_SERVING and let go. So are they when their
//! connection has to end: a purge waits for it.

use futures_util::{StreamExt, stream, stream::BoxStream};
use tokio::sync::watch;
use tonic::{Request, Response, Status, async_trait, server::NamedService};
use tonic_health::pb::{
    self, HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_server::HealthServer,
};

use crate::{api, carriers::Urgency, wire::key_wrap_server::KeyWrapServer};

/// The name of our service, as health checks ask for it.
const SERVICE: &str = <KeyWrapServer<api::Api> as NamedService>::NAME;

#[derive(Clone, Debug)]
pub(super) struct Health {
    ready: watch::Receiver<bool>,
    draining: watch::Receiver<bool>,
}

impl Health {
    pub(super) fn new(
        ready: watch::Receiver<bool>,
        draining: watch::Receiver<bool>,
    ) -> HealthServer<Self> {
        HealthServer::new(Self { ready, draining })
    }

    fn status(&self) -> ServingStatus {
        if *self.ready.borrow() && !*self.draining.borrow() {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        }
    }

    /// Resolves when the status may be another one.
    async fn changed(&mut self) {
        let Self { ready, draining } = self;
        let ready = async {
            // Without a sender it stays as it is.
            if ready.changed().await.is_err() {
                std::future::pending::<()>().await;
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
    closing: watch::Receiver<Urgency>,
    told: Option<ServingStatus>,
}

impl Watcher {
    /// The status, once it is another one than was told; `None` when it is to let go.
    async fn next(&mut self) -> Option<ServingStatus> {
        let mut ends = false;
        loop {
            let status = self.health.status();
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
                () = ending(&mut self.closing) => true,
            };
        }
    }
}

/// Resolves when the connection has to end, or is gone.
pub(super) async fn ending(closing: &mut watch::Receiver<Urgency>) {
    let _gone = closing.wait_for(|urgency| *urgency != Urgency::None).await;
}

fn is_known(service: &str) -> bool {
    service.is_empty() || service == SERVICE
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
        if !is_known(&request.get_ref().service) {
            return Err(Status::not_found("no such service"));
        }
        Ok(Response::new(answer(self.status())))
    }

    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let mut closing = api::peer(request.extensions())?.closing();
        if !is_known(&request.get_ref().service) {
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
        }
        let watcher = Watcher { health: self.clone(), closing, told: None };
        let states = stream::unfold(watcher, |mut watcher| async move {
            let status = watcher.next().await?;
            Some((Ok(answer(status)), watcher))
        });
        Ok(Response::new(states.boxed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::Peer, auth::Identity, carriers::Carrier};
    use pb::health_server::Health as _;

    fn health() -> (watch::Sender<bool>, watch::Sender<bool>, Health) {
        let (ready, ready_seen) = watch::channel(false);
        let (draining, draining_seen) = watch::channel(false);
        (ready, draining, Health { ready: ready_seen, draining: draining_seen })
    }

    fn ask(service: &str) -> Request<HealthCheckRequest> {
        Request::new(HealthCheckRequest { service: service.to_owned() })
    }

    /// As [`ask`], over the connection of `carrier`.
    fn ask_over(carrier: &Carrier, service: &str) -> Request<HealthCheckRequest> {
        let mut request = ask(service);
        let who = Identity::Unix { uid: 7, gid: 8 };
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
}
