//! Which DEK is asked for, and when: decisions only. `now` is a value.
//!
//! Every operation of a run has a number, its ticket. The number decides which DEK is
//! asked for and, in the open loop, when; callers draw tickets and so need not know of each
//! other.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

use super::zipf::{Zipf, uniform};

/// Most callers, or streams.
pub const CALLERS_MAX: usize = 4096;
/// Most DEKs of one run.
pub const DEKS_MAX: usize = 1_000_000;
/// Highest rate of the open loop, operations per second.
pub const RATE_MAX: f64 = 1e6;

/// How long after the end of a run what was due in it is still sent.
const LATE_MAX: Duration = Duration::from_secs(2);

/// Which DEK each operation asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Order {
    /// One after another, again and again.
    Cycle,
    /// Each once; then the run ends.
    Once,
    /// By Zipf's law of this skew, again and again.
    Skewed(f64),
}

/// When operations are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// A caller sends when it has its answer.
    Closed,
    /// So many per second, whether or not answers come. While all callers wait, what is
    /// due is sent late, and its latency counts from when it was due.
    Open(f64),
}

/// How operations are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One call each.
    Unary {
        /// Callers, each with one operation at a time.
        callers: usize,
    },
    /// Items of UnwrapStream.
    Stream {
        /// Streams.
        streams: usize,
        /// Items of each that wait for their answer at once.
        outstanding: usize,
    },
}

impl Shape {
    /// Most operations that wait for an answer at once.
    pub fn at_once(self) -> usize {
        match self {
            Self::Unary { callers } => callers,
            Self::Stream { streams, outstanding } => streams * outstanding,
        }
    }
}

/// A run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Which DEKs.
    pub order: Order,
    /// When.
    pub pace: Pace,
    /// How.
    pub shape: Shape,
    /// What comes before anything is counted.
    pub warm_up: Duration,
    /// How long is counted, at most.
    pub length: Duration,
}

/// From when to when is counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) start: Instant,
    pub(super) end: Instant,
}

/// The tickets of a run.
#[derive(Debug)]
pub(super) struct Tickets {
    pub(super) window: Window,
    began: Instant,
    pace: Pace,
    order: Order,
    /// For `Order::Skewed`.
    zipf: Option<Zipf>,
    deks: u64,
    /// How many there are: ended by the DEKs or, in the open loop, by time.
    total: u64,
    next: AtomicU64,
}

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ticket {
    /// Which DEK, counted from 0.
    pub(super) dek: usize,
    /// When it is to be sent; `None` for at once.
    pub(super) due: Option<Instant>,
}

impl Tickets {
    /// Those of `plan`, over `deks` DEKs, at least 1, from `now` on.
    pub(super) fn new(plan: &Plan, deks: usize, now: Instant) -> Self {
        let deks = deks.max(1) as u64;
        let start = now + plan.warm_up;
        let by_deks = if plan.order == Order::Once { deks } else { u64::MAX };
        let by_time = match plan.pace {
            Pace::Closed => u64::MAX,
            Pace::Open(rate) => {
                ((plan.warm_up + plan.length).as_secs_f64() * rate.min(RATE_MAX)).round() as u64
            }
        };
        let zipf = match plan.order {
            Order::Skewed(skew) => Some(Zipf::new(deks as usize, skew)),
            Order::Cycle | Order::Once => None,
        };
        Self {
            window: Window { start, end: start + plan.length },
            began: now,
            pace: plan.pace,
            order: plan.order,
            zipf,
            deks,
            total: by_deks.min(by_time),
            next: AtomicU64::new(0),
        }
    }

    /// The next one; `None` if the run has ended.
    pub(super) fn take(&self, now: Instant) -> Option<Ticket> {
        if self.pace == Pace::Closed && now >= self.window.end {
            return None;
        }
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        (n < self.total).then(|| Ticket { dek: self.dek(n), due: self.due(n) })
    }

    fn dek(&self, n: u64) -> usize {
        match &self.zipf {
            Some(zipf) => zipf.rank(uniform(n)),
            None => (n % self.deks) as usize,
        }
    }

    fn due(&self, n: u64) -> Option<Instant> {
        match self.pace {
            Pace::Closed => None,
            Pace::Open(rate) => Some(self.began + Duration::from_secs_f64(n as f64 / rate)),
        }
    }

    /// Whether it is too late to send what was due in the run.
    pub(super) fn too_late(&self, now: Instant) -> bool {
        now > self.window.end + LATE_MAX
    }

    /// Gives up what was not taken yet, and says how much that was.
    pub(super) fn abandon(&self) -> u64 {
        self.total.saturating_sub(self.next.swap(self.total, Ordering::Relaxed))
    }

    /// Whether every DEK was asked for in a run that asks for each once.
    pub(super) fn ran_out(&self) -> bool {
        self.order == Order::Once && self.next.load(Ordering::Relaxed) >= self.deks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(order: Order, pace: Pace) -> Plan {
        Plan {
            order,
            pace,
            shape: Shape::Unary { callers: 1 },
            warm_up: Duration::from_secs(1),
            length: Duration::from_secs(2),
        }
    }

    fn all(tickets: &Tickets, now: Instant) -> Vec<Ticket> {
        std::iter::from_fn(|| tickets.take(now)).collect()
    }

    #[test]
    fn a_closed_loop_ends_by_time() {
        let now = Instant::now();
        let tickets = Tickets::new(&plan(Order::Cycle, Pace::Closed), 2, now);
        let deks: Vec<_> = (0..4).map(|_| tickets.take(now).unwrap().dek).collect();
        assert_eq!(deks, [0, 1, 0, 1]);
        assert!(tickets.take(now + Duration::from_secs(3)).is_none());
        assert!(!tickets.ran_out());
    }

    #[test]
    fn each_dek_is_asked_for_once_and_the_end_is_told() {
        let now = Instant::now();
        let tickets = Tickets::new(&plan(Order::Once, Pace::Closed), 3, now);
        assert!(!tickets.ran_out());
        let deks: Vec<_> = all(&tickets, now).iter().map(|ticket| ticket.dek).collect();
        assert_eq!(deks, [0, 1, 2]);
        assert!(tickets.ran_out());
    }

    #[test]
    fn an_open_loop_has_its_moments_whatever_time_it_is() {
        let now = Instant::now();
        let tickets = Tickets::new(&plan(Order::Cycle, Pace::Open(10.0)), 1, now);
        // Even long after the end: they were due.
        let taken = all(&tickets, now + Duration::from_secs(100));
        assert_eq!(taken.len(), 30);
        for (n, ticket) in (0..).zip(&taken) {
            assert_eq!(ticket.due, Some(now + Duration::from_millis(100 * n)));
        }
    }

    #[test]
    fn what_is_given_up_is_counted_once() {
        let now = Instant::now();
        let tickets = Tickets::new(&plan(Order::Cycle, Pace::Open(10.0)), 1, now);
        assert!(tickets.take(now).is_some());
        assert!(!tickets.too_late(tickets.window.end));
        assert!(tickets.too_late(tickets.window.end + LATE_MAX + Duration::from_millis(1)));
        assert_eq!(tickets.abandon(), 29);
        assert_eq!(tickets.abandon(), 0);
        assert!(tickets.take(now).is_none());
        assert_eq!(tickets.abandon(), 0);
    }

    #[test]
    fn a_skewed_run_is_the_same_every_time() {
        let now = Instant::now();
        let draw = || {
            let tickets = Tickets::new(&plan(Order::Skewed(1.0), Pace::Closed), 100, now);
            (0..1000).map(|_| tickets.take(now).unwrap().dek).collect::<Vec<_>>()
        };
        assert_eq!(draw(), draw());
        assert!(draw().iter().filter(|dek| **dek == 0).count() > 100);
    }
}
