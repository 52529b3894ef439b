//! What the cache counts. Numbers only; nothing here decides anything.

use std::ops::AddAssign;

/// Why an entry is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    Capacity,
    Ttl,
    Idle,
    Purge,
    Failed,
}

/// Entries that are gone, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evicted {
    /// Another entry needed the room.
    pub capacity: u64,
    /// Their time to live was over.
    pub ttl: u64,
    /// Nobody asked for them for the idle time.
    pub idle: u64,
    /// Purged.
    pub purge: u64,
    /// Their ciphertext was unwrapped anew, and failed.
    pub failed: u64,
}

/// What the cache holds, and what it did since it began.
///
/// `inserted` is always `entries` and all of `evicted` together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// DEKs that are held.
    pub entries: u64,
    /// Bytes of DEKs that are held.
    pub bytes: u64,
    /// DEKs that can be held.
    pub capacity: u64,
    /// Ciphertexts that are remembered because they failed.
    pub invalid_entries: u64,
    /// Lookups that found a DEK.
    pub hits: u64,
    /// Of those, the ones that told their caller to unwrap it anew.
    pub refreshes: u64,
    /// Lookups that found a ciphertext that had failed.
    pub invalid_hits: u64,
    /// Lookups that found nothing.
    pub misses: u64,
    /// DEKs that were taken in.
    pub inserted: u64,
    /// DEKs that took the place of their own earlier entry.
    pub replaced: u64,
    /// DEKs that were not taken in: their grant had ended, or there is no room at all.
    pub refused: u64,
    /// DEKs that are gone.
    pub evicted: Evicted,
}

impl Evicted {
    /// Of all causes.
    pub fn total(&self) -> u64 {
        self.capacity + self.ttl + self.idle + self.purge + self.failed
    }

    pub(super) fn count(&mut self, cause: Cause) {
        match cause {
            Cause::Capacity => self.capacity += 1,
            Cause::Ttl => self.ttl += 1,
            Cause::Idle => self.idle += 1,
            Cause::Purge => self.purge += 1,
            Cause::Failed => self.failed += 1,
        }
    }
}

impl AddAssign for CacheStats {
    fn add_assign(&mut self, other: Self) {
        // Taken apart, so that a new field cannot be forgotten here.
        let Self {
            entries,
            bytes,
            capacity,
            invalid_entries,
            hits,
            refreshes,
            invalid_hits,
            misses,
            inserted,
            replaced,
            refused,
            evicted,
        } = other;
        self.entries += entries;
        self.bytes += bytes;
        self.capacity += capacity;
        self.invalid_entries += invalid_entries;
        self.hits += hits;
        self.refreshes += refreshes;
        self.invalid_hits += invalid_hits;
        self.misses += misses;
        self.inserted += inserted;
        self.replaced += replaced;
        self.refused += refused;
        let Evicted { capacity, ttl, idle, purge, failed } = evicted;
        self.evicted.capacity += capacity;
        self.evicted.ttl += ttl;
        self.evicted.idle += idle;
        self.evicted.purge += purge;
        self.evicted.failed += failed;
    }
}
