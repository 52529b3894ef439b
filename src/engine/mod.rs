//! The use cases: wrap, unwrap, generate, rewrap, describe.
//!
//! Each takes a [`Permit`], so a caller that was not authorised cannot reach them,
//! and each writes its line of the operation log. The engine knows no transport and
//! no vendor. The way of an unwrap is one straight line:
//! catalogue -> life cycle -> backend -> envelope.

mod catalog;
mod describe;
mod generate;
mod prover;
mod rewrap;
mod unwrap;
mod wrap;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

pub use catalog::KekSpec;
pub use describe::{KekDescription, VersionDescription};
pub use prover::keep_proven;
pub use rewrap::Rewrapped;

use crate::{
    auth::Permit,
    error::{Error, Reason},
    kek::KekName,
    observe::{self, Record},
    op::Op,
};
use catalog::{Catalog, Kek};

/// The use cases over the configured KEKs.
#[derive(Debug)]
pub struct Engine {
    catalog: Catalog,
}

impl Engine {
    /// An engine for these KEKs, none of them proven yet. The names are distinct;
    /// `config` sees to that.
    pub fn new(keks: Vec<KekSpec>) -> Self {
        Self { catalog: Catalog::new(keks) }
    }

    /// The configured KEKs, in order of name.
    pub fn names(&self) -> impl Iterator<Item = &KekName> {
        self.catalog.names()
    }

    /// Reads the versions of one KEK from its backend and proves each. `Err` says why
    /// the KEK cannot wrap now.
    pub async fn verify(&self, name: &KekName, deadline: Instant) -> Result<(), Error> {
        let kek = self.kek(name)?;
        kek.verify(deadline).await?;
        kek.current(SystemTime::now()).map(|_| ())
    }

    fn kek(&self, name: &KekName) -> Result<&Arc<Kek>, Error> {
        self.catalog.get(name).ok_or_else(|| {
            Error::new(Reason::KekNotFound, format!("no KEK is called {name}"))
                .with_fix("`keyward kek list` shows the KEKs of this sidecar")
        })
    }
}

/// What one operation writes into the log while it runs.
struct Running<'a> {
    permit: &'a Permit,
    started: Instant,
    version: Option<String>,
    ended: bool,
}

impl<'a> Running<'a> {
    /// Starts an operation. A permit for another operation is a defect of the caller
    /// of the engine and is refused.
    fn start(permit: &'a Permit, op: Op) -> Result<Self, Error> {
        if permit.op() != op {
            return Err(Error::new(Reason::Internal, "a permit was used for another operation"));
        }
        Ok(Self { permit, started: Instant::now(), version: None, ended: false })
    }

    fn took(&self) -> Duration {
        self.started.elapsed()
    }

    /// Writes the line and passes the result on.
    fn end<T>(mut self, result: Result<T, Error>) -> Result<T, Error> {
        self.ended = true;
        self.record(result.as_ref().map(|_| ()));
        result
    }

    fn record(&self, outcome: Result<(), &Error>) {
        observe::record(&Record {
            op: self.permit.op(),
            who: self.permit.who(),
            kek: self.permit.kek().as_str(),
            version: self.version.as_deref(),
            took: self.took(),
            outcome,
        });
    }
}

/// An operation whose caller went away leaves its line too.
impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let gone = Error::new(Reason::DeadlineExceeded, "the caller went away");
            self.record(Err(&gone));
        }
    }
}
