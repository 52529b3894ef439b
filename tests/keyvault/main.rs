//! The backend for Azure's vaults against the fake of them: every row of the error table,
//! every identity, tokens that end, versions in order, quotas and connections; and a fleet
//! of sidecars on a turned clock.
//!
//! What every backend must do is in `contract.rs`; names, the table itself and the
//! transport have tests of their own beside the code.

#[path = "../support/azure.rs"]
mod azure;
#[allow(dead_code)]
#[path = "../support/keyvault/mod.rs"]
mod keyvault;
#[path = "../support/mod.rs"]
mod support;

mod errors;
mod fleet;
mod identity;
mod tokens;
mod versions;

use std::time::{Duration, Instant};

use keyward::{
    backend::Backend,
    error::{Error, Reason},
    kek::{Algorithm, KeyRef, VersionInfo},
    secret::Secret,
};

use support::usable;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn key(label: &str) -> KeyRef {
    KeyRef::parse(label).expect("a label")
}

async fn only_version(backend: &dyn Backend, label: &str, algorithm: Algorithm) -> VersionInfo {
    let mut versions = backend.versions(&key(label), algorithm, soon()).await.expect("versions");
    assert_eq!(versions.len(), 1);
    versions.remove(0)
}

/// Wraps and unwraps.
async fn round_trip(
    backend: &dyn Backend,
    info: &VersionInfo,
    algorithm: Algorithm,
) -> Result<(), Error> {
    let payload = Secret::new(vec![0x5a; 32]);
    let wrapped = backend.wrap(&usable(info), algorithm, &payload, soon()).await?;
    let unwrapped = backend.unwrap(&usable(info), algorithm, &wrapped, soon()).await?;
    assert!(unwrapped.ct_eq(payload.expose()));
    Ok(())
}

fn reason<T: std::fmt::Debug>(result: Result<T, Error>) -> Reason {
    result.expect_err("a refusal").reason()
}
