//! What happens to one KEK. The engine keeps a [`KekMetrics`] beside each, so that
//! nothing is looked up on the way of an unwrap.

use super::tally::Counts;
use crate::{
    error::{Error, Reason},
    kek::EventKind,
    op::{OPS, Op},
};

/// Where the answer to an unwrap came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// The cache.
    Hit,
    /// An operation of the HSM.
    Miss,
    /// Another caller's operation of the HSM for the same DEK.
    Coalesced,
    /// Memory of a ciphertext that did not unwrap: the answer is that error.
    Invalid,
}

impl Answered {
    /// In the order of the enum, as in the label `from`.
    pub(super) const NAMES: [&'static str; 4] = ["cache", "hsm", "shared", "negative"];
}

/// Why the cached DEKs of a KEK were zeroized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purge {
    /// The backend no longer allows the KEK: disabled, deleted, expired, not permitted.
    Denied,
    /// An operator revoked the KEK.
    Revoked,
    /// An operator purged the cache.
    Operator,
    /// The backend could not be reached for longer than the grace.
    OutageOver,
}

impl Purge {
    /// In the order of the enum, as in the label `cause`.
    pub(super) const NAMES: [&'static str; 4] = ["denied", "revoked", "operator", "outage_over"];
}

/// In the order of `refreshed`'s flag.
pub(super) const REFRESHED_NAMES: [&str; 2] = ["failed", "ok"];

/// OK, and each reason to fail.
pub(super) const OUTCOMES: usize = 1 + Reason::ALL.len();

/// The names of outcomes, in the order of their counters.
pub(super) fn outcome_name(index: usize) -> &'static str {
    match index.checked_sub(1) {
        None => "OK",
        Some(reason) => Reason::ALL[reason].as_str(),
    }
}

/// The counters of one KEK. Each call is one relaxed atomic add.
#[derive(Debug, Default)]
pub struct KekMetrics {
    pub(super) operations: [Counts<OUTCOMES>; OPS.len()],
    pub(super) answered: Counts<4>,
    pub(super) refreshed: Counts<2>,
    pub(super) purged: Counts<4>,
    pub(super) events: Counts<{ EventKind::NAMES.len() }>,
}

impl KekMetrics {
    /// An unwrap was answered.
    pub fn answered(&self, from: Answered) {
        self.answered.add(from as usize);
    }

    /// A cached DEK was unwrapped again ahead of its expiry, or could not be.
    pub fn refreshed(&self, ok: bool) {
        self.refreshed.add(usize::from(ok));
    }

    /// The cached DEKs of this KEK were zeroized.
    pub fn purged(&self, cause: Purge) {
        self.purged.add(cause as usize);
    }

    /// Something happened to this KEK.
    pub fn happened(&self, event: EventKind) {
        self.events.add(event as usize);
    }

    pub(super) fn operation(&self, op: Op, outcome: Result<(), &Error>) {
        // `Reason::ALL` is in the order of the enum; a test holds them together.
        let outcome = outcome.map_or_else(|error| 1 + error.reason() as usize, |()| 0);
        self.operations[op as usize].add(outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_counter() {
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index, "{reason}");
            assert_eq!(outcome_name(1 + index), reason.as_str());
        }
        assert_eq!(outcome_name(0), "OK");
    }

    #[test]
    fn what_happens_is_counted_under_its_name() {
        let kek = KekMetrics::default();
        kek.answered(Answered::Coalesced);
        kek.answered(Answered::Invalid);
        kek.refreshed(true);
        kek.purged(Purge::OutageOver);
        kek.operation(Op::Rewrap, Err(&Error::new(Reason::Internal, "x")));
        let counted = |counts: &dyn Fn() -> Vec<(&'static str, u64)>| -> Vec<&'static str> {
            counts().into_iter().filter(|(_, n)| *n == 1).map(|(name, _)| name).collect()
        };
        assert_eq!(
            counted(&|| kek.answered.named(&Answered::NAMES).collect()),
            ["shared", "negative"]
        );
        assert_eq!(counted(&|| kek.refreshed.named(&REFRESHED_NAMES).collect()), ["ok"]);
        assert_eq!(counted(&|| kek.purged.named(&Purge::NAMES).collect()), ["outage_over"]);
        let internal = (0..OUTCOMES).find(|index| outcome_name(*index) == "INTERNAL").unwrap();
        assert_eq!(kek.operations[Op::Rewrap as usize].get(internal), 1);
    }
}
