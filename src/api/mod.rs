//! The gRPC face of the sidecar: who calls, may they, do it, answer.
//!
//! Every method is one straight line: name the KEK -> authorise -> decode the rest
//! -> engine -> encode. Authorising comes before the rest is looked at, so that a
//! stranger learns nothing but the refusal.
//!
//! It knows no listener, no TLS and no backend. Whoever serves it puts a [`Peer`] into
//! the extensions of every request; without one a request is refused. What reaches the
//! engine is recorded by the engine, what is refused before is recorded here.

mod admin;
mod deadline;
mod decode;
mod encode;
mod finish;
mod peer;
mod sessions;
mod status;
mod streams;
mod watch;

use std::{mem, sync::Arc, time::Instant};

use arc_swap::ArcSwap;
use futures_util::stream::BoxStream;
use prost::Message as _;
use tokio::sync::{Semaphore, watch::Receiver};
use tonic::{Request, Response, Status, Streaming, async_trait};
use tracing::debug;

pub use finish::{finish, unknown_method};
pub use peer::{Peer, peer};
pub use sessions::Sessions;

use sessions::Delivery;

use crate::{
    auth::{Permit, Policy},
    engine::{Engine, Rewrapped, Unwrapped},
    envelope::Context,
    error::{Error, Reason},
    guard::Class,
    kek::KekName,
    observe::{Metrics, Record},
    op::{MESSAGE_MAX_BYTES, Op, WATCHERS_MAX},
    sealed::About,
    wire::{self, admin_server::AdminServer, key_wrap_server::KeyWrapServer},
};

/// Room that a list leaves for what is not KEKs: tags, lengths, `more`.
const LIST_SLACK_BYTES: usize = 64;

/// The services, to be served.
#[derive(Clone, Debug)]
pub struct Services {
    /// For storage nodes.
    pub key_wrap: KeyWrapServer<Api>,
    /// For operators.
    pub admin: AdminServer<Api>,
}

/// The services. `draining` turns true when the sidecar is about to stop: streams then
/// end.
pub fn services(
    engine: Arc<Engine>,
    sessions: Arc<Sessions>,
    policy: Arc<ArcSwap<Policy>>,
    metrics: Arc<Metrics>,
    draining: Receiver<bool>,
) -> Services {
    let watchers = Arc::new(Semaphore::new(WATCHERS_MAX));
    let api = Api { engine, sessions, policy, metrics, draining, watchers };
    Services {
        key_wrap: KeyWrapServer::new(api.clone())
            .max_decoding_message_size(MESSAGE_MAX_BYTES)
            .max_encoding_message_size(MESSAGE_MAX_BYTES),
        admin: AdminServer::new(api)
            .max_decoding_message_size(MESSAGE_MAX_BYTES)
            .max_encoding_message_size(MESSAGE_MAX_BYTES),
    }
}

/// What answers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Api {
    engine: Arc<Engine>,
    sessions: Arc<Sessions>,
    /// Swapped whole when the configuration is reloaded; read once for each request
    /// and each item of a stream.
    policy: Arc<ArcSwap<Policy>>,
    /// For what is refused before it reaches the engine.
    metrics: Arc<Metrics>,
    draining: Receiver<bool>,
    /// Places for those who watch KEKs.
    watchers: Arc<Semaphore>,
}

/// One unary call, or one item of a stream.
struct Call {
    op: Op,
    peer: Peer,
    /// What the answer is for.
    class: Class,
    begun: Instant,
    deadline: Instant,
}

impl Call {
    fn unary<T>(api: &Api, op: Op, request: &Request<T>) -> Result<Self, Error> {
        let peer = peer::peer(request.extensions())?;
        let now = Instant::now();
        let given = deadline::given(request.metadata(), now);
        let given = on_record(&api.metrics, op, &peer, "-", now, given)?;
        let deadline = deadline::of_call(op, given, now);
        Ok(Self { op, peer, class: Class::Foreground, begun: now, deadline })
    }
}

/// Passes `result` on, after it is recorded if it is a refusal.
fn on_record<T>(
    metrics: &Metrics,
    op: Op,
    peer: &Peer,
    kek: &str,
    started: Instant,
    result: Result<T, Error>,
) -> Result<T, Error> {
    if let Err(error) = &result {
        let (who, took, outcome) = (&**peer.who(), started.elapsed(), Err(error));
        let refusal = Record { op, who, kek, version: None, cached: false, took, outcome };
        peer.refusals().record(metrics, &refusal);
    }
    result
}

/// A request that may go on.
struct Admitted<T> {
    permit: Permit,
    delivery: Delivery,
    /// What was decoded.
    rest: T,
}

/// An answer to an unwrap.
struct Given {
    dek: Vec<u8>,
    sealed: Option<wire::SealedDek>,
    cache: wire::CacheOutcome,
}

impl Api {
    /// Authorises `call` for the KEK called `kek`, then finds the session of its DEKs, if it
    /// has a name, and decodes the rest of its request.
    fn admit<T>(
        &self,
        call: &Call,
        kek: &str,
        session: &[u8],
        decode: impl FnOnce(&KekName, &Delivery) -> Result<T, Error>,
    ) -> Result<Admitted<T>, Error> {
        let name = KekName::parse(kek);
        let admitted = name.as_ref().ok_or_else(decode::not_a_kek_name).and_then(|name| {
            let permit = self.policy.load().permit(call.peer.who(), call.op, name)?;
            let delivery = match session {
                [] => Delivery::Plain,
                id => Delivery::Sealed(self.sessions.find(&call.peer, id)?),
            };
            // Before anything of the KEK is looked at, so that no DEK goes unnoticed. Only
            // names that exist: patterns of the policy match any number of others.
            if call.op.carries_dek() && self.engine.has(name) {
                delivery.carries(&call.peer, name);
            }
            let rest = decode(name, &delivery)?;
            Ok(Admitted { permit, delivery, rest })
        });
        // Only what is a name may be logged: anything else is a stranger's text.
        let kek = name.as_ref().map_or("-", KekName::as_str);
        on_record(&self.metrics, call.op, &call.peer, kek, call.begun, admitted)
    }

    async fn unwrap_one(
        &self,
        call: &Call,
        wrapped: Option<wire::WrappedDek>,
        context: &[u8],
        session: &[u8],
    ) -> Result<Given, Error> {
        let mut wrapped = wrapped.unwrap_or_default();
        let kek = mem::take(&mut wrapped.kek);
        let Admitted { permit, delivery, rest: (wrapped, bound) } =
            self.admit(call, &kek, session, |kek, _| {
                Ok((decode::wrapped(kek, wrapped)?, Context::parse(context)?))
            })?;
        let Unwrapped { dek, source } =
            self.engine.unwrap(permit, &wrapped, &bound, call.class, call.deadline).await?;
        let about = About { subject: &wrapped.ciphertext, context };
        let (dek, sealed) = delivery.give(dek, about)?;
        Ok(Given { dek, sealed, cache: encode::cache_outcome(source) })
    }

    async fn rewrap_one(
        &self,
        call: &Call,
        wrapped: Option<wire::WrappedDek>,
        context: &[u8],
    ) -> Result<wire::RewrapResponse, Error> {
        let mut wrapped = wrapped.unwrap_or_default();
        let kek = mem::take(&mut wrapped.kek);
        let Admitted { permit, rest: (wrapped, context), .. } =
            self.admit(call, &kek, &[], |kek, _| {
                Ok((decode::wrapped(kek, wrapped)?, Context::parse(context)?))
            })?;
        let Rewrapped { wrapped, changed } =
            self.engine.rewrap(permit, wrapped, &context, call.deadline).await?;
        Ok(wire::RewrapResponse { wrapped: Some(encode::wrapped(wrapped)), changed })
    }
}

#[async_trait]
impl wire::key_wrap_server::KeyWrap for Api {
    async fn wrap(
        &self,
        request: Request<wire::WrapRequest>,
    ) -> Result<Response<wire::WrapResponse>, Status> {
        let call = Call::unary(self, Op::Wrap, &request)?;
        let mut request = request.into_inner();
        let (kek, sealed) = (mem::take(&mut request.kek), request.sealed.take());
        let session = sealed.as_ref().map_or(&[][..], |sealed| &sealed.session);
        let Admitted { permit, rest: (dek, context), .. } =
            self.admit(&call, &kek, session, |kek, delivery| {
                let about = About { subject: kek.as_str().as_bytes(), context: &request.context };
                let dek = match &sealed {
                    Some(_) if !request.dek.is_empty() => Err(decode::two_deks()),
                    Some(sealed) => delivery.take(sealed, about),
                    None => decode::dek(&mut request.dek),
                };
                Ok((dek?, Context::parse(&request.context)?))
            })?;
        let wrapped = self.engine.wrap(permit, &dek, &context, call.deadline).await?;
        Ok(Response::new(wire::WrapResponse { wrapped: Some(encode::wrapped(wrapped)) }))
    }

    async fn open_session(
        &self,
        request: Request<wire::OpenSessionRequest>,
    ) -> Result<Response<wire::OpenSessionResponse>, Status> {
        let peer = peer::peer(request.extensions())?;
        if !self.policy.load().knows(peer.who()) {
            debug!(who = %peer.who(), "refused a session to who may do nothing");
            let what = "the policy does not allow this caller anything";
            return Err(Error::new(Reason::PermissionDenied, what).into());
        }
        let wire::OpenSessionRequest { public_key } = request.into_inner();
        Ok(Response::new(self.sessions.open(&peer, &public_key)?))
    }

    async fn unwrap(
        &self,
        request: Request<wire::UnwrapRequest>,
    ) -> Result<Response<wire::UnwrapResponse>, Status> {
        let call = Call::unary(self, Op::Unwrap, &request)?;
        let wire::UnwrapRequest { wrapped, context, session } = request.into_inner();
        let given = self.unwrap_one(&call, wrapped, &context, &session).await?;
        let Given { dek, sealed, cache } = given;
        Ok(Response::new(wire::UnwrapResponse { dek, cache: cache.into(), sealed }))
    }

    type UnwrapStreamStream = BoxStream<'static, Result<wire::UnwrapStreamResponse, Status>>;

    async fn unwrap_stream(
        &self,
        request: Request<Streaming<wire::UnwrapStreamRequest>>,
    ) -> Result<Response<Self::UnwrapStreamStream>, Status> {
        streams::unwrap(self, request)
    }

    async fn generate_dek(
        &self,
        request: Request<wire::GenerateDekRequest>,
    ) -> Result<Response<wire::GenerateDekResponse>, Status> {
        let call = Call::unary(self, Op::Generate, &request)?;
        let request = request.into_inner();
        let Admitted { permit, delivery, rest: (len, context) } =
            self.admit(&call, &request.kek, &request.session, |_, _| {
                Ok((decode::dek_len(request.length)?, Context::parse(&request.context)?))
            })?;
        let (dek, wrapped) = self.engine.generate(permit, len, &context, call.deadline).await?;
        let about = About { subject: &wrapped.ciphertext, context: &request.context };
        let (dek, sealed) = match request.without_plaintext {
            true => (Vec::new(), None),
            false => delivery.give(dek, about)?,
        };
        let wrapped = Some(encode::wrapped(wrapped));
        Ok(Response::new(wire::GenerateDekResponse { dek, wrapped, sealed }))
    }

    async fn rewrap(
        &self,
        request: Request<wire::RewrapRequest>,
    ) -> Result<Response<wire::RewrapResponse>, Status> {
        let call = Call::unary(self, Op::Rewrap, &request)?;
        let wire::RewrapRequest { wrapped, context } = request.into_inner();
        Ok(Response::new(self.rewrap_one(&call, wrapped, &context).await?))
    }

    type RewrapStreamStream = BoxStream<'static, Result<wire::RewrapStreamResponse, Status>>;

    async fn rewrap_stream(
        &self,
        request: Request<Streaming<wire::RewrapStreamRequest>>,
    ) -> Result<Response<Self::RewrapStreamStream>, Status> {
        streams::rewrap(self, request)
    }

    async fn get_kek(
        &self,
        request: Request<wire::GetKekRequest>,
    ) -> Result<Response<wire::GetKekResponse>, Status> {
        let call = Call::unary(self, Op::Describe, &request)?;
        let wire::GetKekRequest { name } = request.into_inner();
        let permit = self.admit(&call, &name, &[], |_, _| Ok(()))?.permit;
        let kek = encode::kek(&self.engine.describe(permit)?, encode::PublicKeys::With);
        let response = wire::GetKekResponse { kek: Some(kek) };
        if response.encoded_len() > MESSAGE_MAX_BYTES {
            return Err(status::message_too_large());
        }
        Ok(Response::new(response))
    }

    async fn list_keks(
        &self,
        request: Request<wire::ListKeksRequest>,
    ) -> Result<Response<wire::ListKeksResponse>, Status> {
        let call = Call::unary(self, Op::Describe, &request)?;
        let wire::ListKeksRequest { after } = request.into_inner();
        let mut response = wire::ListKeksResponse::default();
        let mut room = MESSAGE_MAX_BYTES - LIST_SLACK_BYTES;
        for name in self.engine.names().filter(|name| *name.as_str() > *after) {
            // What the caller may not describe is not there for it.
            let Ok(permit) = self.policy.load().permit(call.peer.who(), call.op, name) else {
                continue;
            };
            let kek = encode::kek(&self.engine.describe(permit)?, encode::PublicKeys::Without);
            let len = kek.encoded_len() + prost::length_delimiter_len(kek.encoded_len()) + 1;
            if len > room {
                response.more = true;
                break;
            }
            room -= len;
            response.keks.push(kek);
        }
        if response.more && response.keks.is_empty() {
            return Err(status::message_too_large());
        }
        Ok(Response::new(response))
    }

    type WatchKeksStream = BoxStream<'static, Result<wire::WatchKeksResponse, Status>>;

    async fn watch_keks(
        &self,
        request: Request<wire::WatchKeksRequest>,
    ) -> Result<Response<Self::WatchKeksStream>, Status> {
        watch::watch(self, request)
    }
}

/// What a stream is told whose connection is about to end.
fn connection_ending() -> Error {
    Error::new(Reason::ConnectionEnding, "the sidecar closes this connection")
        .with_fix("open the stream again; it will be on another connection")
}

/// What a caller is told who comes when the sidecar is about to stop.
fn shutting_down() -> Error {
    Error::new(Reason::ShuttingDown, "the sidecar is draining")
        .with_fix("reconnect, to this sidecar once it is back or to another")
}
