//! Memory for secrets that come and go: one region of fixed slots, lent one by one.
//!
//! What a client holds, and the keys of sealed delivery, are put here if they are to be in
//! neither swap nor a core dump. It knows no key and no owner: a slot is a [`Secret`], and
//! comes back when that is dropped.
//!
//! Invariants: a slot that comes back was wiped; there are never more than were asked for,
//! and who asks for one more is told so rather than given ordinary memory.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    SLOT_BYTES, Secret,
    region::{self, Part, Protection, SlabError},
};

/// A bounded store of locked memory for secrets of up to [`SLOT_BYTES`] bytes. Clones are
/// the same store.
#[derive(Clone)]
pub struct Locker(Arc<Inside>);

struct Inside {
    free: Mutex<Vec<Part>>,
    slots: usize,
    protection: Protection,
}

impl Locker {
    /// Takes memory for `slots` secrets at once, from 1 to 16 million. The kernel gives it as
    /// it is used, but the limit of locked memory must allow for all of it: 64 bytes each,
    /// and two pages.
    ///
    /// If the memory cannot be locked it is an error, unless `allow_unlocked`.
    pub fn new(slots: usize, allow_unlocked: bool) -> Result<Self, SlabError> {
        const SLOTS_MAX: usize = 1 << 24;
        if !(1..=SLOTS_MAX).contains(&slots) {
            return Err(SlabError::TooLarge);
        }
        let (free, protection) = region::parts(slots, SLOT_BYTES, allow_unlocked)?;
        Ok(Self(Arc::new(Inside { free: Mutex::new(free), slots, protection })))
    }

    /// `len` zero bytes, at most [`SLOT_BYTES`], to be filled through
    /// [`Secret::expose_mut`]. `None` if every slot is taken.
    ///
    /// # Panics
    /// If `len` is more than [`SLOT_BYTES`].
    pub fn take(&self, len: usize) -> Option<Secret> {
        let part = self.0.free().pop()?;
        assert!(len <= part.len(), "a slot has no more bytes");
        Some(Secret::locked(Slot { part: Some(part), len, home: Arc::clone(&self.0) }))
    }

    /// Room for a secret in `locker`, or on the heap if there is none. `None` if every slot is
    /// taken.
    pub fn room(locker: Option<&Self>, len: usize) -> Option<Secret> {
        match locker {
            Some(locker) => locker.take(len),
            None => Some(Secret::zeroed(len)),
        }
    }

    /// How many more secrets it takes.
    pub fn free(&self) -> usize {
        self.0.free().len()
    }

    /// How well the kernel protects it.
    pub fn protection(&self) -> Protection {
        self.0.protection
    }
}

impl Inside {
    fn free(&self) -> std::sync::MutexGuard<'_, Vec<Part>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Locker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Locker({} of {} slots free)", self.free(), self.0.slots)
    }
}

/// One slot while it is lent.
pub(super) struct Slot {
    /// `None` only while it goes back.
    part: Option<Part>,
    len: usize,
    home: Arc<Inside>,
}

impl Slot {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.part.as_ref().expect("it is lent").bytes()[..self.len]
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.part.as_mut().expect("it is lent").bytes_mut(0..self.len)
    }

    /// Shortens it, and wipes what is cut off.
    pub(super) fn truncate(&mut self, len: usize) {
        if let Some(tail) = self.bytes_mut().get_mut(len..) {
            zeroize::Zeroize::zeroize(tail);
        }
        self.len = self.len.min(len);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(mut part) = self.part.take() {
            part.wipe();
            self.home.free().push(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_lent_comes_back_wiped_and_there_are_no_more() {
        let locker = Locker::new(2, true).unwrap();
        let mut one = locker.take(32).unwrap();
        assert_eq!(one.expose(), [0; 32]);
        one.expose_mut().copy_from_slice(&[7; 32]);
        let at = one.expose().as_ptr();
        let two = locker.take(SLOT_BYTES).unwrap();
        assert!(locker.take(16).is_none());
        assert_eq!(format!("{locker:?}"), "Locker(0 of 2 slots free)");
        drop(one);
        let again = locker.take(SLOT_BYTES).unwrap();
        assert_eq!((again.expose().as_ptr(), again.expose()), (at, &[0; SLOT_BYTES][..]));
        drop((two, again));
        assert_eq!(locker.free(), 2);
    }

    #[test]
    fn a_locked_secret_is_one_in_every_way() {
        let locker = Locker::new(1, true).unwrap();
        let mut secret = locker.take(64).unwrap();
        secret.expose_mut().copy_from_slice(&[7; 64]);
        assert_eq!(format!("{secret:?}"), "Secret(64 bytes)");
        assert!(secret.ct_eq(&[7; 64]) && !secret.ct_eq(&[7; 63]));
        secret.truncate(16);
        assert_eq!((secret.len(), secret.expose()), (16, &[7; 16][..]));
        secret.truncate(64);
        assert_eq!(secret.len(), 16);
        assert_eq!(secret.into_wiped_elsewhere(), [7; 16]);
        assert_eq!(locker.free(), 1);
    }

    #[test]
    fn a_secret_outlives_its_locker() {
        let mut secret = Locker::new(1, true).unwrap().take(16).unwrap();
        secret.expose_mut().fill(9);
        assert_eq!(secret.expose(), [9; 16]);
    }

    #[test]
    fn none_and_too_many_are_refused() {
        assert_eq!(Locker::new(0, true).err(), Some(SlabError::TooLarge));
        assert_eq!(Locker::new((1 << 24) + 1, true).err(), Some(SlabError::TooLarge));
    }
}
