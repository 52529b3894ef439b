//! Many DEKs over one call. Answers come in any order; a client must read them while
//! it sends, because the sidecar works on a bounded number of items at once and reads
//! no further.

use std::{mem, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt, stream, stream::BoxStream};
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Response, Status, Streaming};

use super::{Client, Error, Rewrapped, WrappedDek, dek_of, rewrapped};
use crate::{
    secret::Secret,
    wire::{self, rewrap_stream_response, unwrap_stream_response},
};

/// One DEK to unwrap or rewrap.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Comes back with the answer.
    pub id: u64,
    /// The DEK.
    pub wrapped: WrappedDek,
    /// The context that it was wrapped with; empty if there was none.
    pub context: Vec<u8>,
}

/// The answer to one [`Item`].
#[derive(Debug)]
pub struct Answer<T> {
    /// Of the item.
    pub id: u64,
    /// What became of it. An item that failed does not end the stream.
    pub outcome: Result<T, Error>,
}

/// Answers as they come. An `Err` ends the stream: what was not answered by then is
/// not known.
pub type Answers<T> = BoxStream<'static, Result<Answer<T>, Error>>;

impl Client {
    /// Unwraps `items`. The stream ends when all are answered, and fails after `timeout`.
    pub async fn unwrap_stream(
        &self,
        items: impl Stream<Item = Item> + Send + 'static,
        timeout: Duration,
    ) -> Result<Answers<Secret>, Error> {
        let deadline = Instant::now() + timeout;
        let items = items.map(|Item { id, wrapped, context }| wire::UnwrapStreamRequest {
            id,
            wrapped: Some(wrapped),
            context,
        });
        let mut inner = self.inner.clone();
        let opened = inner.unwrap_stream(request(items, timeout));
        let answers = self.opened(deadline, opened).await?;
        Ok(self.answers(deadline, answers, |mut answer: wire::UnwrapStreamResponse| {
            let outcome = match &mut answer.outcome {
                Some(unwrap_stream_response::Outcome::Dek(dek)) => dek_of(mem::take(dek)),
                Some(unwrap_stream_response::Outcome::Error(error)) => {
                    Err(Error::from_item(mem::take(error)))
                }
                None => Err(Error::answer_invalid("an item without an outcome")),
            };
            Answer { id: answer.id, outcome }
        }))
    }

    /// Rewraps `items`, in the background of the sidecar's other work. The stream ends
    /// when all are answered, and fails after `timeout`.
    pub async fn rewrap_stream(
        &self,
        items: impl Stream<Item = Item> + Send + 'static,
        timeout: Duration,
    ) -> Result<Answers<Rewrapped>, Error> {
        let deadline = Instant::now() + timeout;
        let items = items.map(|Item { id, wrapped, context }| wire::RewrapStreamRequest {
            id,
            wrapped: Some(wrapped),
            context,
        });
        let mut inner = self.inner.clone();
        let opened = inner.rewrap_stream(request(items, timeout));
        let answers = self.opened(deadline, opened).await?;
        Ok(self.answers(deadline, answers, |answer: wire::RewrapStreamResponse| {
            let outcome = match answer.outcome {
                Some(rewrap_stream_response::Outcome::Rewrapped(done)) => rewrapped(done),
                Some(rewrap_stream_response::Outcome::Error(error)) => Err(Error::from_item(error)),
                None => Err(Error::answer_invalid("an item without an outcome")),
            };
            Answer { id: answer.id, outcome }
        }))
    }

    async fn opened<A>(
        &self,
        deadline: Instant,
        opened: impl Future<Output = Result<Response<Streaming<A>>, Status>>,
    ) -> Result<Streaming<A>, Error> {
        match timeout_at(deadline, opened).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(Error::from_status(&status, &self.target)),
            Err(_elapsed) => Err(Error::deadline_exceeded()),
        }
    }

    fn answers<A: Send + 'static, T: Send + 'static>(
        &self,
        deadline: Instant,
        answers: Streaming<A>,
        read: impl Fn(A) -> Answer<T> + Copy + Send + 'static,
    ) -> Answers<T> {
        let target = Arc::clone(&self.target);
        let state = Some((answers, target));
        stream::unfold(state, move |state| async move {
            let (mut answers, target) = state?;
            match timeout_at(deadline, answers.message()).await {
                Ok(Ok(Some(answer))) => Some((Ok(read(answer)), Some((answers, target)))),
                Ok(Ok(None)) => None,
                Ok(Err(status)) => Some((Err(Error::from_status(&status, &target)), None)),
                Err(_elapsed) => Some((Err(Error::deadline_exceeded()), None)),
            }
        })
        .boxed()
    }
}

fn request<T>(items: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(items);
    request.set_timeout(timeout);
    request
}
