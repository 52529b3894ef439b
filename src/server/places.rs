//! A bounded number of places for those who have not earned one yet. Who comes when all are
//! taken gets the place of who has had one longest.
//!
//! It knows nothing of who they are. Turning the newest away instead would let as many silent
//! connections as there are places keep everybody out. So who is quick gets in, unless as
//! many others come in the time that it takes.
//!
//! Invariant: those who have a place and were not told to leave are never more than the
//! limit; who was told leaves at once.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// The places.
#[derive(Debug)]
pub(super) struct Places {
    limit: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    /// By number, which is in order of age. Dropping one tells its place to be left.
    kept: BTreeMap<u64, oneshot::Sender<()>>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    number: u64,
    places: Arc<Places>,
    lost: oneshot::Receiver<()>,
}

impl Places {
    /// As many as `limit`, which is not 0.
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, taken: Mutex::default() })
    }

    /// Takes a place, and whether somebody lost it for that.
    pub(super) fn take(self: &Arc<Self>) -> (Place, bool) {
        let (keep, lost) = oneshot::channel();
        let mut taken = self.taken();
        let number = taken.next;
        taken.next += 1;
        let evicts = taken.kept.len() >= self.limit;
        if evicts {
            taken.kept.pop_first();
        }
        taken.kept.insert(number, keep);
        (Place { number, places: Arc::clone(self), lost }, evicts)
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // Nothing panics between two steps that belong together.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Resolves when the place is lost to somebody else.
    pub(super) async fn lost(&mut self) {
        // Nothing is ever sent: the other end is dropped.
        let _lost = (&mut self.lost).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken().kept.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn is_lost(place: &mut Place) -> bool {
        place.lost().now_or_never().is_some()
    }

    #[test]
    fn who_comes_when_all_are_taken_gets_the_oldest_place() {
        let places = Places::new(2);
        let ((mut first, one), (mut second, two)) = (places.take(), places.take());
        assert!(!one && !two && !is_lost(&mut first));
        let (mut third, evicts) = places.take();
        assert!(evicts && is_lost(&mut first));
        assert!(!is_lost(&mut second) && !is_lost(&mut third));
        // One that was lost already gives nothing back.
        drop(first);
        assert!(places.take().1 && is_lost(&mut second));
    }

    #[test]
    fn a_place_that_was_left_costs_nobody_his() {
        let places = Places::new(2);
        let (first, (mut second, _)) = (places.take(), places.take());
        drop(first);
        let (_third, evicts) = places.take();
        assert!(!evicts && !is_lost(&mut second));
    }
}
