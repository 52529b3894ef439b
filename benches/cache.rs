//! The cache of DEKs by itself: lookups with and without the hashing of their key, at
//! three sizes, by one caller and by two at once; inserts, sweeps and purges; and what
//! memory an entry takes.
//!
//! Lookups go to entries in random order, so that the larger sizes pay for the memory
//! that they touch. "Alone" is handed keys as one who has just made them would have them:
//! at hand, not to be fetched from memory first. With two callers, the time is what each
//! of them sees. The floor is one read from memory whose address the read before it gave,
//! in as much memory as the entries and slots of that size take: what the machine asks for
//! a single access that no cache of its processor answers.

use std::{
    fs,
    hint::black_box,
    thread,
    time::{Duration, Instant},
};

use criterion::{Criterion, criterion_group, criterion_main};
use keyward::{
    cache::{Cache, CacheKey, CacheSettings, Grant, Lookup},
    envelope::{Context, Dek},
    kek::Algorithm,
    secret::{Secret, shelves},
};

const SIZES: [(usize, &str); 3] = [(1_000, "1 k"), (100_000, "100 k"), (1_000_000, "1 M")];

/// Longer than any bench.
const HOUR: Duration = Duration::from_secs(3600);

fn empty(capacity: usize) -> Cache {
    let (count, slots) = Cache::layout(capacity);
    let settings = CacheSettings { capacity, ttl: HOUR, idle: HOUR };
    Cache::new(settings, shelves(count, slots, true).expect("memory").0, Instant::now())
        .expect("a cache")
}

fn dek() -> Dek {
    Dek::parse(Secret::new(vec![0x5a; 32])).expect("a DEK")
}

/// The ciphertext of that number, as long as RSA-2048 makes it.
fn ciphertext(n: usize) -> [u8; 256] {
    let mut bytes = [0xa5; 256];
    bytes[..8].copy_from_slice(&n.to_le_bytes());
    bytes
}

fn key(cache: &Cache, n: usize) -> CacheKey {
    cache.key(Grant(1), Algorithm::RsaOaep256, &Context::None, &ciphertext(n))
}

fn insert(cache: &Cache, n: usize, dek: &Dek, now: Instant) {
    cache.insert(&key(cache, n), Grant(1), dek, now, || true);
}

fn fill(cache: &Cache, numbers: impl IntoIterator<Item = usize>) {
    let (dek, now) = (dek(), Instant::now());
    numbers.into_iter().for_each(|n| insert(cache, n, &dek, now));
}

/// Numbers below `below` in an order that no prefetcher guesses.
struct Numbers {
    state: u64,
    below: usize,
}

impl Numbers {
    fn next(&mut self) -> usize {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((u128::from(self.state) * self.below as u128) >> 64) as usize
    }
}

/// Keys that are made before the clock runs.
const BATCH: u64 = 64;

/// On each of `callers` threads, `times` times: makes something of a number below `below`,
/// then looks it up. The time of the slowest, for the lookups alone.
fn timed<T>(
    callers: u64,
    times: u64,
    below: usize,
    make: impl Fn(usize) -> T + Sync,
    lookup: impl Fn(T) + Sync,
) -> Duration {
    let run = |state| {
        let mut numbers = Numbers { state, below };
        let mut made = Vec::with_capacity(BATCH as usize);
        let mut spent = Duration::ZERO;
        let mut left = times;
        while left > 0 {
            let batch = left.min(BATCH);
            made.extend((0..batch).map(|_| make(numbers.next())));
            let start = Instant::now();
            made.drain(..).for_each(&lookup);
            spent += start.elapsed();
            left -= batch;
        }
        spent
    };
    if callers == 1 {
        return run(1);
    }
    thread::scope(|scope| {
        let threads: Vec<_> = (0..callers).map(|state| scope.spawn(move || run(state))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a caller")).max()
    })
    .expect("a caller")
}

/// Bytes that the processor fetches at once.
const LINE: usize = 64;

/// `lines` lines of memory, each holding the number of the next one of a single circle
/// through all of them in random order.
fn circle(lines: usize) -> Vec<[usize; LINE / size_of::<usize>()]> {
    let mut order: Vec<_> = (0..lines).collect();
    for at in (1..lines).rev() {
        order.swap(at, Numbers { state: at as u64, below: at }.next());
    }
    let mut circle = vec![[0; LINE / size_of::<usize>()]; lines];
    for (&from, &to) in order.iter().zip(order.iter().cycle().skip(1)) {
        circle[from][0] = to;
    }
    circle
}

fn lookups(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lookup");
    for (size, name) in SIZES {
        let (circle, mut at) = (circle(2 * size), 0);
        group.bench_function(format!("floor: one read from memory, {name}"), |bencher| {
            bencher.iter(|| at = black_box(&circle)[at][0]);
        });
        drop(circle);
        let cache = empty(size);
        fill(&cache, 0..size);
        let keys: Vec<_> = (0..size).map(|n| key(&cache, n)).collect();
        let now = Instant::now();
        let get = |key| drop(black_box(cache.get(&key, now)));
        for callers in [1, 2] {
            group.bench_function(format!("alone, {name}, callers: {callers}"), |bencher| {
                bencher.iter_custom(|times| timed(callers, times, size, |n| keys[n], get));
            });
            group.bench_function(format!("with hashing, {name}, callers: {callers}"), |bencher| {
                let hash_and_get = |n| get(key(&cache, n));
                bencher.iter_custom(|times| timed(callers, times, size, |n| n, hash_and_get));
            });
        }
        let hits = keys.iter().filter(|key| matches!(cache.get(key, now), Lookup::Hit { .. }));
        println!("{name}: {:.2} % of the DEKs are held", 100.0 * hits.count() as f64 / size as f64);
    }
    group.finish();
}

fn hash(criterion: &mut Criterion) {
    let cache = empty(0);
    let mut group = criterion.benchmark_group("hash");
    for len in [256, 512] {
        let ciphertext = vec![0xa5; len];
        group.bench_function(format!("ciphertext of {len} bytes"), |bencher| {
            bencher.iter(|| {
                let context = black_box(&Context::None);
                cache.key(Grant(1), Algorithm::RsaOaep256, context, black_box(&ciphertext))
            });
        });
    }
    group.finish();
}

fn inserts(criterion: &mut Criterion) {
    let (dek, now) = (dek(), Instant::now());
    let mut group = criterion.benchmark_group("insert");
    let cache = empty(100_000);
    fill(&cache, 0..100_000);
    let mut next = 100_000;
    group.bench_function("with hashing, into a full cache of 100 k", |bencher| {
        bencher.iter(|| {
            insert(&cache, next, &dek, now);
            next += 1;
        });
    });
    let cache = empty(1_000_000);
    fill(&cache, 0..1_000_000);
    group.bench_function("sweep of 1 M entries, none of them over", |bencher| {
        bencher.iter(|| cache.sweep(black_box(now)));
    });
    group.finish();
}

fn purges(_: &mut Criterion) {
    for (size, name, runs) in [(100_000, "100 k", 11), (1_000_000, "1 M", 5)] {
        let cache = empty(size);
        let mut times: Vec<_> = (0..runs)
            .map(|_| {
                fill(&cache, 0..size);
                let start = Instant::now();
                let purged = cache.purge(black_box(|grant| grant == Grant(1)));
                let time = start.elapsed();
                assert!(purged * 100 > size * 95, "{purged} of {size}");
                time
            })
            .collect();
        times.sort();
        println!("purge of {name}: {:.1?} (median of {runs})", times[runs / 2]);
    }
}

fn resident_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
    let kib: usize = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
    kib * 1024
}

/// First of all benches, while the allocator has nothing of earlier ones to hand out.
fn memory(_: &mut Criterion) {
    const SIZE: usize = 1_000_000;
    let before = resident_bytes();
    let cache = empty(SIZE);
    let say = |what: &str| {
        let entries = cache.stats().entries;
        let bytes = resident_bytes().saturating_sub(before);
        let each = bytes as f64 / entries.max(1) as f64;
        println!("memory, {what}: {entries} entries, {bytes} bytes, {each:.0} each");
    };
    say("empty");
    fill(&cache, 0..SIZE);
    say("filled with 1 M");
    fill(&cache, SIZE..3 * SIZE);
    say("after 2 M more have gone through");
}

criterion_group!(benches, memory, hash, lookups, inserts, purges);
criterion_main!(benches);
