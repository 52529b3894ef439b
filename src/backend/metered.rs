//! A backend that times and counts what another one does, and changes nothing.

use std::{
    future::Future,
    sync::Arc,
    time::{Instant, SystemTime},
};

use async_trait::async_trait;

use super::{Backend, Officer, Register, Room, Service};
use crate::{
    error::Error,
    kek::{Algorithm, KeyRef, UsableVersion, VersionInfo},
    observe::{BackendMetrics, HsmOp, Metrics},
    secret::Secret,
};

/// A backend, metered.
pub struct Metered {
    inner: Arc<dyn Backend>,
    metrics: Arc<BackendMetrics>,
}

impl Metered {
    /// `inner`, with what it does recorded under its name.
    pub fn over(inner: Arc<dyn Backend>, metrics: &Metrics) -> Arc<dyn Backend> {
        let metrics = metrics.backend(inner.name());
        Arc::new(Self { inner, metrics })
    }

    async fn time<T>(
        &self,
        op: HsmOp,
        work: impl Future<Output = Result<T, Error>> + Send,
    ) -> Result<T, Error> {
        let timed = self.metrics.start(op);
        let result = work.await;
        timed.end(&result);
        result
    }
}

#[async_trait]
impl Backend for Metered {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    async fn versions(
        &self,
        key: &KeyRef,
        algorithm: Algorithm,
        deadline: Instant,
    ) -> Result<Vec<VersionInfo>, Error> {
        self.time(HsmOp::Versions, self.inner.versions(key, algorithm, deadline)).await
    }

    async fn prove(
        &self,
        version: &VersionInfo,
        algorithm: Algorithm,
        deadline: Instant,
    ) -> Result<SystemTime, Error> {
        self.time(HsmOp::Prove, self.inner.prove(version, algorithm, deadline)).await
    }

    async fn wrap(
        &self,
        version: &UsableVersion,
        algorithm: Algorithm,
        payload: &Secret,
        deadline: Instant,
    ) -> Result<Vec<u8>, Error> {
        self.time(HsmOp::Wrap, self.inner.wrap(version, algorithm, payload, deadline)).await
    }

    async fn unwrap(
        &self,
        version: &UsableVersion,
        algorithm: Algorithm,
        ciphertext: &[u8],
        deadline: Instant,
    ) -> Result<Secret, Error> {
        let work = self.inner.unwrap(version, algorithm, ciphertext, deadline);
        self.time(HsmOp::Unwrap, work).await
    }

    async fn random(&self, len: usize, deadline: Instant) -> Result<Option<Secret>, Error> {
        self.time(HsmOp::Random, self.inner.random(len, deadline)).await
    }

    fn wraps_locally(&self, algorithm: Algorithm) -> bool {
        self.inner.wraps_locally(algorithm)
    }

    fn units(&self, version: &VersionInfo) -> u32 {
        self.inner.units(version)
    }

    fn room(&self) -> Room {
        self.inner.room()
    }

    fn officer(&self) -> Option<&dyn Officer> {
        self.inner.officer()
    }

    fn service(&self) -> Option<&dyn Service> {
        self.inner.service()
    }

    fn register(&self) -> Option<&dyn Register> {
        self.inner.register()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}
