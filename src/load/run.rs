//! Callers, each with one operation at a time. What an operation is, the target knows.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{task::JoinSet, time::Instant};

use super::{
    plan::{Pace, Plan, Shape, Ticket, Tickets, Window},
    record::{Outcome, Recorder},
    stream::run_streams,
    target::{Deks, Direct, Sidecar, Target, Trouble},
    timer::{Clock, Timer},
};

/// The reason of what was due but not sent, because every caller waited for too long.
pub(super) const NOT_SENT: &str = "NOT_SENT";

/// How a run goes on, for whoever watches.
#[derive(Debug, Default)]
pub struct Gauge {
    succeeded: AtomicU64,
    failed: AtomicU64,
}

impl Gauge {
    pub(super) fn succeeded(&self) {
        self.succeeded.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Operations that succeeded and that failed, so far.
    pub fn read(&self) -> (u64, u64) {
        (self.succeeded.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }
}

/// Runs `plan` against a sidecar.
pub async fn run_sidecar(
    sidecar: &Sidecar,
    deks: &Arc<Deks>,
    plan: &Plan,
    gauge: &Arc<Gauge>,
) -> Result<Outcome, Trouble> {
    match plan.shape {
        Shape::Unary { callers } => run_callers(sidecar, deks, plan, callers, gauge).await,
        Shape::Stream { streams, outstanding } => {
            run_streams(sidecar, deks, plan, streams, outstanding, gauge).await
        }
    }
}

/// Runs `plan` against a backend, which has no streams: items that would be outstanding
/// are callers.
pub async fn run_backend(
    backend: &Direct,
    deks: &Arc<Deks>,
    plan: &Plan,
    gauge: &Arc<Gauge>,
) -> Result<Outcome, Trouble> {
    run_callers(backend, deks, plan, plan.shape.at_once(), gauge).await
}

async fn run_callers<T: Target>(
    target: &T,
    deks: &Arc<Deks>,
    plan: &Plan,
    callers: usize,
    gauge: &Arc<Gauge>,
) -> Result<Outcome, Trouble> {
    let tickets = Arc::new(Tickets::new(plan, deks.len(), Instant::now()));
    let clock = clock_for(plan)?;
    let mut running = JoinSet::new();
    for _ in 0..callers.max(1) {
        let (target, deks) = (target.clone(), Arc::clone(deks));
        let (tickets, gauge) = (Arc::clone(&tickets), Arc::clone(gauge));
        let timer = clock.as_ref().map(Clock::timer);
        running.spawn(async move { call(&target, &deks, &tickets, timer, &gauge).await });
    }
    put_together(running, &tickets).await
}

/// A clock, for a run that goes by one.
pub(super) fn clock_for(plan: &Plan) -> Result<Option<Clock>, Trouble> {
    match plan.pace {
        Pace::Closed => Ok(None),
        Pace::Open(_) => match Clock::start() {
            Ok(clock) => Ok(Some(clock)),
            Err(error) => Err(Trouble::Machine("cannot start a thread that keeps the time", error)),
        },
    }
}

/// Waits for all and adds up what they measured.
pub(super) async fn put_together(
    mut running: JoinSet<io::Result<Recorder>>,
    tickets: &Tickets,
) -> Result<Outcome, Trouble> {
    let mut sum = Recorder::new(tickets.window);
    while let Some(ended) = running.join_next().await {
        let ended = ended.unwrap_or_else(|panicked| Err(io::Error::other(panicked)));
        sum.merge(&ended.map_err(|error| Trouble::Machine("a caller could not go on", error))?);
    }
    Ok(sum.finish(tickets.ran_out()))
}

async fn call<T: Target>(
    target: &T,
    deks: &Deks,
    tickets: &Tickets,
    mut timer: Option<Timer>,
    gauge: &Gauge,
) -> io::Result<Recorder> {
    let mut recorder = Recorder::new(tickets.window);
    while let Some(Ticket { dek, due }) = tickets.take(Instant::now()) {
        let now = Instant::now();
        let intended = due.unwrap_or(now);
        if let Some(timer) = &mut timer {
            if now < intended {
                timer.until(intended).await?;
                recorder.lagged(intended, Instant::now());
            } else if tickets.too_late(now) {
                not_sent(&mut recorder, tickets.window, 1 + tickets.abandon());
                break;
            }
        }
        match target.unwrap(deks, dek).await {
            Ok(()) => {
                recorder.answered(intended, Instant::now());
                gauge.succeeded();
            }
            Err(reason) => {
                recorder.failed(intended, &reason, 1);
                gauge.failed();
            }
        }
    }
    Ok(recorder)
}

/// Counts what will not be sent any more as failed.
pub(super) fn not_sent(recorder: &mut Recorder, window: Window, count: u64) {
    recorder.failed(window.start, NOT_SENT, count);
}

#[cfg(test)]
mod tests {
    use super::{super::plan::*, *};
    use crate::{client::WrappedDek, secret::Secret};
    use std::time::Duration;
    use tokio::time::{sleep, sleep_until};

    /// Answers within a millisecond, but for one second in which nobody is answered.
    #[derive(Clone)]
    struct Stalls {
        from: Instant,
        fails: bool,
    }

    impl Target for Stalls {
        async fn wrap(&self, _: &Secret) -> Result<WrappedDek, Trouble> {
            Ok(WrappedDek::default())
        }

        async fn unwrap(&self, _: &Deks, _: usize) -> Result<(), String> {
            let until = self.from + Duration::from_secs(1);
            if self.from <= Instant::now() && Instant::now() < until {
                sleep_until(until).await;
            }
            sleep(Duration::from_millis(1)).await;
            if self.fails { Err("X".into()) } else { Ok(()) }
        }
    }

    async fn outcome(order: Order, pace: Pace, fails: bool) -> Outcome {
        let gauge = Arc::new(Gauge::default());
        let target = Stalls { from: Instant::now() + Duration::from_secs(2), fails };
        let deks = Arc::new(Deks::wrap(&target, 50, &gauge).await.unwrap());
        let plan = Plan {
            order,
            pace,
            shape: Shape::Unary { callers: 4 },
            warm_up: Duration::from_secs(1),
            length: Duration::from_secs(4),
        };
        run_callers(&target, &deks, &plan, 4, &gauge).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_stall_of_a_second_shows_in_the_open_loop() {
        let open = outcome(Order::Cycle, Pace::Open(1000.0), false).await;
        let latency = open.latency.as_ref().expect("latencies");
        assert!(latency.p99 > 900_000.0, "{latency:?}");
        // What was due in the stall was sent all the same, and nothing was forgotten.
        assert_eq!((latency.count, open.failures()), (4000, 0));
        // A closed loop sends nothing while it waits, and so sees next to nothing.
        let closed = outcome(Order::Cycle, Pace::Closed, false).await;
        let latency = closed.latency.as_ref().expect("latencies");
        assert!(latency.p99 < 3_000.0 && latency.max > 900_000.0, "{latency:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_target_cannot_do_in_time_is_told() {
        // 4 callers at 2 ms each do 2000 in a second, not 100,000.
        let open = outcome(Order::Cycle, Pace::Open(100_000.0), false).await;
        assert!(open.errors[NOT_SENT] > 100_000, "{:?}", open.errors);
        let counted = open.latency.as_ref().map_or(0, |latency| latency.count) + open.failures();
        assert!(counted <= 500_000, "{counted}");
    }

    #[tokio::test(start_paused = true)]
    async fn errors_are_no_latencies() {
        let failed = outcome(Order::Cycle, Pace::Closed, true).await;
        assert_eq!(failed.latency, None);
        assert!(failed.errors["X"] > 1000);
        assert_eq!(failed.throughput(), 0.0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_set_that_runs_out_is_not_repeated() {
        let cold = outcome(Order::Once, Pace::Open(25.0), false).await;
        // One of 50 deks every 40 ms: 25 in the warm-up, 25 in the window.
        assert!(cold.ran_out && cold.seconds < 3.0, "{cold:?}");
        assert_eq!(cold.latency.map(|latency| latency.count), Some(25));
    }
}
