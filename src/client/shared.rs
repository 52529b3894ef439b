//! Streams that callers share without knowing: each waits for one unwrap, and all go over
//! UnwrapStream, which takes half the time of a call of its own and a fraction of the work.
//!
//! A caller who leaves has its item cancelled, as his call would be.
//!
//! It knows neither retries nor sessions: a caller whose stream ends is told so, and its call
//! goes on as any other. Where no place is free the caller makes a call of its own, so nobody
//! waits behind somebody else's unwrap at the HSM.
//!
//! Invariants: fewer items are outstanding on one stream than the sidecar works on at once, so
//! that it reads what comes next; an answer goes to who asked, or to nobody; an id is used once
//! in a stream.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use futures_util::FutureExt;
use h2::{RecvStream, SendStream, client::ResponseFuture};
use prost::Message as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::timeout,
};
use tonic::{Code, Status, codegen::Bytes};

use super::{
    Error,
    transport::{Failure, Transport, closed},
};
use crate::{
    op::{MESSAGE_MAX_BYTES, UNWRAP_STREAM_WINDOW},
    wire::{UnwrapStreamRequest, UnwrapStreamResponse},
};

/// Streams to one sidecar.
const LANES: usize = 4;
/// Items on one of them. The sidecar reads on with one less than its window in work, so that
/// it reads that one of them is cancelled.
const PLACES: usize = UNWRAP_STREAM_WINDOW - 1;
/// How long a stream stays open that nobody uses.
const IDLE: Duration = Duration::from_secs(30);
/// What stands before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

const PATH: &str = "/keyward.v1.KeyWrap/UnwrapStream";

type Answer = Result<UnwrapStreamResponse, Error>;

/// The shared streams to one sidecar.
#[derive(Default)]
pub(super) struct Shared {
    lanes: [Lane; LANES],
}

#[derive(Default)]
struct Lane {
    live: Mutex<Option<Arc<Live>>>,
    /// Held while the stream is opened, so that one does it for all.
    opening: tokio::sync::Mutex<()>,
}

impl Shared {
    /// Has one item unwrapped; its id is ours to give. `None` if no place is free. `target` is
    /// the sidecar, for messages.
    pub(super) async fn ask(
        &self,
        transport: &Transport,
        target: &str,
        item: UnwrapStreamRequest,
    ) -> Option<Answer> {
        let (live, place) = match self.place(transport).await {
            Ok(Some(free)) => free,
            Ok(None) => return None,
            Err(failure) => return Some(Err(Error::from_status(&failure.into(), target))),
        };
        let asked = Live::ask(&live, item, place);
        let answer = match asked {
            Ok(asked) => asked.answer().await,
            Err(status) => Err(status),
        };
        Some(answer.map_err(|status| Error::from_status(&status, target)))
    }

    /// A stream with a free place.
    async fn place(
        &self,
        transport: &Transport,
    ) -> Result<Option<(Arc<Live>, OwnedSemaphorePermit)>, Failure> {
        for lane in &self.lanes {
            let live = match lane.open() {
                Some(live) => live,
                // Apart, since it is seldom and large: every call would carry the room for it.
                None => lane.stream(transport).boxed().await?,
            };
            if let Ok(place) = Arc::clone(&live.places).try_acquire_owned() {
                return Ok(Some((live, place)));
            }
        }
        Ok(None)
    }
}

impl Lane {
    /// Its stream, for those who found none; opens one if there is none still.
    async fn stream(&self, transport: &Transport) -> Result<Arc<Live>, Failure> {
        let _one_at_a_time = self.opening.lock().await;
        if let Some(live) = self.open() {
            return Ok(live);
        }
        let (send, answers) = transport.open_stream(PATH).await?;
        let (used, unused) = oneshot::channel();
        let live = Arc::new(Live {
            send: Mutex::new(send),
            waiting: Mutex::default(),
            places: Arc::new(Semaphore::new(PLACES)),
            _used: used,
        });
        *self.live.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&live));
        tokio::spawn(read(Arc::downgrade(&live), answers, unused));
        Ok(live)
    }

    fn open(&self) -> Option<Arc<Live>> {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let ended = live.waiting().ended.is_some();
        (!ended).then_some(live)
    }
}

/// A stream that is open.
struct Live {
    send: Mutex<SendStream<Bytes>>,
    waiting: Mutex<Waiting>,
    places: Arc<Semaphore>,
    /// Dropped with it, when the last client is gone.
    _used: oneshot::Sender<()>,
}

/// Who waits for what.
#[derive(Default)]
struct Waiting {
    next: u64,
    callers: HashMap<u64, Caller>,
    /// Why nobody can wait any more.
    ended: Option<Status>,
}

struct Caller {
    tell: oneshot::Sender<Result<UnwrapStreamResponse, Status>>,
    /// Taken until the item is answered or cancelled.
    _place: OwnedSemaphorePermit,
}

/// An item that somebody waits for.
struct Asked {
    live: Arc<Live>,
    id: u64,
    told: oneshot::Receiver<Result<UnwrapStreamResponse, Status>>,
}

impl Asked {
    async fn answer(mut self) -> Result<UnwrapStreamResponse, Status> {
        (&mut self.told).await.unwrap_or_else(|_the_reader_is_gone| Err(closed()))
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.live.cancel(self.id);
    }
}

impl Live {
    /// Sends an item.
    fn ask(
        live: &Arc<Self>,
        mut item: UnwrapStreamRequest,
        place: OwnedSemaphorePermit,
    ) -> Result<Asked, Status> {
        let (tell, told) = oneshot::channel();
        {
            let mut waiting = live.waiting();
            if let Some(status) = &waiting.ended {
                return Err(status.clone());
            }
            item.id = waiting.next;
            waiting.next += 1;
            waiting.callers.insert(item.id, Caller { tell, _place: place });
        }
        if let Err(error) = live.send(&item) {
            live.waiting().callers.remove(&item.id);
            return Err(Failure::Unread(error).into());
        }
        Ok(Asked { live: Arc::clone(live), id: item.id, told })
    }

    /// Nobody waits for an item any more. Does nothing if it was answered.
    fn cancel(&self, id: u64) {
        let left = self.waiting().callers.remove(&id);
        if let Some(caller) = left {
            // If that does not get through, nothing does, and the item ends with the stream.
            let _ended = self.send(&UnwrapStreamRequest { id, cancel: true, ..Default::default() });
            drop(caller);
        }
    }

    fn send(&self, item: &UnwrapStreamRequest) -> Result<(), h2::Error> {
        let mut send = self.send.lock().unwrap_or_else(PoisonError::into_inner);
        send.send_data(framed(item), false)
    }

    /// Gives an answer to who asked. `Err` if nobody did.
    fn answer(&self, answer: UnwrapStreamResponse) -> Result<(), Status> {
        let caller = {
            let mut waiting = self.waiting();
            if answer.id >= waiting.next {
                return Err(invalid("an item that was not sent"));
            }
            waiting.callers.remove(&answer.id)
        };
        // Who has left needs no answer, and may have left while it was on its way.
        if let Some(caller) = caller {
            drop(caller.tell.send(Ok(answer)));
        }
        Ok(())
    }

    /// Ends it if nobody waits.
    fn end_if_idle(&self) -> bool {
        let mut waiting = self.waiting();
        if waiting.callers.is_empty() {
            waiting.ended = Some(closed());
        }
        waiting.ended.is_some()
    }

    /// Ends it, and tells everybody who waits.
    fn end(&self, status: Status) {
        let callers = {
            let mut waiting = self.waiting();
            waiting.ended = Some(status.clone());
            std::mem::take(&mut waiting.callers)
        };
        for caller in callers.into_values() {
            drop(caller.tell.send(Err(status.clone())));
        }
        let mut send = self.send.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever ended it already needs no end.
        let _ended = send.send_data(Bytes::new(), true);
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads answers until the stream has ended.
async fn read(live: Weak<Live>, answers: ResponseFuture, unused: oneshot::Receiver<()>) {
    let ended = tokio::select! {
        ended = read_all(&live, answers) => match ended {
            Ok(status) | Err(status) => status,
        },
        // With the last client ends the stream, and its connection.
        _gone = unused => return,
    };
    if let Some(live) = live.upgrade() {
        live.end(ended);
    }
}

async fn read_all(weak: &Weak<Live>, answers: ResponseFuture) -> Result<Status, Status> {
    let (head, mut body) = answers.await.map_err(Failure::of)?.into_parts();
    if head.status != 200 {
        return Err(invalid("no gRPC"));
    }
    if let Some(status) = Status::from_header_map(&head.headers) {
        return Err(status);
    }
    let mut messages = Messages::default();
    loop {
        let Ok(data) = timeout(IDLE, body.data()).await else {
            match weak.upgrade() {
                Some(live) if !live.end_if_idle() => continue,
                _ => return Ok(closed()),
            }
        };
        let Some(data) = data else { break };
        let data = data.map_err(Failure::of)?;
        let released = body.flow_control().release_capacity(data.len());
        released.map_err(Failure::of)?;
        let live = weak.upgrade().ok_or_else(closed)?;
        messages.push(&data);
        while let Some(answer) = messages.next()? {
            live.answer(answer)?;
        }
    }
    Err(last_words(&mut body).await)
}

/// The status at the end of a stream.
async fn last_words(body: &mut RecvStream) -> Status {
    match body.trailers().await {
        Ok(Some(trailers)) => match Status::from_header_map(&trailers) {
            // We did not end it; it is as if the connection had.
            Some(status) if status.code() == Code::Ok => closed(),
            Some(status) => status,
            None => invalid("a stream without an end"),
        },
        Ok(None) => closed(),
        Err(error) => Failure::of(error).into(),
    }
}

fn invalid(what: &'static str) -> Status {
    Status::internal(format!("the sidecar answered with {what}"))
}

/// A message as gRPC frames it.
fn framed(item: &UnwrapStreamRequest) -> Bytes {
    let len = item.encoded_len();
    let mut framed = Vec::with_capacity(PREFIX + len);
    framed.push(0);
    // The caller has seen to it that it is no longer than a message may be.
    framed.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
    item.encode_raw(&mut framed);
    framed.into()
}

/// Takes messages out of the bytes of a stream.
#[derive(Default)]
struct Messages {
    bytes: Vec<u8>,
    read: usize,
}

impl Messages {
    fn push(&mut self, data: &[u8]) {
        // What was read may have been a DEK.
        zeroize::Zeroize::zeroize(&mut self.bytes[..self.read]);
        self.bytes.drain(..self.read);
        self.read = 0;
        self.bytes.extend_from_slice(data);
    }

    /// The next whole message.
    fn next(&mut self) -> Result<Option<UnwrapStreamResponse>, Status> {
        let rest = &self.bytes[self.read..];
        let Some((prefix, rest)) = rest.split_at_checked(PREFIX) else { return Ok(None) };
        let len = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        if prefix[0] != 0 || len > MESSAGE_MAX_BYTES {
            return Err(invalid("a message that is compressed or too large"));
        }
        let Some(message) = rest.get(..len) else { return Ok(None) };
        let answer = UnwrapStreamResponse::decode(message);
        self.read += PREFIX + len;
        answer.map(Some).map_err(|_| invalid("what is no message of this method"))
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn response(id: u64) -> UnwrapStreamResponse {
        let mut response = UnwrapStreamResponse::default();
        response.id = id;
        response
    }

    fn frame(id: u64) -> Vec<u8> {
        let message = response(id).encode_to_vec();
        [&[0, 0, 0, 0, message.len() as u8][..], &message].concat()
    }

    #[test]
    fn what_is_no_frame_of_ours_ends_the_stream() {
        let next = |bytes: &[u8]| {
            let mut messages = Messages::default();
            messages.push(bytes);
            messages.next().map(|message| message.map(|message| message.id))
        };
        assert_eq!(next(&frame(7)).unwrap(), Some(7));
        assert_eq!(next(&[]).unwrap(), None);
        assert_eq!(next(&[0, 0, 0, 0]).unwrap(), None);
        assert!(next(&[1, 0, 0, 0, 0]).is_err(), "compressed");
        assert!(next(&[0, 0, 1, 0, 1]).is_err(), "too large");
        assert!(next(&[0, 0xff, 0xff, 0xff, 0xff]).is_err());
        assert!(next(&[0, 0, 0, 0, 1, 0xff]).is_err(), "no message");
    }

    proptest! {
        #[test]
        fn messages_come_whole_however_they_are_cut(
            ids in prop::collection::vec(any::<u64>(), 0..20),
            cuts in prop::collection::vec(1..40_usize, 1..100),
        ) {
            let bytes: Vec<u8> = ids.iter().flat_map(|id| frame(*id)).collect();
            let (mut messages, mut seen, mut rest) = (Messages::default(), Vec::new(), &bytes[..]);
            for cut in cuts.iter().cycle() {
                let (data, more) = rest.split_at((*cut).min(rest.len()));
                rest = more;
                messages.push(data);
                while let Some(message) = messages.next().unwrap() {
                    seen.push(message.id);
                }
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(seen, ids);
        }

        #[test]
        fn garbage_is_an_error_or_a_message_and_never_a_panic(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..10),
        ) {
            let mut messages = Messages::default();
            for part in parts {
                messages.push(&part);
                while let Ok(Some(_)) = messages.next() {}
            }
        }
    }
}
