//! The Admin service: what operators do. Each method asks for a permission that no
//! storage node needs.

use std::{sync::Arc, time::Instant};

use tonic::{Request, Response, Status, async_trait};
use tracing::error;

use super::{Api, Call, encode, on_record};
use crate::{
    auth::Permit,
    engine::{Purged, Reloaded, Revoked},
    error::{Error, Reason},
    op::Op,
    wire::{
        self, PurgeCacheRequest, PurgeCacheResponse, ReloadRequest, ReloadResponse,
        RestoreKekRequest, RestoreKekResponse, RevokeKekRequest, RevokeKekResponse,
    },
};

/// The same for who may do it with no KEK, whatever there is.
fn refusal(op: Op) -> Error {
    let what = format!("the policy does not allow this caller to {op} any KEK");
    Error::new(Reason::PermissionDenied, what)
        .with_fix("ask the operator for a [[policy]] entry that names this caller")
}

/// Does `work` in a task of its own: a caller who leaves, or is cut, leaves nothing undone.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    tokio::spawn(work).await.unwrap_or_else(|error| {
        error!("an operator's call ended early: {error}");
        Err(Error::new(Reason::Internal, "the sidecar has a defect"))
    })
}

impl Api {
    /// A permit for the KEK of that name, or for each that the caller may do this with if
    /// there is no name; `Err` if for none.
    fn permits(&self, call: &Call, name: &str) -> Result<Vec<Permit>, Error> {
        match name {
            "" => self.all_permits(call),
            name => Ok(vec![self.admit(call, name, &[], |_, _| Ok(()))?.permit]),
        }
    }

    fn all_permits(&self, call: &Call) -> Result<Vec<Permit>, Error> {
        let policy = self.policy.load();
        let permits: Vec<_> = self
            .engine
            .names()
            .filter_map(|name| policy.permit(call.peer.who(), call.op, name).ok())
            .collect();
        match permits.is_empty() {
            false => Ok(permits),
            true => {
                let refusal = Err(refusal(call.op));
                on_record(&self.metrics, call.op, &call.peer, "-", Instant::now(), refusal)
            }
        }
    }
}

#[async_trait]
impl wire::admin_server::Admin for Api {
    async fn purge_cache(
        &self,
        request: Request<PurgeCacheRequest>,
    ) -> Result<Response<PurgeCacheResponse>, Status> {
        let call = Call::unary(self, Op::Purge, &request)?;
        let PurgeCacheRequest { kek } = request.into_inner();
        let permits = self.permits(&call, &kek)?;
        let (engine, own) = (Arc::clone(&self.engine), call.peer.carrier().clone());
        let Purged { deks, connections, left_open, sessions } =
            to_its_end(async move { engine.purge(permits, &own).await }).await?;
        Ok(Response::new(PurgeCacheResponse {
            deks: deks as u64,
            connections: connections as u64,
            left_open: left_open as u64,
            sessions: sessions as u64,
        }))
    }

    async fn revoke_kek(
        &self,
        request: Request<RevokeKekRequest>,
    ) -> Result<Response<RevokeKekResponse>, Status> {
        let call = Call::unary(self, Op::Revoke, &request)?;
        let RevokeKekRequest { kek } = request.into_inner();
        let permit = self.admit(&call, &kek, &[], |_, _| Ok(()))?.permit;
        let (engine, own) = (Arc::clone(&self.engine), call.peer.carrier().clone());
        let Revoked { purged, kept } =
            to_its_end(async move { engine.revoke(permit, &own).await }).await?;
        Ok(Response::new(RevokeKekResponse {
            deks: purged.deks as u64,
            connections: purged.connections as u64,
            left_open: purged.left_open as u64,
            kept,
            sessions: purged.sessions as u64,
        }))
    }

    async fn restore_kek(
        &self,
        request: Request<RestoreKekRequest>,
    ) -> Result<Response<RestoreKekResponse>, Status> {
        let call = Call::unary(self, Op::Restore, &request)?;
        let RestoreKekRequest { kek } = request.into_inner();
        let permit = self.admit(&call, &kek, &[], |_, _| Ok(()))?.permit;
        let engine = Arc::clone(&self.engine);
        to_its_end(async move { engine.restore(permit).await }).await?;
        Ok(Response::new(RestoreKekResponse {}))
    }

    async fn reload(
        &self,
        request: Request<ReloadRequest>,
    ) -> Result<Response<ReloadResponse>, Status> {
        let call = Call::unary(self, Op::Reload, &request)?;
        let ReloadRequest { kek } = request.into_inner();
        let permits = self.permits(&call, &kek)?;
        let reloaded = self.engine.reload(permits, call.deadline).await;
        // A name that is not configured is the caller's mistake, not a KEK that fails.
        let mut keks: Vec<_> = Vec::with_capacity(reloaded.len());
        for Reloaded { kek, current } in reloaded {
            keks.push(match current {
                Err(error) if error.reason() == Reason::KekNotFound && !self.engine.has(&kek) => {
                    return Err(error.into());
                }
                Ok(id) => encode::reloaded(&kek, Some(&id), None),
                Err(error) => encode::reloaded(&kek, None, Some(error)),
            });
        }
        Ok(Response::new(ReloadResponse { keks }))
    }
}
