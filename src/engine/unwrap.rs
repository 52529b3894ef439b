//! Unwrap a DEK with the version that it names.

use std::time::{Instant, SystemTime};

use super::{Engine, Running, catalog::Kek};
use crate::{
    auth::Permit,
    envelope::{self, Context, Dek, WrappedDek},
    error::{Error, Reason},
    op::Op,
};

impl Engine {
    /// Unwraps `wrapped`, which must be of the permitted KEK.
    pub async fn unwrap(
        &self,
        permit: Permit,
        wrapped: &WrappedDek,
        context: &Context,
        deadline: Instant,
    ) -> Result<Dek, Error> {
        let mut running = Running::start(&permit, Op::Unwrap)?;
        running.version = Some(wrapped.version.to_string());
        let result = async {
            permit.check_context(context.is_bound())?;
            unwrap_any(permitted(self, &permit, wrapped)?, wrapped, context, deadline).await
        }
        .await;
        running.end(result)
    }
}

/// The KEK that a permit is for, if `wrapped` is of that KEK.
pub(super) fn permitted<'a>(
    engine: &'a Engine,
    permit: &Permit,
    wrapped: &WrappedDek,
) -> Result<&'a Kek, Error> {
    if wrapped.kek != *permit.kek() {
        return Err(Error::new(Reason::Internal, "a permit was used for another KEK"));
    }
    engine.kek(permit.kek()).map(AsRef::as_ref)
}

/// Unwraps with the version that `wrapped` names. Also the first half of rewrap.
pub(super) async fn unwrap_any(
    kek: &Kek,
    wrapped: &WrappedDek,
    context: &Context,
    deadline: Instant,
) -> Result<Dek, Error> {
    check_kind(kek, wrapped)?;
    let version = kek.version(&wrapped.version, SystemTime::now())?;
    if wrapped.fingerprint.is_some_and(|expected| expected != version.info().fingerprint) {
        return Err(Error::new(
            Reason::KekMismatch,
            format!(
                "version {} of KEK {} is not the key that wrapped this DEK",
                wrapped.version, kek.spec.name
            ),
        )
        .with_fix(
            "the key was replaced, or this sidecar is configured with another one of the same name",
        ));
    }
    let backend = &kek.spec.backend;
    let payload = backend.unwrap(&version, wrapped.algorithm, &wrapped.ciphertext, deadline).await;
    envelope::open(kek.notice(payload)?, context)
}

/// Refuses an algorithm that the KEK's kind of key cannot have been used with.
pub(super) fn check_kind(kek: &Kek, wrapped: &WrappedDek) -> Result<(), Error> {
    if kek.spec.algorithm.same_key_kind(wrapped.algorithm) {
        return Ok(());
    }
    Err(Error::new(
        Reason::AlgorithmUnsupported,
        format!("{} is not an algorithm of KEK {}", wrapped.algorithm, kek.spec.name),
    ))
}
