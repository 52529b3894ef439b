//! The cache as its callers see it: single promises, and a model that any sequence of
//! calls has to agree with.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    thread,
};

use aws_lc_rs::digest;
use proptest::prelude::*;

use super::*;
use crate::secret::{Secret, shelves};

const TTL: Duration = Duration::from_secs(100);
const IDLE: Duration = Duration::from_secs(60);

fn settings(capacity: usize) -> CacheSettings {
    CacheSettings { capacity, ttl: TTL, idle: IDLE }
}

fn cache(settings: CacheSettings, start: Instant) -> Cache {
    let (count, slots) = Cache::layout(settings.capacity);
    Cache::new(settings, shelves(count, slots, true).unwrap().0, start).unwrap()
}

fn dek(fill: u8, len: usize) -> Dek {
    Dek::parse(Secret::new(vec![fill; len])).unwrap()
}

/// Always the same key for the same number, so that a failure comes back.
fn key(n: u32) -> CacheKey {
    let hash = digest::digest(&digest::SHA256, &n.to_le_bytes());
    CacheKey::of(hash.as_ref().try_into().unwrap())
}

fn hit(lookup: Lookup) -> Option<(Vec<u8>, bool)> {
    match lookup {
        Lookup::Hit { dek, refresh } => Some((dek.secret().expose().to_vec(), refresh)),
        Lookup::Invalid | Lookup::Miss => None,
    }
}

fn is_clean(cache: &Cache) -> bool {
    cache.shards.iter().all(|shard| lock(shard).is_clean())
}

const YES: fn() -> bool = || true;

#[test]
fn the_layout_never_exceeds_the_capacity_and_is_close_to_it() {
    assert_eq!(Cache::layout(0), (1, 0));
    assert_eq!(Cache::layout(1000), (1, 1000));
    assert_eq!(Cache::layout(3000), (2, 1500));
    assert_eq!(Cache::layout(1_000_000), (64, 15_625));
    for capacity in (0..200_000).step_by(997) {
        let (count, slots) = Cache::layout(capacity);
        assert!(count.is_power_of_two() && count <= 64);
        assert!((capacity - count.min(capacity)..=capacity).contains(&(count * slots)));
    }
}

#[test]
#[should_panic(expected = "layout")]
fn shelves_of_another_layout_are_refused() {
    let _ = Cache::new(settings(100), shelves(1, 99, true).unwrap().0, Instant::now());
}

#[test]
fn a_cache_of_no_capacity_takes_nothing_in() {
    let now = Instant::now();
    let cache = cache(settings(0), now);
    assert!(!cache.insert(&key(1), Grant(1), &dek(1, 32), now, YES));
    assert!(matches!(cache.get(&key(1), now), Lookup::Miss));
    assert_eq!(cache.stats().refused, 1);
}

#[test]
fn a_life_too_short_to_measure_is_none() {
    let now = Instant::now();
    for settings in [
        CacheSettings { ttl: Duration::from_millis(99), ..settings(10) },
        CacheSettings { idle: Duration::from_millis(99), ..settings(10) },
    ] {
        assert!(!cache(settings, now).insert(&key(1), Grant(1), &dek(1, 32), now, YES));
    }
}

#[test]
fn a_shorter_dek_in_the_place_of_a_longer_one_leaves_nothing_of_it() {
    let now = Instant::now();
    let cache = cache(settings(10), now);
    assert!(cache.insert(&key(1), Grant(1), &dek(1, 64), now, YES));
    assert!(cache.insert(&key(1), Grant(1), &dek(2, 16), now, YES));
    assert_eq!(hit(cache.get(&key(1), now)).unwrap().0, [2; 16]);
    assert!(is_clean(&cache));
    let stats = cache.stats();
    assert_eq!((stats.entries, stats.bytes, stats.inserted, stats.replaced), (1, 16, 1, 1));
}

#[test]
fn a_lookup_wipes_what_it_finds_expired() {
    let now = Instant::now();
    let cache = cache(settings(10), now);
    cache.insert(&key(1), Grant(1), &dek(1, 32), now, YES);
    assert!(matches!(cache.get(&key(1), now + TTL), Lookup::Miss));
    assert_eq!((cache.stats().entries, cache.stats().evicted.ttl), (0, 1));
    assert!(is_clean(&cache));
}

#[test]
fn use_moves_the_idle_time_on_but_never_the_ttl() {
    let start = Instant::now();
    let cache = cache(settings(10), start);
    cache.insert(&key(1), Grant(1), &dek(1, 32), start, YES);
    cache.insert(&key(2), Grant(1), &dek(2, 32), start, YES);
    assert!(hit(cache.get(&key(1), start + IDLE / 2)).is_some());
    assert_eq!(cache.sweep(start + IDLE), 1);
    assert!(hit(cache.get(&key(1), start + IDLE)).is_some());
    assert_eq!(cache.sweep(start + TTL), 1);
    let Evicted { ttl, idle, .. } = cache.stats().evicted;
    assert_eq!((ttl, idle), (1, 1));
    assert!(is_clean(&cache));
}

#[test]
fn jitter_only_shortens_and_spreads() {
    let start = Instant::now();
    let long_idle = CacheSettings { idle: TTL * 2, ..settings(1000) };
    let cache = cache(long_idle, start);
    for n in 0..1000 {
        assert!(cache.insert(&key(n), Grant(1), &dek(1, 32), start, YES));
    }
    assert_eq!(cache.sweep(start + TTL.mul_f64(0.9) - Duration::from_millis(1)), 0);
    for tenth in 1..=10 {
        let swept = cache.sweep(start + TTL.mul_f64(0.9 + 0.01 * f64::from(tenth)));
        assert!((60..=140).contains(&swept), "{swept} in tenth {tenth}");
    }
    assert_eq!(cache.stats().entries, 0);
}

#[test]
fn one_caller_is_told_to_refresh() {
    let start = Instant::now();
    let cache = cache(CacheSettings { idle: TTL, ..settings(10) }, start);
    cache.insert(&key(1), Grant(1), &dek(1, 32), start, YES);
    let refresh = |at: f64| hit(cache.get(&key(1), start + TTL.mul_f64(at))).unwrap().1;
    assert_eq!([0.0, 0.7, 0.81, 0.82, 0.85].map(refresh), [false, false, true, false, false]);
    cache.insert(&key(1), Grant(1), &dek(1, 32), start + TTL.mul_f64(0.85), YES);
    assert_eq!([0.9, 1.67, 1.68].map(refresh), [false, true, false]);
    assert_eq!(cache.stats().refreshes, 2);
}

#[test]
fn a_refresh_that_nothing_came_of_is_asked_for_again() {
    let start = Instant::now();
    let cache = cache(CacheSettings { idle: TTL, ..settings(10) }, start);
    cache.insert(&key(1), Grant(1), &dek(1, 32), start, YES);
    // Told once, and the backend was away just then. 90 % is the shortest life that there is.
    let told: Vec<u32> =
        (0..900).filter(|tick| hit(cache.get(&key(1), start + GRAIN * *tick)).unwrap().1).collect();
    assert!((2..=4).contains(&told.len()), "{told:?}");
    assert!(told.windows(2).all(|pair| (45..=50).contains(&(pair[1] - pair[0]))), "{told:?}");
}

#[test]
fn a_grant_that_has_ended_lets_nothing_in() {
    let now = Instant::now();
    let cache = cache(settings(10), now);
    assert!(cache.insert(&key(1), Grant(1), &dek(1, 32), now, YES));
    cache.insert_invalid(&key(2), Grant(1), now, YES);
    assert_eq!(cache.purge(|grant| grant == Grant(1)), 1);
    assert!(!cache.insert(&key(1), Grant(1), &dek(1, 32), now, || false));
    cache.insert_invalid(&key(2), Grant(1), now, || false);
    for n in [1, 2] {
        assert!(matches!(cache.get(&key(n), now), Lookup::Miss));
    }
    assert!(is_clean(&cache));
    let stats = cache.stats();
    assert_eq!((stats.entries, stats.invalid_entries, stats.refused), (0, 0, 1));
}

#[test]
fn nothing_slips_in_behind_a_purge() {
    let now = Instant::now();
    for _ in 0..50 {
        let cache = cache(settings(4096), now);
        let alive = AtomicBool::new(true);
        thread::scope(|scope| {
            for thread in 0..3 {
                let (cache, alive) = (&cache, &alive);
                scope.spawn(move || {
                    for n in 0..200 {
                        let key = key(thread * 1000 + n);
                        cache.insert(&key, Grant(1), &dek(1, 32), now, || alive.load(SeqCst));
                        cache.insert_invalid(&key, Grant(1), now, || {
                            n % 2 == 0 && alive.load(SeqCst)
                        });
                    }
                });
            }
            alive.store(false, SeqCst);
            cache.purge(|grant| grant == Grant(1));
        });
        let stats = cache.stats();
        assert_eq!((stats.entries, stats.invalid_entries), (0, 0));
        assert!(is_clean(&cache));
    }
}

#[test]
fn a_dek_ends_the_memory_of_a_failure_and_a_failure_drops_the_dek() {
    let now = Instant::now();
    let cache = cache(settings(10), now);
    cache.insert_invalid(&key(1), Grant(1), now, YES);
    assert!(matches!(cache.get(&key(1), now), Lookup::Invalid));
    cache.insert(&key(1), Grant(1), &dek(1, 32), now, YES);
    assert!(hit(cache.get(&key(1), now)).is_some());
    cache.insert_invalid(&key(1), Grant(1), now, YES);
    assert!(matches!(cache.get(&key(1), now), Lookup::Invalid));
    assert!(is_clean(&cache));
    assert_eq!(cache.stats().evicted.failed, 1);
    assert!(matches!(cache.get(&key(1), now + INVALID_TTL), Lookup::Miss));
}

#[test]
fn failures_are_bounded() {
    let now = Instant::now();
    let cache = cache(settings(10), now);
    (0..5000).for_each(|n| cache.insert_invalid(&key(n), Grant(1), now, YES));
    assert_eq!(cache.stats().invalid_entries, INVALID_MAX as u64);
}

/// A panic in a caller's closure must not make the shard, and the purge of it, unusable.
#[test]
fn a_panic_under_the_lock_leaves_the_cache_whole() {
    let now = Instant::now();
    let cache = cache(settings(10), now);
    cache.insert(&key(1), Grant(1), &dek(1, 32), now, YES);
    let insert = || cache.insert(&key(2), Grant(1), &dek(2, 32), now, || panic!("on purpose"));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(insert)).is_err());
    assert!(hit(cache.get(&key(1), now)).is_some());
    assert_eq!(cache.purge_all(), 1);
    assert!(is_clean(&cache));
}

#[derive(Clone, Debug)]
enum Step {
    Get(u32),
    Insert { n: u32, fill: u8, len: usize, alive: bool },
    InsertInvalid { n: u32, alive: bool },
    Purge(u64),
    PurgeAll,
    Sweep,
    Wait(Duration),
}

const KEYS: u32 = 12;

fn grant_of(n: u32) -> Grant {
    Grant(u64::from(n % 3))
}

fn step() -> impl Strategy<Value = Step> {
    let n = 0..KEYS;
    prop_oneof![
        8 => n.clone().prop_map(Step::Get),
        6 => (n.clone(), 1u8.., 16usize..=64, prop::bool::weighted(0.9))
            .prop_map(|(n, fill, len, alive)| Step::Insert { n, fill, len, alive }),
        1 => (n, prop::bool::weighted(0.9))
            .prop_map(|(n, alive)| Step::InsertInvalid { n, alive }),
        1 => (0u64..3).prop_map(Step::Purge),
        1 => Just(Step::PurgeAll),
        2 => Just(Step::Sweep),
        4 => (0u64..30_000).prop_map(|ms| Step::Wait(Duration::from_millis(ms))),
    ]
}

/// One tick, the grain of the cache's clock.
const GRAIN: Duration = Duration::from_millis(100);

/// What the model knows of a DEK that was taken in and not taken out by a call.
struct Held {
    bytes: Vec<u8>,
    inserted: Instant,
    used: Instant,
    /// When somebody was told last to refresh it.
    told: Option<Instant>,
}

impl Held {
    /// It may not be handed out any more.
    fn is_over(&self, now: Instant) -> bool {
        now - self.inserted >= TTL || now - self.used >= IDLE + GRAIN
    }

    /// No jitter and no rounding can have ended it yet.
    fn is_fresh(&self, now: Instant) -> bool {
        now - self.inserted + GRAIN < TTL.mul_f64(0.9) && now - self.used + GRAIN < IDLE
    }
}

/// A cache and the naive idea of it, side by side.
struct Model {
    cache: Cache,
    now: Instant,
    held: BTreeMap<u32, Held>,
    failed: BTreeMap<u32, Instant>,
    /// Fresh DEKs that the cache did not have: evicted for room.
    lost: u64,
}

impl Model {
    fn new(capacity: usize) -> Self {
        let now = Instant::now();
        let cache = cache(settings(capacity), now);
        Self { cache, now, held: BTreeMap::new(), failed: BTreeMap::new(), lost: 0 }
    }

    fn take(&mut self, step: Step) -> Result<(), TestCaseError> {
        let now = self.now;
        match step {
            Step::Get(n) => self.get(n)?,
            Step::Insert { n, fill, len, alive } => {
                let dek = dek(fill, len);
                let taken = self.cache.insert(&key(n), grant_of(n), &dek, now, || alive);
                prop_assert_eq!(taken, alive);
                if alive {
                    let bytes = vec![fill; len];
                    let held = Held { bytes, inserted: now, used: now, told: None };
                    self.held.insert(n, held);
                    self.failed.remove(&n);
                }
            }
            Step::InsertInvalid { n, alive } => {
                self.cache.insert_invalid(&key(n), grant_of(n), now, || alive);
                if alive {
                    self.held.remove(&n);
                    self.failed.insert(n, now);
                }
            }
            Step::Purge(grant) => self.purge(|other| other == Grant(grant))?,
            Step::PurgeAll => self.purge(|_| true)?,
            Step::Sweep => {
                self.cache.sweep(now);
                self.held.retain(|_, held| !held.is_over(now));
                prop_assert!(self.cache.stats().entries <= self.held.len() as u64);
            }
            Step::Wait(time) => self.now += time,
        }
        self.check()
    }

    fn get(&mut self, n: u32) -> Result<(), TestCaseError> {
        let (now, lookup) = (self.now, self.cache.get(&key(n), self.now));
        let failed = self.failed.get(&n).map(|at| now - *at);
        let Some((bytes, refresh)) = hit_or_invalid(lookup, failed)? else {
            if self.held.remove(&n).is_some_and(|held| held.is_fresh(now)) {
                self.lost += 1;
            }
            return Ok(());
        };
        let held = self.held.get_mut(&n);
        prop_assert!(held.is_some(), "{} was taken out", n);
        let held = held.unwrap();
        prop_assert!(!held.is_over(now));
        prop_assert_eq!(&bytes, &held.bytes);
        let age = now - held.inserted;
        // What a life may be: up to a tenth less than the TTL.
        let (shortest, longest) = (TTL.mul_f64(0.9), TTL);
        let since = held.told.map(|told| now - told);
        if refresh {
            prop_assert!(age + GRAIN >= shortest.mul_f64(0.8), "told to refresh too early");
            let soon = since.is_some_and(|since| since + GRAIN * 2 < shortest / 20);
            prop_assert!(!soon, "told to refresh twice");
            held.told = Some(now);
        } else {
            let due = match since {
                None => age > longest.mul_f64(0.8) + GRAIN * 2,
                Some(since) => since > longest / 20 + GRAIN * 2,
            };
            prop_assert!(!due, "not told to refresh");
        }
        held.used = now;
        Ok(())
    }

    fn purge(&mut self, gone: impl Fn(Grant) -> bool) -> Result<(), TestCaseError> {
        let before = self.cache.stats();
        let count = self.cache.purge(&gone) as u64;
        let after = self.cache.stats();
        prop_assert_eq!(before.entries - after.entries, count);
        prop_assert_eq!(after.evicted.purge - before.evicted.purge, count);
        self.held.retain(|n, _| !gone(grant_of(*n)));
        self.failed.retain(|n, _| !gone(grant_of(*n)));
        Ok(())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let stats = self.cache.stats();
        prop_assert!(stats.entries <= stats.capacity);
        prop_assert!(stats.entries <= self.held.len() as u64);
        prop_assert_eq!(stats.inserted, stats.entries + stats.evicted.total());
        prop_assert!((stats.entries * 16..=stats.entries * 64).contains(&stats.bytes));
        prop_assert!(self.lost <= stats.evicted.capacity, "a DEK is gone for no reason");
        if u64::from(KEYS) <= stats.capacity {
            prop_assert_eq!(self.lost, 0);
            let fresh = self.held.values().filter(|held| held.is_fresh(self.now)).count();
            prop_assert!(stats.entries >= fresh as u64);
            let bytes = self.held.values().map(|held| held.bytes.len() as u64).sum::<u64>();
            prop_assert!(stats.bytes <= bytes);
        }
        Ok(())
    }
}

/// `failed`: how long ago the model saw it fail.
fn hit_or_invalid(
    lookup: Lookup,
    failed: Option<Duration>,
) -> Result<Option<(Vec<u8>, bool)>, TestCaseError> {
    let invalid = matches!(lookup, Lookup::Invalid);
    match failed {
        None => prop_assert!(!invalid, "it never failed"),
        Some(ago) if ago >= INVALID_TTL => prop_assert!(!invalid, "it failed too long ago"),
        Some(ago) if ago + GRAIN < INVALID_TTL => prop_assert!(invalid, "it failed just now"),
        Some(_) => {}
    }
    Ok(hit(lookup))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_small_cache_agrees_with_the_model(steps in prop::collection::vec(step(), 1..300)) {
        let mut model = Model::new(5);
        for step in steps {
            model.take(step)?;
            prop_assert!(is_clean(&model.cache));
        }
    }

    #[test]
    fn a_roomy_cache_agrees_with_the_model(steps in prop::collection::vec(step(), 1..300)) {
        // Two shards, so that what concerns all of them is seen to.
        let mut model = Model::new(2048);
        for step in steps {
            model.take(step)?;
        }
        prop_assert!(is_clean(&model.cache));
    }
}
