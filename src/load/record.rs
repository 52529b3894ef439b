//! What was measured: latencies in a histogram, answers per interval, errors by reason.
//! Pure: moments are values.
//!
//! Each caller has a recorder of its own; they are put together at the end.
//!
//! Invariants: only what was *meant* to be sent inside the window is a latency or an error;
//! only what was answered inside the window is throughput; an error is never a latency.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use tokio::time::Instant;

use super::plan::Window;

/// Throughput is counted in intervals of this length.
pub const INTERVAL: Duration = Duration::from_millis(100);

/// Reasons that are told apart. What is beyond them comes from no sidecar of ours.
const REASONS_MAX: usize = 64;
/// What the others are counted under.
const OTHER: &str = "OTHER";
/// Three significant digits.
const DIGITS: u8 = 3;
/// No operation takes longer: every one has a deadline.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// The curve goes to 99.999 %, in steps of a tenth of a nine.
const CURVE_STEPS: u32 = 50;

/// Latencies of one caller, or of all.
#[derive(Debug)]
pub(super) struct Recorder {
    window: Window,
    latency: Histogram<u64>,
    lag: Histogram<u64>,
    intervals: Vec<u64>,
    errors: BTreeMap<String, u64>,
    last: Option<Instant>,
}

impl Recorder {
    pub(super) fn new(window: Window) -> Self {
        let histogram = || Histogram::new(DIGITS).expect("the digits are allowed");
        let length = window.end.saturating_duration_since(window.start);
        let intervals = length.as_millis().div_ceil(INTERVAL.as_millis());
        Self {
            window,
            latency: histogram(),
            lag: histogram(),
            intervals: vec![0; usize::try_from(intervals).unwrap_or(usize::MAX)],
            errors: BTreeMap::new(),
            last: None,
        }
    }

    /// It was answered at `done`, and was meant to be sent at `intended`.
    pub(super) fn answered(&mut self, intended: Instant, done: Instant) {
        if self.window.start <= intended {
            note(&mut self.latency, done.saturating_duration_since(intended));
        }
        if self.window.start <= done && done < self.window.end {
            let at = done.saturating_duration_since(self.window.start).as_nanos();
            let interval = usize::try_from(at / INTERVAL.as_nanos()).unwrap_or(usize::MAX);
            self.intervals[interval] += 1;
            self.last = self.last.max(Some(done));
        }
    }

    /// `count` operations that were meant to be sent at `intended` failed.
    pub(super) fn failed(&mut self, intended: Instant, reason: &str, count: u64) {
        if intended < self.window.start || count == 0 {
            return;
        }
        let known = self.errors.contains_key(reason) || self.errors.len() < REASONS_MAX;
        let reason = if known { reason } else { OTHER };
        *self.errors.entry(reason.to_owned()).or_default() += count;
    }

    /// A caller that had nothing else to do sent what was due at `due` at `sent`: how late
    /// that is, is the generator's own doing.
    pub(super) fn lagged(&mut self, due: Instant, sent: Instant) {
        if self.window.start <= due {
            note(&mut self.lag, sent.saturating_duration_since(due));
        }
    }

    /// Adds what another caller measured in the same window.
    pub(super) fn merge(&mut self, other: &Self) {
        let grows = "histograms of our own grow";
        self.latency.add(&other.latency).expect(grows);
        self.lag.add(&other.lag).expect(grows);
        for (sum, count) in self.intervals.iter_mut().zip(&other.intervals) {
            *sum += count;
        }
        for (reason, count) in &other.errors {
            self.failed(self.window.start, reason, *count);
        }
        self.last = self.last.max(other.last);
    }

    /// What it all comes to. `ran_out`: the run ended before its time, with its last
    /// answer.
    pub(super) fn finish(self, ran_out: bool) -> Outcome {
        let Self { window, latency, lag, mut intervals, errors, last } = self;
        let whole = window.end.saturating_duration_since(window.start);
        let taken = last.map(|last| last.saturating_duration_since(window.start));
        let taken = match (ran_out, taken) {
            (true, Some(taken)) => taken.min(whole),
            _ => whole,
        };
        let started = usize::try_from(taken.as_nanos().div_ceil(INTERVAL.as_nanos()));
        intervals.truncate(started.unwrap_or(usize::MAX).max(1));
        Outcome {
            latency: Latency::of(&latency),
            lag: Latency::of(&lag),
            seconds: taken.as_secs_f64(),
            intervals,
            errors,
            ran_out,
        }
    }
}

/// A latency out of a list, for floors that are measured without a recorder.
pub(super) fn latency_of(times: &[Duration]) -> Option<Latency> {
    let mut histogram: Histogram<u64> = Histogram::new(DIGITS).expect("the digits are allowed");
    times.iter().for_each(|time| note(&mut histogram, *time));
    Latency::of(&histogram)
}

fn note(histogram: &mut Histogram<u64>, time: Duration) {
    let nanos = u64::try_from(time.min(LONGEST).as_nanos()).unwrap_or(u64::MAX);
    // Not `saturating_record`, which cuts off rather than grow.
    histogram.record(nanos).expect("a histogram of ours grows");
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Of those that succeeded; `None` if none did.
    pub latency: Option<Latency>,
    /// Open loop: how late the generator itself sent. `None` where it was never early.
    pub lag: Option<Latency>,
    /// How long was measured.
    pub seconds: f64,
    /// Answers in each interval of [`INTERVAL`]; the last may be shorter.
    pub intervals: Vec<u64>,
    /// Failures by reason.
    pub errors: BTreeMap<String, u64>,
    /// Whether it ended because every DEK had been asked for.
    pub ran_out: bool,
}

impl Outcome {
    /// Successful answers per second.
    pub fn throughput(&self) -> f64 {
        let answers: u64 = self.intervals.iter().sum();
        if self.seconds > 0.0 { answers as f64 / self.seconds } else { 0.0 }
    }

    /// How many failed.
    pub fn failures(&self) -> u64 {
        self.errors.values().sum()
    }
}

/// Latencies, in microseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Latency {
    /// How many.
    pub count: u64,
    /// Arithmetic mean.
    pub mean: f64,
    /// Least.
    pub min: f64,
    /// Median.
    pub p50: f64,
    /// 90 % were no slower.
    pub p90: f64,
    /// 99 %.
    pub p99: f64,
    /// 99.9 %.
    pub p99_9: f64,
    /// 99.99 %.
    pub p99_99: f64,
    /// Most.
    pub max: f64,
    /// Points for a plot: nines (1 is 90 %, 2 is 99 %) and latency. Ends where fewer than
    /// one operation would be beyond.
    pub curve: Vec<(f64, f64)>,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Option<Self> {
        if histogram.is_empty() {
            return None;
        }
        let micros = |nanos: u64| nanos as f64 / 1e3;
        let at = |quantile: f64| micros(histogram.value_at_quantile(quantile));
        let most_nines = (histogram.len() as f64).log10();
        let curve = (0..=CURVE_STEPS)
            .map(|step| f64::from(step) / 10.0)
            .take_while(|nines| *nines <= most_nines)
            .map(|nines| (nines, at(1.0 - 10_f64.powf(-nines))))
            .collect();
        Some(Self {
            count: histogram.len(),
            mean: histogram.mean() / 1e3,
            min: micros(histogram.min()),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: micros(histogram.max()),
            curve,
        })
    }

    /// What is shown of it, by name.
    pub fn named(&self) -> [(&'static str, f64); 8] {
        [
            ("mean", self.mean),
            ("min", self.min),
            ("p50", self.p50),
            ("p90", self.p90),
            ("p99", self.p99),
            ("p99_9", self.p99_9),
            ("p99_99", self.p99_99),
            ("max", self.max),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn window() -> Window {
        let start = Instant::now();
        Window { start, end: start + Duration::from_secs(1) }
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn what_was_meant_before_the_window_is_no_latency_but_its_answer_is_throughput() {
        let window = window();
        let mut recorder = Recorder::new(window);
        recorder.answered(window.start - ms(10), window.start + ms(150));
        recorder.failed(window.start - ms(10), "X", 1);
        let outcome = recorder.finish(false);
        assert_eq!(outcome.latency, None);
        assert_eq!(outcome.errors.len(), 0);
        assert_eq!(outcome.intervals, [0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn what_is_answered_after_the_window_is_a_latency_but_no_throughput() {
        let window = window();
        let mut recorder = Recorder::new(window);
        recorder.answered(window.start + ms(990), window.end + ms(10));
        let outcome = recorder.finish(false);
        let latency = outcome.latency.clone().expect("a latency");
        assert!((19_900.0..20_100.0).contains(&latency.p50), "{latency:?}");
        assert_eq!(outcome.throughput(), 0.0);
    }

    #[test]
    fn an_error_is_no_latency() {
        let window = window();
        let mut recorder = Recorder::new(window);
        recorder.answered(window.start, window.start + ms(1));
        recorder.failed(window.start, "OVERLOADED", 2);
        let outcome = recorder.finish(false);
        assert_eq!(outcome.latency.as_ref().map(|latency| latency.count), Some(1));
        assert_eq!(outcome.failures(), 2);
    }

    #[test]
    fn a_run_that_ran_out_ends_with_its_last_answer() {
        let window = window();
        let mut recorder = Recorder::new(window);
        recorder.answered(window.start, window.start + ms(250));
        let outcome = recorder.finish(true);
        assert_eq!(outcome.seconds, 0.25);
        assert_eq!(outcome.intervals, [0, 0, 1]);
        assert_eq!(outcome.throughput(), 4.0);
    }

    #[test]
    fn reasons_are_bounded() {
        let window = window();
        let mut recorder = Recorder::new(window);
        for n in 0..1000 {
            recorder.failed(window.start, &format!("R{n}"), 1);
        }
        let errors = recorder.finish(false).errors;
        assert_eq!(errors.len(), REASONS_MAX + 1);
        assert_eq!(errors[OTHER], 1000 - REASONS_MAX as u64);
    }

    proptest! {
        #[test]
        fn merged_recorders_are_as_one(
            operations in prop::collection::vec((0..4_usize, 0..900_u64, 0..100_u64, any::<bool>()), 1..200),
        ) {
            let window = window();
            let mut one = Recorder::new(window);
            let mut parts: Vec<_> = (0..4).map(|_| Recorder::new(window)).collect();
            for (part, at, took, good) in operations {
                let at = window.start + ms(at);
                for recorder in [&mut one, &mut parts[part]] {
                    match good {
                        true => recorder.answered(at, at + ms(took)),
                        false => recorder.failed(at, "X", 1),
                    }
                }
            }
            let mut sum = Recorder::new(window);
            parts.iter().for_each(|part| sum.merge(part));
            prop_assert_eq!(sum.finish(false), one.finish(false));
        }

        #[test]
        fn percentiles_are_in_order(times in prop::collection::vec(1..10_000_000_u64, 1..300)) {
            let times: Vec<_> = times.into_iter().map(Duration::from_nanos).collect();
            let latency = latency_of(&times).expect("there are some");
            let Latency { min, p50, p90, p99, p99_9, p99_99, max, .. } = latency;
            let rising = [min, p50, p90, p99, p99_9, p99_99, max];
            prop_assert!(rising.windows(2).all(|pair| pair[0] <= pair[1]), "{:?}", rising);
            prop_assert!(latency.curve.windows(2).all(|pair| pair[0].1 <= pair[1].1));
        }
    }
}
