//! Metrics as text: every name, its help and its labels, in one place.
//!
//! What is configured is shown from the start, also at zero, so that a rate has a
//! beginning; of what can happen in many ways (outcomes) only success is, and the rest
//! once it happened.

use std::{fmt, sync::atomic::Ordering, time::UNIX_EPOCH};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet, prometheus_text},
    metrics::MetricType,
    registry::Registry,
};

use super::{
    Closed, OTHERS, State,
    kek::{Answered, OUTCOMES, Purge, REFRESHED_NAMES, outcome_name},
    process,
    samples::{CacheSample, GuardSample, LeaseSample},
    tally::{Timings, TimingsRead},
};
use crate::{kek::EventKind, op::OPS};

pub use prometheus_text::CONTENT_TYPE;

pub(super) fn render(registry: &Registry) -> String {
    let mut text = String::new();
    prometheus_text::encode(&mut text, registry).expect("a string takes whatever is written");
    text
}

impl Collector for State {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        self.operations(&mut page)?;
        self.keks(&mut page)?;
        self.backends(&mut page)?;
        page.counters(
            "keyward_connections_closed",
            "Connections of callers that the sidecar closed although they were in order, by cause",
            self.closed.named(&Closed::NAMES).map(|(cause, n)| ([("cause", cause)], n)),
        )?;
        self.sampled(&mut page)?;
        self.process(&mut page)
    }
}

impl State {
    fn operations(&self, page: &mut Page<'_>) -> fmt::Result {
        let counts = self.keks.iter().flat_map(|(kek, counters)| {
            OPS.iter().zip(&counters.operations).flat_map(move |(spec, outcomes)| {
                (0..OUTCOMES).filter_map(move |outcome| {
                    let n = outcomes.get(outcome);
                    let shown = n > 0 || (outcome == 0 && kek != OTHERS);
                    let outcome = outcome_name(outcome);
                    shown.then_some(([("kek", kek), ("op", spec.name), ("outcome", outcome)], n))
                })
            })
        });
        page.counters(
            "keyward_operations",
            "Operations that callers asked for, by KEK (- for all that are not configured), \
             operation and outcome",
            counts,
        )?;
        page.histograms(
            "keyward_operation_seconds",
            "Time that operations of callers took in the sidecar, whatever their outcome",
            OPS.iter().zip(&self.operations).map(|(spec, took)| ([("op", spec.name)], took.read())),
        )
    }

    fn keks(&self, page: &mut Page<'_>) -> fmt::Result {
        let configured = || self.keks.iter().filter(|(kek, _)| *kek != OTHERS);
        page.counters(
            "keyward_unwraps",
            "Unwraps that were answered, by where the answer came from: the cache, the HSM, an \
             operation of the HSM shared with another caller, or memory of an invalid ciphertext",
            configured().flat_map(|(kek, counters)| {
                let answered = counters.answered.named(&Answered::NAMES);
                answered.map(move |(from, n)| ([("kek", kek), ("from", from)], n))
            }),
        )?;
        page.counters(
            "keyward_refreshes",
            "Cached DEKs that were unwrapped again ahead of their expiry, or could not be",
            configured().flat_map(|(kek, counters)| {
                let refreshed = counters.refreshed.named(&REFRESHED_NAMES);
                refreshed.map(move |(result, n)| ([("kek", kek), ("result", result)], n))
            }),
        )?;
        page.counters(
            "keyward_purges",
            "Times that all cached DEKs of a KEK were zeroized, by cause",
            configured().flat_map(|(kek, counters)| {
                let purged = counters.purged.named(&Purge::NAMES);
                purged.map(move |(cause, n)| ([("kek", kek), ("cause", cause)], n))
            }),
        )?;
        page.counters(
            "keyward_kek_events",
            "What happened to a KEK or a version of it, as WatchKeks tells it",
            configured().flat_map(|(kek, counters)| {
                let events = counters.events.named(&EventKind::NAMES);
                events.map(move |(event, n)| ([("kek", kek), ("event", event)], n))
            }),
        )
    }

    fn backends(&self, page: &mut Page<'_>) -> fmt::Result {
        let shown = |backend: &str, outcome: &str, timings: &Timings| {
            let read = timings.read();
            let shown = read.count > 0 || (outcome == "ok" && backend != OTHERS);
            shown.then_some(read)
        };
        let timings: Vec<_> = self
            .backends
            .iter()
            .flat_map(|(backend, counters)| {
                counters.named().filter_map(move |(operation, outcome, timings)| {
                    let read = shown(backend, outcome, timings)?;
                    let labels =
                        [("backend", backend), ("operation", operation), ("outcome", outcome)];
                    Some((labels, read))
                })
            })
            .collect();
        page.counters(
            "keyward_hsm_operations",
            "Operations of backends, by outcome: ok, invalid (a ciphertext that does not unwrap), \
             refused (the key or the device does not allow it), unavailable, abandoned",
            timings.iter().map(|(labels, read)| (*labels, read.count)),
        )?;
        page.histograms(
            "keyward_hsm_operation_seconds",
            "Time that operations of backends took, from asking to the answer, with the wait for a \
             session",
            timings.iter().copied(),
        )?;
        page.gauges(
            "keyward_hsm_operations_in_flight",
            "Operations of backends that somebody waits for now",
            self.backends.iter().filter(|(backend, _)| *backend != OTHERS).map(
                |(backend, counters)| {
                    let n = counters.in_flight.load(Ordering::Relaxed);
                    ([("backend", backend)], n as f64)
                },
            ),
        )
    }

    fn sampled(&self, page: &mut Page<'_>) -> fmt::Result {
        let samples = self.samples();
        if let Some(cache) = &samples.cache {
            cache_sample(page, cache)?;
        }
        page.gauges(
            "keyward_kek_condition",
            "1, with how a KEK stands: SERVING, GRACE (its backend is out of reach, and what is \
             cached is served) or DARK",
            samples.keks.iter().map(|(kek, condition)| {
                ([("kek", kek.clone()), ("condition", condition.as_str().to_owned())], 1.0)
            }),
        )?;
        lease_samples(page, &samples.leases)?;
        guard_samples(page, &samples.guards)?;
        if let Some(in_flight) = samples.flights {
            page.gauge(
                "keyward_unwraps_in_flight",
                "Distinct unwraps that wait for an HSM; callers who share one count once",
                in_flight as f64,
            )?;
        }
        if let Some(sessions) = samples.sessions {
            let help = "Open sessions of sealed delivery";
            page.gauge("keyward_sessions", help, sessions as f64)?;
        }
        if let Some(connections) = samples.connections {
            page.gauge("keyward_connections", "Open connections of callers", connections as f64)?;
        }
        Ok(())
    }

    fn process(&self, page: &mut Page<'_>) -> fmt::Result {
        page.gauges(
            "keyward_build_info",
            "1, with the version of the sidecar",
            [([("version", env!("CARGO_PKG_VERSION"))], 1.0)],
        )?;
        let started = self.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        page.gauge(
            "process_start_time_seconds",
            "When the sidecar started, in seconds since 1970",
            started.as_secs_f64(),
        )?;
        match process::resident_bytes() {
            Some(bytes) => page.gauge(
                "process_resident_memory_bytes",
                "Memory of the process that is resident",
                bytes as f64,
            ),
            None => Ok(()),
        }
    }
}

fn cache_sample(page: &mut Page<'_>, cache: &CacheSample) -> fmt::Result {
    page.gauge("keyward_cache_entries", "DEKs in the cache", cache.entries as f64)?;
    page.gauge("keyward_cache_bytes", "Memory that cached DEKs take up", cache.bytes as f64)?;
    page.gauge(
        "keyward_cache_capacity_entries",
        "DEKs that fit into the cache",
        cache.capacity as f64,
    )?;
    page.counters(
        "keyward_cache_evictions",
        "DEKs that left the cache and were zeroized, by cause",
        [
            ([("cause", "capacity")], cache.evicted_capacity),
            ([("cause", "ttl")], cache.evicted_ttl),
            ([("cause", "idle")], cache.evicted_idle),
            ([("cause", "purge")], cache.evicted_purge),
        ],
    )
}

fn lease_samples(page: &mut Page<'_>, leases: &[LeaseSample]) -> fmt::Result {
    let labels = |lease: &'_ LeaseSample| (lease.kek.clone(), lease.version.clone());
    page.gauges(
        "keyward_lease_age_seconds",
        "Time since a KEK version last proved that it is allowed; absent before the first proof",
        leases.iter().filter_map(|lease| {
            let (kek, version) = labels(lease);
            Some(([("kek", kek), ("version", version)], lease.age_seconds?))
        }),
    )?;
    page.gauges(
        "keyward_lease_operation_age_seconds",
        "Time since the last private-key operation with a KEK version that succeeded, a canary's or \
         a caller's; absent before the first proof",
        leases.iter().filter_map(|lease| {
            let (kek, version) = labels(lease);
            Some(([("kek", kek), ("version", version)], lease.operation_age_seconds?))
        }),
    )?;
    page.gauges(
        "keyward_lease_interval_seconds",
        "How long a proof of a KEK version is good for: the configured interval, or what the quota \
         of a fleet's vault allows",
        leases.iter().map(|lease| {
            let (kek, version) = labels(lease);
            ([("kek", kek), ("version", version)], lease.interval_seconds)
        }),
    )?;
    page.gauges(
        "keyward_lease_state",
        "1, with the state of a KEK version's lease",
        leases.iter().map(|lease| {
            let (kek, version) = labels(lease);
            ([("kek", kek), ("version", version), ("state", lease.state.to_owned())], 1.0)
        }),
    )
}

fn guard_samples(page: &mut Page<'_>, guards: &[GuardSample]) -> fmt::Result {
    let of = |guard: &GuardSample| ("backend", guard.backend.clone());
    page.gauges(
        "keyward_queue_length",
        "Operations that wait for their turn with a backend, by class: foreground, bulk (streams), \
         rewrap, prefetch (refreshes)",
        guards.iter().flat_map(|guard| {
            let class = |&(class, n): &(&'static str, u64)| {
                ([of(guard), ("class", class.to_owned())], n as f64)
            };
            guard.waiting.iter().map(class).collect::<Vec<_>>()
        }),
    )?;
    page.gauges(
        "keyward_breaker_state",
        "1, with the position of a backend's breaker: closed, open, half-open",
        guards.iter().map(|guard| ([of(guard), ("state", guard.breaker.to_owned())], 1.0)),
    )?;
    page.counters(
        "keyward_backend_units",
        "What a backend was given to do, in the units of its ceiling, proofs included",
        guards.iter().map(|guard| ([of(guard)], guard.units)),
    )?;
    page.gauges(
        "keyward_backend_ceiling_units_per_second",
        "What a backend may be given to do; absent if there is no ceiling",
        guards.iter().filter_map(|guard| Some(([of(guard)], guard.ceiling?))),
    )?;
    page.counters(
        "keyward_backend_retries",
        "Attempts that were made again because a backend did not answer",
        guards.iter().map(|guard| ([of(guard)], guard.retries)),
    )?;
    page.counters(
        "keyward_backend_refused",
        "Operations that were refused before they reached a backend",
        guards.iter().map(|guard| ([of(guard)], guard.refused)),
    )
}

/// What is written so far. A metric without a series is left out.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    /// `name` without `_total`, which is added.
    fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut series = series.into_iter().peekable();
        if series.peek().is_none() {
            return Ok(());
        }
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in series {
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        Ok(())
    }

    fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, f64)>,
    ) -> fmt::Result {
        let mut series = series.into_iter().peekable();
        if series.peek().is_none() {
            return Ok(());
        }
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in series {
            metric.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn histograms<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, TimingsRead)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, TimingsRead { buckets, count, sum_seconds }) in series {
            metric.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
                sum_seconds,
                count,
                &buckets,
                None,
            )?;
        }
        Ok(())
    }
}
