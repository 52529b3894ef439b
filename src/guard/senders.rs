//! What each caller's bad ciphertexts cost: a caller who sends many waits, the others do
//! not.
//!
//! A ciphertext that does not unwrap takes as much of the device as one that does, and
//! says nothing about the device. So it counts nowhere but here.
//!
//! Pure: `now` is a value. It knows callers by number. Invariants: it remembers at most
//! [`SENDERS_MAX`] of them, those with the fullest measure; a caller who sends nothing bad
//! is never refused.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::Sender;

/// Bad ciphertexts at once that are nobody's concern: a page or two of a damaged file.
const FREE: u32 = 100;

/// How long it takes until one is forgotten.
const FORGET: Duration = Duration::from_millis(100);

/// Callers that are remembered.
const SENDERS_MAX: usize = 1024;

/// The measure of every caller who sent a bad one of late.
#[derive(Debug, Default)]
pub(super) struct Senders {
    /// When all of a caller's bad ones will be forgotten.
    clean_at: HashMap<Sender, Instant>,
}

impl Senders {
    /// How long a caller has to wait before it may ask the device again, if it has to.
    pub(super) fn refuses(&self, sender: Sender, now: Instant) -> Option<Duration> {
        let clean_at = *self.clean_at.get(&sender)?;
        let measure = clean_at.saturating_duration_since(now);
        measure.checked_sub(FORGET * FREE).filter(|over| !over.is_zero())
    }

    /// A caller sent a bad one.
    pub(super) fn count(&mut self, sender: Sender, now: Instant) {
        if self.clean_at.len() >= SENDERS_MAX && !self.clean_at.contains_key(&sender) {
            self.clean_at.retain(|_, clean_at| *clean_at > now);
            if self.clean_at.len() >= SENDERS_MAX
                && let Some(least) =
                    self.clean_at.iter().min_by_key(|(_, clean_at)| **clean_at).map(|(of, _)| *of)
            {
                self.clean_at.remove(&least);
            }
        }
        let clean_at = self.clean_at.entry(sender).or_insert(now);
        // Those that were under way together may fill it beyond the brim, but not for long.
        *clean_at = ((*clean_at).max(now) + FORGET).min(now + FORGET * (2 * FREE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(senders: &mut Senders, sender: u64, bad: u32, now: Instant) {
        (0..bad).for_each(|_| senders.count(Sender(sender), now));
    }

    #[test]
    fn some_are_free_and_more_cost_their_sender_alone() {
        let (mut senders, now) = (Senders::default(), Instant::now());
        sent(&mut senders, 1, FREE, now);
        assert_eq!(senders.refuses(Sender(1), now), None);
        sent(&mut senders, 1, 2, now);
        assert_eq!(senders.refuses(Sender(1), now), Some(2 * FORGET));
        assert_eq!(senders.refuses(Sender(2), now), None);
    }

    #[test]
    fn all_is_forgotten_in_time_however_many_there_were() {
        let (mut senders, now) = (Senders::default(), Instant::now());
        sent(&mut senders, 1, 100 * FREE, now);
        assert!(senders.refuses(Sender(1), now).is_some());
        assert_eq!(senders.refuses(Sender(1), now + FORGET * FREE), None);
        sent(&mut senders, 1, FREE, now + FORGET * (2 * FREE));
        assert_eq!(senders.refuses(Sender(1), now + FORGET * (2 * FREE)), None);
    }

    #[test]
    fn strangers_without_end_are_not_remembered_without_end_and_push_out_no_heavy_one() {
        let (mut senders, now) = (Senders::default(), Instant::now());
        sent(&mut senders, 7, FREE + 1, now);
        (1_000..9_000).for_each(|sender| sent(&mut senders, sender, 1, now));
        assert_eq!(senders.clean_at.len(), SENDERS_MAX);
        assert!(senders.refuses(Sender(7), now).is_some());
    }
}
