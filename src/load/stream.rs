//! UnwrapStream: many items of one call at once.
//!
//! One task for each stream both sends and receives, so that an item that was answered is
//! replaced at once. A stream that breaks costs the items that were in work, and is opened
//! again.

use std::{future, io, sync::Arc, time::Duration};

use futures_util::StreamExt;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    plan::{Plan, Ticket, Tickets},
    record::{Outcome, Recorder},
    run::{Gauge, clock_for, not_sent, put_together},
    target::{Deks, Sidecar, Trouble},
    timer::{Clock, Timer},
};
use crate::{
    client::{Answer, Answers, Error, Item},
    secret::Secret,
};

/// How long after the end of a run its answers are waited for.
const LAST_ANSWERS: Duration = Duration::from_secs(15);
/// The pause before a stream that broke is opened again.
const REOPEN: Duration = Duration::from_millis(50);
/// Streams in a row that break before their first answer, until there is no point in going
/// on.
const BREAKS_MAX: usize = 100;

/// The reason of items whose stream ended in order without their answer.
const UNANSWERED: &str = "UNANSWERED";

/// Runs `plan` with `streams` streams of `outstanding` items each.
pub(super) async fn run_streams(
    sidecar: &Sidecar,
    deks: &Arc<Deks>,
    plan: &Plan,
    streams: usize,
    outstanding: usize,
    gauge: &Arc<Gauge>,
) -> Result<Outcome, Trouble> {
    let tickets = Arc::new(Tickets::new(plan, deks.len(), Instant::now()));
    let clock = clock_for(plan)?;
    let mut running = JoinSet::new();
    for _ in 0..streams.max(1) {
        let lane = Lane {
            sidecar: sidecar.clone(),
            deks: Arc::clone(deks),
            tickets: Arc::clone(&tickets),
            gauge: Arc::clone(gauge),
            recorder: Recorder::new(tickets.window),
            timer: clock.as_ref().map(Clock::timer),
            waiting: None,
            slots: vec![None; outstanding.max(1)],
            free: (0..outstanding.max(1)).collect(),
            breaks: 0,
        };
        running.spawn(lane.run());
    }
    put_together(running, &tickets).await
}

/// Waits until `due`; for ever if there is none.
async fn wait(timer: &mut Option<Timer>, due: Option<Instant>) -> io::Result<Instant> {
    match (timer, due) {
        (Some(timer), Some(due)) => timer.until(due).await.map(|()| due),
        _ => future::pending().await,
    }
}

/// An item in work: when it was meant to be sent, and which DEK it asks for.
#[derive(Clone, Copy)]
struct InWork {
    intended: Instant,
    dek: usize,
}

/// One stream after another, until the run ends.
struct Lane {
    sidecar: Sidecar,
    deks: Arc<Deks>,
    tickets: Arc<Tickets>,
    gauge: Arc<Gauge>,
    recorder: Recorder,
    /// In the open loop.
    timer: Option<Timer>,
    /// Taken, but not due yet.
    waiting: Option<Ticket>,
    /// What is in work, by the id of its item.
    slots: Vec<Option<InWork>>,
    /// Ids that are not in work.
    free: Vec<usize>,
    /// Streams that broke since the last answer.
    breaks: usize,
}

impl Lane {
    async fn run(mut self) -> io::Result<Recorder> {
        loop {
            let Some(broke) = self.one_stream().await? else { return Ok(self.recorder) };
            self.give_up(&broke);
            self.breaks += 1;
            if self.breaks >= BREAKS_MAX {
                return Err(io::Error::other(format!("no stream can be kept open: {broke}")));
            }
            sleep(REOPEN).await;
        }
    }

    /// One stream, to its end. `None` if that is the end of the run; a reason if it broke.
    async fn one_stream(&mut self) -> io::Result<Option<String>> {
        self.waiting = self.waiting.take().or_else(|| self.tickets.take(Instant::now()));
        let Some(first) = self.waiting else { return Ok(None) };
        let end = self.tickets.window.end.max(first.due.unwrap_or(self.tickets.window.end));
        let left = end.saturating_duration_since(Instant::now()) + LAST_ANSWERS;
        let (send, items) = mpsc::channel(self.slots.len());
        let items = ReceiverStream::new(items);
        let mut answers = match self.sidecar.client.unwrap_stream(items, left).await {
            Ok(answers) => answers,
            // The ticket was taken, and its operation came to nothing.
            Err(error) => {
                let failed = self.waiting.take().and_then(|ticket| ticket.due);
                let intended = failed.unwrap_or_else(Instant::now);
                self.recorder.failed(intended, error.reason(), 1);
                self.gauge.failed();
                return Ok(Some(error.reason().to_owned()));
            }
        };
        loop {
            self.fill(&send);
            if self.waiting.is_none() && self.free.len() == self.slots.len() {
                return Ok(None);
            }
            // What is taken and not sent is not due yet, or has no room.
            let due = self.waiting.and_then(|ticket| ticket.due);
            let due = due.filter(|_| !self.free.is_empty());
            tokio::select! {
                answer = answers.next() => if let Some(broke) = self.take(answer) {
                    return Ok(Some(broke));
                },
                waited = wait(&mut self.timer, due) => {
                    let due = waited?;
                    self.recorder.lagged(due, Instant::now());
                }
            }
            self.take_those_that_are_there(&mut answers);
        }
    }

    /// Sends what is due, as long as there is room.
    fn fill(&mut self, send: &mpsc::Sender<Item>) {
        while let Some(slot) = self.free.last().copied() {
            let now = Instant::now();
            self.waiting = self.waiting.take().or_else(|| self.tickets.take(now));
            let Some(Ticket { dek, due }) = self.waiting else { return };
            let intended = due.unwrap_or(now);
            if now < intended {
                return;
            }
            self.waiting = None;
            if due.is_some() && self.tickets.too_late(now) {
                not_sent(&mut self.recorder, self.tickets.window, 1 + self.tickets.abandon());
                return;
            }
            let wrapped = self.deks.get(dek).wrapped.clone();
            let item = Item { id: slot as u64, wrapped, context: Vec::new() };
            self.free.pop();
            self.slots[slot] = Some(InWork { intended, dek });
            // There is room: no more items are in work than the queue holds. If the
            // stream has ended, its answers say so.
            let _ended = send.try_send(item);
        }
    }

    /// Takes answers that have come already, so that as many items replace them at once.
    fn take_those_that_are_there(&mut self, answers: &mut Answers<Secret>) {
        use futures_util::FutureExt;
        while self.free.len() < self.slots.len() {
            match answers.next().now_or_never() {
                Some(Some(Ok(answer))) => self.answered(answer),
                // The end comes again with the next look.
                _ => return,
            }
        }
    }

    /// Takes an answer; a reason if there will be no more.
    fn take(&mut self, answer: Option<Result<Answer<Secret>, Error>>) -> Option<String> {
        match answer {
            Some(Ok(answer)) => {
                self.answered(answer);
                None
            }
            Some(Err(error)) => Some(error.reason().to_owned()),
            None => Some(UNANSWERED.to_owned()),
        }
    }

    fn answered(&mut self, Answer { id, outcome }: Answer<Secret>) {
        let done = Instant::now();
        let slot = usize::try_from(id).unwrap_or(usize::MAX);
        let Some(InWork { intended, dek }) = self.slots.get_mut(slot).and_then(Option::take) else {
            // Nobody asked for it.
            self.recorder.failed(done, Error::ANSWER_INVALID, 1);
            return;
        };
        self.free.push(slot);
        self.breaks = 0;
        let outcome = match outcome {
            Ok(answer) => self.sidecar.check(self.deks.get(dek), &answer),
            Err(error) => Err(error.reason().to_owned()),
        };
        match outcome {
            Ok(()) => {
                self.recorder.answered(intended, done);
                self.gauge.succeeded();
            }
            Err(reason) => {
                self.recorder.failed(intended, &reason, 1);
                self.gauge.failed();
            }
        }
    }

    /// What was in work when the stream broke came to nothing.
    fn give_up(&mut self, reason: &str) {
        for (slot, in_work) in self.slots.iter_mut().enumerate() {
            if let Some(InWork { intended, .. }) = in_work.take() {
                self.recorder.failed(intended, reason, 1);
                self.gauge.failed();
                self.free.push(slot);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            echo::EchoHere,
            plan::{Order, Pace, Shape},
            run::run_sidecar,
        },
        *,
    };
    use crate::client::{Client, Delivery, Endpoint};

    async fn outcome(echo: &EchoHere, order: Order, pace: Pace, deks: usize) -> Outcome {
        let client = Client::new(&Endpoint::unix(echo.path())).unwrap();
        let client = client.with_delivery(Delivery::Plain).failing_fast();
        let plan = Plan {
            order,
            pace,
            shape: Shape::Stream { streams: 2, outstanding: 8 },
            warm_up: Duration::ZERO,
            length: Duration::from_millis(300),
        };
        let (deks, gauge) = (Arc::new(Deks::fake(deks)), Arc::new(Gauge::default()));
        let outcome = run_sidecar(&Sidecar::echo(client), &deks, &plan, &gauge).await.unwrap();
        let counted = outcome.latency.as_ref().map_or(0, |latency| latency.count);
        assert_eq!(gauge.read(), (counted, outcome.failures()));
        outcome
    }

    #[tokio::test]
    async fn a_stream_asks_for_each_dek_once_or_again_and_again() {
        let echo = EchoHere::start();
        let once = outcome(&echo, Order::Once, Pace::Closed, 25).await;
        assert_eq!((once.latency.map(|latency| latency.count), once.ran_out), (Some(25), true));
        let cycle = outcome(&echo, Order::Cycle, Pace::Closed, 3).await;
        assert!(cycle.latency.is_some_and(|latency| latency.count > 25) && !cycle.ran_out);
        assert!(once.errors.is_empty() && cycle.errors.is_empty());
    }

    #[tokio::test]
    async fn a_stream_of_the_open_loop_sends_what_is_due_and_no_more() {
        let echo = EchoHere::start();
        let open = outcome(&echo, Order::Cycle, Pace::Open(500.0), 3).await;
        assert_eq!(open.latency.map(|latency| latency.count), Some(150));
        assert!(open.lag.is_some() && open.errors.is_empty());
    }

    #[tokio::test]
    async fn a_stream_that_breaks_costs_what_was_in_work_and_ends_with_the_run() {
        let echo = EchoHere::start();
        let run = outcome(&echo, Order::Cycle, Pace::Closed, 3);
        let (broken, ()) = tokio::join!(run, async {
            sleep(Duration::from_millis(100)).await;
            echo.stop();
        });
        assert!(broken.latency.is_some_and(|latency| latency.count > 0));
        let reasons: Vec<_> = broken.errors.keys().map(String::as_str).collect();
        assert_eq!(reasons, [Error::SIDECAR_UNREACHABLE], "{:?}", broken.errors);
    }
}
