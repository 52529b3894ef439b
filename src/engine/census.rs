//! Counts which versions unwrap, and keeps the count over restarts.
//!
//! Counting is on the way of every unwrap: a few relaxed atomics, no lock and no allocation.
//! A caller's bit is reckoned once for each version and caller, or again if others came
//! between.
//!
//! Invariant: what is counted is never less than what was answered, but for the moment
//! before it is written, which a crash may lose.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};
use tracing::{info, warn};

use super::{Engine, catalog::Kek};
use crate::{
    error::Error,
    guard::Sender,
    kek::{Callers, KekName, Report, Usage, VersionId},
    kept::{Ledger, Opened},
};

/// How often it is written, if something was counted.
const WRITE_EVERY: Duration = Duration::from_secs(10);

/// Callers of one version that are known to have been counted. A power of two.
const KNOWN: usize = 64;

/// Versions of one KEK that are counted. A backend has no more at once.
const ROWS_MAX: usize = 1024;

/// How a version was used, while it is counted.
pub(super) struct Row {
    unwraps: AtomicU64,
    /// Seconds since 1970; 0 for never.
    last: AtomicU64,
    callers: [AtomicU64; 16],
    /// By their numbers as senders, which are not 0 but once in 2^64.
    known: [AtomicU64; KNOWN],
}

impl Row {
    fn new(usage: &Usage) -> Self {
        let secs = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut words = usage
            .callers
            .to_bytes()
            .chunks_exact(8)
            .map(|chunk| u64::from_le_bytes(chunk.try_into().expect("eight bytes")))
            .collect::<Vec<_>>()
            .into_iter();
        Self {
            unwraps: AtomicU64::new(usage.unwraps),
            last: AtomicU64::new(usage.last.map_or(0, secs)),
            callers: std::array::from_fn(|_| AtomicU64::new(words.next().unwrap_or_default())),
            known: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Counts an unwrap of `who`, whose number is `sender`.
    fn count(&self, who: &impl fmt::Display, sender: Sender, at: SystemTime) {
        self.unwraps.fetch_add(1, Relaxed);
        let secs = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        // Mostly it is of this second already.
        if self.last.load(Relaxed) < secs {
            self.last.fetch_max(secs, Relaxed);
        }
        let known = &self.known[sender.0 as usize % KNOWN];
        if known.load(Relaxed) != sender.0 {
            let (word, mask) = Callers::place(Callers::bit(who));
            self.callers[word].fetch_or(mask, Relaxed);
            known.store(sender.0, Relaxed);
        }
    }

    pub(super) fn usage(&self) -> Usage {
        let last = self.last.load(Relaxed);
        Usage {
            unwraps: self.unwraps.load(Relaxed),
            last: (last > 0).then(|| UNIX_EPOCH + Duration::from_secs(last)),
            callers: Callers::from_words(std::array::from_fn(|n| self.callers[n].load(Relaxed))),
        }
    }
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.usage(), f)
    }
}

/// The rows of one KEK. A version that its backend does not have any more keeps its row.
#[derive(Debug, Default)]
pub(super) struct Rows(Mutex<BTreeMap<VersionId, Arc<Row>>>);

impl Rows {
    /// The row of a version.
    pub(super) fn row(&self, id: &VersionId) -> Arc<Row> {
        let mut rows = self.rows();
        if let Some(row) = rows.get(id) {
            return Arc::clone(row);
        }
        let row = Arc::new(Row::new(&Usage::default()));
        // One too many is counted, and not kept.
        if rows.len() < ROWS_MAX {
            rows.insert(id.clone(), Arc::clone(&row));
        }
        row
    }

    fn rows(&self) -> MutexGuard<'_, BTreeMap<VersionId, Arc<Row>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What this node counts, and where that is kept.
#[derive(Debug)]
pub(super) struct Bookkeeper {
    ledger: Arc<Ledger>,
    /// What was kept before, for its node and since when; and for KEKs that are not
    /// configured now.
    before: Report,
    /// What was written last.
    written: Mutex<Option<Report>>,
    failing: AtomicBool,
}

impl Bookkeeper {
    /// Goes on with what was kept.
    pub(super) fn open(ledger: Ledger, node: String) -> Self {
        let Opened { report, set_aside } = ledger.open(node, SystemTime::now());
        if let Some(path) = set_aside {
            warn!(path = %path.display(), "the census could not be read: it is set aside, and begins anew");
        }
        let (ledger, written) = (Arc::new(ledger), Mutex::new(Some(report.clone())));
        Self { ledger, before: report, written, failing: AtomicBool::new(false) }
    }

    /// The rows of a KEK, as far as they were kept.
    pub(super) fn rows(&self, kek: &KekName) -> Rows {
        let versions = self.before.usages.get(kek).into_iter().flatten().take(ROWS_MAX);
        let rows = versions.map(|(id, usage)| (id.clone(), Arc::new(Row::new(usage))));
        Rows(Mutex::new(rows.collect()))
    }

    pub(super) fn node(&self) -> &str {
        &self.before.node
    }

    pub(super) fn since(&self) -> SystemTime {
        self.before.since
    }
}

impl Kek {
    /// Counts an unwrap with a version that was answered.
    pub(super) fn count(&self, id: &VersionId, who: &impl fmt::Display, sender: Sender) {
        if let Some(leased) = self.known().versions.get(id) {
            leased.row.count(who, sender, SystemTime::now());
        }
    }
}

impl Engine {
    /// What this node counted so far.
    pub fn census(&self) -> Report {
        let Bookkeeper { before, .. } = &self.bookkeeper;
        let mut report = Report { at: SystemTime::now(), ..before.clone() };
        for kek in self.catalog.iter() {
            let rows = kek.rows.rows();
            let used = rows.iter().map(|(id, row)| (id.clone(), row.usage()));
            let used = used.filter(|(_, usage)| usage.unwraps > 0);
            report.usages.insert(kek.spec.name.clone(), used.collect());
        }
        report.usages.retain(|_, versions| !versions.is_empty());
        report
    }

    /// Writes what was counted, if that is more than was written. Never an error for who
    /// calls: it is tried again.
    pub async fn keep_census(&self) {
        let Bookkeeper { ledger, written, failing, .. } = &self.bookkeeper;
        let report = self.census();
        let is_news = {
            let written = written.lock().unwrap_or_else(PoisonError::into_inner);
            written.as_ref().is_none_or(|written| written.usages != report.usages)
        };
        if !is_news {
            return;
        }
        let (ledger, sent) = (Arc::clone(ledger), report.clone());
        let outcome = spawn_blocking(move || ledger.write(&sent)).await;
        match outcome {
            Ok(Ok(_)) => {
                *written.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
                if failing.swap(false, Relaxed) {
                    info!("the census can be written again");
                }
            }
            Ok(Err(error)) if !failing.swap(true, Relaxed) => tell(&error),
            _ => {}
        }
    }
}

fn tell(error: &Error) {
    let detail = error.detail().unwrap_or("-");
    warn!(detail, "the census cannot be written, and is tried again: {error}");
}

/// Keeps the census written, until it is dropped.
pub(super) async fn keep(engine: Arc<Engine>) {
    let mut ticks = interval(WRITE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        engine.keep_census().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_caller_is_counted_however_many_come_between() {
        let row = Row::new(&Usage::default());
        let at = UNIX_EPOCH + Duration::from_secs(100);
        for round in 0..3 {
            for caller in 0..200_u64 {
                row.count(
                    &format!("uid:{caller}"),
                    Sender(caller + 1),
                    at + Duration::from_secs(round),
                );
            }
        }
        let usage = row.usage();
        assert_eq!((usage.unwraps, usage.last), (600, Some(at + Duration::from_secs(2))));
        assert!((180..=220).contains(&usage.callers.count()), "{usage:?}");
        assert_eq!(Row::new(&usage).usage(), usage, "a restart goes on with it");
        row.count(&"uid:1", Sender(2), at);
        assert_eq!(row.usage().last, usage.last, "a clock that goes back changes no date");
    }
}
