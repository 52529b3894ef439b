//! Which entry has to go when a shard is full: S3-FIFO (Yang et al., SOSP 2023).
//!
//! A newcomer waits in a small queue, a tenth of the shard, and is let into the main
//! queue only if it was used again meanwhile, or if it comes back soon after it was put
//! out of the small one (then a *ghost* of it is remembered). So a scan, such as a backup
//! that reads every file once, passes through the small queue and leaves the main one
//! alone. `benches/eviction.rs` replays such traces against FIFO, LRU and CLOCK.
//!
//! It knows slots by number and ghosts by 32 bits of a hash. It holds no key, no secret
//! and no time.
//!
//! Invariants: a slot is in at most one queue, once; ghosts are at most as many as slots.

use hashbrown::{HashTable, hash_table::Entry};

const NONE: u32 = u32::MAX;

/// Uses beyond this many count no more.
const USES_MAX: u8 = 3;

/// Uses in the small queue that open the main one. One is not enough: a read and the
/// read-ahead of it come as a pair.
const USES_TO_STAY: u8 = 2;

/// The queues of one shard.
pub(super) struct Policy {
    /// By slot. All that a lookup touches, and small enough to stay in the processor's
    /// cache.
    standings: Vec<Standing>,
    /// By slot.
    links: Vec<Links>,
    small: Queue,
    main: Queue,
    small_max: u32,
    ghosts: Ghosts,
}

#[derive(Clone, Copy)]
struct Standing {
    place: Place,
    uses: u8,
}

/// A slot's neighbours in its queue.
#[derive(Clone, Copy)]
struct Links {
    newer: u32,
    older: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Nowhere,
    Small,
    Main,
}

struct Queue {
    newest: u32,
    oldest: u32,
    len: u32,
}

impl Policy {
    /// For a shard of `slots` slots.
    pub(super) fn new(slots: u32) -> Self {
        let empty = || Queue { newest: NONE, oldest: NONE, len: 0 };
        Self {
            standings: Vec::new(),
            links: Vec::new(),
            small: empty(),
            main: empty(),
            small_max: (slots / 10).max(1),
            ghosts: Ghosts::new(slots),
        }
    }

    /// Takes in a slot that is in no queue. `print` is the hash by which its entry would
    /// be remembered.
    pub(super) fn admit(&mut self, slot: u32, print: u32) {
        let slots = slot as usize + 1;
        if slots > self.links.len() {
            self.standings.resize(slots, Standing { place: Place::Nowhere, uses: 0 });
            self.links.resize(slots, Links { newer: NONE, older: NONE });
        }
        debug_assert!(
            self.standings[slot as usize].place == Place::Nowhere,
            "{slot} is in a queue"
        );
        let place = if self.ghosts.take(print) { Place::Main } else { Place::Small };
        self.push(slot, place);
    }

    /// Counts a use.
    pub(super) fn touch(&mut self, slot: u32) {
        let standing = &mut self.standings[slot as usize];
        standing.uses = (standing.uses + 1).min(USES_MAX);
    }

    /// Lets go of a slot whose entry is gone for another reason than room.
    pub(super) fn remove(&mut self, slot: u32) {
        self.unlink(slot);
    }

    /// The slot that has to go; it is in no queue any more. `None` if there is none.
    pub(super) fn evict(&mut self, print_of: impl Fn(u32) -> u32) -> Option<u32> {
        // It ends: each turn takes an entry out of the small queue for good, or a use
        // off an entry of the main one.
        loop {
            let slot = if self.small.len > self.small_max || self.main.len == 0 {
                self.small.oldest
            } else {
                self.main.oldest
            };
            if slot == NONE {
                return None;
            }
            let Standing { place, uses } = self.standings[slot as usize];
            self.unlink(slot);
            match (place, uses) {
                (Place::Small, USES_TO_STAY..) => self.push(slot, Place::Main),
                (Place::Main, 1..) => {
                    self.push(slot, Place::Main);
                    self.standings[slot as usize].uses = uses - 1;
                }
                (Place::Small, _) => {
                    self.ghosts.remember(print_of(slot));
                    return Some(slot);
                }
                _ => return Some(slot),
            }
        }
    }

    fn queue(&mut self, place: Place) -> &mut Queue {
        if place == Place::Small { &mut self.small } else { &mut self.main }
    }

    /// Puts a slot at the new end of a queue, with no use yet.
    fn push(&mut self, slot: u32, place: Place) {
        let queue = self.queue(place);
        let second = std::mem::replace(&mut queue.newest, slot);
        queue.len += 1;
        if second == NONE {
            queue.oldest = slot;
        } else {
            self.links[second as usize].newer = slot;
        }
        self.links[slot as usize] = Links { newer: NONE, older: second };
        self.standings[slot as usize] = Standing { place, uses: 0 };
    }

    fn unlink(&mut self, slot: u32) {
        let Links { newer, older } = self.links[slot as usize];
        let Standing { place, .. } = self.standings[slot as usize];
        debug_assert!(place != Place::Nowhere, "{slot} is in no queue");
        let queue = self.queue(place);
        queue.len -= 1;
        if newer == NONE {
            queue.newest = older;
        }
        if older == NONE {
            queue.oldest = newer;
        }
        if newer != NONE {
            self.links[newer as usize].older = older;
        }
        if older != NONE {
            self.links[older as usize].newer = newer;
        }
        self.standings[slot as usize].place = Place::Nowhere;
    }
}

/// Hashes of entries that were put out of the small queue, the last `max` of them.
struct Ghosts {
    /// A ring: the oldest is overwritten first.
    prints: Vec<u32>,
    /// Positions in `prints`, by what stands there.
    index: HashTable<u32>,
    next: u32,
    max: u32,
}

impl Ghosts {
    fn new(max: u32) -> Self {
        Self { prints: Vec::new(), index: HashTable::new(), next: 0, max }
    }

    fn remember(&mut self, print: u32) {
        if self.max == 0 {
            return;
        }
        let at = self.next;
        self.next = (self.next + 1) % self.max;
        if let Some(&oldest) = self.prints.get(at as usize) {
            // It may have been taken, and even be remembered again at another place.
            if let Ok(entry) = self.index.find_entry(spread(oldest), |&other| other == at) {
                entry.remove();
            }
            self.prints[at as usize] = print;
        } else {
            self.prints.push(print);
        }
        let prints = &self.prints;
        let hash = |&at: &u32| spread(prints[at as usize]);
        match self.index.entry(spread(print), |&other| prints[other as usize] == print, hash) {
            Entry::Occupied(mut twin) => *twin.get_mut() = at,
            Entry::Vacant(vacant) => drop(vacant.insert(at)),
        }
    }

    /// Forgets a ghost and says whether there was one.
    fn take(&mut self, print: u32) -> bool {
        let prints = &self.prints;
        match self.index.find_entry(spread(print), |&at| prints[at as usize] == print) {
            Ok(entry) => {
                entry.remove();
                true
            }
            Err(_) => false,
        }
    }
}

/// 64 bits for the table out of 32 that are random already.
fn spread(print: u32) -> u64 {
    u64::from(print).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// Slots in `queue`, oldest first, read both ways.
    fn slots(policy: &Policy, queue: &Queue, place: Place) -> Vec<u32> {
        let (mut found, mut at, mut newer) = (Vec::new(), queue.newest, NONE);
        while at != NONE {
            let links = &policy.links[at as usize];
            assert!(links.newer == newer && policy.standings[at as usize].place == place);
            found.push(at);
            (newer, at) = (at, links.older);
        }
        assert_eq!((queue.oldest, queue.len), (newer, found.len() as u32));
        found.reverse();
        found
    }

    fn small(policy: &Policy) -> Vec<u32> {
        slots(policy, &policy.small, Place::Small)
    }

    fn main(policy: &Policy) -> Vec<u32> {
        slots(policy, &policy.main, Place::Main)
    }

    /// A policy in which a slot's entry is remembered by the slot's number.
    fn filled(count: u32) -> Policy {
        let mut policy = Policy::new(count);
        (0..count).for_each(|slot| policy.admit(slot, slot));
        policy
    }

    fn evict(policy: &mut Policy) -> Option<u32> {
        policy.evict(|slot| slot)
    }

    #[test]
    fn what_was_used_again_stays_and_what_was_not_goes_oldest_first() {
        let mut policy = filled(20);
        for slot in [0, 0, 2, 2, 3] {
            policy.touch(slot);
        }
        assert_eq!([evict(&mut policy), evict(&mut policy)], [Some(1), Some(3)]);
        assert_eq!(main(&policy), [0, 2]);
    }

    #[test]
    fn a_ghost_goes_straight_to_the_main_queue_once() {
        let mut policy = filled(20);
        assert_eq!(evict(&mut policy), Some(0));
        policy.admit(0, 0);
        assert_eq!(main(&policy), [0]);
        policy.remove(0);
        policy.admit(0, 0);
        assert!(main(&policy).is_empty());
    }

    #[test]
    fn what_is_removed_for_another_reason_leaves_no_ghost() {
        let mut policy = filled(20);
        policy.remove(7);
        policy.admit(7, 7);
        assert_eq!(small(&policy).last(), Some(&7));
    }

    #[test]
    fn a_scan_leaves_the_main_queue_alone() {
        let mut policy = filled(100);
        (0..80).for_each(|slot| (0..2).for_each(|_| policy.touch(slot)));
        // What a scan brings in is never asked for again.
        for print in 1000..2000 {
            let slot = evict(&mut policy).unwrap();
            assert!(slot >= 80, "{slot} was in use");
            policy.admit(slot, print);
        }
        assert_eq!(main(&policy), (0..80).collect::<Vec<_>>());
    }

    #[test]
    fn the_last_ones_can_be_evicted_too() {
        let mut policy = filled(3);
        (0..3).for_each(|slot| (0..9).for_each(|_| policy.touch(slot)));
        let gone: HashSet<_> = (0..3).map(|_| evict(&mut policy).unwrap()).collect();
        assert_eq!(gone.len(), 3);
        assert_eq!(evict(&mut policy), None);
        assert_eq!(evict(&mut Policy::new(0)), None);
    }

    #[test]
    fn as_many_ghosts_as_slots() {
        let mut ghosts = Ghosts::new(3);
        [1, 2, 3, 2, 4].into_iter().for_each(|print| ghosts.remember(print));
        assert!(ghosts.index.len() <= 3 && ghosts.prints.len() == 3);
        // 2 was remembered twice; its later place counts.
        assert_eq!([1, 2, 3, 4].map(|print| ghosts.take(print)), [false, true, true, true]);
        assert!(!ghosts.take(2));
        Ghosts::new(0).remember(1);
    }

    proptest! {
        /// Each slot that was admitted and not taken out is in exactly one queue.
        #[test]
        fn no_slot_is_lost(steps in prop::collection::vec((0u8..4, 0u32..16, 0u32..64), 0..400)) {
            let mut policy = Policy::new(16);
            let mut held = HashSet::new();
            for (step, slot, print) in steps {
                match step {
                    0 if held.insert(slot) => policy.admit(slot, print),
                    1 if held.contains(&slot) => policy.touch(slot),
                    2 if held.remove(&slot) => policy.remove(slot),
                    3 => {
                        let gone = policy.evict(|slot| slot * 3);
                        prop_assert_eq!(gone.is_none(), held.is_empty());
                        prop_assert!(gone.is_none_or(|slot| held.remove(&slot)));
                    }
                    _ => {}
                }
                let queued: Vec<_> = [small(&policy), main(&policy)].concat();
                prop_assert_eq!(queued.len(), held.len());
                prop_assert_eq!(queued.into_iter().collect::<HashSet<_>>(), held.clone());
                prop_assert!(policy.ghosts.index.len() <= 16);
            }
        }
    }
}
