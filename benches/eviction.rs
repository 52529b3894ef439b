//! Which entry should give way: the hit ratio of the cache on replayed traces, against
//! FIFO, LRU, CLOCK and SIEVE of the same capacity. It measures no time.
//!
//! The traces are made, always the same ones, of what a storage node does:
//!
//! - *steady*: reads of 100,000 files, each with its own DEK; how often a file is read
//!   follows Zipf's law with exponent 0.9. A file that is opened is read twice within a
//!   short while in one case of four (its header, then its data).
//! - *backup*: the same, and every 400,000 reads a backup goes through all files in their
//!   order, one for each read of the foreground.
//! - *boot*: the same, and every 400,000 reads the node restarts: it opens 30,000 files
//!   in random order, each twice, before the reads go on.
//!
//! Printed is the share of hits among the reads of the foreground: a backup misses
//! whatever the policy, and what matters is whether it hurts the others.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use criterion::{Criterion, criterion_group, criterion_main};
use keyward::{
    cache::{Cache, CacheSettings, Grant, Lookup},
    envelope::{Context, Dek},
    kek::Algorithm,
    secret::{Secret, shelves},
};

const FILES: usize = 100_000;
const READS: usize = 2_000_000;
const PERIOD: usize = 400_000;
const BOOT_FILES: usize = 30_000;

/// One access: to which file, and whether the foreground makes it.
type Access = (u32, bool);

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, below: usize) -> usize {
        ((u128::from(self.next()) * below as u128) >> 64) as usize
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Draws files by Zipf's law. Popularity has nothing to do with the order of the files.
struct Zipf {
    cumulated: Vec<f64>,
    files: Vec<u32>,
}

impl Zipf {
    fn new(exponent: f64, random: &mut Random) -> Self {
        let mut sum = 0.0;
        let weights = (1..=FILES).map(|rank| (rank as f64).powf(-exponent));
        let mut cumulated: Vec<_> = weights
            .map(|weight| {
                sum += weight;
                sum
            })
            .collect();
        cumulated.iter_mut().for_each(|share| *share /= sum);
        Self { cumulated, files: shuffled(random) }
    }

    fn draw(&self, random: &mut Random) -> u32 {
        let at = random.unit();
        let rank = self.cumulated.partition_point(|share| *share < at);
        self.files[rank.min(FILES - 1)]
    }
}

fn shuffled(random: &mut Random) -> Vec<u32> {
    let mut files: Vec<_> = (0..FILES as u32).collect();
    (1..FILES).rev().for_each(|at| files.swap(at, random.below(at + 1)));
    files
}

fn trace(backup: bool, boot: bool) -> Vec<Access> {
    let random = &mut Random(1);
    let zipf = Zipf::new(0.9, random);
    let mut trace = Vec::new();
    let mut scan = FILES..FILES;
    // Reads that follow an open, a few reads later.
    let mut soon = VecDeque::new();
    for read in 0..READS {
        if read % PERIOD == 0 && boot {
            for file in shuffled(random).into_iter().take(BOOT_FILES) {
                trace.extend([(file, true), (file, true)]);
            }
        }
        if read % PERIOD == PERIOD / 2 && backup {
            scan = 0..FILES;
        }
        let file = match soon.front() {
            Some(&(due, file)) if due <= read => {
                soon.pop_front();
                file
            }
            _ => {
                let file = zipf.draw(random);
                if random.below(4) == 0 {
                    soon.push_back((read + 20, file));
                }
                file
            }
        };
        trace.push((file, true));
        trace.extend(scan.next().map(|file| (file as u32, false)));
    }
    trace
}

/// Something that holds some files' DEKs.
trait Store {
    /// Whether it holds this one; it does from now on.
    fn access(&mut self, file: u32) -> bool;
}

/// The real one, through its front door.
struct Real {
    cache: Cache,
    dek: Dek,
    now: Instant,
}

impl Real {
    fn new(capacity: usize) -> Self {
        let (count, slots) = Cache::layout(capacity);
        let hour = Duration::from_secs(3600);
        let settings = CacheSettings { capacity, ttl: hour, idle: hour };
        let now = Instant::now();
        let cache = Cache::new(settings, shelves(count, slots, true).expect("memory").0, now)
            .expect("a cache");
        Self { cache, dek: Dek::parse(Secret::zeroed(16)).expect("a DEK"), now }
    }
}

impl Store for Real {
    fn access(&mut self, file: u32) -> bool {
        let ciphertext = file.to_le_bytes();
        let key = self.cache.key(Grant(1), Algorithm::A256Kw, &Context::None, &ciphertext);
        let hit = matches!(self.cache.get(&key, self.now), Lookup::Hit { .. });
        if !hit {
            self.cache.insert(&key, Grant(1), &self.dek, self.now, || true);
        }
        hit
    }
}

/// FIFO, and with marks CLOCK: what was used since it came to the front goes round again.
struct Fifo {
    queue: VecDeque<u32>,
    held: Vec<bool>,
    marked: Vec<bool>,
    marks: bool,
    capacity: usize,
}

impl Fifo {
    fn new(capacity: usize, marks: bool) -> Self {
        let (held, marked) = (vec![false; FILES], vec![false; FILES]);
        Self { queue: VecDeque::new(), held, marked, marks, capacity }
    }
}

impl Store for Fifo {
    fn access(&mut self, file: u32) -> bool {
        if self.held[file as usize] {
            self.marked[file as usize] = self.marks;
            return true;
        }
        while self.queue.len() == self.capacity {
            let oldest = self.queue.pop_front().expect("it is full");
            if std::mem::take(&mut self.marked[oldest as usize]) {
                self.queue.push_back(oldest);
            } else {
                self.held[oldest as usize] = false;
            }
        }
        self.queue.push_back(file);
        self.held[file as usize] = true;
        false
    }
}

/// LRU: a queue in which each file counts at its latest place only.
struct Lru {
    queue: VecDeque<(u32, u64)>,
    latest: Vec<Option<u64>>,
    held: usize,
    time: u64,
    capacity: usize,
}

impl Lru {
    fn new(capacity: usize) -> Self {
        Self { queue: VecDeque::new(), latest: vec![None; FILES], held: 0, time: 0, capacity }
    }
}

impl Store for Lru {
    fn access(&mut self, file: u32) -> bool {
        self.time += 1;
        self.queue.push_back((file, self.time));
        if self.latest[file as usize].replace(self.time).is_some() {
            return true;
        }
        self.held += 1;
        while self.held > self.capacity {
            let (oldest, time) = self.queue.pop_front().expect("it is full");
            if self.latest[oldest as usize] == Some(time) {
                self.latest[oldest as usize] = None;
                self.held -= 1;
            }
        }
        false
    }
}

/// SIEVE (Zhang et al., NSDI 2024): a FIFO with marks whose hand moves on while what it
/// passes stays where it is.
struct Sieve {
    /// Oldest first. Holes are `None`, closed when there are too many.
    queue: Vec<Option<u32>>,
    hand: usize,
    held: Vec<bool>,
    marked: Vec<bool>,
    len: usize,
    capacity: usize,
}

impl Sieve {
    fn new(capacity: usize) -> Self {
        let (held, marked) = (vec![false; FILES], vec![false; FILES]);
        Self { queue: Vec::new(), hand: 0, held, marked, len: 0, capacity }
    }

    fn evict(&mut self) {
        loop {
            let at = self.hand;
            // Back to the oldest at once, so that the hand never waits for the next newcomer.
            self.hand = (at + 1) % self.queue.len();
            let Some(file) = self.queue[at] else { continue };
            if !std::mem::take(&mut self.marked[file as usize]) {
                self.queue[at] = None;
                self.held[file as usize] = false;
                self.len -= 1;
                return;
            }
        }
    }
}

impl Store for Sieve {
    fn access(&mut self, file: u32) -> bool {
        if self.held[file as usize] {
            self.marked[file as usize] = true;
            return true;
        }
        if self.len == self.capacity {
            self.evict();
        }
        if self.queue.len() > 2 * self.capacity {
            self.hand = self.queue[..self.hand].iter().flatten().count();
            self.queue.retain(Option::is_some);
            self.hand %= self.queue.len();
        }
        self.queue.push(Some(file));
        self.held[file as usize] = true;
        self.len += 1;
        false
    }
}

fn hit_percent(store: &mut dyn Store, trace: &[Access]) -> f64 {
    let (mut hits, mut reads) = (0, 0);
    for (file, foreground) in trace {
        let hit = store.access(*file);
        reads += usize::from(*foreground);
        hits += usize::from(*foreground && hit);
    }
    100.0 * hits as f64 / reads as f64
}

fn replay(_: &mut Criterion) {
    let traces = [
        ("steady", trace(false, false)),
        ("backup", trace(true, false)),
        ("boot", trace(false, true)),
        ("backup and boot", trace(true, true)),
    ];
    println!("hits of the foreground in %     capacity   cache    FIFO     LRU   CLOCK   SIEVE");
    for (name, trace) in &traces {
        for capacity in [1_000, 5_000, 10_000, 20_000, 50_000] {
            let mut stores: [Box<dyn Store>; 5] = [
                Box::new(Real::new(capacity)),
                Box::new(Fifo::new(capacity, false)),
                Box::new(Lru::new(capacity)),
                Box::new(Fifo::new(capacity, true)),
                Box::new(Sieve::new(capacity)),
            ];
            print!("{name:<32} {capacity:>7}");
            for store in &mut stores {
                print!(" {:>7.2}", hit_percent(store.as_mut(), trace));
            }
            println!();
        }
    }
}

criterion_group!(benches, replay);
criterion_main!(benches);
