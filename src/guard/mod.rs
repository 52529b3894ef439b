//! What stands around every backend. In its order:
//!
//! 1. `senders`: a caller who sent many bad ciphertexts waits by itself.
//! 2. `breaker`: a backend that does not answer is not asked, but to see if it does again.
//! 3. `admission`: a bounded queue; foreground first, fair between callers, below the
//!    backend's ceiling (`rate`); what would come too late is refused at once.
//! 4. `deadline`: no call outlives its caller, whatever the backend does.
//! 5. `retry`: once more, where it is safe, worth it, and within a budget.
//!
//! Whoever wants something of a backend first gets a [`Turn`] and spends it; there is no
//! other way. Between the two it can look again whether the KEK is still allowed. Only
//! proofs go past the queue: leases must be renewed however much is waiting. They count
//! for the ceiling and the breaker all the same.
//!
//! It knows no KEK and no cache, and decides nothing about a key.

mod admission;
mod breaker;
mod deadline;
mod queue;
mod rate;
mod retry;
mod senders;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

pub use breaker::Position;
pub use queue::Class;

use self::{
    admission::{Admission, Place},
    breaker::{Breaker, Verdict},
    deadline::within,
    retry::Budget,
    senders::Senders,
};
use crate::{
    backend::{Backend, jitter},
    clock::now,
    error::{Error, Reason, Retry},
    kek::{Algorithm, KeyRef, UsableVersion, VersionInfo},
    secret::Secret,
};

/// A call with less time than this that got no answer says nothing about the backend.
const PATIENCE: Duration = Duration::from_secs(1);

/// Stands for a caller. Equal callers have equal numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sender(pub u64);

/// Who asks, what for, and until when.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// What for.
    pub class: Class,
    /// Who.
    pub sender: Sender,
    /// Until when.
    pub deadline: Instant,
}

/// A backend and what stands around it. Clones are the same.
#[derive(Clone)]
pub struct Guard(Arc<Shared>);

struct Shared {
    backend: Arc<dyn Backend>,
    senders: Mutex<Senders>,
    breaker: Mutex<Breaker>,
    admission: Admission,
    budget: Mutex<Budget>,
    attempts: u32,
    retries: AtomicU64,
    refused: AtomicU64,
}

/// How a guard stands, for metrics.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standing {
    /// Operations that wait, by class.
    pub waiting: [(Class, usize); Class::ALL.len()],
    /// The breaker.
    pub breaker: Position,
    /// Units that the backend was given so far, proofs included.
    pub units: u64,
    /// Units in a second that it may be given, if there is a ceiling.
    pub ceiling: Option<f64>,
    /// Attempts that were made again.
    pub retries: u64,
    /// Operations that did not reach the backend.
    pub refused: u64,
}

/// The right to one operation. Dropped, it is the next one's.
pub struct Turn {
    shared: Arc<Shared>,
    _place: Place,
    ask: Ask,
    units: u32,
}

impl Guard {
    /// Puts the guards around `backend`, as it has room.
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        let room = backend.room();
        Self(Arc::new(Shared {
            backend,
            senders: Mutex::default(),
            breaker: Mutex::new(Breaker::new()),
            admission: Admission::new(room),
            budget: Mutex::new(Budget::new()),
            attempts: room.attempts.max(1),
            retries: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }))
    }

    /// Waits for the right to one operation of `units`.
    pub async fn turn(&self, ask: Ask, units: u32) -> Result<Turn, Error> {
        self.0.enter(ask, units).await.inspect_err(|_| {
            self.0.refused.fetch_add(1, Ordering::Relaxed);
        })
    }

    /// Refuses what [`Self::turn`] would refuse at once, and takes nothing.
    pub fn foresee(&self, ask: Ask, units: u32) -> Result<(), Error> {
        let foreseen = self.0.check(ask).and_then(|()| self.0.admission.foresee(ask, units));
        foreseen.inspect_err(|_| _ = self.0.refused.fetch_add(1, Ordering::Relaxed))
    }

    /// [`Backend::versions`], for which `units` are charged, without waiting for a turn.
    pub async fn versions(
        &self,
        key: &KeyRef,
        algorithm: Algorithm,
        units: u32,
        deadline: Instant,
    ) -> Result<Vec<VersionInfo>, Error> {
        let asked = self.0.backend.versions(key, algorithm, deadline);
        self.0.observed(units, deadline, asked).await
    }

    /// [`Backend::prove`], without waiting for a turn.
    pub async fn prove(
        &self,
        version: &VersionInfo,
        algorithm: Algorithm,
        deadline: Instant,
    ) -> Result<SystemTime, Error> {
        let asked = self.0.backend.prove(version, algorithm, deadline);
        self.0.observed(self.units(version), deadline, asked).await
    }

    /// [`Backend::wrap`] where the backend needs no device for it: no turn either.
    /// `None` if it does.
    pub async fn wrap_locally(
        &self,
        version: &UsableVersion,
        algorithm: Algorithm,
        payload: &Secret,
        deadline: Instant,
    ) -> Option<Result<Vec<u8>, Error>> {
        if !self.0.backend.wraps_locally(algorithm) {
            return None;
        }
        Some(self.0.backend.wrap(version, algorithm, payload, deadline).await)
    }

    /// What an operation on `version` counts for.
    pub fn units(&self, version: &VersionInfo) -> u32 {
        self.0.backend.units(version)
    }

    /// The backend, for its name and kind.
    pub fn backend(&self) -> &dyn Backend {
        self.0.backend.as_ref()
    }

    /// How it stands.
    pub fn standing(&self) -> Standing {
        let shared = &self.0;
        Standing {
            waiting: Class::ALL.map(|class| (class, shared.admission.waiting(class))),
            breaker: lock(&shared.breaker).position(),
            units: shared.admission.units(),
            ceiling: shared.backend.room().ceiling.map(|ceiling| ceiling.per_second),
            retries: shared.retries.load(Ordering::Relaxed),
            refused: shared.refused.load(Ordering::Relaxed),
        }
    }
}

impl Shared {
    fn check(&self, ask: Ask) -> Result<(), Error> {
        if let Some(wait) = lock(&self.senders).refuses(ask.sender, now()) {
            return Err(Error::new(Reason::Overloaded, "too many ciphertexts that do not unwrap")
                .with_retry(Retry::After(wait)));
        }
        if let Some(wait) = lock(&self.breaker).refuses(now()) {
            return Err(self.away(wait));
        }
        Ok(())
    }

    async fn enter(self: &Arc<Self>, ask: Ask, units: u32) -> Result<Turn, Error> {
        self.check(ask)?;
        let place = self.admission.enter(ask, units).await?;
        Ok(Turn { shared: Arc::clone(self), _place: place, ask, units })
    }

    fn away(&self, wait: Duration) -> Error {
        Error::new(Reason::BackendUnreachable, "the HSM or vault does not answer")
            .with_detail(format!("backend {}: not asked again yet", self.backend.name()))
            .with_retry(Retry::After(wait))
    }

    /// One attempt that goes past the queue.
    async fn observed<T>(
        &self,
        units: u32,
        deadline: Instant,
        asked: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        self.admission.charge(units);
        let began = now();
        let result = within(deadline, asked).await;
        self.settle(&result, units, began);
        result
    }

    /// Whether an operation of `units` that failed is worth attempt number `number`; waits
    /// until it may be made.
    async fn may_try_again(
        &self,
        error: &Error,
        number: u32,
        units: u32,
        deadline: Instant,
    ) -> bool {
        if error.reason() == Reason::Overloaded && self.admission.is_paced() {
            // The ceiling knows by now, and says when: there is nothing to budget.
            return number <= self.attempts && self.admission.once_more(units, deadline).await;
        }
        let (attempts, jitter) = (self.attempts, jitter());
        let pause = lock(&self.budget).withdraw(error, number, attempts, now(), deadline, jitter);
        let Some(pause) = pause else { return false };
        tokio::time::sleep(pause).await;
        self.admission.charge(units);
        true
    }

    /// Tells the breaker and the ceiling what came of an attempt. False if it says nothing of
    /// the backend.
    fn settle<T>(&self, result: &Result<T, Error>, units: u32, began: Instant) -> bool {
        let answered = || {
            lock(&self.breaker).answered();
            self.admission.answered(units);
        };
        let took = now().saturating_duration_since(began);
        let error = match result {
            Ok(_) => {
                answered();
                return true;
            }
            Err(error) => error,
        };
        match error.reason() {
            Reason::BackendUnreachable => lock(&self.breaker).failed(now(), jitter()),
            Reason::DeadlineExceeded if took >= PATIENCE => {
                lock(&self.breaker).failed(now(), jitter());
            }
            Reason::DeadlineExceeded | Reason::Internal => return false,
            Reason::Overloaded => {
                if let Retry::After(pause) = error.retry() {
                    self.admission.refused(began, pause);
                }
                return false;
            }
            _ => answered(),
        }
        true
    }
}

impl Turn {
    /// [`Backend::unwrap`].
    pub async fn unwrap(
        self,
        version: &UsableVersion,
        algorithm: Algorithm,
        ciphertext: &[u8],
    ) -> Result<Secret, Error> {
        let (backend, deadline) = (Arc::clone(&self.shared.backend), self.ask.deadline);
        let attempt = || backend.unwrap(version, algorithm, ciphertext, deadline);
        let unwrapped = self.spend(attempt).await;
        if unwrapped.as_ref().is_err_and(|error| error.reason() == Reason::CiphertextInvalid) {
            lock(&self.shared.senders).count(self.ask.sender, now());
        }
        unwrapped
    }

    /// [`Backend::wrap`].
    pub async fn wrap(
        self,
        version: &UsableVersion,
        algorithm: Algorithm,
        payload: &Secret,
    ) -> Result<Vec<u8>, Error> {
        let (backend, deadline) = (Arc::clone(&self.shared.backend), self.ask.deadline);
        self.spend(|| backend.wrap(version, algorithm, payload, deadline)).await
    }

    /// [`Backend::random`].
    pub async fn random(self, len: usize) -> Result<Option<Secret>, Error> {
        let (backend, deadline) = (Arc::clone(&self.shared.backend), self.ask.deadline);
        self.spend(|| backend.random(len, deadline)).await
    }

    /// Attempts it, again if need be.
    async fn spend<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let (shared, deadline) = (&self.shared, self.ask.deadline);
        lock(&shared.budget).deposit();
        let mut number = 1;
        loop {
            let mut trial = match lock(&shared.breaker).ask(now()) {
                Verdict::Go => Trial { shared, probe: false },
                Verdict::Probe => Trial { shared, probe: true },
                Verdict::Refuse(wait) => return Err(shared.away(wait)),
            };
            let began = now();
            let result = within(deadline, attempt()).await;
            if shared.settle(&result, self.units, began) {
                trial.probe = false;
            }
            drop(trial);
            let Err(error) = &result else { return result };
            number += 1;
            if !shared.may_try_again(error, number, self.units, deadline).await {
                return result;
            }
            shared.retries.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// An attempt under way. If it was to show whether the backend answers, and ends without
/// having shown it, the next one shows it.
struct Trial<'a> {
    shared: &'a Shared,
    probe: bool,
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        if self.probe {
            lock(&self.shared.breaker).abandoned(now());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guard({})", self.0.backend.name())
    }
}

impl fmt::Debug for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Turn({})", self.shared.backend.name())
    }
}
