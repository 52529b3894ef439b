//! Counters and histograms that cost a relaxed atomic add, no lock and no allocation.
//! (The histogram of `prometheus-client` is a mutex.)
//!
//! Each number is exact; two that are read one after the other may be of slightly
//! different moments.

use std::{
    array,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// `N` counters, for the `N` values of a label.
#[derive(Debug)]
pub(super) struct Counts<const N: usize>([AtomicU64; N]);

impl<const N: usize> Default for Counts<N> {
    fn default() -> Self {
        Self(array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl<const N: usize> Counts<N> {
    /// Adds one to the counter at `index`, which is below `N`.
    pub(super) fn add(&self, index: usize) {
        self.0[index].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn get(&self, index: usize) -> u64 {
        self.0[index].load(Ordering::Relaxed)
    }

    /// Each counter beside its label.
    pub(super) fn named<'a>(
        &self,
        names: &'a [&'static str; N],
    ) -> impl Iterator<Item = (&'static str, u64)> + use<'a, '_, N> {
        names.iter().enumerate().map(|(index, name)| (*name, self.get(index)))
    }
}

/// Upper bounds of the buckets, in microseconds: a hit in the cache is in the first,
/// an operation of a fast HSM in the middle, and the last is the longest deadline of
/// most operations. What took longer is in a bucket without a bound.
const BOUNDS_US: [u64; 19] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000,
    500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000,
];
const BUCKETS: usize = BOUNDS_US.len() + 1;

/// How long something took, each time.
#[derive(Debug, Default)]
pub(super) struct Timings {
    buckets: Counts<BUCKETS>,
    sum_nanos: AtomicU64,
}

/// What [`Timings`] held at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct TimingsRead {
    /// Upper bound of each bucket in seconds, and what is in that bucket alone.
    pub(super) buckets: [(f64, u64); BUCKETS],
    pub(super) count: u64,
    pub(super) sum_seconds: f64,
}

impl Timings {
    pub(super) fn add(&self, took: Duration) {
        // A bucket takes what is equal to its bound, as Prometheus has it.
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.buckets.add(BOUNDS_US.partition_point(|bound| bound * 1000 < nanos));
        self.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> TimingsRead {
        let bound =
            |index: usize| BOUNDS_US.get(index).map_or(f64::INFINITY, |us| *us as f64 / 1e6);
        let buckets = array::from_fn(|index| (bound(index), self.buckets.get(index)));
        TimingsRead {
            buckets,
            // Counted from the buckets, so that the two always agree.
            count: buckets.iter().map(|(_, count)| count).sum(),
            sum_seconds: self.sum_nanos.load(Ordering::Relaxed) as f64 / 1e9,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_in_the_first_bucket_that_it_fits() {
        let timings = Timings::default();
        for nanos in [0, 10_000, 10_001, 10_000_000_000, 10_000_000_001, u64::MAX / 4] {
            timings.add(Duration::from_nanos(nanos));
        }
        let read = timings.read();
        let filled: Vec<_> = read.buckets.iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(filled, [&(0.00001, 2), &(0.000025, 1), &(10.0, 1), &(f64::INFINITY, 2)]);
        assert_eq!(read.count, 6);
    }

    #[test]
    fn sums_are_in_seconds() {
        let timings = Timings::default();
        timings.add(Duration::from_millis(1250));
        timings.add(Duration::from_millis(250));
        assert!((timings.read().sum_seconds - 1.5).abs() < 1e-9);
    }

    #[test]
    fn threads_lose_no_count() {
        let (counts, timings) = (Counts::<2>::default(), Timings::default());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        counts.add(1);
                        timings.add(Duration::from_micros(1));
                    }
                });
            }
        });
        assert_eq!(counts.named(&["a", "b"]).collect::<Vec<_>>(), [("a", 0), ("b", 40_000)]);
        assert_eq!(timings.read().count, 40_000);
    }
}
