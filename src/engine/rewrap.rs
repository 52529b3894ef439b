//! Wrap a DEK anew under the current version. The plaintext stays in here.

use std::time::Instant;

use super::{
    Engine, Running,
    unwrap::{check_kind, permitted, unwrap_once},
    wrap::wrap_current,
};
use crate::{
    auth::Permit,
    envelope::{Context, WrappedDek},
    error::Error,
    guard::Class,
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
    /// Rewraps `wrapped`, which must be of the permitted KEK.
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
            Ok(Rewrapped { wrapped, changed: true })
        }
        .await;
        running.end(result)
    }
}
