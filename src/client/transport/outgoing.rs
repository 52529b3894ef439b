//! What a call sends: what is there at once, to leave with its head, and what comes later.
//!
//! It knows no connection. Nothing is sent that the other side has no room for, but the first
//! message, which is bounded as every message is.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use h2::SendStream;
use http_body::Body as _;
use tokio::task::AbortHandle;
use tonic::{body::Body, codegen::Bytes};

/// What a call sends.
pub(super) struct Outgoing {
    /// The first message, if it was there at once.
    pub(super) first: Option<Bytes>,
    /// Whether that is all.
    pub(super) whole: bool,
    pub(super) rest: Rest,
}

/// What is left of it.
pub(super) struct Rest {
    body: Body,
    /// What was read of it already.
    next: Option<Result<Bytes, tonic::Status>>,
}

impl Outgoing {
    pub(super) async fn begin(mut body: Body) -> Self {
        let first = now(&mut body).await;
        let (first, mut whole) = match first {
            Poll::Ready(Some(Ok(data))) => (Some(data), false),
            Poll::Ready(None) => (Some(Bytes::new()), true),
            Poll::Ready(Some(Err(error))) => {
                let rest = Rest { body, next: Some(Err(error)) };
                return Self { first: None, whole: false, rest };
            }
            Poll::Pending => (None, false),
        };
        let mut next = None;
        if first.is_some() && !whole {
            match now(&mut body).await {
                Poll::Ready(None) => whole = true,
                Poll::Ready(Some(message)) => next = Some(message),
                Poll::Pending => {}
            }
        }
        Self { first, whole, rest: Rest { body, next } }
    }
}

/// The next message, if it is there at once.
async fn now(body: &mut Body) -> Poll<Option<Result<Bytes, tonic::Status>>> {
    poll_fn(|cx| Poll::Ready(poll_message(body, cx))).await
}

fn poll_message(
    body: &mut Body,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Bytes, tonic::Status>>> {
    loop {
        match ready!(Pin::new(&mut *body).poll_frame(cx)) {
            // A client sends no trailers.
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => return Poll::Ready(Some(Ok(data))),
                Err(_trailers) => {}
            },
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            None => return Poll::Ready(None),
        }
    }
}

/// Sends messages as they come and the other side has room for them.
async fn pump(mut stream: SendStream<Bytes>, mut rest: Rest) {
    loop {
        let message = match rest.next.take() {
            Some(message) => Some(message),
            None => poll_fn(|cx| poll_message(&mut rest.body, cx)).await,
        };
        match message {
            Some(Ok(data)) => {
                if send(&mut stream, data).await.is_none() {
                    return;
                }
            }
            Some(Err(_)) => return stream.send_reset(h2::Reason::CANCEL),
            None => {
                // Whoever ended it already needs no end.
                let _ended = stream.send_data(Bytes::new(), true);
                return;
            }
        }
    }
}

/// `None` if the other side takes no more.
async fn send(stream: &mut SendStream<Bytes>, mut data: Bytes) -> Option<()> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let room = match stream.capacity() {
            0 => poll_fn(|cx| stream.poll_capacity(cx)).await?.ok()?,
            room => room,
        };
        let part = data.split_to(room.min(data.len()));
        stream.send_data(part, false).ok()?;
    }
    Some(())
}

/// Stops sending when nobody waits for the answer any more.
pub(super) struct Pump(AbortHandle);

impl Pump {
    pub(super) fn start(stream: SendStream<Bytes>, rest: Rest) -> Self {
        Self(tokio::spawn(pump(stream, rest)).abort_handle())
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.0.abort();
    }
}
