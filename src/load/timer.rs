//! Waiting until a moment. The runtime's own timer rounds up to a millisecond, which
//! would be the larger part of many a latency here. So a thread of its own waits for the
//! next moment that anybody waits for, with the kernel's timer, which is good to some tens
//! of microseconds, most of them the waking of threads.

use std::{
    collections::BTreeMap,
    io,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

/// The moment, and whom to tell.
type Wish = (Instant, oneshot::Sender<()>);

/// The thread that waits, which ends with its last timer. `None`: the runtime's own timer,
/// which tests wind on.
#[derive(Clone)]
pub(super) struct Clock(Option<mpsc::Sender<Wish>>);

/// A timer for one waiter.
pub(super) struct Timer {
    clock: Clock,
    /// What was asked of the thread, while it is waited for.
    pending: Option<(Instant, oneshot::Receiver<()>)>,
}

impl Clock {
    pub(super) fn start() -> io::Result<Self> {
        if cfg!(test) { Ok(Self(None)) } else { Self::start_thread() }
    }

    fn start_thread() -> io::Result<Self> {
        let (send, wishes) = mpsc::channel();
        thread::Builder::new().name("pace".into()).spawn(move || keep_time(&wishes))?;
        Ok(Self(Some(send)))
    }

    pub(super) fn timer(&self) -> Timer {
        Timer { clock: self.clone(), pending: None }
    }
}

impl Timer {
    /// Returns when `due` has come. May be cancelled and called again.
    pub(super) async fn until(&mut self, due: Instant) -> io::Result<()> {
        let Clock(Some(clock)) = &self.clock else {
            tokio::time::sleep_until(due).await;
            return Ok(());
        };
        let gone = || io::Error::other("the thread that keeps the time has ended");
        let rung = match &mut self.pending {
            Some((same, rung)) if *same == due => rung,
            other => {
                let (ring, rung) = oneshot::channel();
                clock.send((due, ring)).map_err(|_| gone())?;
                &mut other.insert((due, rung)).1
            }
        };
        let outcome = rung.await;
        self.pending = None;
        outcome.map_err(|_| gone())
    }
}

/// Tells everybody when their moment has come, until nobody can wish any more.
fn keep_time(wishes: &mpsc::Receiver<Wish>) {
    // The kernel may wake us up to 50 us late to save power; not here. If it does not
    // listen, the lag that is reported says so.
    let _best_effort = rustix::thread::set_current_timer_slack(std::num::NonZero::new(1));
    let mut waiting: BTreeMap<Instant, Vec<oneshot::Sender<()>>> = BTreeMap::new();
    loop {
        while let Some(first) = waiting.first_entry() {
            if *first.key() > Instant::now() {
                break;
            }
            for ring in first.remove() {
                // Whoever does not wait any more need not know.
                let _given_up = ring.send(());
            }
        }
        let left =
            waiting.first_key_value().map(|(due, _)| due.saturating_duration_since(Instant::now()));
        // Without anybody to ring, it sleeps until there is; the length does not matter.
        match wishes.recv_timeout(left.unwrap_or(Duration::from_secs(3600))) {
            Ok((due, ring)) => waiting.entry(due).or_default().push(ring),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_never_early_and_can_be_used_again() {
        let clock = Clock::start_thread().unwrap();
        let mut timer = clock.timer();
        for micros in [0, 1, 300, 5_000] {
            let due = Instant::now() + Duration::from_micros(micros);
            timer.until(due).await.unwrap();
            assert!(Instant::now() >= due);
        }
        // One that was given up disturbs no later one.
        let far = Instant::now() + Duration::from_millis(3);
        let given_up = tokio::time::timeout(Duration::from_millis(1), timer.until(far)).await;
        assert!(given_up.is_err());
        let due = Instant::now() + Duration::from_millis(8);
        timer.until(due).await.unwrap();
        assert!(Instant::now() >= due);
    }

    #[tokio::test]
    async fn many_wait_for_one_clock_each_for_its_own_moment() {
        let clock = Clock::start_thread().unwrap();
        let began = Instant::now();
        let wait = async |ms| {
            let due = began + Duration::from_millis(ms);
            clock.timer().until(due).await.unwrap();
            assert!(Instant::now() >= due);
            ms
        };
        let done = futures_util::future::join_all([9, 3, 6, 3].map(wait)).await;
        assert_eq!(done, [9, 3, 6, 3]);
    }
}
