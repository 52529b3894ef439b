//! One request and its answer over a [`Link`], as HTTP/1.1.
//!
//! hyper keeps a connection's buffers for as long as the connection, with the token and the
//! DEK that went through them. So hyper is set up for each exchange and taken apart after
//! it: its buffers are freed, which wipes them, and what TLS has is scrubbed. Only then is
//! the link given back to be used again.
//!
//! Invariant: an exchange that is dropped half way takes its link with it.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll},
};

use hyper::{
    body::{Body, Bytes, Frame, Incoming, SizeHint},
    client::conn::http1::{Builder, SendRequest},
};
use hyper_util::rt::TokioIo;

use super::{super::fault::Fault, link::Link};

/// Longest answer that is read, in bytes. The longest that is asked for, 25 versions of a
/// key, takes a tenth of it.
pub(super) const ANSWER_MAX: usize = 64 * 1024;

/// Longest head of an answer, in bytes, and most headers in it.
const HEAD_MAX: usize = 32 * 1024;
const HEADERS_MAX: usize = 64;

/// What came of an exchange.
pub(super) struct Exchanged {
    /// The answer, whole.
    pub(super) answer: Result<http::Response<Vec<u8>>, Fault>,
    /// The link, if it may be used again.
    pub(super) link: Option<Link>,
    /// Whether a byte of an answer came.
    pub(super) heard: bool,
}

/// Sends `request` and reads the answer.
pub(super) async fn exchange(link: Link, request: http::Request<Whole>) -> Exchanged {
    let before = link.received;
    let setting_up = Builder::new()
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_MAX)
        .handshake(TokioIo::new(link))
        .await;
    let Ok((mut sender, mut connection)) = setting_up else {
        return Exchanged { answer: Err(Fault::Closed), link: None, heard: false };
    };
    let mut ended = false;
    let answer = {
        let mut talk = pin!(talk(&mut sender, request));
        poll_fn(|cx| {
            ended = ended || connection.poll_without_shutdown(cx).is_ready();
            match talk.as_mut().poll(cx) {
                // What the connection still had for us, it has given by now.
                Poll::Pending if ended => Poll::Ready(Err(Fault::Closed)),
                polled => polled,
            }
        })
        .await
    };
    let idle = answer.is_ok()
        && poll_fn(|cx| {
            ended = ended || connection.poll_without_shutdown(cx).is_ready();
            match sender.poll_ready(cx) {
                _ if ended => Poll::Ready(false),
                polled => polled.map(|ready| ready.is_ok()),
            }
        })
        .await;
    drop(sender);
    let parts = connection.into_parts();
    let mut link = parts.io.into_inner();
    let heard = link.received > before;
    let reusable = idle && parts.read_buf.is_empty() && link.scrub();
    Exchanged { answer, link: reusable.then_some(link), heard }
}

async fn talk(
    sender: &mut SendRequest<Whole>,
    request: http::Request<Whole>,
) -> Result<http::Response<Vec<u8>>, Fault> {
    let answer = sender.send_request(request).await.map_err(|error| fault(&error))?;
    let (head, body) = answer.into_parts();
    Ok(http::Response::from_parts(head, collect(body).await?))
}

async fn collect(body: Incoming) -> Result<Vec<u8>, Fault> {
    let mut body = pin!(body);
    let promised = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if promised > ANSWER_MAX {
        return Err(Fault::TooLong);
    }
    let mut collected = Vec::with_capacity(promised);
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        // Trailers say nothing that we would want to know.
        let Ok(bytes) = frame.map_err(|error| fault(&error))?.into_data() else { continue };
        if collected.len() + bytes.len() > ANSWER_MAX {
            return Err(Fault::TooLong);
        }
        collected.extend_from_slice(&bytes);
    }
    Ok(collected)
}

fn fault(error: &hyper::Error) -> Fault {
    match error.is_parse() || error.is_parse_too_large() {
        true => Fault::NotHttp,
        false => Fault::Closed,
    }
}

/// A body that is there as a whole.
pub(super) struct Whole(Option<Bytes>);

impl Whole {
    pub(super) fn new(bytes: Bytes) -> Self {
        Self(Some(bytes).filter(|bytes| !bytes.is_empty()))
    }
}

impl Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, Bytes::len) as u64)
    }
}
