//! Memory for cached DEKs: one region of fixed slots, cut into shelves.
//!
//! It knows no key and no time: who holds a [`Shelf`] decides what stands in its slots.
//!
//! Invariant: a slot that was wiped, or was never put into, holds zeros.

use zeroize::Zeroize;

/// Bytes of one slot: the longest DEK.
pub const SLOT_BYTES: usize = 64;

/// A run of slots that one owner alone reads and writes.
pub struct Shelf {
    bytes: Vec<u8>,
}

/// Makes `count` shelves of `slots` slots each, all in one region.
pub fn shelves(count: usize, slots: usize) -> Vec<Shelf> {
    (0..count).map(|_| Shelf { bytes: vec![0; slots * SLOT_BYTES] }).collect()
}

impl Shelf {
    /// How many slots there are.
    pub fn slots(&self) -> usize {
        self.bytes.len() / SLOT_BYTES
    }

    /// Puts `bytes`, at most [`SLOT_BYTES`], into a slot and zeros into the rest of it.
    ///
    /// # Panics
    /// If there is no such slot, or `bytes` is too long.
    pub fn put(&mut self, slot: u32, bytes: &[u8]) {
        let slot = self.slot_mut(slot);
        let (head, tail) = slot.split_at_mut(bytes.len());
        head.copy_from_slice(bytes);
        tail.zeroize();
    }

    /// The first `len` bytes of a slot.
    ///
    /// # Panics
    /// If there is no such slot, or `len` is more than [`SLOT_BYTES`].
    pub fn get(&self, slot: u32, len: usize) -> &[u8] {
        let at = slot as usize * SLOT_BYTES;
        &self.bytes[at..at + SLOT_BYTES][..len]
    }

    /// Wipes a slot.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn wipe(&mut self, slot: u32) {
        self.slot_mut(slot).zeroize();
    }

    fn slot_mut(&mut self, slot: u32) -> &mut [u8] {
        let at = slot as usize * SLOT_BYTES;
        &mut self.bytes[at..at + SLOT_BYTES]
    }
}
