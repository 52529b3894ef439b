//! Many DEKs over one call. Answers come in any order; a client must read them while
//! it sends, because the sidecar works on a bounded number of items at once and reads
//! no further.
//!
//! The sidecar ends every connection after some minutes, and at once when the DEKs that
//! went over it are to leave no trace; what is still in work a moment later is cut. A stream
//! then goes on over another connection, or to another sidecar, without its caller noticing:
//! what was not answered is sent again, which the table of operations says does no harm. So
//! it does when its session of sealed delivery ends. It does not go on past its deadline,
//! nor after [`super::ATTEMPTS_MAX`] times in a row that brought no answer.
//!
//! An item of which the sidecar says that asking again can help is asked again, as a call would
//! be, after a pause in which the others go on.
//!
//! Invariant: an item is answered at most once. What is sent again are the items that
//! were not answered, which is what an [`Outbox`] keeps.

mod outbox;

use std::{
    mem,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{
    FutureExt, Stream, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Response, Status, Streaming};

use super::{
    Client, Error, Rewrapped, WrappedDek,
    call::{Tries, left},
    deadline, retry, rewrapped,
    session::Session,
    sidecar::Sidecar,
    transport::{Transport, closed},
};
use crate::{
    op::Op,
    sealed::About,
    secret::Secret,
    wire::{self, key_wrap_client::KeyWrapClient, rewrap_stream_response, unwrap_stream_response},
};
use outbox::{Outbox, Sent, lock};

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
        let kind = Kind {
            op: Op::Unwrap,
            open: |mut client, items, timeout| {
                let items = items.map(|(id, Sent { item, session })| {
                    let Item { wrapped, context, .. } = item;
                    let session = session.map_or_else(Vec::new, |session| session.id().to_vec());
                    wire::UnwrapStreamRequest {
                        id,
                        wrapped: Some(wrapped),
                        context,
                        session,
                        ..Default::default()
                    }
                });
                async move { client.unwrap_stream(request(items, timeout)).await }.boxed()
            },
            number: |answer: &wire::UnwrapStreamResponse| answer.id,
            read: |answer, client, Sent { item, session }| {
                let about = About { subject: &item.wrapped.ciphertext, context: &item.context };
                client.received_item(answer, session.as_deref(), about)
            },
        };
        Exchange::open(self.clone(), kind, items.boxed(), timeout).await
    }

    /// Rewraps `items`, in the background of the sidecar's other work. The stream ends
    /// when all are answered, and fails after `timeout`, 24 hours at most.
    pub async fn rewrap_stream(
        &self,
        items: impl Stream<Item = Item> + Send + 'static,
        timeout: Duration,
    ) -> Result<Answers<Rewrapped>, Error> {
        let kind = Kind {
            op: Op::Rewrap,
            open: |mut client, items, timeout| {
                let items = items.map(|(id, Sent { item, .. })| {
                    let Item { wrapped, context, .. } = item;
                    wire::RewrapStreamRequest { id, wrapped: Some(wrapped), context }
                });
                async move { client.rewrap_stream(request(items, timeout)).await }.boxed()
            },
            number: |answer: &wire::RewrapStreamResponse| answer.id,
            read: |answer, _, _| match answer.outcome {
                Some(rewrap_stream_response::Outcome::Rewrapped(done)) => rewrapped(done),
                Some(rewrap_stream_response::Outcome::Error(error)) => Err(Error::from_item(error)),
                None => Err(Error::answer_invalid("an item without an outcome")),
            },
        };
        Exchange::open(self.clone(), kind, items.boxed(), timeout).await
    }
}

impl Client {
    /// The DEK of an item, out of its answer.
    pub(super) fn received_item(
        &self,
        mut answer: wire::UnwrapStreamResponse,
        session: Option<&Session>,
        about: About<'_>,
    ) -> Result<Secret, Error> {
        match &mut answer.outcome {
            Some(unwrap_stream_response::Outcome::Dek(dek)) => {
                self.received(session, mem::take(dek), None, about)
            }
            Some(unwrap_stream_response::Outcome::Sealed(sealed)) => {
                self.received(session, Vec::new(), Some(sealed), about)
            }
            Some(unwrap_stream_response::Outcome::Error(error)) => {
                Err(Error::from_item(mem::take(error)))
            }
            None => Err(Error::answer_invalid("an item without an outcome")),
        }
    }
}

fn request<T>(items: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(items);
    request.set_timeout(timeout);
    request
}

type Opening<A> = BoxFuture<'static, Result<Response<Streaming<A>>, Status>>;

/// What is particular to one kind of stream.
struct Kind<A, T> {
    op: Op,
    open: fn(KeyWrapClient<Transport>, Sending, Duration) -> Opening<A>,
    /// Which item an answer is for.
    number: fn(&A) -> u64,
    /// What became of the item.
    read: fn(A, &Client, &Sent) -> Result<T, Error>,
}

/// What an answer was.
enum Taken<T> {
    Answer(Answer<T>),
    /// None: the item's session has ended, and with it those of all.
    SessionEnded(Error),
    /// None: the sidecar says that asking again can help, which is done after a pause.
    Resting,
}

/// One stream as its caller sees it, over as many connections as it takes.
struct Exchange<A, T> {
    client: Client,
    kind: Kind<A, T>,
    deadline: Instant,
    outbox: Arc<Mutex<Outbox>>,
    tries: Tries,
    /// To whom it is open, and what comes from there.
    open: Option<(Arc<Sidecar>, Streaming<A>)>,
}

impl<A: Send + 'static, T: Send + 'static> Exchange<A, T> {
    async fn open(
        client: Client,
        kind: Kind<A, T>,
        items: BoxStream<'static, Item>,
        timeout: Duration,
    ) -> Result<Answers<T>, Error> {
        let outbox = Arc::new(Mutex::new(Outbox::new(items)));
        let (deadline, tries) = (deadline(timeout), Tries::default());
        let mut exchange = Self { client, kind, deadline, outbox, tries, open: None };
        // What can be told before the first answer is told here.
        exchange.opened().await?;
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
            let deadline = self.deadline;
            let (sidecar, answers) = self.opened().await?;
            let error = match timeout_at(deadline, answers.message()).await {
                Ok(Ok(Some(answer))) => match self.take(answer)? {
                    Taken::Answer(answer) => return Ok(Some(answer)),
                    Taken::SessionEnded(error) => error,
                    Taken::Resting => continue,
                },
                Ok(Ok(None)) => {
                    let too_early = Error::from_status(&closed(), sidecar.target());
                    if lock(&self.outbox).is_done() {
                        return Ok(None);
                    }
                    too_early
                }
                Ok(Err(status)) => Error::from_status(&status, sidecar.target()),
                Err(_elapsed) => return Err(Error::deadline_exceeded()),
            };
            self.go_on_after(error).await?;
        }
    }

    /// Takes an answer out of the stream.
    fn take(&mut self, answer: A) -> Result<Taken<T>, Error> {
        let number = (self.kind.number)(&answer);
        let asked = lock(&self.outbox).answered(number);
        let mut asked = asked.ok_or_else(|| Error::answer_invalid("an item that was not sent"))?;
        let outcome = (self.kind.read)(answer, &self.client, &asked.sent);
        if let Err(error) = &outcome {
            if error.is_session_not_found()
                && let Some(session) = &asked.sent.session
            {
                if let Some((sidecar, _)) = &self.open {
                    sidecar.forget(session);
                }
                let ended = error.clone();
                lock(&self.outbox).keep(number, asked);
                return Ok(Taken::SessionEnded(ended));
            }
            let (op, patient) = (self.kind.op, self.client.patient);
            let (left, jitter) = (left(self.deadline), retry::jitter());
            let pause = asked.attempts.next(op, error.trouble(), false, patient, left, jitter);
            if let Some(pause) = pause {
                outbox::rest(&self.outbox, number, asked, pause);
                return Ok(Taken::Resting);
            }
        }
        self.tries.answered();
        Ok(Taken::Answer(Answer { id: asked.sent.item.id, outcome }))
    }

    /// The stream; opens it if it is not, if that takes more than one attempt too.
    async fn opened(&mut self) -> Result<&mut (Arc<Sidecar>, Streaming<A>), Error> {
        while self.open.is_none() {
            let sidecar = self.tries.pick(&self.client);
            match timeout_at(self.deadline, self.open_at(&sidecar)).await {
                Ok(Ok(answers)) => {
                    sidecar.did_well();
                    self.open = Some((sidecar, answers));
                }
                Ok(Err(error)) => self.go_on(&sidecar, error).await?,
                Err(_elapsed) => return Err(Error::deadline_exceeded()),
            }
        }
        Ok(self.open.as_mut().expect("it was just opened"))
    }

    async fn open_at(&self, sidecar: &Arc<Sidecar>) -> Result<Streaming<A>, Error> {
        let locker = self.client.locker.clone();
        let session = self.client.session(self.kind.op, sidecar, self.deadline).await?;
        let (run, outbox) = (lock(&self.outbox).run(), Arc::clone(&self.outbox));
        let fresh = session.map(|session| {
            let sidecar = Arc::clone(sidecar);
            Fresh { session, next: Box::new(move || sidecar.session_now(locker.as_ref())) }
        });
        let opening = (self.kind.open)(
            sidecar.stub(),
            Sending { run, outbox, session: fresh },
            left(self.deadline),
        );
        match opening.await {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => Err(Error::from_status(&status, sidecar.target())),
        }
    }

    async fn go_on_after(&mut self, error: Error) -> Result<(), Error> {
        match self.open.take() {
            Some((sidecar, _ended)) => self.go_on(&sidecar, error).await,
            None => Err(error),
        }
    }

    /// Waits until the stream can be opened again. `Err` if `error` says more than that its
    /// connection or session ended, or there were attempts enough.
    async fn go_on(&mut self, sidecar: &Arc<Sidecar>, error: Error) -> Result<(), Error> {
        if matches!(error.trouble(), retry::Trouble::Said(_)) {
            return Err(error);
        }
        self.tries.after(&self.client, self.kind.op, sidecar, error, self.deadline).await?;
        // The old connection takes no new stream; the next one is another.
        lock(&self.outbox).start_again();
        Ok(())
    }
}

/// The session to seal under, which another follows.
struct Fresh {
    session: Arc<Session>,
    next: Box<dyn Fn() -> Option<Arc<Session>> + Send>,
}

impl Fresh {
    /// The one of now, or else the last: then the sidecar says that it has ended.
    fn now(&mut self) -> Arc<Session> {
        if let Some(next) = (self.next)() {
            self.session = next;
        }
        Arc::clone(&self.session)
    }
}

/// What one stream sends, until the outbox starts again: items with the numbers that we
/// give them.
struct Sending {
    run: u32,
    outbox: Arc<Mutex<Outbox>>,
    /// If DEKs are to be sealed.
    session: Option<Fresh>,
}

impl Stream for Sending {
    type Item = (u64, Sent);

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { run, outbox, session } = &mut *self;
        lock(outbox).poll_send(*run, cx, || session.as_mut().map(Fresh::now))
    }
}
