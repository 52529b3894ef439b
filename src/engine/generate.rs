//! Make a fresh DEK.

use std::time::Instant;

use super::{Engine, Running, catalog::Kek, wrap::wrap_current};
use crate::{
    auth::Permit,
    envelope::{Context, Dek, WrappedDek, check_dek_len},
    error::{Error, Reason},
    guard::{Ask, Class},
    op::Op,
    secret::Secret,
};

impl Engine {
    /// Makes a DEK of `len` bytes and wraps it under the current version.
    pub async fn generate(
        &self,
        permit: Permit,
        len: usize,
        context: &Context,
        deadline: Instant,
    ) -> Result<(Dek, WrappedDek), Error> {
        let mut running = Running::start(self, &permit, Op::Generate)?;
        let result = async {
            permit.check_context(context.is_bound())?;
            check_dek_len(len)?;
            let kek = self.kek(permit.kek())?;
            let ask = self.ask(&permit, Class::Foreground, deadline);
            let dek = Dek::parse(random(kek, len, ask).await?)?;
            let wrapped = wrap_current(kek, &dek, context, ask).await?;
            running.version = Some(wrapped.version.clone());
            Ok((dek, wrapped))
        }
        .await;
        running.end(result)
    }
}

/// Random bytes of the operating system XOR those of the device: as good as the
/// better of the two, and no worse if the device's are bad or chosen by someone, for
/// the device does not see the others.
async fn random(kek: &Kek, len: usize, ask: Ask) -> Result<Secret, Error> {
    let device = kek.guard.turn(ask, 1).await?.random(len).await?;
    let mut bytes = Secret::zeroed(len);
    aws_lc_rs::rand::fill(bytes.expose_mut())
        .map_err(|_| Error::new(Reason::Internal, "the operating system gave no random bytes"))?;
    if let Some(device) = device {
        if device.len() != len {
            return Err(Error::new(
                Reason::Internal,
                "the device gave another number of random bytes",
            ));
        }
        for (byte, other) in bytes.expose_mut().iter_mut().zip(device.expose()) {
            *byte ^= other;
        }
    }
    Ok(bytes)
}
