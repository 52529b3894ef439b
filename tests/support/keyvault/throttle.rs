//! The quotas of the service: transactions per time, weighted by key type and size.
//!
//! Refuses to know: requests. Pure: time comes in. The documentation gives the numbers;
//! it does not say how the window moves, so it slides, which is the stricter reading.

use std::{collections::VecDeque, time::Duration};

use super::{clock::Now, operation::Operation, state::Kind};

/// Which budget a request is paid from, and how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    class: Class,
    units: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    /// Everything that touches one key of a vault.
    VaultKey,
    VaultCreate,
    /// Everything else of a vault.
    VaultOther,
    HsmCreate,
    /// Delete, purge, backup and restore of a Managed HSM.
    HsmUpkeep,
}

impl Class {
    /// The budget in units, and the time that it is for.
    fn budget(self) -> (u32, Duration) {
        match self {
            // 4,000 operations on software keys of 2048 bits; the dearer keys cost more.
            Self::VaultKey | Self::VaultOther => (4000, Duration::from_secs(10)),
            // 20 software keys or 10 HSM keys.
            Self::VaultCreate => (20, Duration::from_secs(10)),
            Self::HsmCreate => (1, Duration::from_secs(1)),
            Self::HsmUpkeep => (10, Duration::from_secs(1)),
        }
    }
}

/// The key that a request touches, as far as its price goes.
#[derive(Clone, Copy, Debug)]
pub struct Touched {
    pub hsm: bool,
    /// Modulus bits of an RSA key; of an AES key anything below 3072, because no price of
    /// its own is documented.
    pub bits: usize,
}

/// What a request costs. `None`: nothing, as cryptography on a Managed HSM.
pub fn cost(kind: Kind, operation: Operation, touched: Option<Touched>) -> Option<Cost> {
    use Operation::*;
    let hsm = touched.is_some_and(|key| key.hsm);
    if kind == Kind::ManagedHsm {
        let class = match operation {
            Create | Import | Rotate => Class::HsmCreate,
            Delete | Purge | Backup | Restore => Class::HsmUpkeep,
            _ => return None,
        };
        return Some(Cost { class, units: 1 });
    }
    Some(match (operation, touched) {
        (Create | Import | Rotate, _) => {
            Cost { class: Class::VaultCreate, units: if hsm { 2 } else { 1 } }
        }
        (Get | Wrap | Unwrap | Update, Some(key)) => {
            let by_size = match key.bits {
                4096.. => 8,
                3072.. => 4,
                _ => 1,
            };
            Cost { class: Class::VaultKey, units: by_size * if hsm { 2 } else { 1 } }
        }
        _ => Cost { class: Class::VaultOther, units: 1 },
    })
}

/// What was spent, by budget.
pub struct Throttle {
    spent: VecDeque<(Now, Cost)>,
    /// Whether what was refused counts, too. The documentation says both.
    pub refused_counts: bool,
}

/// No budget admits more than this many requests in its window.
const SPENT_MAX: usize = 16_384;

impl Throttle {
    pub fn new() -> Self {
        Self { spent: VecDeque::new(), refused_counts: false }
    }

    /// Pays, if the budget allows it.
    pub fn admit(&mut self, now: Now, cost: Cost) -> bool {
        let longest = Duration::from_secs(10);
        while self.spent.front().is_some_and(|(at, _)| *at + longest <= now) {
            self.spent.pop_front();
        }
        let fits = self.used(now, cost.class) + cost.units <= cost.class.budget().0;
        if (fits || self.refused_counts) && self.spent.len() < SPENT_MAX {
            self.spent.push_back((now, cost));
        }
        fits
    }

    fn used(&self, now: Now, class: Class) -> u32 {
        let (_, window) = class.budget();
        self.spent
            .iter()
            .filter(|(at, cost)| cost.class == class && *at + window > now)
            .map(|(_, cost)| cost.units)
            .sum()
    }

    /// How much of the budget for operations on keys is in use, 0 to 1 and beyond.
    pub fn load(&self, now: Now) -> f64 {
        f64::from(self.used(now, Class::VaultKey)) / f64::from(Class::VaultKey.budget().0)
    }
}
