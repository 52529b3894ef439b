//! Which versions were used to unwrap: how often, when last, and by how many callers. What
//! there is to say before an old version is disabled.
//!
//! Pure. Whoever counts makes a [`Usage`] of it; reports of several nodes are merged so that
//! merging twice, or in another order, gives the same. It holds no caller's name: a caller
//! sets one of 1024 bits.

mod json;

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
    time::{Duration, SystemTime},
};

use super::{KekName, VersionId};

/// Bits for callers.
const BITS: usize = 1024;

/// How long a version has been quiet that may be thought unused. Backups and cold files are
/// opened more seldom than that.
pub const QUIET_FOR: Duration = Duration::from_secs(90 * 24 * 3600);

/// Which callers there were, as bits: a caller always sets the same one, on every node. So
/// callers can be counted over nodes, about ("linear counting", Whang et al. 1990): within a
/// few per cent for hundreds, and at most a few thousand. Nobody can be read back, but a
/// guess at a caller can be tried.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Callers([u64; BITS / 64]);

impl Default for Callers {
    fn default() -> Self {
        Self([0; BITS / 64])
    }
}

impl Callers {
    /// Bytes of [`Self::to_bytes`].
    pub const BYTES: usize = BITS / 8;

    /// The bit of a caller, by how it is written in logs.
    pub fn bit(who: &impl fmt::Display) -> u16 {
        // FNV-1a, which is the same everywhere and for ever; mixed, because its low bits
        // alone depend on little.
        let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
        write!(hash, "{who}").expect("hashing does not fail");
        let mixed = (hash.0 ^ (hash.0 >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> (64 - BITS.trailing_zeros())) as u16
    }

    /// Callers of these words.
    pub fn from_words(words: [u64; BITS / 64]) -> Self {
        Self(words)
    }

    /// Adds the caller of a bit.
    pub fn add(&mut self, bit: u16) {
        let (word, mask) = Self::place(bit);
        self.0[word] |= mask;
    }

    /// Word and mask of a bit.
    pub fn place(bit: u16) -> (usize, u64) {
        let bit = usize::from(bit) % BITS;
        (bit / 64, 1 << (bit % 64))
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word |= other);
    }

    /// About how many there were.
    pub fn count(&self) -> u64 {
        let set: u32 = self.0.iter().map(|word| word.count_ones()).sum();
        let (bits, free) = (BITS as f64, BITS as f64 - f64::from(set));
        // With none free there were at least so many.
        let free = free.max(1.0);
        (bits * (bits / free).ln()).round() as u64
    }

    /// As bytes.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(&self.0) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// From [`Self::to_bytes`]; `None` if it is not as long.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::BYTES] = bytes.try_into().ok()?;
        let mut words = [0; BITS / 64];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(chunk.try_into().ok()?);
        }
        Some(Self(words))
    }
}

impl fmt::Debug for Callers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Callers(about {})", self.count())
    }
}

struct Fnv(u64);

impl Write for Fnv {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        Ok(())
    }
}

/// How a version was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Unwraps that were answered with a DEK. Those of a rewrap do not count: it takes a DEK
    /// away from its version.
    pub unwraps: u64,
    /// When the last one was, to the second.
    pub last: Option<SystemTime>,
    /// By whom.
    pub callers: Callers,
}

impl Usage {
    /// Adds what another node counted.
    pub fn merge(&mut self, other: &Self) {
        self.unwraps = self.unwraps.saturating_add(other.unwraps);
        self.last = self.last.max(other.last);
        self.callers.merge(&other.callers);
    }
}

/// How the versions of KEKs were used.
pub type Usages = BTreeMap<KekName, BTreeMap<VersionId, Usage>>;

/// What one node counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Which node: a name that it drew when it began to count.
    pub node: String,
    /// When it began.
    pub since: SystemTime,
    /// When this was written.
    pub at: SystemTime,
    /// What it counted.
    pub usages: Usages,
}

impl Report {
    /// Most KEKs, and most versions of one, that a report may have.
    pub const ENTRIES_MAX: usize = 4096;
}

/// What several nodes counted: for each the newest of its reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census(BTreeMap<String, Report>);

impl Census {
    /// Adds a report. Of two of one node, the later one counts: it holds the other.
    pub fn add(&mut self, report: Report) {
        match self.0.get(&report.node) {
            Some(there) if there.at >= report.at => {}
            _ => _ = self.0.insert(report.node.clone(), report),
        }
    }

    /// The reports, one for each node.
    pub fn reports(&self) -> impl Iterator<Item = &Report> {
        self.0.values()
    }

    /// Since when all of them have counted.
    pub fn since(&self) -> Option<SystemTime> {
        self.reports().map(|report| report.since).max()
    }

    /// How long ago the oldest of them was written, at `now`.
    pub fn oldest(&self, now: SystemTime) -> Option<Duration> {
        let oldest = self.reports().map(|report| report.at).min()?;
        Some(now.duration_since(oldest).unwrap_or_default())
    }

    /// What they counted together.
    pub fn usages(&self) -> Usages {
        let mut all = Usages::new();
        for report in self.reports() {
            for (kek, versions) in &report.usages {
                let all = all.entry(kek.clone()).or_default();
                for (version, usage) in versions {
                    all.entry(version.clone()).or_default().merge(usage);
                }
            }
        }
        all
    }
}

/// What the census has to say about whether a version is still in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was used a short time ago.
    InUse {
        /// When last.
        last: SystemTime,
    },
    /// It was not used for long.
    Quiet {
        /// When last; `None` for never since the counting began.
        last: Option<SystemTime>,
        /// For how long: since then, or since the counting began.
        quiet: Duration,
    },
    /// It was not used, but the counting is too young to say anything.
    TooEarly {
        /// How long there has been counting.
        counted: Duration,
    },
}

impl Verdict {
    /// Of a version that was used so, by those who have counted since then, at `now`.
    pub fn of(usage: &Usage, since: SystemTime, now: SystemTime) -> Self {
        let ago = |at| now.duration_since(at).unwrap_or_default();
        match usage.last {
            Some(last) if ago(last) < QUIET_FOR => Self::InUse { last },
            Some(last) => Self::Quiet { last: Some(last), quiet: ago(last) },
            None if ago(since) < QUIET_FOR => Self::TooEarly { counted: ago(since) },
            None => Self::Quiet { last: None, quiet: ago(since) },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn at(day: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + day * DAY
    }

    #[test]
    fn callers_are_counted_about_and_the_same_everywhere() {
        let mut callers = Callers::default();
        assert_eq!(callers.count(), 0);
        for (n, about) in [(1_u32, 1..=1), (10, 9..=11), (100, 90..=110), (500, 450..=550)] {
            callers = Callers::default();
            for caller in 0..n {
                let bit = Callers::bit(&format!("spiffe://example.org/node/{caller}"));
                callers.add(bit);
                callers.add(bit);
            }
            let count = callers.count();
            assert!(about.contains(&count), "{n}: {count}");
        }
        assert_eq!(Callers::from_bytes(&callers.to_bytes()), Some(callers));
        assert_eq!(Callers::from_bytes(&[0; 127]), None);
        // Nodes of another version of Keyward must agree.
        assert_eq!(Callers::bit(&"uid:0,gid:0"), 828);
        assert!(Callers::from_words([u64::MAX; 16]).count() > 1024);
    }

    #[test]
    fn a_verdict_says_no_more_than_was_counted() {
        let used = |day| Usage { unwraps: 1, last: Some(at(day)), ..Usage::default() };
        let now = at(1000);
        let in_use = Verdict::InUse { last: at(911) };
        assert_eq!(Verdict::of(&used(911), at(0), now), in_use);
        let quiet = Verdict::Quiet { last: Some(at(910)), quiet: 90 * DAY };
        assert_eq!(Verdict::of(&used(910), at(0), now), quiet);
        let never = Usage::default();
        let too_early = Verdict::TooEarly { counted: 89 * DAY };
        assert_eq!(Verdict::of(&never, at(911), now), too_early);
        let quiet = Verdict::Quiet { last: None, quiet: 90 * DAY };
        assert_eq!(Verdict::of(&never, at(910), now), quiet);
        // A clock that went back makes nothing quiet.
        assert_eq!(Verdict::of(&used(1001), at(0), now), Verdict::InUse { last: at(1001) });
    }

    prop_compose! {
        fn any_usage()(
            unwraps in 0..1000_u64, last in prop::option::of(0..1000_u32), bits in prop::collection::vec(0..1024_u16, 0..5),
        ) -> Usage {
            let mut callers = Callers::default();
            bits.into_iter().for_each(|bit| callers.add(bit));
            Usage { unwraps, last: last.map(at), callers }
        }
    }

    prop_compose! {
        pub(super) fn any_report()(
            node in 0..3_u8, since in 0..100_u32, at_day in 100..105_u32,
            usages in prop::collection::btree_map("[a-c]", prop::collection::btree_map("[0-9]{1,2}", any_usage(), 0..3), 0..3),
        ) -> Report {
            let usages = usages.into_iter().map(|(kek, versions)| {
                let versions = versions.into_iter().map(|(id, usage)| (VersionId::parse(&id).unwrap(), usage));
                (KekName::parse(&kek).unwrap(), versions.collect())
            });
            // Two reports of one moment are one report.
            Report { node: format!("{node}-{at_day}-{since}"), since: at(since), at: at(at_day), usages: usages.collect() }
        }
    }

    fn census(reports: &[Report]) -> Census {
        let mut census = Census::default();
        reports.iter().cloned().for_each(|report| census.add(report));
        census
    }

    proptest! {
        #[test]
        fn reports_can_be_added_in_any_order_and_twice(
            reports in prop::collection::vec(any_report(), 0..6),
            seed in any::<u64>(),
        ) {
            let mut seen = std::collections::BTreeSet::new();
            let reports: Vec<_> =
                reports.into_iter().filter(|report| seen.insert(report.node.clone())).collect();
            let mut other = reports.clone();
            other.rotate_left((seed as usize) % reports.len().max(1));
            other.extend(reports.iter().take(2).cloned());
            prop_assert_eq!(census(&reports), census(&other));
            let total: u64 = reports.iter().flat_map(|report| report.usages.values())
                .flat_map(BTreeMap::values).map(|usage| usage.unwraps).sum();
            let merged: u64 = census(&reports).usages().values()
                .flat_map(BTreeMap::values).map(|usage| usage.unwraps).sum();
            prop_assert_eq!(total, merged);
        }
    }

    #[test]
    fn of_two_reports_of_a_node_the_later_one_counts() {
        let report = |day, unwraps| {
            let usage = Usage { unwraps, last: Some(at(day)), ..Usage::default() };
            let versions = BTreeMap::from([(VersionId::parse("1").unwrap(), usage)]);
            let usages = BTreeMap::from([(KekName::parse("orders").unwrap(), versions)]);
            Report { node: "a".into(), since: at(0), at: at(day), usages }
        };
        for order in [[report(1, 10), report(2, 20)], [report(2, 20), report(1, 10)]] {
            let usages = census(&order).usages();
            assert_eq!(usages.values().next().unwrap().values().next().unwrap().unwraps, 20);
        }
    }
}
