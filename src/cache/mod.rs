//! The cache of DEKs: so that what was unwrapped once comes from memory the next time,
//! for as long as it may.
//!
//! It decides how long, and what has to go when there is no room. It does not know who
//! may ask, whether a KEK is still allowed, or how to unwrap: its caller names each
//! entry's [`Grant`] (in practice a KEK version under one lease), and ends a grant by
//! purging it.
//!
//! Invariants:
//! - DEKs stand in the slab (`secret::Shelf`) and nowhere else; a hit makes one copy.
//! - What expires, is evicted, replaced or purged is wiped before the call returns.
//! - Nothing is handed out past its TTL or idle time, swept or not.
//! - What was purged does not come back: an insert asks, under the lock that a purge takes
//!   too, whether what it brings is alive. Whoever purges first makes that answer no, for
//!   good (the grant has ended) or for what was begun by then.
//!
//! Shards behind plain mutexes: a lookup holds one for some tens of nanoseconds, and two
//! callers rarely want the same.

mod clock;
mod failures;
mod flight;
mod key;
mod policy;
mod shard;
mod stats;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

pub use flight::{Flights, Gone, Joined, Overloaded, Role};
pub use key::CacheKey;
pub use stats::{CacheStats, Evicted};

use self::{
    clock::{Clock, ticks},
    key::Keyer,
    shard::{Lives, Shard},
};
use crate::{
    envelope::{Context, Dek},
    error::Error,
    kek::Algorithm,
    secret::Shelf,
};

/// Most shards.
const SHARDS_MAX: usize = 64;

/// Fewest slots of a shard, if there is more than one. Keys fall into shards at random,
/// so the fullest is full before the cache is: with so many slots each, a cache that is
/// asked for exactly as many DEKs as it has slots keeps all but some 1 % of them.
const SHARD_SLOTS_MIN: usize = 1024;

/// How long a ciphertext that failed is remembered.
const INVALID_TTL: Duration = Duration::from_secs(30);

/// How many ciphertexts that failed are remembered.
const INVALID_MAX: usize = 4096;

/// How much is cached, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSettings {
    /// DEKs held at most; each takes 64 bytes of locked memory from the start. 0 turns
    /// the cache off.
    pub capacity: usize,
    /// How long a DEK is held at most. Each entry's own is up to a tenth shorter. After
    /// four fifths of it, one caller is told to unwrap the DEK anew.
    pub ttl: Duration,
    /// How long a DEK is held that nobody asks for.
    pub idle: Duration,
}

/// The caller's name for what lets an entry be used: entries are purged by it. Names are
/// never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grant(pub u64);

/// What the cache knows of a ciphertext.
#[derive(Debug)]
pub enum Lookup {
    /// Its DEK.
    Hit {
        /// A copy, the caller's own.
        dek: Dek,
        /// Whether this caller should have it unwrapped anew, in the background, and
        /// inserted: true for one caller, and until it is inserted for one more in each
        /// twentieth of its life.
        refresh: bool,
    },
    /// It did not unwrap a short time ago.
    Invalid,
    /// Nothing.
    Miss,
}

/// DEKs in memory, shared by all who unwrap.
pub struct Cache {
    shards: Box<[Mutex<Shard>]>,
    keyer: Keyer,
    clock: Clock,
}

impl Cache {
    /// How many shelves a cache of `capacity` DEKs needs, and how many slots each. That
    /// is up to 63 slots less than `capacity` in all, if it does not divide.
    pub fn layout(capacity: usize) -> (usize, usize) {
        let wanted = (capacity / SHARD_SLOTS_MIN).clamp(1, SHARDS_MAX);
        let count = 1 << wanted.ilog2();
        (count, capacity / count)
    }

    /// An empty cache on these shelves, which are of the [layout](Self::layout) of its
    /// capacity and hold nothing.
    ///
    /// # Errors
    /// `INTERNAL` if the system has no random bytes.
    ///
    /// # Panics
    /// If the shelves are of another layout.
    pub fn new(settings: CacheSettings, shelves: Vec<Shelf>, now: Instant) -> Result<Self, Error> {
        let (count, slots) = Self::layout(settings.capacity);
        assert!(
            shelves.len() == count && shelves.iter().all(|shelf| shelf.slots() == slots),
            "the shelves are not of the cache's layout"
        );
        let lives = Lives {
            ttl: ticks(settings.ttl),
            idle: ticks(settings.idle),
            invalid: ticks(INVALID_TTL),
        };
        let shard = |shelf| Mutex::new(Shard::new(shelf, lives, INVALID_MAX / count));
        Ok(Self {
            shards: shelves.into_iter().map(shard).collect(),
            keyer: Keyer::new()?,
            clock: Clock::new(now),
        })
    }

    /// What a DEK is found by.
    pub fn key(
        &self,
        grant: Grant,
        algorithm: Algorithm,
        context: &Context,
        ciphertext: &[u8],
    ) -> CacheKey {
        self.keyer.key(grant, algorithm, context, ciphertext)
    }

    /// Looks a DEK up.
    pub fn get(&self, key: &CacheKey, now: Instant) -> Lookup {
        let now = self.clock.tick(now);
        self.shard(key).get(key, now)
    }

    /// Takes a DEK in, in place of an earlier one of the same key, and says whether it
    /// did. `alive` says whether the grant, which must be the key's, has not ended, nor a
    /// purge come since the DEK was asked for; it is asked under a lock and must not wait or
    /// call the cache.
    pub fn insert(
        &self,
        key: &CacheKey,
        grant: Grant,
        dek: &Dek,
        now: Instant,
        alive: impl FnOnce() -> bool,
    ) -> bool {
        let now = self.clock.tick(now);
        self.shard(key).insert(key, grant, dek, now, alive)
    }

    /// Remembers for half a minute that a ciphertext did not unwrap. What is held for it
    /// goes. `alive` is as in [`Cache::insert`].
    pub fn insert_invalid(
        &self,
        key: &CacheKey,
        grant: Grant,
        now: Instant,
        alive: impl FnOnce() -> bool,
    ) {
        let now = self.clock.tick(now);
        self.shard(key).insert_invalid(key, grant, now, alive);
    }

    /// Wipes all entries of the grants that `gone` names, and says how many DEKs that
    /// were. `gone` is asked under a lock and must not wait or call the cache.
    pub fn purge(&self, gone: impl Fn(Grant) -> bool) -> usize {
        self.shards.iter().map(|shard| lock(shard).purge(&gone)).sum()
    }

    /// Wipes all entries, and says how many DEKs that were.
    pub fn purge_all(&self) -> usize {
        self.purge(|_| true)
    }

    /// Wipes what is over, and says how many DEKs that were. Meant to be called a few
    /// times a second: nearly free when nothing is over.
    pub fn sweep(&self, now: Instant) -> usize {
        let now = self.clock.tick(now);
        self.shards.iter().map(|shard| lock(shard).sweep(now)).sum()
    }

    /// What is held, and what was done.
    pub fn stats(&self) -> CacheStats {
        let mut all = CacheStats::default();
        self.shards.iter().for_each(|shard| all += lock(shard).stats());
        all
    }

    fn shard(&self, key: &CacheKey) -> MutexGuard<'_, Shard> {
        // A power of two, so the mask reaches each.
        lock(&self.shards[key.shard_hash() as usize & (self.shards.len() - 1)])
    }
}

/// A panic under the lock can only come from a caller's `alive` or `gone`, and a shard
/// is whole whenever it asks them.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cache({} shards)", self.shards.len())
    }
}
