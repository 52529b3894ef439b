//! Wrap a DEK that the caller has.

use std::time::Instant;

use super::{Engine, Running, catalog::Kek};
use crate::{
    auth::Permit,
    envelope::{self, Context, Dek, WrappedDek},
    error::Error,
    guard::{Ask, Class},
    op::Op,
};

impl Engine {
    /// Wraps `dek` under the current version of the permitted KEK.
    pub async fn wrap(
        &self,
        permit: Permit,
        dek: &Dek,
        context: &Context,
        deadline: Instant,
    ) -> Result<WrappedDek, Error> {
        let mut running = Running::start(self, &permit, Op::Wrap)?;
        let result = async {
            permit.check_context(context.is_bound())?;
            let ask = self.ask(&permit, Class::Foreground, deadline);
            let wrapped = wrap_current(self.kek(permit.kek())?, dek, context, ask).await?;
            running.version = Some(wrapped.version.clone());
            Ok(wrapped)
        }
        .await;
        running.end(result)
    }
}

/// Wraps under the current version. Also the second half of generate and rewrap.
///
/// An RSA version wraps in an outage too: its public key is known, and its lease says
/// for how long it may be believed to be allowed. Only where the backend is needed does it
/// wait for a turn.
pub(super) async fn wrap_current(
    kek: &Kek,
    dek: &Dek,
    context: &Context,
    ask: Ask,
) -> Result<WrappedDek, Error> {
    let algorithm = kek.spec.algorithm;
    let payload = envelope::seal(dek, context);
    algorithm.check_payload_len(payload.len())?;
    let mut held = kek.current()?;
    let guard = &kek.guard;
    let locally = guard.wrap_locally(&held.version, algorithm, &payload, ask.deadline).await;
    let wrapped = match locally {
        Some(wrapped) => wrapped,
        None => {
            let turn = guard.turn(ask, guard.units(held.version.info())).await?;
            // It may have waited for long.
            held = kek.current()?;
            turn.wrap(&held.version, algorithm, &payload).await
        }
    };
    let ciphertext = kek.notice(wrapped)?;
    kek.confirm(&held)?;
    let info = held.version.info();
    Ok(WrappedDek {
        kek: kek.spec.name.clone(),
        version: info.id.clone(),
        algorithm,
        ciphertext,
        fingerprint: Some(info.fingerprint),
    })
}
