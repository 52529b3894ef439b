//! The items of one stream: those to be sent, those that were and are not answered, and those
//! that are sent again after a pause.
//!
//! It knows no connection. Invariant: of each number there is one answer to come at most.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::{
    StreamExt,
    stream::{BoxStream, Fuse},
};
use tokio::time::sleep;

use super::Item;
use crate::client::{retry::Attempts, session::Session};

/// An item that was sent, and the session that its DEK is to be sealed under.
#[derive(Clone)]
pub(super) struct Sent {
    pub(super) item: Item,
    pub(super) session: Option<Arc<Session>>,
}

/// One that is not answered.
pub(super) struct Unanswered {
    pub(super) sent: Sent,
    pub(super) attempts: Attempts,
}

/// Of what is not answered there is no more than the sidecar works on, the buffers in between
/// hold, and rests.
pub(super) struct Outbox {
    items: Fuse<BoxStream<'static, Item>>,
    /// By the numbers that we gave them: callers' need not be distinct.
    unanswered: HashMap<u64, Unanswered>,
    again: VecDeque<u64>,
    /// Which pause of an item it is that has not ended.
    resting: HashMap<u64, u64>,
    pauses: u64,
    next: u64,
    /// Which of the streams that were opened may send.
    run: u32,
    /// To be told when there is something to send again.
    sender: Option<Waker>,
}

impl Outbox {
    pub(super) fn new(items: BoxStream<'static, Item>) -> Self {
        Self {
            items: items.fuse(),
            unanswered: HashMap::new(),
            again: VecDeque::new(),
            resting: HashMap::new(),
            pauses: 0,
            next: 0,
            run: 0,
            sender: None,
        }
    }

    pub(super) fn run(&self) -> u32 {
        self.run
    }

    /// What a stream of `run` sends next, under the `session` of now.
    pub(super) fn poll_send(
        &mut self,
        run: u32,
        cx: &mut Context<'_>,
        session: impl FnOnce() -> Option<Arc<Session>>,
    ) -> Poll<Option<(u64, Sent)>> {
        if run != self.run {
            return Poll::Ready(None);
        }
        while let Some(number) = self.again.pop_front() {
            if let Some(Unanswered { sent, .. }) = self.unanswered.get_mut(&number) {
                sent.session = session();
                return Poll::Ready(Some((number, sent.clone())));
            }
        }
        let item = match self.items.poll_next_unpin(cx) {
            Poll::Ready(Some(item)) => item,
            Poll::Ready(None) if self.resting.is_empty() => return Poll::Ready(None),
            Poll::Ready(None) | Poll::Pending => {
                self.sender = Some(cx.waker().clone());
                return Poll::Pending;
            }
        };
        let number = self.next;
        self.next += 1;
        let sent = Sent { item, session: session() };
        let attempts = Attempts::default();
        self.unanswered.insert(number, Unanswered { sent: sent.clone(), attempts });
        Poll::Ready(Some((number, sent)))
    }

    /// Whether everything was sent and is answered.
    pub(super) fn is_done(&self) -> bool {
        self.unanswered.is_empty() && self.items.is_done()
    }

    /// An answer came. What it is for; `None` if no answer is due.
    pub(super) fn answered(&mut self, number: u64) -> Option<Unanswered> {
        // Nobody was asked for what rests.
        if self.resting.contains_key(&number) {
            return None;
        }
        self.unanswered.remove(&number)
    }

    /// The answer was none: the item is sent again by the next stream.
    pub(super) fn keep(&mut self, number: u64, item: Unanswered) {
        self.unanswered.insert(number, item);
    }

    /// Has everything sent again that was not answered, by a new stream.
    pub(super) fn start_again(&mut self) {
        self.run += 1;
        self.resting.clear();
        let mut numbers: Vec<u64> = self.unanswered.keys().copied().collect();
        numbers.sort_unstable();
        self.again = numbers.into();
    }

    /// The item's pause has ended, if it is still that one.
    fn wake(&mut self, number: u64, pause: u64) {
        if self.resting.get(&number) == Some(&pause) {
            self.resting.remove(&number);
            self.again.push_back(number);
            self.sender.take().into_iter().for_each(Waker::wake);
        }
    }
}

/// The answer was none: the item is sent again after a pause, by whichever stream there is then.
pub(super) fn rest(outbox: &Arc<Mutex<Outbox>>, number: u64, item: Unanswered, pause: Duration) {
    let this_pause = {
        let mut outbox = lock(outbox);
        outbox.pauses += 1;
        let this_pause = outbox.pauses;
        outbox.keep(number, item);
        outbox.resting.insert(number, this_pause);
        this_pause
    };
    let outbox = Arc::downgrade(outbox);
    tokio::spawn(async move {
        sleep(pause).await;
        if let Some(outbox) = outbox.upgrade() {
            lock(&outbox).wake(number, this_pause);
        }
    });
}

pub(super) fn lock(outbox: &Mutex<Outbox>) -> MutexGuard<'_, Outbox> {
    outbox.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::WrappedDek;
    use futures_util::stream;

    fn item(id: u64) -> Item {
        Item { id, wrapped: WrappedDek::default(), context: vec![] }
    }

    fn send(outbox: &mut Outbox, run: u32) -> Poll<Option<(u64, u64)>> {
        let sent = outbox.poll_send(run, &mut Context::from_waker(Waker::noop()), || None);
        sent.map(|sent| sent.map(|(number, sent)| (number, sent.item.id)))
    }

    fn answered(outbox: &mut Outbox, number: u64) -> Option<u64> {
        outbox.answered(number).map(|unanswered| unanswered.sent.item.id)
    }

    #[test]
    fn what_was_not_answered_is_sent_again_and_once() {
        let mut outbox = Outbox::new(stream::iter([7, 7, 9].map(item)).boxed());
        assert_eq!(send(&mut outbox, 0), Poll::Ready(Some((0, 7))));
        assert_eq!(send(&mut outbox, 0), Poll::Ready(Some((1, 7))));
        assert_eq!(answered(&mut outbox, 0), Some(7));
        assert_eq!(answered(&mut outbox, 0), None, "no second answer is due");
        assert_eq!(answered(&mut outbox, 2), None, "it was not sent yet");
        outbox.start_again();
        assert_eq!(send(&mut outbox, 0), Poll::Ready(None), "the old stream sends no more");
        assert_eq!(send(&mut outbox, 1), Poll::Ready(Some((1, 7))));
        assert_eq!(send(&mut outbox, 1), Poll::Ready(Some((2, 9))));
        assert_eq!(send(&mut outbox, 1), Poll::Ready(None));
        assert_eq!((answered(&mut outbox, 2), answered(&mut outbox, 1)), (Some(9), Some(7)));
        outbox.start_again();
        assert_eq!(send(&mut outbox, 2), Poll::Ready(None), "nothing is left");
        assert!(outbox.is_done());
    }

    #[tokio::test(start_paused = true)]
    async fn what_rests_is_sent_again_by_the_same_stream_which_does_not_end_before() {
        let pause = Duration::from_millis(100);
        let outbox = Arc::new(Mutex::new(Outbox::new(stream::iter([item(5)]).boxed())));
        assert_eq!(send(&mut lock(&outbox), 0), Poll::Ready(Some((0, 5))));
        let unanswered = lock(&outbox).answered(0).unwrap();
        rest(&outbox, 0, unanswered, pause);
        assert_eq!(answered(&mut lock(&outbox), 0), None, "nobody was asked");
        assert_eq!(send(&mut lock(&outbox), 0), Poll::Pending);
        sleep(2 * pause).await;
        assert_eq!(send(&mut lock(&outbox), 0), Poll::Ready(Some((0, 5))));
        assert_eq!(answered(&mut lock(&outbox), 0), Some(5));
        assert_eq!(send(&mut lock(&outbox), 0), Poll::Ready(None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_stream_sends_what_rests_once() {
        let pause = Duration::from_millis(100);
        let outbox = Arc::new(Mutex::new(Outbox::new(stream::iter([item(5)]).boxed())));
        assert_eq!(send(&mut lock(&outbox), 0), Poll::Ready(Some((0, 5))));
        let unanswered = lock(&outbox).answered(0).unwrap();
        rest(&outbox, 0, unanswered, pause);
        lock(&outbox).start_again();
        assert_eq!(send(&mut lock(&outbox), 1), Poll::Ready(Some((0, 5))));
        sleep(2 * pause).await;
        assert_eq!(send(&mut lock(&outbox), 1), Poll::Ready(None), "its pause means nothing now");
    }
}
