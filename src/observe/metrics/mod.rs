//! Metrics, for Prometheus.
//!
//! [`Metrics`] is made once, from the names of the configuration, and every counter
//! with it: what happens costs a relaxed atomic add, no lock and no allocation. Sizes
//! and ages are asked for when somebody looks, from registered sources.
//!
//! Invariants: the values of labels are names from the configuration, versions that a
//! backend holds, and words from fixed lists. A stranger cannot make one: KEKs that are
//! not configured are counted together, as `-`.

mod backend;
mod kek;
mod process;
mod samples;
mod tally;
#[cfg(test)]
mod tests;
mod text;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::SystemTime,
};

pub use backend::{BackendMetrics, HsmOp, HsmOutcome, TimedHsmOp};
pub use kek::{Answered, KekMetrics, Purge};
pub use samples::{CacheSample, GuardSample, LeaseSample, Samples};
pub use text::CONTENT_TYPE as METRICS_CONTENT_TYPE;

use super::operation::{Record, write_line};
use crate::op::OPS;
use prometheus_client::registry::Registry;
use tally::{Counts, Timings};

/// The label of what is not in the configuration. No KEK and no backend can be called
/// that.
const OTHERS: &str = "-";

/// Why the sidecar closed a connection that was in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// It reached its age.
    Age,
    /// It had carried DEKs that were purged.
    Purge,
    /// The sidecar stops.
    Drain,
}

impl Closed {
    /// In the order of the enum, as in the label `cause`.
    const NAMES: [&'static str; 3] = ["age", "purge", "drain"];
}

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    state: Arc<State>,
    registry: Registry,
}

#[derive(Debug)]
struct State {
    started: SystemTime,
    keks: Named<KekMetrics>,
    backends: Named<BackendMetrics>,
    operations: [Timings; OPS.len()],
    closed: Counts<3>,
    sources: RwLock<Vec<Source>>,
}

impl Metrics {
    /// Metrics of these KEKs and backends, by their names in the configuration.
    pub fn new<'a>(
        keks: impl IntoIterator<Item = &'a str>,
        backends: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let state = Arc::new(State {
            started: SystemTime::now(),
            keks: Named::new(keks),
            backends: Named::new(backends),
            operations: Default::default(),
            closed: Counts::default(),
            sources: RwLock::default(),
        });
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Arc::clone(&state)));
        Self { state, registry }
    }

    /// The counters of a KEK, to be kept beside it. All names that are not configured
    /// share one set.
    pub fn kek(&self, name: &str) -> Arc<KekMetrics> {
        Arc::clone(self.state.keks.get(name))
    }

    /// The counters of a backend, to be kept beside it. All names that are not
    /// configured share one set.
    pub fn backend(&self, name: &str) -> Arc<BackendMetrics> {
        Arc::clone(self.state.backends.get(name))
    }

    /// An operation ended: writes its line and counts it.
    pub fn record(&self, record: &Record<'_>) {
        write_line(record);
        self.count(record);
    }

    /// Counts an operation that ended, without a line.
    pub(super) fn count(&self, record: &Record<'_>) {
        self.state.operations[record.op as usize].add(record.took);
        self.state.keks.get(record.kek).operation(record.op, record.outcome);
    }

    /// The sidecar closed a connection that was in order.
    pub fn connection_closed(&self, cause: Closed) {
        self.state.closed.add(cause as usize);
    }

    /// Has `source` asked each time that somebody looks. It should not take long, and
    /// must not call [`Metrics::render`] or [`Metrics::register_source`]. It is kept as
    /// long as the metrics are.
    pub fn register_source(&self, source: impl Fn(&mut Samples) + Send + Sync + 'static) {
        let mut sources = self.state.sources.write().unwrap_or_else(PoisonError::into_inner);
        sources.push(Source(Box::new(source)));
    }

    /// Everything as text for Prometheus, of the type [`METRICS_CONTENT_TYPE`].
    pub fn render(&self) -> String {
        text::render(&self.registry)
    }
}

impl State {
    fn samples(&self) -> Samples {
        let mut samples = Samples::default();
        for Source(fill) in self.sources.read().unwrap_or_else(PoisonError::into_inner).iter() {
            fill(&mut samples);
        }
        samples
    }
}

struct Source(Box<dyn Fn(&mut Samples) + Send + Sync>);

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Source")
    }
}

/// Counters for each configured name, and one set for all others.
#[derive(Debug)]
struct Named<T> {
    configured: BTreeMap<Box<str>, Arc<T>>,
    others: Arc<T>,
}

impl<T: Default> Named<T> {
    fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let configured = names.into_iter().map(|name| (name.into(), Arc::default())).collect();
        Self { configured, others: Arc::default() }
    }

    fn get(&self, name: &str) -> &Arc<T> {
        self.configured.get(name).unwrap_or(&self.others)
    }

    /// In order of name, the others last.
    fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        let configured = self.configured.iter().map(|(name, counters)| (&**name, &**counters));
        configured.chain([(OTHERS, &*self.others)])
    }
}
