//! Secret bytes: the one type that holds a DEK, a PIN or a payload, and what keeps the
//! process around it from giving them away.
//!
//! [`Secret`] refuses to be cloned, serialized, printed or compared with `==`, and wipes
//! itself when dropped. It may stand in memory that the kernel protects (`locker.rs`, and
//! `slab.rs` for the sidecar's cache). What work left on a thread is wiped by who knows that it
//! is done (`scrub.rs`); the server also turns core dumps off (`process.rs`). Nothing here knows
//! what the bytes mean.
//!
//! Invariant: the whole allocation is wiped, not only the bytes in use, because a
//! `Vec` that was truncated still holds the rest.

#[cfg(feature = "client")]
mod locker;
#[cfg(feature = "server")]
mod process;
#[cfg(feature = "client")]
mod region;
#[cfg(feature = "client")]
mod scrub;
#[cfg(feature = "server")]
mod slab;

use std::fmt;

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

#[cfg(feature = "client")]
pub use locker::Locker;
#[cfg(feature = "server")]
pub use process::harden;
#[cfg(feature = "client")]
pub use region::{Protection, SlabError};
#[cfg(feature = "client")]
pub use scrub::scrub;
#[cfg(feature = "server")]
pub use slab::{Shelf, shelves};

/// Bytes of one slot of locked memory: the longest DEK.
pub const SLOT_BYTES: usize = 64;

/// Bytes that are wiped when dropped.
pub struct Secret(Kept);

enum Kept {
    Heap(Zeroizing<Vec<u8>>),
    #[cfg(feature = "client")]
    Locked(locker::Slot),
}

impl Secret {
    /// Takes `bytes` over without copying them.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Kept::Heap(Zeroizing::new(bytes)))
    }

    /// `len` zero bytes, to be filled through [`Secret::expose_mut`].
    pub fn zeroed(len: usize) -> Self {
        Self::new(vec![0; len])
    }

    /// A copy. The caller stays responsible for wiping `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        Self::new(bytes.to_vec())
    }

    #[cfg(feature = "client")]
    fn locked(slot: locker::Slot) -> Self {
        Self(Kept::Locked(slot))
    }

    /// The bytes. Named so that every reader of a secret can be found.
    pub fn expose(&self) -> &[u8] {
        match &self.0 {
            Kept::Heap(bytes) => bytes,
            #[cfg(feature = "client")]
            Kept::Locked(slot) => slot.bytes(),
        }
    }

    /// The bytes, to write them in place.
    pub fn expose_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Kept::Heap(bytes) => bytes,
            #[cfg(feature = "client")]
            Kept::Locked(slot) => slot.bytes_mut(),
        }
    }

    /// Shortens to `len` bytes and wipes what is cut off.
    pub fn truncate(&mut self, len: usize) {
        match &mut self.0 {
            Kept::Heap(bytes) => {
                if let Some(tail) = bytes.get_mut(len..) {
                    tail.zeroize();
                }
                bytes.truncate(len);
            }
            #[cfg(feature = "client")]
            Kept::Locked(slot) => slot.truncate(len),
        }
    }

    /// Gives the bytes to a buffer that wipes itself by other means, such as a
    /// wire message. The allocation moves and nothing is copied, but out of a locker.
    pub fn into_wiped_elsewhere(mut self) -> Vec<u8> {
        match &mut self.0 {
            Kept::Heap(bytes) => std::mem::take(&mut **bytes),
            #[cfg(feature = "client")]
            Kept::Locked(slot) => slot.bytes().to_vec(),
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        match &self.0 {
            Kept::Heap(bytes) => bytes.len(),
            #[cfg(feature = "client")]
            Kept::Locked(slot) => slot.len(),
        }
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Compares in a time that depends on the lengths only.
    pub fn ct_eq(&self, other: &[u8]) -> bool {
        self.expose().ct_eq(other).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_the_length_only() {
        let secret = Secret::copy_of(b"correct horse");
        assert_eq!(format!("{secret:?}"), "Secret(13 bytes)");
    }

    #[test]
    fn truncate_wipes_the_tail_before_it_lets_go_of_it() {
        let mut secret = Secret::new(vec![7; 64]);
        secret.truncate(16);
        assert_eq!(secret.expose(), &[7; 16]);
        // The allocation is unchanged, so growing it back shows what it held.
        assert!(matches!(&secret.0, Kept::Heap(bytes) if bytes.capacity() >= 64));
        secret.truncate(64);
        assert_eq!(secret.len(), 16);
    }

    #[test]
    fn equality_is_of_bytes_and_of_length() {
        let secret = Secret::copy_of(&[1, 2, 3]);
        assert!(secret.ct_eq(&[1, 2, 3]));
        assert!(!secret.ct_eq(&[1, 2, 4]));
        assert!(!secret.ct_eq(&[1, 2]));
    }
}
