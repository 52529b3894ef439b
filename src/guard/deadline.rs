//! The deadline: whatever a backend does, whoever asked it is answered in time.
//!
//! Backends promise to keep deadlines themselves. This holds where one does not, and costs
//! a timer.

use std::{future::Future, time::Instant};

use tokio::time::timeout_at;

use crate::error::{Error, Reason};

/// What `work` comes to, or `DEADLINE_EXCEEDED` at `deadline`; the work is dropped then.
pub(super) async fn within<T>(
    deadline: Instant,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    timeout_at(deadline.into(), work).await.unwrap_or_else(|_| {
        Err(Error::new(
            Reason::DeadlineExceeded,
            "the HSM or vault did not answer before the deadline",
        ))
    })
}

#[cfg(test)]
mod tests {
    use std::{future::pending, time::Duration};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_never_ends_ends_in_time() {
        let begin = tokio::time::Instant::now();
        let deadline = begin + Duration::from_secs(3);
        let late = within(deadline.into_std(), pending::<Result<(), Error>>()).await;
        assert_eq!(late.unwrap_err().reason(), Reason::DeadlineExceeded);
        assert_eq!(tokio::time::Instant::now(), deadline);
        assert_eq!(within(deadline.into_std(), async { Ok(7) }).await.unwrap(), 7);
    }
}
