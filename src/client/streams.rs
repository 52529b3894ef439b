//! Many DEKs over one call. Answers come in any order; a client must read them while
//! it sends, because the sidecar works on a bounded number of items at once and reads
//! no further.
//!
//! The sidecar ends every connection after some minutes, and at once when the DEKs that
//! went over it are to leave no trace; what is still in work a moment later is cut. A stream
//! then goes on over another connection without its caller noticing: what was not answered
//! is sent again, which the table of operations says does no harm. It does not go on when
//! the sidecar stops or cannot be connected to, nor after [`super::ATTEMPTS_MAX`]
//! connections in a row that brought no answer.
//!
//! Invariant: an item is answered at most once. What is sent again are the items that
//! were not answered, which is what an [`Outbox`] keeps.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{
    FutureExt, Stream, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream, Fuse},
};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Request, Response, Status, Streaming};

use super::{
    Client, Error, Rewrapped, WrappedDek, deadline, dek_of, retry, rewrapped, transport::Transport,
};
use crate::{
    error::Reason,
    op::Op,
    secret::Secret,
    wire::{self, key_wrap_client::KeyWrapClient, rewrap_stream_response, unwrap_stream_response},
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
    /// Unwraps `items`. The stream ends when all are answered, and fails after `timeout`,
    /// 24 hours at most.
    pub async fn unwrap_stream(
        &self,
        items: impl Stream<Item = Item> + Send + 'static,
        timeout: Duration,
    ) -> Result<Answers<Secret>, Error> {
        let open = |mut client: KeyWrapClient<Transport>, items: Sending, timeout| {
            let items = items.map(|(id, Item { wrapped, context, .. })| {
                wire::UnwrapStreamRequest { id, wrapped: Some(wrapped), context }
            });
            async move { client.unwrap_stream(request(items, timeout)).await }.boxed()
        };
        let read = |mut answer: wire::UnwrapStreamResponse| {
            let outcome = match &mut answer.outcome {
                Some(unwrap_stream_response::Outcome::Dek(dek)) => dek_of(mem::take(dek)),
                Some(unwrap_stream_response::Outcome::Error(error)) => {
                    Err(Error::from_item(mem::take(error)))
                }
                None => Err(Error::answer_invalid("an item without an outcome")),
            };
            Answer { id: answer.id, outcome }
        };
        Exchange::open(self.clone(), Op::Unwrap, items.boxed(), timeout, open, read).await
    }

    /// Rewraps `items`, in the background of the sidecar's other work. The stream ends
    /// when all are answered, and fails after `timeout`, 24 hours at most.
    pub async fn rewrap_stream(
        &self,
        items: impl Stream<Item = Item> + Send + 'static,
        timeout: Duration,
    ) -> Result<Answers<Rewrapped>, Error> {
        let open = |mut client: KeyWrapClient<Transport>, items: Sending, timeout| {
            let items = items.map(|(id, Item { wrapped, context, .. })| {
                wire::RewrapStreamRequest { id, wrapped: Some(wrapped), context }
            });
            async move { client.rewrap_stream(request(items, timeout)).await }.boxed()
        };
        let read = |answer: wire::RewrapStreamResponse| {
            let outcome = match answer.outcome {
                Some(rewrap_stream_response::Outcome::Rewrapped(done)) => rewrapped(done),
                Some(rewrap_stream_response::Outcome::Error(error)) => Err(Error::from_item(error)),
                None => Err(Error::answer_invalid("an item without an outcome")),
            };
            Answer { id: answer.id, outcome }
        };
        Exchange::open(self.clone(), Op::Rewrap, items.boxed(), timeout, open, read).await
    }
}

fn request<T>(items: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(items);
    request.set_timeout(timeout);
    request
}

type Opening<A> = BoxFuture<'static, Result<Response<Streaming<A>>, Status>>;
type Open<A> = fn(KeyWrapClient<Transport>, Sending, Duration) -> Opening<A>;
type Read<A, T> = fn(A) -> Answer<T>;

/// One stream as its caller sees it, over as many connections as it takes.
struct Exchange<A, T> {
    way: Way<A>,
    answers: Streaming<A>,
    read: Read<A, T>,
}

impl<A: Send + 'static, T: Send + 'static> Exchange<A, T> {
    async fn open(
        client: Client,
        op: Op,
        items: BoxStream<'static, Item>,
        timeout: Duration,
        open: Open<A>,
        read: Read<A, T>,
    ) -> Result<Answers<T>, Error> {
        let outbox = Arc::new(Mutex::new(Outbox::new(items)));
        let mut way = Way { client, op, deadline: deadline(timeout), outbox, open, attempts: 0 };
        let answers = way.open().await?;
        let exchange = Self { way, answers, read };
        let next = |exchange: Option<Self>| async move {
            let mut exchange = exchange?;
            match exchange.next().await {
                Ok(Some(answer)) => Some((Ok(answer), Some(exchange))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        };
        Ok(stream::unfold(Some(exchange), next).boxed())
    }

    /// The next answer; `None` when all are answered.
    async fn next(&mut self) -> Result<Option<Answer<T>>, Error> {
        loop {
            let error = match timeout_at(self.way.deadline, self.answers.message()).await {
                Ok(Ok(Some(answer))) => {
                    let Answer { id: number, outcome } = (self.read)(answer);
                    let id = lock(&self.way.outbox)
                        .answered(number)
                        .ok_or_else(|| Error::answer_invalid("an item that was not sent"))?;
                    self.way.attempts = 1;
                    return Ok(Some(Answer { id, outcome }));
                }
                Ok(Ok(None)) => return Ok(None),
                Ok(Err(status)) => Error::from_status(&status, &self.way.client.target),
                Err(_elapsed) => return Err(Error::deadline_exceeded()),
            };
            self.way.go_on_after(error).await?;
            self.answers = self.way.open().await?;
        }
    }
}

/// How a stream is opened, and opened again.
struct Way<A> {
    client: Client,
    op: Op,
    deadline: Instant,
    outbox: Arc<Mutex<Outbox>>,
    open: Open<A>,
    /// Times that it was opened, or was to be, without an answer; 1 with one.
    attempts: u32,
}

impl<A> Way<A> {
    /// Opens the stream, if it takes more than one attempt too.
    async fn open(&mut self) -> Result<Streaming<A>, Error> {
        loop {
            self.attempts += 1;
            let sending = Sending { run: lock(&self.outbox).run, outbox: Arc::clone(&self.outbox) };
            let opening = (self.open)(self.client.inner.clone(), sending, self.left());
            let error = match timeout_at(self.deadline, opening).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => Error::from_status(&status, &self.client.target),
                Err(_elapsed) => return Err(Error::deadline_exceeded()),
            };
            self.go_on_after(error).await?;
        }
    }

    /// Waits until the stream can be opened again. `Err` if `error` says more than that its
    /// connection ended, or there were attempts enough.
    async fn go_on_after(&mut self, error: Error) -> Result<(), Error> {
        let ended = [Reason::ConnectionEnding.as_str(), Error::SIDECAR_UNREACHABLE];
        let after = error.retry_after().filter(|_| ended.contains(&error.reason()));
        let pause = retry::pause(self.op, self.attempts, after, self.left(), retry::jitter());
        let Some(pause) = pause else { return Err(error) };
        // The old connection takes no new stream; the next one is another.
        sleep(pause).await;
        lock(&self.outbox).start_again();
        Ok(())
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

/// What one stream sends, until the outbox starts again: items with the numbers that we
/// give them.
struct Sending {
    run: u32,
    outbox: Arc<Mutex<Outbox>>,
}

impl Stream for Sending {
    type Item = (u64, Item);

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        lock(&self.outbox).poll_send(self.run, cx)
    }
}

fn lock(outbox: &Mutex<Outbox>) -> MutexGuard<'_, Outbox> {
    outbox.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The items of a stream: those to be sent, and those that were and are not answered.
/// Of the latter there are no more than the sidecar works on and the buffers in between
/// hold.
struct Outbox {
    items: Fuse<BoxStream<'static, Item>>,
    /// By the numbers that we gave them: callers' need not be distinct.
    unanswered: HashMap<u64, Item>,
    again: VecDeque<u64>,
    next: u64,
    /// Which of the streams that were opened may send.
    run: u32,
}

impl Outbox {
    fn new(items: BoxStream<'static, Item>) -> Self {
        let (unanswered, again) = (HashMap::new(), VecDeque::new());
        Self { items: items.fuse(), unanswered, again, next: 0, run: 0 }
    }

    /// What a stream of `run` sends next.
    fn poll_send(&mut self, run: u32, cx: &mut Context<'_>) -> Poll<Option<(u64, Item)>> {
        if run != self.run {
            return Poll::Ready(None);
        }
        while let Some(number) = self.again.pop_front() {
            if let Some(item) = self.unanswered.get(&number) {
                return Poll::Ready(Some((number, item.clone())));
            }
        }
        self.items.poll_next_unpin(cx).map(|item| {
            item.map(|item| {
                let number = self.next;
                self.next += 1;
                self.unanswered.insert(number, item.clone());
                (number, item)
            })
        })
    }

    /// An answer came. The caller's id of the item; `None` if no answer is due.
    fn answered(&mut self, number: u64) -> Option<u64> {
        self.unanswered.remove(&number).map(|item| item.id)
    }

    /// Has everything sent again that was not answered, by a new stream.
    fn start_again(&mut self) {
        self.run += 1;
        let mut numbers: Vec<u64> = self.unanswered.keys().copied().collect();
        numbers.sort_unstable();
        self.again = numbers.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    fn item(id: u64) -> Item {
        Item { id, wrapped: WrappedDek::default(), context: vec![] }
    }

    fn send(outbox: &mut Outbox, run: u32) -> Poll<Option<(u64, u64)>> {
        let sent = outbox.poll_send(run, &mut Context::from_waker(Waker::noop()));
        sent.map(|sent| sent.map(|(number, item)| (number, item.id)))
    }

    #[test]
    fn what_was_not_answered_is_sent_again_and_once() {
        let mut outbox = Outbox::new(stream::iter([7, 7, 9].map(item)).boxed());
        assert_eq!(send(&mut outbox, 0), Poll::Ready(Some((0, 7))));
        assert_eq!(send(&mut outbox, 0), Poll::Ready(Some((1, 7))));
        assert_eq!(outbox.answered(0), Some(7));
        assert_eq!(outbox.answered(0), None, "no second answer is due");
        assert_eq!(outbox.answered(2), None, "it was not sent yet");
        outbox.start_again();
        assert_eq!(send(&mut outbox, 0), Poll::Ready(None), "the old stream sends no more");
        assert_eq!(send(&mut outbox, 1), Poll::Ready(Some((1, 7))));
        assert_eq!(send(&mut outbox, 1), Poll::Ready(Some((2, 9))));
        assert_eq!(send(&mut outbox, 1), Poll::Ready(None));
        assert_eq!((outbox.answered(2), outbox.answered(1)), (Some(9), Some(7)));
        outbox.start_again();
        assert_eq!(send(&mut outbox, 2), Poll::Ready(None), "nothing is left");
    }
}
