//! The skewed choice of a DEK: the one of rank k is asked for as often as 1/k^skew. Pure.
//!
//! Refuses to know what is chosen. A choice is a function of a number, so that every run
//! asks for the same DEKs in the same order.

/// Largest skew. Beyond it all but the first DEK are noise.
pub const SKEW_MAX: f64 = 10.0;

/// Zipf's distribution over `0..n`.
#[derive(Clone, Debug)]
pub(super) struct Zipf {
    /// The share of the ranks up to and with each.
    cumulative: Vec<f64>,
}

impl Zipf {
    /// Over `n` ranks, at least 1. A skew of 0 makes all alike; it is held within
    /// 0 to [`SKEW_MAX`].
    pub(super) fn new(n: usize, skew: f64) -> Self {
        let skew = skew.clamp(0.0, SKEW_MAX);
        let mut total = 0.0;
        let mut cumulative: Vec<f64> = (1..=n.max(1))
            .map(|rank| {
                total += (rank as f64).powf(-skew);
                total
            })
            .collect();
        cumulative.iter_mut().for_each(|share| *share /= total);
        Self { cumulative }
    }

    /// The rank, counted from 0, that stands at `uniform` (0 to 1) of all choices.
    pub(super) fn rank(&self, uniform: f64) -> usize {
        let rank = self.cumulative.partition_point(|share| *share <= uniform);
        rank.min(self.cumulative.len() - 1)
    }
}

/// A number from 0 to 1 for each `n`, as good as random: the output function of SplitMix64.
pub(super) fn uniform(n: u64) -> f64 {
    let mut z = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    (z >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts(n: usize, skew: f64, draws: u64) -> Vec<u64> {
        let zipf = Zipf::new(n, skew);
        let mut counts = vec![0; n];
        (0..draws).for_each(|draw| counts[zipf.rank(uniform(draw))] += 1);
        counts
    }

    #[test]
    fn the_head_has_the_share_that_the_law_says() {
        let draws = 200_000;
        let counts = counts(1000, 1.0, draws);
        // 1/H(1000) of all draws go to the first, half as many to the second.
        let harmonic: f64 = (1..=1000).map(|rank| 1.0 / f64::from(rank)).sum();
        for rank in [1_usize, 2, 10] {
            let expected = draws as f64 / harmonic / rank as f64;
            let got = counts[rank - 1] as f64;
            assert!((got / expected - 1.0).abs() < 0.05, "rank {rank}: {got} for {expected}");
        }
    }

    #[test]
    fn without_skew_all_are_alike() {
        for count in counts(10, 0.0, 100_000) {
            assert!((9_500..10_500).contains(&count), "{count}");
        }
    }

    proptest! {
        #[test]
        fn shares_grow_to_one_and_every_rank_can_be_chosen(n in 1..500_usize, skew in 0.0..3.0_f64) {
            let zipf = Zipf::new(n, skew);
            prop_assert!(zipf.cumulative.windows(2).all(|pair| pair[0] <= pair[1]));
            prop_assert!((zipf.cumulative[n - 1] - 1.0).abs() < 1e-9);
            prop_assert_eq!(zipf.rank(0.0), 0);
            prop_assert_eq!(zipf.rank(1.0), n - 1);
        }

        #[test]
        fn a_uniform_number_is_below_one(n in any::<u64>()) {
            prop_assert!((0.0..1.0).contains(&uniform(n)));
        }
    }
}
