//! What the leases of the KEKs of one backend cost together, and how often they are looked
//! after for that. The rule is `lease::fleet`'s; here is only who has which versions.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    backend::Room,
    kek::KekName,
    lease::fleet::{Pace, Quota, Toll},
};

#[derive(Debug)]
pub(super) struct Tolls {
    /// `None` if asking takes nothing from others.
    quota: Option<Quota>,
    of: Mutex<HashMap<KekName, Toll>>,
}

impl Tolls {
    pub(super) fn new(room: Room) -> Self {
        let quota = room
            .shared
            .map(|shared| Quota { sidecars: shared.sidecars, per_second: shared.per_second });
        Self { quota, of: Mutex::default() }
    }

    /// Whether other sidecars ask the backend, too.
    pub(super) fn are_shared(&self) -> bool {
        self.quota.is_some()
    }

    /// What one round costs for `kek` whose versions count for so much each.
    pub(super) fn note(&self, kek: &KekName, versions: impl Iterator<Item = u32>) {
        let (mut looks, mut operations) = (0.0_f64, 0.0);
        for units in versions.map(f64::from) {
            // A vault counts a look at a key as an operation with it. It does not say what a
            // look at all of its versions counts for: as the dearest, then.
            looks = looks.max(units);
            operations += units;
        }
        self.of().insert(kek.clone(), Toll { looks, operations });
    }

    /// How often the leases of these KEKs are looked after, if `wanted` is what they should
    /// be good for.
    pub(super) fn pace(&self, wanted: Duration) -> Pace {
        let Some(quota) = self.quota else { return Pace::of(wanted) };
        let toll = self.of().values().fold(Toll::default(), |sum, toll| Toll {
            looks: sum.looks + toll.looks,
            operations: sum.operations + toll.operations,
        });
        Pace::within(wanted, toll, quota)
    }

    /// What a look at `kek` counts for, as far as is known.
    pub(super) fn look(&self, kek: &KekName) -> u32 {
        // Whole units: it is the greatest of some.
        self.of().get(kek).map_or(1, |toll| (toll.looks as u32).max(1))
    }

    fn of(&self) -> MutexGuard<'_, HashMap<KekName, Toll>> {
        self.of.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Shared;

    fn tolls(sidecars: u32) -> Tolls {
        let shared = Some(Shared { sidecars, per_second: 400.0 });
        Tolls::new(Room { at_once: 1, waiting: 1, attempts: 1, ceiling: None, shared, denials: 1 })
    }

    #[test]
    fn every_kek_of_the_backend_and_every_version_counts() {
        let (tolls, wanted) = (tolls(60), Duration::from_secs(30));
        let name = |name| KekName::parse(name).unwrap();
        tolls.note(&name("orders"), [16].into_iter());
        assert_eq!(tolls.pace(wanted), Pace::of(wanted));
        assert_eq!((tolls.look(&name("orders")), tolls.look(&name("other"))), (16, 1));
        tolls.note(&name("billing"), [16, 16, 8].into_iter());
        assert!(tolls.pace(wanted).operation_within > wanted);
        // Known anew, not once more.
        tolls.note(&name("billing"), [].into_iter());
        assert_eq!(tolls.pace(wanted), Pace::of(wanted));
    }

    #[test]
    fn what_takes_nothing_from_others_is_asked_as_often_as_wanted() {
        let room =
            Room { at_once: 1, waiting: 1, attempts: 1, ceiling: None, shared: None, denials: 1 };
        let (tolls, wanted) = (Tolls::new(room), Duration::from_secs(1));
        tolls.note(&KekName::parse("orders").unwrap(), [1_000_000].into_iter());
        assert_eq!(tolls.pace(wanted), Pace::of(wanted));
    }
}
