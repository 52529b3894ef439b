//! What the metrics ask the engine for when somebody looks: the cache, the leases, what
//! is in work.

use std::{sync::Arc, time::Instant};

use super::{Engine, catalog::Leased};
use crate::{
    clock,
    lease::Standing,
    observe::{CacheSample, GuardSample, LeaseSample, Samples},
};

impl Engine {
    /// Has the metrics ask this engine, for as long as it is there.
    pub fn be_watched(self: &Arc<Self>) {
        let engine = Arc::downgrade(self);
        self.metrics.register_source(move |samples| {
            if let Some(engine) = engine.upgrade() {
                engine.sample(samples, clock::now());
            }
        });
    }

    fn sample(&self, samples: &mut Samples, now: Instant) {
        let stats = self.custody.cache.stats();
        samples.cache = Some(CacheSample {
            entries: stats.entries,
            bytes: stats.bytes,
            capacity: stats.capacity,
            evicted_capacity: stats.evicted.capacity,
            evicted_ttl: stats.evicted.ttl,
            evicted_idle: stats.evicted.idle,
            evicted_purge: stats.evicted.purge,
        });
        samples.flights = Some(self.custody.flights.len() as u64);
        samples.guards.extend(self.catalog.guards().map(|guard| {
            let standing = guard.standing();
            GuardSample {
                backend: guard.backend().name().to_owned(),
                waiting: standing.waiting.map(|(class, n)| (class.name(), n as u64)).to_vec(),
                breaker: standing.breaker.name(),
                units: standing.units,
                ceiling: standing.ceiling,
                retries: standing.retries,
                refused: standing.refused,
            }
        }));
        for kek in self.catalog.iter() {
            samples.keks.push((kek.spec.name.to_string(), kek.stand().condition));
            let known = kek.known();
            let interval_seconds = kek.terms(&self.custody).interval.as_secs_f64();
            samples.leases.extend(known.versions.iter().map(
                |Leased { version, lease, .. }| LeaseSample {
                    kek: kek.spec.name.to_string(),
                    version: version.info().id.to_string(),
                    age_seconds: lease.as_ref().map(|lease| lease.age(now).as_secs_f64()),
                    operation_age_seconds:
                        lease.as_ref().map(|lease| lease.since_operation(now).as_secs_f64()),
                    interval_seconds,
                    state: match lease.as_ref().map(|lease| lease.standing(now)) {
                        Some(Standing::Live) => "live",
                        Some(Standing::Outage) => "outage",
                        Some(Standing::Lapsed { .. }) => "lapsed",
                        Some(Standing::Ended) | None => "none",
                    },
                },
            ));
        }
    }
}
