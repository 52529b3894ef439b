//! One shard of the cache: a shelf of slots, what stands in each, and when it has to go.
//! The cache puts a lock around it; inside, `now` is a value.
//!
//! Invariants:
//! - A slot that no entry holds is zeros: every way out of the shard goes through
//!   [`Shard::release`], which wipes.
//! - An entry whose time is over is never handed out, whether or not the sweep has come
//!   by; whoever finds it wipes it.
//! - `due` of a block is never later than the first moment at which one of its entries
//!   is over. It may be earlier, because a use moves the idle time of an entry on.

use hashbrown::HashTable;

use super::{
    CacheKey, Grant, Lookup,
    clock::Tick,
    failures::Failures,
    policy::Policy,
    stats::{CacheStats, Cause},
};
use crate::{
    envelope::Dek,
    secret::{Secret, Shelf},
};

/// Slots that share one lower bound of their next expiry, and are looked through
/// together when it is reached.
const BLOCK: usize = 256;

/// A refresh that nothing came of is asked for again after this part of the entry's life.
const REFRESH_AGAIN: Tick = 20;

/// How long entries live, in ticks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lives {
    pub(super) ttl: Tick,
    pub(super) idle: Tick,
    pub(super) invalid: Tick,
}

pub(super) struct Shard {
    shelf: Shelf,
    /// By slot, up to the highest that was ever used: an empty cache takes no room.
    entries: Vec<Entry>,
    /// Slots below `entries.len()` that no entry holds.
    free: Vec<u32>,
    /// Slots by the hash of their key.
    index: HashTable<u32>,
    /// By block of slots.
    due: Vec<Tick>,
    policy: Policy,
    failures: Failures,
    lives: Lives,
    /// `entries`, `capacity` and `invalid_entries` are filled in when asked for.
    counts: CacheStats,
}

/// One line of the processor's cache: what a lookup reads of it comes at once.
#[repr(align(64))]
struct Entry {
    key: CacheKey,
    grant: Grant,
    /// Over from this tick on.
    expires: Tick,
    /// From this tick on, the next caller is told to refresh it. Whoever is told moves it
    /// on: that one may not come to do it.
    refresh: Tick,
    /// When it was last asked for.
    used: Tick,
    /// Bytes of the DEK. 0: the slot is free.
    len: u8,
}

impl Entry {
    /// When it is over if nobody asks for it.
    fn due(&self, idle: Tick) -> Tick {
        self.expires.min(self.used.saturating_add(idle))
    }

    fn over(&self, now: Tick, idle: Tick) -> Option<Cause> {
        if now >= self.expires {
            Some(Cause::Ttl)
        } else if now >= self.used.saturating_add(idle) {
            Some(Cause::Idle)
        } else {
            None
        }
    }
}

impl Shard {
    /// An empty shard that remembers up to `failures_max` failures.
    pub(super) fn new(shelf: Shelf, lives: Lives, failures_max: usize) -> Self {
        let slots = u32::try_from(shelf.slots()).expect("fewer slots than 2^32");
        Self {
            shelf,
            entries: Vec::new(),
            free: Vec::new(),
            index: HashTable::new(),
            due: Vec::new(),
            policy: Policy::new(slots),
            failures: Failures::new(failures_max),
            lives,
            counts: CacheStats::default(),
        }
    }

    pub(super) fn get(&mut self, key: &CacheKey, now: Tick) -> Lookup {
        let Some(slot) = self.find(key) else { return self.get_invalid(key, now) };
        let entry = &mut self.entries[slot as usize];
        if let Some(cause) = entry.over(now, self.lives.idle) {
            self.remove(slot, cause);
            self.counts.misses += 1;
            return Lookup::Miss;
        }
        entry.used = entry.used.max(now);
        let refresh = now >= entry.refresh;
        if refresh {
            let life = jittered(self.lives.ttl, key.spread());
            entry.refresh = now.saturating_add((life / REFRESH_AGAIN).max(1));
            self.counts.refreshes += 1;
        }
        self.counts.hits += 1;
        self.policy.touch(slot);
        let dek = Secret::copy_of(self.shelf.get(slot, usize::from(entry.len)));
        Lookup::Hit { dek: Dek::parse(dek).expect("only DEKs are put in"), refresh }
    }

    fn get_invalid(&mut self, key: &CacheKey, now: Tick) -> Lookup {
        if self.failures.contains(key, now) {
            self.counts.invalid_hits += 1;
            Lookup::Invalid
        } else {
            self.counts.misses += 1;
            Lookup::Miss
        }
    }

    /// Takes a DEK in and says whether it did.
    pub(super) fn insert(
        &mut self,
        key: &CacheKey,
        grant: Grant,
        dek: &Dek,
        now: Tick,
        alive: impl FnOnce() -> bool,
    ) -> bool {
        let life = jittered(self.lives.ttl, key.spread());
        if life == 0 || self.lives.idle == 0 || !alive() {
            self.counts.refused += 1;
            return false;
        }
        self.failures.remove(key);
        let Some(slot) = self.find(key).or_else(|| self.take_in(key)) else {
            self.counts.refused += 1;
            return false;
        };
        let bytes = dek.secret().expose();
        let entry = &mut self.entries[slot as usize];
        if entry.len != 0 {
            self.counts.replaced += 1;
            self.counts.bytes -= u64::from(entry.len);
        } else {
            self.counts.inserted += 1;
        }
        *entry = Entry {
            key: *key,
            grant,
            expires: now.saturating_add(life),
            refresh: now.saturating_add(life - life / 5),
            used: now,
            len: u8::try_from(bytes.len()).expect("a DEK is at most 64 bytes"),
        };
        self.counts.bytes += u64::from(entry.len);
        let due = &mut self.due[slot as usize / BLOCK];
        *due = entry.due(self.lives.idle).min(*due);
        self.shelf.put(slot, bytes);
        true
    }

    /// Remembers that a ciphertext failed, and drops the DEK that it once gave.
    pub(super) fn insert_invalid(
        &mut self,
        key: &CacheKey,
        grant: Grant,
        now: Tick,
        alive: impl FnOnce() -> bool,
    ) {
        if !alive() {
            return;
        }
        if let Some(slot) = self.find(key) {
            self.remove(slot, Cause::Failed);
        }
        self.failures.insert(*key, grant, now.saturating_add(self.lives.invalid));
    }

    /// Drops what `gone` names; says how many DEKs that were.
    pub(super) fn purge(&mut self, gone: &impl Fn(Grant) -> bool) -> usize {
        self.failures.purge(gone);
        self.remove_where(0..self.entries.len(), |entry| gone(entry.grant).then_some(Cause::Purge))
    }

    /// Drops what is over; says how many DEKs that were.
    pub(super) fn sweep(&mut self, now: Tick) -> usize {
        self.failures.sweep(now);
        let idle = self.lives.idle;
        let mut removed = 0;
        for block in 0..self.due.len() {
            if now < self.due[block] {
                continue;
            }
            let slots = block * BLOCK..self.entries.len().min((block + 1) * BLOCK);
            removed += self.remove_where(slots.clone(), |entry| entry.over(now, idle));
            let held = self.entries[slots].iter().filter(|entry| entry.len != 0);
            self.due[block] = held.map(|entry| entry.due(idle)).min().unwrap_or(Tick::MAX);
        }
        removed
    }

    pub(super) fn stats(&self) -> CacheStats {
        CacheStats {
            entries: self.index.len() as u64,
            capacity: self.shelf.slots() as u64,
            invalid_entries: self.failures.len() as u64,
            ..self.counts
        }
    }

    /// Whether every slot holds what it should: a DEK and zeros, or zeros alone.
    #[cfg(test)]
    pub(super) fn is_clean(&self) -> bool {
        (0..self.shelf.slots()).all(|slot| {
            let len = self.entries.get(slot).map_or(0, |entry| usize::from(entry.len));
            let bytes = self.shelf.get(slot as u32, crate::secret::SLOT_BYTES);
            bytes[len..] == [0; crate::secret::SLOT_BYTES][len..]
        })
    }

    fn find(&self, key: &CacheKey) -> Option<u32> {
        let is_it = |&slot: &u32| self.entries[slot as usize].key == *key;
        self.index.find(key.index_hash(), is_it).copied()
    }

    /// A slot for a new key, in the index and in the policy, still to be written.
    fn take_in(&mut self, key: &CacheKey) -> Option<u32> {
        let slot = self.free_slot()?;
        self.entries[slot as usize].key = *key;
        let entries = &self.entries;
        let hash = |&slot: &u32| entries[slot as usize].key.index_hash();
        self.index.insert_unique(key.index_hash(), slot, hash);
        self.policy.admit(slot, key.print());
        Some(slot)
    }

    fn free_slot(&mut self) -> Option<u32> {
        if self.free.is_empty() && !self.grow() {
            let entries = &self.entries;
            let victim = self.policy.evict(|slot| entries[slot as usize].key.print())?;
            self.release(victim, Cause::Capacity);
        }
        self.free.pop()
    }

    /// Brings one more slot into use, if there is one.
    fn grow(&mut self) -> bool {
        let (len, max) = (self.entries.len(), self.shelf.slots());
        if len == max {
            return false;
        }
        if len == self.entries.capacity() {
            // Doubled as usual, but not beyond what can ever be needed.
            self.entries.reserve_exact(len.max(BLOCK).min(max - len));
        }
        self.entries.push(Entry {
            key: CacheKey::NONE,
            grant: Grant(0),
            expires: 0,
            refresh: 0,
            used: 0,
            len: 0,
        });
        if len.is_multiple_of(BLOCK) {
            self.due.push(Tick::MAX);
        }
        self.free.push(u32::try_from(len).expect("fewer slots than 2^32"));
        true
    }

    /// Removes the entries of `slots` that `why` gives a cause for.
    fn remove_where(
        &mut self,
        slots: std::ops::Range<usize>,
        why: impl Fn(&Entry) -> Option<Cause>,
    ) -> usize {
        let mut removed = 0;
        for slot in slots {
            let entry = &self.entries[slot];
            if entry.len != 0
                && let Some(cause) = why(entry)
            {
                self.remove(u32::try_from(slot).expect("fewer slots than 2^32"), cause);
                removed += 1;
            }
        }
        removed
    }

    fn remove(&mut self, slot: u32, cause: Cause) {
        self.policy.remove(slot);
        self.release(slot, cause);
    }

    /// Wipes and frees a slot that has left the policy.
    fn release(&mut self, slot: u32, cause: Cause) {
        self.shelf.wipe(slot);
        let entry = &mut self.entries[slot as usize];
        let hash = entry.key.index_hash();
        self.counts.bytes -= u64::from(entry.len);
        self.counts.evicted.count(cause);
        entry.len = 0;
        self.index
            .find_entry(hash, |&other| other == slot)
            .expect("what is held is in the index")
            .remove();
        self.free.push(slot);
    }
}

/// Nothing stays in the memory of a cache that is gone.
impl Drop for Shard {
    fn drop(&mut self) {
        (0..self.entries.len()).for_each(|slot| self.shelf.wipe(slot as u32));
    }
}

/// `ttl`, shortened by up to a tenth, so that what was cached together does not have to
/// be unwrapped together again.
fn jittered(ttl: Tick, spread: u32) -> Tick {
    let most = u64::from(ttl / 10);
    ttl - ((most * u64::from(spread)) >> 32) as Tick
}
