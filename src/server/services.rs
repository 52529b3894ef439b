//! Which service answers a request. One `match` on the path instead of a router: a
//! router costs a sixth of the throughput for what is a handful of prefixes.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use http::{Request, Response};
use hyper::body::{Frame, Incoming, SizeHint};
use tonic::body::Body;
use tonic_health::pb::health_server::HealthServer;
use tonic_reflection::server::Builder;
use tower::{Service, ServiceExt, util::BoxCloneSyncService};

use super::health::{Health, ending};
use crate::{
    api::{self, Peer},
    wire,
};

type AnyService = BoxCloneSyncService<Request<Asked>, Response<Body>, Infallible>;

/// Everything that is served.
#[derive(Debug)]
pub(super) struct Services {
    api: api::Services,
    health: HealthServer<Health>,
    reflection_v1: AnyService,
    /// Older grpcurl asks for this one.
    reflection_v1alpha: AnyService,
}

impl Services {
    pub(super) fn new(api: api::Services, health: HealthServer<Health>) -> Self {
        let describe = || {
            Builder::configure()
                .register_encoded_file_descriptor_set(wire::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let compiled_in = "the descriptors are compiled in";
        Self {
            api,
            health,
            reflection_v1: BoxCloneSyncService::new(describe().build_v1().expect(compiled_in)),
            reflection_v1alpha: BoxCloneSyncService::new(
                describe().build_v1alpha().expect(compiled_in),
            ),
        }
    }

    /// Answers one request of `peer`.
    pub(super) async fn answer(
        &self,
        peer: Peer,
        mut request: Request<Incoming>,
    ) -> Response<Body> {
        request.extensions_mut().insert(peer.clone());
        let service = request.uri().path().rsplit_once('/').map_or("", |(service, _)| service);
        match service {
            "/keyward.v1.KeyWrap" => api::finish(self.api.key_wrap.clone().call(request)).await,
            "/keyward.v1.Admin" => api::finish(self.api.admin.clone().call(request)).await,
            "/grpc.health.v1.Health" => api::finish(self.health.clone().call(request)).await,
            "/grpc.reflection.v1.ServerReflection" => {
                let request = request.map(|body| Asked::new(body, &peer));
                api::finish(self.reflection_v1.clone().oneshot(request)).await
            }
            "/grpc.reflection.v1alpha.ServerReflection" => {
                let request = request.map(|body| Asked::new(body, &peer));
                api::finish(self.reflection_v1alpha.clone().oneshot(request)).await
            }
            _ => api::unknown_method(),
        }
    }
}

/// What a client of reflection asks. It ends when the client says so, or the connection has
/// to end; the library then ends its answers in order. By itself it would wait for as long
/// as the client does, and a purge with it.
struct Asked {
    body: Incoming,
    ending: BoxFuture<'static, ()>,
}

impl Asked {
    fn new(body: Incoming, peer: &Peer) -> Self {
        let mut closing = peer.closing();
        Self { body, ending: Box::pin(async move { ending(&mut closing).await }) }
    }
}

impl hyper::body::Body for Asked {
    type Data = <Incoming as hyper::body::Body>::Data;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            // The future is polled once more at most: nobody reads on after the end.
            Poll::Pending => self.ending.as_mut().poll(cx).map(|()| None),
            frame => frame,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
