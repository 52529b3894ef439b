//! One HTTP/2 connection, from its first bytes to its end.
//!
//! Invariants: a peer that does not speak HTTP/2 within [`HELLO_WITHIN`] is cut off;
//! one that stops answering pings too. What a peer can make us hold is bounded by the
//! windows and buffers below.

use std::{
    convert::Infallible,
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};
use tracing::debug;

use super::{ends::Ends, services::Services};
use crate::{api::Peer, observe::Closed};

/// How long a new connection may take to send its preface and first frame.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// The preface of HTTP/2 and the head of the SETTINGS frame that follows it.
const HELLO_BYTES: usize = 24 + 9;

/// Calls of one connection at once. A client queues the rest by itself.
const STREAMS_MAX: u32 = 256;
/// What one call may send before it is read: two of the longest messages.
const STREAM_WINDOW_BYTES: u32 = 128 * 1024;
/// What all calls of a connection may send before it is read.
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// What waits to be sent for one call.
const SEND_BUFFER_BYTES: usize = 128 * 1024;
/// All headers of one request.
const HEADERS_MAX_BYTES: u32 = 16 * 1024;
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_ANSWERED_WITHIN: Duration = Duration::from_secs(10);

/// Serves one connection until the peer ends it, breaks it, or it has to end. Returns why
/// the sidecar told the peer to leave, if it did.
pub(super) async fn serve<I>(
    io: I,
    peer: Peer,
    services: Arc<Services>,
    mut ends: Ends,
) -> Option<Closed>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let answer = service_fn(move |request| {
        let (peer, services) = (peer.clone(), Arc::clone(&services));
        async move { Ok::<_, Infallible>(services.answer(peer, request).await) }
    });
    let hello = Hello::new(io);
    let said = Arc::clone(&hello.said);
    let mut connection = pin!(http2().serve_connection(TokioIo::new(hello), answer));
    let (result, told_to_leave) = tokio::select! {
        result = connection.as_mut() => (result, None),
        cause = ends.due() => {
            // Who has not said hello cannot be told goodbye, and has nothing in work.
            if !said.load(Ordering::Relaxed) {
                return None;
            }
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                result = connection => (result, Some(cause)),
                () = ends.cut(cause) => return Some(cause),
            }
        }
    };
    if let Err(error) = result {
        debug!("a connection broke: {error}");
    }
    told_to_leave
}

fn http2() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_ANSWERED_WITHIN)
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_header_list_size(HEADERS_MAX_BYTES)
        .auto_date_header(false);
    builder
}

/// Fails reading if the peer's hello is not there in time. After that it is a
/// connection like any other, which pings keep watch over.
struct Hello<I> {
    io: I,
    awaited: Option<Awaited>,
    /// Set, by this end alone, once the hello is there.
    said: Arc<AtomicBool>,
}

struct Awaited {
    bytes: usize,
    until: Pin<Box<Sleep>>,
}

impl<I> Hello<I> {
    fn new(io: I) -> Self {
        let until = Box::pin(sleep(HELLO_WITHIN));
        let awaited = Some(Awaited { bytes: HELLO_BYTES, until });
        Self { io, awaited, said: Arc::default() }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Hello<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { io, awaited, said } = &mut *self;
        let before = buffer.filled().len();
        let read = Pin::new(io).poll_read(cx, buffer);
        if let Some(hello) = awaited {
            hello.bytes = hello.bytes.saturating_sub(buffer.filled().len() - before);
            if hello.bytes == 0 {
                *awaited = None;
                said.store(true, Ordering::Relaxed);
            } else if read.is_pending() {
                ready!(hello.until.as_mut().poll(cx));
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        read
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Hello<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, duplex},
        time::Instant,
    };

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_says_nothing_is_cut_off() {
        let (near, _far) = duplex(64);
        let before = Instant::now();
        let error = Hello::new(near).read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(before.elapsed(), HELLO_WITHIN);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_trickles_is_cut_off() {
        let (near, mut far) = duplex(64);
        let before = Instant::now();
        tokio::spawn(async move {
            loop {
                sleep(Duration::from_secs(1)).await;
                if far.write_all(b"P").await.is_err() {
                    return;
                }
            }
        });
        let error = Hello::new(near).read_exact(&mut [0; HELLO_BYTES]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(before.elapsed() <= HELLO_WITHIN + Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_said_hello_may_be_silent() {
        let (near, mut far) = duplex(64);
        far.write_all(&[0; HELLO_BYTES]).await.unwrap();
        let mut near = Hello::new(near);
        near.read_exact(&mut [0; HELLO_BYTES]).await.unwrap();
        tokio::spawn(async move {
            sleep(HELLO_WITHIN * 6).await;
            far.write_all(b"x").await.unwrap();
        });
        assert_eq!(near.read_u8().await.unwrap(), b'x');
    }
}
