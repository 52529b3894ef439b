//! Unwrap a DEK with the version that it names: from the cache, or from the backend.
//!
//! The lease of the version is checked before anything is looked up, before the backend
//! is called, when what it answered is cached, and before a DEK is released. Equal misses
//! share one flight to the backend, which goes on for as long as anybody waits for it.

use std::{sync::Arc, time::Instant};

use tokio::{sync::Notify, task::yield_now, time::timeout_at};

use super::{
    Engine, Running,
    catalog::{Held, Kek},
    custody::{Custody, Fetched},
};
use crate::{
    auth::Permit,
    cache::{CacheKey, Grant, Joined, Lookup, Role},
    clock,
    envelope::{self, Context, Dek, WrappedDek},
    error::{Error, Reason},
    guard::{self, Class, Turn},
    observe::Answered,
    op::Op,
    secret::Secret,
};

/// A DEK and where it came from.
#[derive(Debug)]
pub struct Unwrapped {
    /// The DEK.
    pub dek: Dek,
    /// Where it came from.
    pub source: Source,
}

/// Where a DEK came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The cache.
    Cache,
    /// The backend.
    Backend,
    /// The backend, by an operation that another call had begun.
    Shared,
}

impl Engine {
    /// Unwraps `wrapped`, which must be of the permitted KEK. `class` says what
    /// it is for.
    pub async fn unwrap(
        &self,
        permit: Permit,
        wrapped: &WrappedDek,
        context: &Context,
        class: Class,
        deadline: Instant,
    ) -> Result<Unwrapped, Error> {
        let mut running = Running::start(self, &permit, Op::Unwrap)?;
        running.version = Some(wrapped.version.clone());
        let result = async {
            permit.check_context(context.is_bound())?;
            let kek = permitted(self, &permit, wrapped)?;
            let wanted = Wanted { wrapped, context, ask: self.ask(&permit, class, deadline) };
            let unwrapped = wanted.answer(kek, &self.custody).await?;
            kek.count(&wrapped.version, permit.who(), wanted.ask.sender);
            Ok(unwrapped)
        }
        .await;
        running.cached = matches!(&result, Ok(Unwrapped { source: Source::Cache, .. }));
        running.end(result)
    }
}

/// The KEK that a permit is for, if `wrapped` is of that KEK.
pub(super) fn permitted<'a>(
    engine: &'a Engine,
    permit: &Permit,
    wrapped: &WrappedDek,
) -> Result<&'a Arc<Kek>, Error> {
    if wrapped.kek != *permit.kek() {
        return Err(Error::new(Reason::Internal, "a permit was used for another KEK"));
    }
    engine.kek(permit.kek())
}

/// What is asked for.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    wrapped: &'a WrappedDek,
    context: &'a Context,
    ask: guard::Ask,
}

impl Wanted<'_> {
    async fn answer(&self, kek: &Arc<Kek>, custody: &Arc<Custody>) -> Result<Unwrapped, Error> {
        let Self { wrapped, context, .. } = *self;
        let now = clock::now();
        let held = hold(kek, wrapped, now)?;
        let key = custody.cache.key(
            Grant(held.lease.id()),
            wrapped.algorithm,
            context,
            &wrapped.ciphertext,
        );
        let (dek, source) = match custody.cache.get(&key, now) {
            Lookup::Hit { dek, refresh } => {
                kek.metrics.answered(Answered::Hit);
                // In an outage there is nobody to ask.
                if refresh && !held.outage {
                    self.refresh(kek, custody, &held, key);
                }
                (dek, Source::Cache)
            }
            Lookup::Invalid => {
                kek.metrics.answered(Answered::Invalid);
                return Err(Error::ciphertext_invalid());
            }
            Lookup::Miss if held.outage => return Err(kek.unreachable()),
            Lookup::Miss => self.fly(kek, custody, &held, key).await?,
        };
        kek.confirm(&held)?;
        Ok(Unwrapped { dek, source })
    }

    /// Waits for a flight to the backend, one's own or another's.
    async fn fly(
        &self,
        kek: &Arc<Kek>,
        custody: &Arc<Custody>,
        held: &Held,
        key: CacheKey,
    ) -> Result<(Dek, Source), Error> {
        if !custody.flights.is_under_way(&key) {
            // Not left to the flight: it is made for those who have more time.
            kek.guard.foresee(self.ask, kek.guard.units(held.version.info()))?;
        }
        let flight = self.board(kek, custody, held, key)?;
        let role = flight.role();
        kek.metrics.answered(match role {
            Role::Leader => Answered::Miss,
            Role::Follower => Answered::Coalesced,
        });
        match self.wait(flight).await {
            // Another's time was over, or another's lane full, which says nothing of ours.
            // Once: whatever comes of the next flight is the answer.
            Err(error) if role == Role::Follower && is_of_the_flight(&error) => {
                if clock::now() >= self.ask.deadline {
                    return Err(error);
                }
                let mut next = self.board(kek, custody, held, key)?;
                // The one that failed leaves its place a moment after it lands.
                while next.has_landed() {
                    yield_now().await;
                    next = self.board(kek, custody, held, key)?;
                }
                self.wait(next).await
            }
            other => other,
        }
    }

    /// Waits for a flight to land.
    async fn wait(&self, flight: Joined<Fetched>) -> Result<(Dek, Source), Error> {
        let source = match flight.role() {
            Role::Leader => Source::Backend,
            Role::Follower => Source::Shared,
        };
        if self.ask.class == Class::Foreground {
            // It may have been begun for a stream, and wait behind many.
            flight.hurry();
        }
        let landed = timeout_at(self.ask.deadline.into(), flight.wait()).await.map_err(|_| {
            Error::new(Reason::DeadlineExceeded, "the HSM did not answer before the deadline")
        })?;
        let landed = landed
            .map_err(|_| Error::new(Reason::Internal, "an unwrap ended without an answer"))?;
        match landed.as_ref() {
            Ok(dek) => Ok((Dek::parse(Secret::copy_of(dek.secret().expose()))?, source)),
            Err(error) => Err(error.clone()),
        }
    }

    /// Asks the backend again before a DEK expires that is in use, so that nobody has to
    /// wait for it. Nobody waits for this either.
    fn refresh(&self, kek: &Arc<Kek>, custody: &Arc<Custody>, held: &Held, key: CacheKey) {
        let background = Self { ask: guard::Ask { class: Class::Prefetch, ..self.ask }, ..*self };
        if let Ok(flight) = background.board(kek, custody, held, key) {
            let kek = Arc::clone(kek);
            tokio::spawn(async move {
                let landed = flight.wait().await;
                kek.metrics.refreshed(landed.is_ok_and(|landed| landed.is_ok()));
            });
        }
    }

    /// Joins the flight of `key`, or starts it.
    fn board(
        &self,
        kek: &Arc<Kek>,
        custody: &Arc<Custody>,
        held: &Held,
        key: CacheKey,
    ) -> Result<Joined<Fetched>, Error> {
        let now = clock::now();
        let fetch = |hurry| {
            let fetch = Fetch {
                kek: Arc::clone(kek),
                custody: Arc::clone(custody),
                lease: held.lease.id(),
                purges: kek.purges(),
                key,
                wrapped: self.wrapped.clone(),
                context: *self.context,
                ask: guard::Ask {
                    // Who boards later may have more time.
                    deadline: self.ask.deadline.max(now + Op::Unwrap.spec().deadline),
                    ..self.ask
                },
                units: kek.guard.units(held.version.info()),
            };
            fetch.run(hurry)
        };
        let full =
            |_| Error::new(Reason::Overloaded, "too many different DEKs are being unwrapped");
        custody.flights.join(key, fetch).map_err(full)
    }
}

/// Whether a flight failed for what it was given by whoever began it: a deadline, a lane.
fn is_of_the_flight(error: &Error) -> bool {
    matches!(error.reason(), Reason::DeadlineExceeded | Reason::Overloaded)
}

/// One unwrap by the backend, in a task of its own.
struct Fetch {
    kek: Arc<Kek>,
    custody: Arc<Custody>,
    /// The lease that it is for.
    lease: u64,
    /// How often the KEK had been purged when it began.
    purges: u64,
    key: CacheKey,
    wrapped: WrappedDek,
    context: Context,
    ask: guard::Ask,
    units: u32,
}

impl Fetch {
    async fn run(self, hurry: Arc<Notify>) -> Fetched {
        let Self { kek, wrapped, ask, units, .. } = &self;
        let first = guard::Ask { class: Class::Foreground, ..*ask };
        let turn = match ask.class {
            Class::Foreground => kek.guard.turn(first, *units).await?,
            _ => tokio::select! {
                turn = kek.guard.turn(*ask, *units) => turn?,
                () = hurry.notified() => kek.guard.turn(first, *units).await?,
            },
        };
        // It may have waited for long.
        let held = hold(kek, wrapped, clock::now())?;
        if held.lease.id() != self.lease {
            return Err(Error::new(Reason::KekUnproven, "the KEK was proven anew meanwhile"));
        }
        let dek = unwrap(kek, &held, turn, wrapped, &self.context).await;
        self.remember(&held, &dek);
        dek
    }

    /// Caches what came of it, unless the lease has ended or the KEK was purged meanwhile:
    /// what is wiped then must not come back.
    fn remember(&self, held: &Held, fetched: &Fetched) {
        let Self { kek, custody, key, purges, .. } = self;
        let (cache, now, grant) = (&custody.cache, clock::now(), Grant(held.lease.id()));
        // Under the lock, and as of then: with the clock of before it, who waited for the
        // lock while the lease lapsed would put back what was just wiped for that.
        let alive =
            || kek.purges() == *purges && held.lease.standing(clock::now()).allows_release();
        match fetched {
            Ok(dek) => _ = cache.insert(key, grant, dek, now, alive),
            Err(error) if error.reason() == Reason::CiphertextInvalid => {
                cache.insert_invalid(key, grant, now, alive);
            }
            Err(_) => {}
        }
    }
}

/// Unwraps for a rewrap: by the backend, in the background, leaving nothing behind.
pub(super) async fn unwrap_once(
    kek: &Kek,
    wrapped: &WrappedDek,
    context: &Context,
    ask: guard::Ask,
) -> Result<Dek, Error> {
    let units = kek.guard.units(hold(kek, wrapped, clock::now())?.version.info());
    let turn = kek.guard.turn(ask, units).await?;
    // It may have waited for long.
    let held = hold(kek, wrapped, clock::now())?;
    let dek = unwrap(kek, &held, turn, wrapped, context).await?;
    kek.confirm(&held)?;
    Ok(dek)
}

/// Has the backend unwrap, unless it is out of reach.
async fn unwrap(
    kek: &Kek,
    held: &Held,
    turn: Turn,
    wrapped: &WrappedDek,
    context: &Context,
) -> Result<Dek, Error> {
    if held.outage {
        return Err(kek.unreachable());
    }
    let asked = clock::now();
    let payload = turn.unwrap(&held.version, wrapped.algorithm, &wrapped.ciphertext).await;
    if payload.is_ok() {
        // As good as a canary.
        held.lease.operated(asked);
    }
    envelope::open(kek.notice(payload)?, context)
}

/// The version that `wrapped` names, if it may be used now and is the key that wrapped it.
fn hold(kek: &Kek, wrapped: &WrappedDek, now: Instant) -> Result<Held, Error> {
    check_kind(kek, wrapped)?;
    let held = kek.version(&wrapped.version, now)?;
    if wrapped.fingerprint.is_none_or(|expected| expected == held.version.info().fingerprint) {
        return Ok(held);
    }
    Err(Error::new(
        Reason::KekMismatch,
        format!(
            "version {} of KEK {} is not the key that wrapped this DEK",
            wrapped.version, kek.spec.name
        ),
    )
    .with_fix(
        "the key was replaced, or this sidecar is configured with another one of the same name",
    ))
}

/// Refuses an algorithm that the KEK's kind of key cannot have been used with.
pub(super) fn check_kind(kek: &Kek, wrapped: &WrappedDek) -> Result<(), Error> {
    if kek.spec.algorithm.same_key_kind(wrapped.algorithm) {
        return Ok(());
    }
    Err(Error::new(
        Reason::AlgorithmUnsupported,
        format!("{} is not an algorithm of KEK {}", wrapped.algorithm, kek.spec.name),
    ))
}
