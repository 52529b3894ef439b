//! Memory for cached DEKs: one region of fixed slots, cut into shelves.
//!
//! It knows no key and no time: who holds a [`Shelf`] decides what stands in its slots.
//! How the region is protected is `region.rs`.
//!
//! Invariants: a slot that was wiped, or was never put into, holds zeros; shelves share
//! no byte; a shelf that is dropped is wiped.

use std::ops::Range;

use zeroize::Zeroize;

use super::{
    SLOT_BYTES,
    region::{self, Part, Protection, SlabError},
};

/// A run of slots that one owner alone reads and writes.
pub struct Shelf(Part);

/// Makes `count` shelves of `slots` slots each, all in one region, and says how well
/// the kernel protects it. The kernel gives memory as slots are put into, but the limit
/// of locked memory must allow for all of it.
///
/// If the memory cannot be locked it is an error, unless `allow_unlocked`.
pub fn shelves(
    count: usize,
    slots: usize,
    allow_unlocked: bool,
) -> Result<(Vec<Shelf>, Protection), SlabError> {
    if u32::try_from(slots).is_err() {
        return Err(SlabError::TooLarge);
    }
    let len = slots.checked_mul(SLOT_BYTES).ok_or(SlabError::TooLarge)?;
    let (parts, protection) = region::parts(count, len, allow_unlocked)?;
    Ok((parts.into_iter().map(Shelf).collect(), protection))
}

impl Shelf {
    /// How many slots there are.
    pub fn slots(&self) -> usize {
        self.0.len() / SLOT_BYTES
    }

    /// Puts `bytes`, at most [`SLOT_BYTES`], into a slot and zeros into the rest of it.
    ///
    /// # Panics
    /// If there is no such slot, or `bytes` is too long.
    pub fn put(&mut self, slot: u32, bytes: &[u8]) {
        let slot = self.range(slot);
        let (head, tail) = self.0.bytes_mut(slot).split_at_mut(bytes.len());
        head.copy_from_slice(bytes);
        tail.zeroize();
    }

    /// The first `len` bytes of a slot.
    ///
    /// # Panics
    /// If there is no such slot, or `len` is more than [`SLOT_BYTES`].
    pub fn get(&self, slot: u32, len: usize) -> &[u8] {
        &self.0.bytes()[self.range(slot)][..len]
    }

    /// Wipes a slot.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn wipe(&mut self, slot: u32) {
        let slot = self.range(slot);
        self.0.bytes_mut(slot).zeroize();
    }

    fn range(&self, slot: u32) -> Range<usize> {
        let slot = slot as usize;
        assert!(slot < self.slots(), "there is no such slot");
        slot * SLOT_BYTES..(slot + 1) * SLOT_BYTES
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, panic::catch_unwind};

    use proptest::prelude::*;

    use super::*;

    fn some(count: usize, slots: usize) -> Vec<Shelf> {
        shelves(count, slots, true).unwrap().0
    }

    #[test]
    fn a_slot_holds_what_was_put_and_zeros_behind_it() {
        let mut shelf = some(1, 3).remove(0);
        assert_eq!(shelf.slots(), 3);
        shelf.put(1, &[7; SLOT_BYTES]);
        shelf.put(1, &[9; 16]);
        assert_eq!(shelf.get(1, 16), [9; 16]);
        assert_eq!(shelf.get(1, SLOT_BYTES)[16..], [0; SLOT_BYTES - 16]);
        shelf.wipe(1);
        assert_eq!(shelf.get(1, SLOT_BYTES), [0; SLOT_BYTES]);
    }

    #[test]
    fn none_of_nothing() {
        assert!(some(0, 8).is_empty());
        let shelves = some(2, 0);
        assert_eq!(shelves.len(), 2);
        assert_eq!(shelves[0].slots(), 0);
        assert!(catch_unwind(|| shelves[0].get(0, 0).len()).is_err());
    }

    #[test]
    fn more_than_can_be_addressed_is_an_error() {
        let ask = |count, slots| shelves(count, slots, true).err();
        assert_eq!(ask(1, usize::MAX), Some(SlabError::TooLarge));
        assert_eq!(ask(usize::MAX, 1), Some(SlabError::TooLarge));
        assert_eq!(ask(usize::MAX / SLOT_BYTES, 1), Some(SlabError::TooLarge));
        assert_eq!(ask(1, u32::MAX as usize + 1), Some(SlabError::TooLarge));
        assert_eq!(ask(0, usize::MAX), Some(SlabError::TooLarge));
    }

    #[test]
    fn what_does_not_fit_panics_and_writes_nothing() {
        let put = |slot, len| {
            let mut shelf = some(1, 1).remove(0);
            shelf.put(slot, &vec![1; len]);
        };
        assert!(catch_unwind(|| put(0, SLOT_BYTES)).is_ok());
        assert!(catch_unwind(|| put(0, SLOT_BYTES + 1)).is_err());
        assert!(catch_unwind(|| put(1, 1)).is_err());
        assert!(catch_unwind(|| put(u32::MAX, 1)).is_err());
        assert!(catch_unwind(|| some(1, 2)[0].get(0, SLOT_BYTES + 1).len()).is_err());
        assert!(catch_unwind(|| some(1, 2).remove(0).wipe(2)).is_err());
    }

    #[test]
    fn a_shelf_goes_to_another_thread_and_is_shared() {
        let mut shelf = some(1, 1).remove(0);
        std::thread::spawn(move || {
            shelf.put(0, &[5; 32]);
            std::thread::scope(|scope| {
                scope.spawn(|| assert_eq!(shelf.get(0, 32), [5; 32]));
                assert_eq!(shelf.get(0, 32), [5; 32]);
            });
        })
        .join()
        .unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

        /// Whatever is put and wiped, every slot of every shelf holds what a map says.
        #[test]
        fn shelves_behave_as_maps(
            steps in prop::collection::vec(
                (0..3_usize, 0..5_u32, prop::option::of(prop::collection::vec(any::<u8>(), 0..=SLOT_BYTES))),
                0..100,
            )
        ) {
            let mut shelves = some(3, 5);
            let mut model = HashMap::new();
            for (shelf, slot, bytes) in steps {
                match &bytes {
                    Some(bytes) => shelves[shelf].put(slot, bytes),
                    None => shelves[shelf].wipe(slot),
                }
                model.insert((shelf, slot), bytes.unwrap_or_default());
            }
            for (number, shelf) in shelves.iter().enumerate() {
                for slot in 0..5 {
                    let mut wanted = model.remove(&(number, slot)).unwrap_or_default();
                    wanted.resize(SLOT_BYTES, 0);
                    prop_assert_eq!(shelf.get(slot, SLOT_BYTES), &wanted[..]);
                }
            }
        }
    }
}
