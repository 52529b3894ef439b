//! What happens to KEKs, as the sidecar tells it.
//!
//! A watch goes on over another connection when the sidecar ends the one that it is on, as
//! it does with each after some minutes. It begins anew then, with a `STATE` for each KEK, so
//! that nothing is missed. It does not go on when the sidecar stops or cannot be reached.

use futures_util::{StreamExt, stream, stream::BoxStream};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Request, Streaming};

use super::{Client, Error, deadline, retry};
use crate::{
    error::Reason,
    op::Op,
    wire::{KekEvent, WatchKeksRequest, WatchKeksResponse},
};

/// Events as they come. An `Err` ends the watch.
pub type Events = BoxStream<'static, Result<KekEvent, Error>>;

impl Client {
    /// Watches the KEKs called `names`, or all that we may describe if there are none. It
    /// begins with a `STATE` for each of them, and ends when it is dropped, or with an error.
    pub async fn watch_keks(&self, names: &[&str]) -> Result<Events, Error> {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut watch = Watch { client: self.clone(), names, attempts: 0 };
        let told = watch.open().await?;
        let next = |watching: Option<(Watch, Streaming<WatchKeksResponse>)>| async move {
            let (mut watch, told) = watching?;
            match watch.next(told).await {
                Ok(Some((event, told))) => Some((Ok(event), Some((watch, told)))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        };
        Ok(stream::unfold(Some((watch, told)), next).boxed())
    }
}

struct Watch {
    client: Client,
    names: Vec<String>,
    /// Times that it was opened without an event.
    attempts: u32,
}

impl Watch {
    /// Opens it, which has a deadline; the watch itself has none.
    async fn open(&mut self) -> Result<Streaming<WatchKeksResponse>, Error> {
        let within = self.client.deadline.unwrap_or(Op::Describe.spec().deadline);
        let deadline = deadline(within);
        loop {
            self.attempts += 1;
            let request = Request::new(WatchKeksRequest { names: self.names.clone() });
            let mut client = self.client.inner.clone();
            let error = match timeout_at(deadline, client.watch_keks(request)).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => Error::from_status(&status, &self.client.target),
                Err(_elapsed) => return Err(Error::deadline_exceeded()),
            };
            let left = deadline.saturating_duration_since(Instant::now());
            let after = error.retry_after();
            let pause = retry::pause(Op::Describe, self.attempts, after, left, retry::jitter());
            let Some(pause) = pause else { return Err(error) };
            sleep(pause).await;
        }
    }

    async fn next(
        &mut self,
        mut told: Streaming<WatchKeksResponse>,
    ) -> Result<Option<(KekEvent, Streaming<WatchKeksResponse>)>, Error> {
        loop {
            let error = match told.message().await {
                Ok(Some(WatchKeksResponse { event: Some(event) })) => {
                    self.attempts = 0;
                    return Ok(Some((event, told)));
                }
                Ok(Some(WatchKeksResponse { event: None })) => {
                    return Err(Error::answer_invalid("an event without one"));
                }
                Ok(None) => return Ok(None),
                Err(status) => Error::from_status(&status, &self.client.target),
            };
            let ended = [Reason::ConnectionEnding.as_str(), Error::SIDECAR_UNREACHABLE];
            if !ended.contains(&error.reason()) || self.attempts > retry::ATTEMPTS_MAX {
                return Err(error);
            }
            told = self.open().await?;
        }
    }
}
