//! What is going on, on one line of a terminal that is written over again and again. In a
//! pipe nothing is shown, and no thread runs.

use std::{
    io::{self, IsTerminal, Write},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::plan::Task;
use crate::load::{Gauge, Order};

/// How often the line is written.
const EVERY: Duration = Duration::from_millis(250);
/// Characters of the bar.
const BAR: usize = 24;

/// What ends a phase.
#[derive(Clone, Copy, Debug)]
enum End {
    /// So many operations.
    Count(usize),
    /// So much time.
    Time(Duration),
    /// It does not say.
    Unknown,
}

struct Phase {
    name: &'static str,
    end: End,
    gauge: Arc<Gauge>,
    began: Instant,
}

/// The line. It is gone when this is dropped.
pub(super) struct Progress {
    phase: Arc<Mutex<Phase>>,
    shown: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
}

impl Progress {
    pub(super) fn start() -> Self {
        let gauge = Arc::default();
        let phase = Phase { name: "starting", end: End::Unknown, gauge, began: Instant::now() };
        let phase = Arc::new(Mutex::new(phase));
        let shown = io::stderr().is_terminal().then(|| {
            let (stop, stopped) = mpsc::channel();
            let phase = Arc::clone(&phase);
            (stop, thread::spawn(move || show(&phase, &stopped)))
        });
        Self { phase, shown }
    }

    /// `count` operations begin.
    pub(super) fn count(&self, name: &'static str, count: usize) -> Arc<Gauge> {
        self.enter(name, End::Count(count), Arc::default())
    }

    /// Something begins that does not say when it ends.
    pub(super) fn wait(&self, name: &'static str) {
        self.enter(name, End::Unknown, Arc::default());
    }

    /// The run begins.
    pub(super) fn run(&self, task: &Task, gauge: Arc<Gauge>) -> Arc<Gauge> {
        let end = match task.plan.order {
            Order::Once => End::Count(task.deks),
            Order::Cycle | Order::Skewed(_) => End::Time(task.plan.warm_up + task.plan.length),
        };
        self.enter(task.scenario.name(), end, gauge)
    }

    fn enter(&self, name: &'static str, end: End, gauge: Arc<Gauge>) -> Arc<Gauge> {
        let phase = Phase { name, end, gauge: Arc::clone(&gauge), began: Instant::now() };
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
        gauge
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.shown.take() {
            drop(stop);
            let _it_says_nothing = thread.join();
        }
    }
}

/// Writes the line until the other end of `stopped` is dropped.
fn show(phase: &Mutex<Phase>, stopped: &mpsc::Receiver<()>) {
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(EVERY) {
        let text = {
            let phase = phase.lock().unwrap_or_else(PoisonError::into_inner);
            line(phase.name, phase.end, phase.gauge.read(), phase.began.elapsed())
        };
        let _nobody = write!(io::stderr(), "\r\x1b[K{text}");
    }
    let _nobody = write!(io::stderr(), "\r\x1b[K");
}

fn line(name: &str, end: End, (good, bad): (u64, u64), since: Duration) -> String {
    let share = match end {
        End::Count(count) => Some((good + bad) as f64 / count.max(1) as f64),
        End::Time(time) => Some(since.as_secs_f64() / time.as_secs_f64()),
        End::Unknown => None,
    };
    let Some(share) = share.map(|share| share.clamp(0.0, 1.0)) else {
        return format!("{name} …");
    };
    let full = (share * BAR as f64) as usize;
    let bar = format!("{}{}", "#".repeat(full), ".".repeat(BAR - full));
    let rate = good as f64 / since.as_secs_f64().max(0.001);
    let errors = if bad > 0 { format!(", {bad} errors") } else { String::new() };
    format!("{name} [{bar}] {:3.0} %  {rate:.0} per second{errors}", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_far_it_is() {
        let two = Duration::from_secs(2);
        let half = line("hot", End::Time(two * 2), (100, 0), two);
        assert_eq!(half, "hot [############............]  50 %  50 per second");
        let done = line("boot", End::Count(100), (120, 3), two);
        assert_eq!(done, "boot [########################] 100 %  60 per second, 3 errors");
        assert_eq!(line("x", End::Unknown, (1, 0), two), "x …");
        assert!(line("x", End::Count(0), (0, 0), Duration::ZERO).contains("0 %"));
    }
}
