//! What happens to KEKs, as the sidecar tells it.
//!
//! A watch goes on over another connection when the sidecar ends the one that it is on, as
//! it does with each after some minutes, or stops; to another sidecar, if there is one. It
//! begins anew then, with a `STATE` for each KEK, so that nothing is missed. It ends when no
//! sidecar could be reached within the deadline of a call.

use std::sync::Arc;

use futures_util::{StreamExt, stream, stream::BoxStream};
use tonic::{Request, Streaming};

use super::{Client, Error, call::Attempt, retry, sidecar::Sidecar};
use crate::{
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
        let mut watch = Watch { client: self.clone(), names, quiet: 0 };
        let told = watch.open().await?;
        let next = |watching: Option<(Watch, Told)>| async move {
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

/// Who tells, and what.
type Told = (Arc<Sidecar>, Streaming<WatchKeksResponse>);

struct Watch {
    client: Client,
    names: Vec<String>,
    /// Times in a row that it was opened without an event.
    quiet: u32,
}

impl Watch {
    /// Opens it, which has a deadline; the watch itself has none.
    async fn open(&mut self) -> Result<Told, Error> {
        self.quiet += 1;
        let names = &self.names;
        let watch = |attempt: Attempt| async move {
            // It goes on for longer than opening it may take.
            let request = Request::new(WatchKeksRequest { names: names.clone() });
            let events = attempt.answer(attempt.sidecar.stub().watch_keks(request).await)?;
            Ok((attempt.sidecar, events))
        };
        self.client.call(Op::Describe, watch).await
    }

    async fn next(&mut self, mut told: Told) -> Result<Option<(KekEvent, Told)>, Error> {
        loop {
            let (sidecar, events) = &mut told;
            let error = match events.message().await {
                Ok(Some(WatchKeksResponse { event: Some(event) })) => {
                    self.quiet = 0;
                    return Ok(Some((event, told)));
                }
                Ok(Some(WatchKeksResponse { event: None })) => {
                    return Err(Error::answer_invalid("an event without one"));
                }
                Ok(None) => return Ok(None),
                Err(status) => Error::from_status(&status, sidecar.target()),
            };
            sidecar.failed_with(&error);
            if !error.trouble().is_of_the_connection() || self.quiet > retry::ATTEMPTS_MAX {
                return Err(error);
            }
            told = self.open().await?;
        }
    }
}
