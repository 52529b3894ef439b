//! Wrap a DEK anew under the current version. The plaintext stays in here.
//!
//! Whoever is answered throws the old wrapped DEK away, so the new one is unwrapped by the
//! backend before it is handed out: a key that wraps and does not unwrap would cost the data.

use std::time::Instant;

use super::{
    Engine, Running,
    catalog::Kek,
    unwrap::{check_kind, permitted, unwrap_once},
    wrap::wrap_current,
};
use crate::{
    auth::Permit,
    envelope::{Context, Dek, WrappedDek},
    error::{Error, Reason},
    guard::{Ask, Class},
    op::Op,
};

/// What became of a DEK that was to be rewrapped.
#[derive(Debug)]
pub struct Rewrapped {
    /// Under the current version.
    pub wrapped: WrappedDek,
    /// Whether it was wrapped anew. If not, it was passed through unverified.
    pub changed: bool,
}

impl Engine {
    /// Rewraps `wrapped`, which must be of the permitted KEK. What it returns anew has been
    /// unwrapped to the same DEK. Doing it twice, or again after it was interrupted, does no
    /// harm: what is under the current version passes through.
    pub async fn rewrap(
        &self,
        permit: Permit,
        wrapped: WrappedDek,
        context: &Context,
        deadline: Instant,
    ) -> Result<Rewrapped, Error> {
        let mut running = Running::start(self, &permit, Op::Rewrap)?;
        running.version = Some(wrapped.version.clone());
        let result = async {
            permit.check_context(context.is_bound())?;
            let kek = permitted(self, &permit, &wrapped)?;
            check_kind(kek, &wrapped)?;
            let current = kek.current()?.version;
            // A DEK without a fingerprint gets one, so that the next reader can check.
            if wrapped.version == current.info().id
                && wrapped.algorithm == kek.spec.algorithm
                && wrapped.fingerprint == Some(current.info().fingerprint)
            {
                return Ok(Rewrapped { wrapped, changed: false });
            }
            let ask = self.ask(&permit, Class::Rewrap, deadline);
            let dek = unwrap_once(kek, &wrapped, context, ask).await?;
            let wrapped = wrap_current(kek, &dek, context, ask).await?;
            check_unwraps(kek, &wrapped, &dek, context, ask).await?;
            Ok(Rewrapped { wrapped, changed: true })
        }
        .await;
        running.end(result)
    }
}

/// Makes sure that `wrapped` unwraps to `dek`.
async fn check_unwraps(
    kek: &Kek,
    wrapped: &WrappedDek,
    dek: &Dek,
    context: &Context,
    ask: Ask,
) -> Result<(), Error> {
    let failed = || {
        let what = format!("what version {} wrapped does not unwrap to the DEK", wrapped.version);
        Error::new(Reason::BackendMisconfigured, what)
            .with_fix("keep the old wrapped DEK; see what is wrong with the key")
    };
    match unwrap_once(kek, wrapped, context, ask).await {
        Ok(again) if again.secret().ct_eq(dek.secret().expose()) => Ok(()),
        Ok(_) => Err(failed()),
        // Not the caller's: it was made here.
        Err(error) if error.reason() == Reason::CiphertextInvalid => Err(failed()),
        Err(error) => Err(error),
    }
}
