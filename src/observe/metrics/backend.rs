//! What one backend is asked, how long it takes, and how it ends.

use std::{
    array,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use super::tally::Timings;
use crate::error::{Error, Reason};

/// An operation of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HsmOp {
    /// Wrap a payload.
    Wrap,
    /// Unwrap a ciphertext.
    Unwrap,
    /// Prove that a KEK version works.
    Prove,
    /// Read the versions of a KEK.
    Versions,
    /// Draw random bytes.
    Random,
}

impl HsmOp {
    /// In the order of the enum, as in the label `operation`.
    pub(super) const NAMES: [&'static str; 5] = ["wrap", "unwrap", "prove", "versions", "random"];
}

/// How an operation of a backend ended, as an operator tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HsmOutcome {
    /// It did what it was asked.
    Ok,
    /// The caller's doing: a ciphertext that does not unwrap.
    Invalid,
    /// The key is gone, disabled or expired, or the device is misconfigured.
    Refused,
    /// The device did not answer, not in time, or had too much to do.
    Unavailable,
    /// Nobody waited for the answer any more.
    Abandoned,
}

impl HsmOutcome {
    /// In the order of the enum, as in the label `outcome`.
    pub(super) const NAMES: [&'static str; 5] =
        ["ok", "invalid", "refused", "unavailable", "abandoned"];

    /// The outcome of an operation that was waited for.
    pub fn of<T>(result: &Result<T, Error>) -> Self {
        match result {
            Ok(_) => Self::Ok,
            Err(error) if error.reason().is_transient() => Self::Unavailable,
            Err(error) if error.reason() == Reason::CiphertextInvalid => Self::Invalid,
            Err(_) => Self::Refused,
        }
    }
}

/// The counters of one backend.
#[derive(Debug, Default)]
pub struct BackendMetrics {
    pub(super) timings: [[Timings; HsmOutcome::NAMES.len()]; HsmOp::NAMES.len()],
    pub(super) in_flight: AtomicU64,
}

impl BackendMetrics {
    /// An operation starts. It ends with [`TimedHsmOp::end`], or as abandoned if its
    /// caller goes away.
    #[must_use]
    pub fn start(self: &Arc<Self>, op: HsmOp) -> TimedHsmOp {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let (metrics, started) = (Arc::clone(self), Instant::now());
        TimedHsmOp { metrics, op, started, outcome: HsmOutcome::Abandoned }
    }

    /// Every operation and outcome by name, with its timings.
    pub(super) fn named(&self) -> impl Iterator<Item = (&'static str, &'static str, &Timings)> {
        let pairs: [(usize, usize); 25] = array::from_fn(|n| (n / 5, n % 5));
        pairs.into_iter().map(|(op, outcome)| {
            (HsmOp::NAMES[op], HsmOutcome::NAMES[outcome], &self.timings[op][outcome])
        })
    }
}

/// An operation in work.
#[derive(Debug)]
pub struct TimedHsmOp {
    metrics: Arc<BackendMetrics>,
    op: HsmOp,
    started: Instant,
    outcome: HsmOutcome,
}

impl TimedHsmOp {
    /// The operation is answered.
    pub fn end<T>(mut self, result: &Result<T, Error>) {
        self.outcome = HsmOutcome::of(result);
    }
}

impl Drop for TimedHsmOp {
    fn drop(&mut self) {
        self.metrics.in_flight.fetch_sub(1, Ordering::Relaxed);
        let timings = &self.metrics.timings[self.op as usize][self.outcome as usize];
        timings.add(self.started.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(metrics: &BackendMetrics) -> Vec<(&'static str, &'static str)> {
        metrics
            .named()
            .filter(|(_, _, timings)| timings.read().count > 0)
            .map(|(op, outcome, _)| (op, outcome))
            .collect()
    }

    #[test]
    fn an_operation_is_in_flight_until_it_ends_or_is_abandoned() {
        let metrics = Arc::new(BackendMetrics::default());
        let (first, second) = (metrics.start(HsmOp::Unwrap), metrics.start(HsmOp::Prove));
        assert_eq!(metrics.in_flight.load(Ordering::Relaxed), 2);
        assert_eq!(counted(&metrics), []);
        first.end(&Ok(()));
        drop(second);
        assert_eq!(metrics.in_flight.load(Ordering::Relaxed), 0);
        assert_eq!(counted(&metrics), [("unwrap", "ok"), ("prove", "abandoned")]);
    }

    #[test]
    fn garbage_trouble_and_refusals_are_told_apart() {
        let of = |reason| HsmOutcome::of::<()>(&Err(Error::new(reason, "x")));
        assert_eq!(of(Reason::CiphertextInvalid), HsmOutcome::Invalid);
        assert_eq!(of(Reason::BackendUnreachable), HsmOutcome::Unavailable);
        assert_eq!(of(Reason::Overloaded), HsmOutcome::Unavailable);
        assert_eq!(of(Reason::DeadlineExceeded), HsmOutcome::Unavailable);
        assert_eq!(of(Reason::KekDisabled), HsmOutcome::Refused);
        assert_eq!(of(Reason::KekVersionNotFound), HsmOutcome::Refused);
        assert_eq!(of(Reason::BackendMisconfigured), HsmOutcome::Refused);
    }
}
