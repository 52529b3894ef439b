//! Ciphertexts that did not unwrap, remembered for a short time, so that whoever sends
//! the same garbage again costs the HSM nothing.
//!
//! It holds no secret. Invariants: at most `max` are remembered, and each for at most
//! its time, counted from when it failed; the oldest gives way.

use std::collections::{HashMap, VecDeque};

use super::{CacheKey, Grant, clock::Tick};

/// The failures of one shard.
pub(super) struct Failures {
    by_key: HashMap<CacheKey, Failure>,
    /// Oldest first, and therefore first to expire.
    order: VecDeque<CacheKey>,
    max: usize,
}

struct Failure {
    grant: Grant,
    expires: Tick,
}

impl Failures {
    pub(super) fn new(max: usize) -> Self {
        Self { by_key: HashMap::new(), order: VecDeque::new(), max }
    }

    pub(super) fn insert(&mut self, key: CacheKey, grant: Grant, expires: Tick) {
        if self.max == 0 {
            return;
        }
        self.remove(&key);
        if self.order.len() >= self.max
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_key.remove(&oldest);
        }
        self.order.push_back(key);
        self.by_key.insert(key, Failure { grant, expires });
    }

    /// Whether this one failed a short time ago.
    pub(super) fn contains(&self, key: &CacheKey, now: Tick) -> bool {
        !self.by_key.is_empty() && self.by_key.get(key).is_some_and(|failure| now < failure.expires)
    }

    pub(super) fn remove(&mut self, key: &CacheKey) {
        if self.by_key.remove(key).is_some() {
            self.order.retain(|other| other != key);
        }
    }

    pub(super) fn purge(&mut self, gone: &impl Fn(Grant) -> bool) {
        let by_key = &mut self.by_key;
        by_key.retain(|_, failure| !gone(failure.grant));
        self.order.retain(|key| by_key.contains_key(key));
    }

    pub(super) fn sweep(&mut self, now: Tick) {
        while let Some(key) = self.order.front()
            && self.by_key.get(key).is_none_or(|failure| failure.expires <= now)
        {
            self.by_key.remove(key);
            self.order.pop_front();
        }
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> CacheKey {
        CacheKey::of([n; 32])
    }

    fn held(failures: &Failures, now: Tick) -> Vec<u8> {
        assert_eq!(failures.by_key.len(), failures.order.len());
        (0..10).filter(|n| failures.contains(&key(*n), now)).collect()
    }

    #[test]
    fn the_oldest_gives_way_and_one_that_fails_again_is_the_newest() {
        let mut failures = Failures::new(3);
        for n in [1, 2, 3, 1, 4] {
            failures.insert(key(n), Grant(0), 10);
        }
        assert_eq!(held(&failures, 0), [1, 3, 4]);
    }

    #[test]
    fn each_is_over_at_its_time_swept_or_not() {
        let mut failures = Failures::new(8);
        failures.insert(key(1), Grant(0), 10);
        failures.insert(key(2), Grant(0), 20);
        assert_eq!(held(&failures, 9), [1, 2]);
        assert_eq!(held(&failures, 10), [2]);
        assert_eq!(failures.len(), 2);
        failures.sweep(10);
        assert_eq!(failures.len(), 1);
        failures.sweep(20);
        assert_eq!(failures.len(), 0);
    }

    #[test]
    fn a_purge_takes_one_grant() {
        let mut failures = Failures::new(8);
        failures.insert(key(1), Grant(1), 10);
        failures.insert(key(2), Grant(2), 10);
        failures.insert(key(3), Grant(1), 10);
        failures.purge(&|grant| grant == Grant(1));
        assert_eq!(held(&failures, 0), [2]);
    }
}
