//! A bare tonic server that answers at once: the floor of the benches of the transport.

use std::pin::Pin;

use futures_util::{Stream, StreamExt};
use keyward::wire::{self, key_wrap_server::KeyWrap, unwrap_stream_response};
use tonic::{Request, Response, Status, Streaming, async_trait};

/// Answers every Unwrap with the same 32 bytes.
pub struct Echo;

pub type Never<T> = tokio_stream::Empty<Result<T, Status>>;

#[async_trait]
impl KeyWrap for Echo {
    async fn unwrap(
        &self,
        _: Request<wire::UnwrapRequest>,
    ) -> Result<Response<wire::UnwrapResponse>, Status> {
        Ok(Response::new(wire::UnwrapResponse { dek: vec![7; 32], cache: 1, sealed: None }))
    }

    async fn open_session(
        &self,
        _: Request<wire::OpenSessionRequest>,
    ) -> Result<Response<wire::OpenSessionResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn wrap(
        &self,
        _: Request<wire::WrapRequest>,
    ) -> Result<Response<wire::WrapResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    type UnwrapStreamStream =
        Pin<Box<dyn Stream<Item = Result<wire::UnwrapStreamResponse, Status>> + Send>>;

    async fn unwrap_stream(
        &self,
        items: Request<Streaming<wire::UnwrapStreamRequest>>,
    ) -> Result<Response<Self::UnwrapStreamStream>, Status> {
        let answers = items.into_inner().map(|item| {
            let outcome = Some(unwrap_stream_response::Outcome::Dek(vec![7; 32]));
            item.map(|item| wire::UnwrapStreamResponse { id: item.id, outcome, cache: 1 })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn generate_dek(
        &self,
        _: Request<wire::GenerateDekRequest>,
    ) -> Result<Response<wire::GenerateDekResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn rewrap(
        &self,
        _: Request<wire::RewrapRequest>,
    ) -> Result<Response<wire::RewrapResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    type RewrapStreamStream = Never<wire::RewrapStreamResponse>;

    async fn rewrap_stream(
        &self,
        _: Request<Streaming<wire::RewrapStreamRequest>>,
    ) -> Result<Response<Self::RewrapStreamStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_kek(
        &self,
        _: Request<wire::GetKekRequest>,
    ) -> Result<Response<wire::GetKekResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    type WatchKeksStream = Never<wire::WatchKeksResponse>;

    async fn watch_keks(
        &self,
        _: Request<wire::WatchKeksRequest>,
    ) -> Result<Response<Self::WatchKeksStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_keks(
        &self,
        _: Request<wire::ListKeksRequest>,
    ) -> Result<Response<wire::ListKeksResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}
