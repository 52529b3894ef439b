//! Who has carried DEKs of which KEK: the register of connections, so that those can be
//! closed when the KEK's DEKs must leave no trace.
//!
//! What HTTP/2 and TLS keep in the buffers of a living connection cannot be wiped from
//! outside; the buffers of one that ended are freed, and what is freed is wiped. It
//! knows no transport: a carrier is told to close, and closes by leaving the register.
//!
//! Invariant: a carrier is marked with a KEK *before* the lease of a DEK is checked. So
//! whoever ends the lease first and then asks for the carriers finds every one that a
//! DEK went to.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use crate::kek::KekName;

/// The register.
#[derive(Debug, Default)]
pub struct Carriers {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Carrier>>,
    /// Rung whenever one leaves.
    left: Notify,
}

/// One connection's entry, to be marked with what it carries. Clones are the same entry.
#[derive(Clone)]
pub struct Carrier(Arc<Entry>);

struct Entry {
    keks: RwLock<Vec<KekName>>,
    closing: watch::Sender<Urgency>,
}

/// Whether a carrier may go on. It only ever gets more urgent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// It may.
    #[default]
    None,
    /// It is to end, in its own time.
    End,
    /// It is to end now: its buffers must be wiped.
    Wipe,
}

/// Keeps a carrier in the register until it is dropped.
#[derive(Debug)]
pub struct Registration {
    id: u64,
    carriers: Arc<Carriers>,
    carrier: Carrier,
}

/// What came of closing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Closed {
    /// Carriers that were told to close, that of the caller too.
    pub told: usize,
    /// Those of them that had not left by the end.
    pub left_open: usize,
}

impl Carriers {
    /// Enters a new connection.
    pub fn register(self: &Arc<Self>) -> Registration {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let carrier = Carrier::new();
        self.open().insert(id, carrier.clone());
        Registration { id, carriers: Arc::clone(self), carrier }
    }

    /// Tells every carrier of DEKs of `kek` to close, and waits until they have, at most
    /// for `within`.
    pub async fn close(&self, kek: &KekName, within: Duration) -> Closed {
        self.close_for(&[kek], None, within).await
    }

    /// As [`Self::close`] for several KEKs, with one wait for all. `own` is the carrier of
    /// who waits for this, and cannot have left before: it is told last, and not waited for.
    pub async fn close_for(
        &self,
        keks: &[&KekName],
        own: Option<&Carrier>,
        within: Duration,
    ) -> Closed {
        let mut waiting: Vec<u64> = Vec::new();
        let mut last = None;
        for (id, carrier) in self.open().iter() {
            if !keks.iter().any(|kek| carrier.carries(kek)) {
                continue;
            }
            if own.is_some_and(|own| Arc::ptr_eq(&own.0, &carrier.0)) {
                last = own;
                continue;
            }
            carrier.close(Urgency::Wipe);
            waiting.push(*id);
        }
        let told = waiting.len() + usize::from(last.is_some());
        let gone = async {
            loop {
                let mut changed = std::pin::pin!(self.left.notified());
                // Before looking, so that none leaves unnoticed in between.
                changed.as_mut().enable();
                waiting.retain(|id| self.open().contains_key(id));
                if waiting.is_empty() {
                    return;
                }
                changed.await;
            }
        };
        let _too_slow = timeout(within, gone).await;
        if let Some(own) = last {
            own.close(Urgency::Wipe);
        }
        let open = self.open();
        Closed { told, left_open: waiting.iter().filter(|id| open.contains_key(id)).count() }
    }

    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Carrier>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Carrier {
    /// A carrier that no register knows: what never was a connection.
    pub fn new() -> Self {
        Self(Arc::new(Entry {
            keks: RwLock::default(),
            closing: watch::Sender::new(Urgency::None),
        }))
    }

    /// Marks it: from here on a DEK of `kek` may be in its buffers.
    pub fn mark(&self, kek: &KekName) {
        if self.carries(kek) {
            return;
        }
        let mut keks = self.0.keks.write().unwrap_or_else(PoisonError::into_inner);
        if !keks.contains(kek) {
            keks.push(kek.clone());
        }
    }

    /// Tells it to end.
    pub fn close(&self, urgency: Urgency) {
        self.0.closing.send_if_modified(|now| {
            let more = *now < urgency;
            *now = (*now).max(urgency);
            more
        });
    }

    /// Tells when it is to end.
    pub fn closing(&self) -> watch::Receiver<Urgency> {
        self.0.closing.subscribe()
    }

    fn carries(&self, kek: &KekName) -> bool {
        self.0.keks.read().unwrap_or_else(PoisonError::into_inner).contains(kek)
    }
}

impl Default for Carrier {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keks = self.0.keks.read().unwrap_or_else(PoisonError::into_inner);
        write!(f, "Carrier(of {:?})", *keks)
    }
}

impl Registration {
    /// The entry.
    pub fn carrier(&self) -> &Carrier {
        &self.carrier
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.carriers.open().remove(&self.id);
        self.carriers.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    const LONG: Duration = Duration::from_secs(60);

    fn kek(name: &str) -> KekName {
        KekName::parse(name).unwrap()
    }

    /// A connection that closes when it is told to, a second later.
    fn connect(carriers: &Arc<Carriers>, keks: &[&str]) -> tokio::task::JoinHandle<()> {
        let registration = carriers.register();
        keks.iter().for_each(|name| registration.carrier().mark(&kek(name)));
        tokio::spawn(async move {
            let mut closing = registration.carrier().closing();
            closing.wait_for(|urgency| *urgency == Urgency::Wipe).await.expect("the entry lives");
            tokio::time::sleep(Duration::from_secs(1)).await;
        })
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_carried_close_and_the_others_stay() {
        let carriers = Arc::new(Carriers::default());
        let tasks = [
            connect(&carriers, &["a"]),
            connect(&carriers, &["b", "a", "a"]),
            connect(&carriers, &["b"]),
            connect(&carriers, &[]),
        ];
        let began = Instant::now();
        let closed = carriers.close(&kek("a"), LONG).await;
        assert_eq!(closed, Closed { told: 2, left_open: 0 });
        assert_eq!(began.elapsed(), Duration::from_secs(1), "it waits until they have left");
        let [one, two, three, four] = tasks;
        one.await.unwrap();
        two.await.unwrap();
        assert!(!three.is_finished() && !four.is_finished());
        assert_eq!(carriers.close(&kek("a"), LONG).await, Closed::default());
        assert_eq!(carriers.close(&kek("b"), LONG).await.told, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_caller_s_own_is_told_last_and_the_others_wait_together() {
        let carriers = Arc::new(Carriers::default());
        let own = carriers.register();
        let mut told = own.carrier().closing();
        own.carrier().mark(&kek("a"));
        let _others = [connect(&carriers, &["a"]), connect(&carriers, &["b"])];
        let began = Instant::now();
        let (a, b) = (kek("a"), kek("b"));
        let keks = [&a, &b];
        let closing = carriers.close_for(&keks, Some(own.carrier()), LONG);
        let closed = tokio::select! {
            closed = closing => closed,
            _ = told.changed() => panic!("it is told before the others have left"),
        };
        assert_eq!(closed, Closed { told: 3, left_open: 0 });
        assert_eq!(began.elapsed(), Duration::from_secs(1), "one wait");
        assert_eq!(*own.carrier().closing().borrow(), Urgency::Wipe);
        let unmarked = carriers.register();
        let nobody = carriers.close_for(&[&b], Some(unmarked.carrier()), LONG).await;
        assert_eq!(nobody, Closed::default());
        assert_eq!(*unmarked.carrier().closing().borrow(), Urgency::None);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_does_not_close_is_not_waited_for_for_ever() {
        let carriers = Arc::new(Carriers::default());
        let stubborn = carriers.register();
        stubborn.carrier().mark(&kek("a"));
        let began = Instant::now();
        let closed = carriers.close(&kek("a"), Duration::from_secs(2)).await;
        assert_eq!(closed, Closed { told: 1, left_open: 1 });
        assert_eq!(began.elapsed(), Duration::from_secs(2));
        drop(stubborn);
        assert_eq!(carriers.close(&kek("a"), LONG).await, Closed::default());
    }
}
