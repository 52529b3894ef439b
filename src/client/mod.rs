//! The client library: what a storage node links to have its DEKs wrapped and
//! unwrapped by the sidecar beside it.
//!
//! It builds alone (`default-features = false, features = ["client"]`): no server, no
//! PKCS#11. It knows no KEK but by name, keeps no DEK and no state but connections and
//! sessions, which it opens when needed and opens again when they end.
//!
//! Calls are futures on any Tokio runtime; [`Client::blocking`] has them for programs that
//! have none.
//!
//! Invariants: every call has a deadline, which the sidecar is told; a DEK is a
//! [`Secret`] and nothing else, and goes over the connection sealed unless the caller says
//! otherwise; a call is sent again only within its deadline, and only if it was not worked on
//! (there was no connection, or the sidecar was about to stop), or if the table of operations
//! says that it does no harm and either its connection ended or the sidecar says that it can
//! help, then at most [`ATTEMPTS_MAX`] times.
//!
//! ```no_run
//! use keyward::client::{Client, Endpoint};
//!
//! # async fn example() -> Result<(), keyward::client::Error> {
//! let client = Client::new(&Endpoint::unix("/run/keyward/keyward.sock"))?;
//! let context = b"tenant 7, volume 3";
//!
//! // A new file: a fresh DEK, and its wrapped form to store beside the data.
//! let (dek, wrapped) = client.generate("orders-db", 32, context).await?;
//! let stored = wrapped.to_bytes();
//! assert_eq!(dek.len(), 32);
//!
//! // Later, after a restart.
//! let wrapped = keyward::client::WrappedDek::from_bytes(&stored).expect("what was stored");
//! let dek = client.unwrap(&wrapped, context).await?;
//! # let _ = dek;
//! # Ok(())
//! # }
//! ```

pub mod blocking;
mod call;
mod choice;
mod endpoint;
mod error;
mod fleet;
mod retry;
mod session;
mod shared;
mod sidecar;
mod streams;
mod transport;
mod watch;

use std::{fmt, mem, sync::Arc, time::Duration};

use tokio::time::Instant;

pub use endpoint::{Endpoint, TlsFiles};
pub use error::Error;
pub use retry::ATTEMPTS_MAX;
pub use streams::{Answer, Answers, Item};
pub use tonic::Code;
pub use watch::Events;

use call::Attempt;
use fleet::Fleet;

pub use crate::{
    secret::{Locker, Protection, Secret, SlabError},
    wire::{
        Algorithm, Assurance, Kek, KekCondition, KekEvent, KekEventKind, KekState, KekVersion,
        WrappedDek,
    },
};

use crate::{op::Op, sealed::About, wire};

/// Messages that one list of KEKs may take. Each holds a hundred KEKs and more.
const LIST_PAGES_MAX: usize = 1000;
/// Longest deadline of a call or a stream. A longer one means this: the clock cannot count
/// to every one.
const DEADLINE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// A client of one sidecar, or of several that serve the same KEKs. Cheap to clone; clones
/// share connections and sessions.
#[derive(Clone)]
pub struct Client {
    fleet: Arc<Fleet>,
    delivery: Delivery,
    /// Where DEKs are put; on the heap if there is none.
    locker: Option<Locker>,
    /// Instead of the deadline that the table of operations has.
    deadline: Option<Duration>,
    /// Whether a sidecar that is not there is waited for.
    patient: bool,
    /// Whether each unwrap is a call of its own.
    apart: bool,
}

/// How DEKs go over the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Delivery {
    /// Sealed under keys that this process and the sidecar alone have, so that no buffer on
    /// the way holds them.
    #[default]
    Sealed,
    /// As they are, under whatever protects the connection.
    Plain,
}

/// What became of a DEK that was to be rewrapped.
#[derive(Clone, Debug, PartialEq)]
pub struct Rewrapped {
    /// Under the current version: store this.
    pub wrapped: WrappedDek,
    /// False if it already was: `wrapped` is then what was sent, and was not verified.
    pub changed: bool,
}

/// What a purge did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Purged {
    /// DEKs that were wiped from the cache.
    pub deks: u64,
    /// Connections that had carried DEKs and were closed; their clients reconnect.
    pub connections: u64,
    /// Connections that should have been closed and were not yet. Anything but 0 means that
    /// copies of DEKs may remain in their buffers.
    pub left_open: u64,
    /// Sessions of sealed delivery that had carried DEKs and were ended; clients open others.
    pub sessions: u64,
}

/// What a revocation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// What was wiped and closed.
    pub purged: Purged,
    /// Whether the KEK stays revoked when the sidecar is restarted. It is revoked now either
    /// way.
    pub kept: bool,
}

/// What came of having a KEK read.
#[derive(Debug)]
pub struct Reloaded {
    /// The KEK.
    pub kek: String,
    /// The version that wraps; `Err` says why none does, or why it could not be read.
    pub current: Result<String, Error>,
}

impl Client {
    /// A client of the sidecar at `endpoint`. Connects when the first call is made, which
    /// must be inside a Tokio runtime. `Err` if the endpoint's TLS files cannot be used.
    pub fn new(endpoint: &Endpoint) -> Result<Self, Error> {
        Self::of_any(std::slice::from_ref(endpoint))
    }

    /// A client of whichever of these sidecars is up, 1 to 16: Unix sockets before TCP, and
    /// otherwise the first before the next. They must serve the same KEKs.
    pub fn of_any(endpoints: &[Endpoint]) -> Result<Self, Error> {
        Ok(Self {
            fleet: Arc::new(Fleet::new(endpoints)?),
            delivery: Delivery::default(),
            locker: None,
            deadline: None,
            patient: true,
            apart: false,
        })
    }

    /// Gives every unary call this long, attempts and pauses together. Without it a
    /// call takes at most 10 seconds, a rewrap 30. More than 24 hours are 24 hours.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Has DEKs sealed, or not. They are, unless this says otherwise.
    #[must_use]
    pub fn with_delivery(mut self, delivery: Delivery) -> Self {
        self.delivery = delivery;
        self
    }

    /// Has DEKs, and the keys that they are sealed under, kept in locked memory. A call that
    /// finds no room there fails with [`Error::LOCKER_FULL`]; two slots are the client's own.
    #[must_use]
    pub fn with_locker(mut self, locker: Locker) -> Self {
        self.locker = Some(locker);
        self
    }

    /// Has calls fail at once if no sidecar can be connected to. Otherwise they wait for one,
    /// until their deadline.
    #[must_use]
    pub fn failing_fast(mut self) -> Self {
        self.patient = false;
        self
    }

    /// Has each unwrap be a call of its own. Otherwise those of all clones share streams, as far
    /// as there is room on them, which is faster.
    #[must_use]
    pub fn with_calls_apart(mut self) -> Self {
        self.apart = true;
        self
    }

    /// Wraps `dek`, 16 to 64 bytes, under the current version of `kek`. An empty
    /// `context` binds it to none.
    pub async fn wrap(&self, kek: &str, dek: &Secret, context: &[u8]) -> Result<WrappedDek, Error> {
        let wrap = |attempt: Attempt| async move {
            let about = About { subject: kek.as_bytes(), context };
            let sealed = attempt.session.as_ref().map(|session| session.seal(dek, about));
            let sealed = sealed.transpose()?;
            let message = wire::WrapRequest {
                kek: kek.to_owned(),
                // The message wipes itself.
                dek: if sealed.is_some() { Vec::new() } else { dek.expose().to_vec() },
                context: context.to_vec(),
                sealed,
            };
            let request = attempt.request(message)?;
            attempt.answer(attempt.sidecar.stub().wrap(request).await)
        };
        self.call(Op::Wrap, wrap).await?.wrapped.ok_or_else(no_wrapped)
    }

    /// Unwraps with the KEK version that `wrapped` names.
    pub async fn unwrap(&self, wrapped: &WrappedDek, context: &[u8]) -> Result<Secret, Error> {
        let about = About { subject: &wrapped.ciphertext, context };
        let unwrap = |attempt: Attempt| async move {
            if !self.apart {
                let item = wire::UnwrapStreamRequest {
                    id: 0,
                    wrapped: Some(wrapped.clone()),
                    context: context.to_vec(),
                    session: attempt.session_id(),
                    timeout: attempt.timeout(),
                    cancel: false,
                };
                attempt.check(&item)?;
                if let Some(answer) = attempt.sidecar.unwrap_shared(item).await {
                    return self.received_item(answer?, attempt.session.as_deref(), about);
                }
            }
            let request = attempt.request(wire::UnwrapRequest {
                wrapped: Some(wrapped.clone()),
                context: context.to_vec(),
                session: attempt.session_id(),
            })?;
            let mut answer = attempt.answer(attempt.sidecar.stub().unwrap(request).await)?;
            let dek = mem::take(&mut answer.dek);
            self.received(attempt.session.as_deref(), dek, answer.sealed.as_ref(), about)
        };
        self.call(Op::Unwrap, unwrap).await
    }

    /// Makes a DEK of `len` bytes, 16 to 64.
    pub async fn generate(
        &self,
        kek: &str,
        len: usize,
        context: &[u8],
    ) -> Result<(Secret, WrappedDek), Error> {
        let generate = |attempt: Attempt| async move {
            let message = wire::GenerateDekRequest {
                session: attempt.session_id(),
                ..generate_request(kek, len, context)
            };
            let request = attempt.request(message)?;
            let mut answer = attempt.answer(attempt.sidecar.stub().generate_dek(request).await)?;
            let wrapped = answer.wrapped.take().ok_or_else(no_wrapped)?;
            let about = About { subject: &wrapped.ciphertext, context };
            let dek = mem::take(&mut answer.dek);
            let dek =
                self.received(attempt.session.as_deref(), dek, answer.sealed.as_ref(), about)?;
            Ok((dek, wrapped))
        };
        let (dek, wrapped) = self.call(Op::Generate, generate).await?;
        match dek.len() == len {
            true => Ok((dek, wrapped)),
            false => Err(Error::answer_invalid("a DEK of another length")),
        }
    }

    /// Makes a DEK and returns only its wrapped form, to provision it for others.
    pub async fn generate_wrapped(
        &self,
        kek: &str,
        len: usize,
        context: &[u8],
    ) -> Result<WrappedDek, Error> {
        let generate = |attempt: Attempt| async move {
            let message = wire::GenerateDekRequest {
                without_plaintext: true,
                ..generate_request(kek, len, context)
            };
            let request = attempt.request(message)?;
            attempt.answer(attempt.sidecar.stub().generate_dek(request).await)
        };
        let mut answer = self.call(Op::Generate, generate).await?;
        answer.wrapped.take().ok_or_else(no_wrapped)
    }

    /// Wraps a DEK anew under the current version of its KEK, inside the sidecar.
    pub async fn rewrap(&self, wrapped: &WrappedDek, context: &[u8]) -> Result<Rewrapped, Error> {
        let rewrap = |attempt: Attempt| async move {
            let request = attempt.request(wire::RewrapRequest {
                wrapped: Some(wrapped.clone()),
                context: context.to_vec(),
            })?;
            attempt.answer(attempt.sidecar.stub().rewrap(request).await)
        };
        rewrapped(self.call(Op::Rewrap, rewrap).await?)
    }

    /// What the sidecar knows of one KEK.
    pub async fn get_kek(&self, name: &str) -> Result<Kek, Error> {
        let get = |attempt: Attempt| async move {
            let request = attempt.request(wire::GetKekRequest { name: name.to_owned() })?;
            attempt.answer(attempt.sidecar.stub().get_kek(request).await)
        };
        self.call(Op::Describe, get).await?.kek.ok_or_else(|| Error::answer_invalid("no KEK"))
    }

    /// What the sidecar knows of every KEK that we may describe, by name.
    pub async fn list_keks(&self) -> Result<Vec<Kek>, Error> {
        let mut keks: Vec<Kek> = Vec::new();
        for _ in 0..LIST_PAGES_MAX {
            let after = keks.last().map_or("", |kek| &kek.name);
            let list = |attempt: Attempt| async move {
                let request = attempt.request(wire::ListKeksRequest { after: after.to_owned() })?;
                attempt.answer(attempt.sidecar.stub().list_keks(request).await)
            };
            let response = self.call(Op::Describe, list).await?;
            let progress = response.keks.first().is_some_and(|kek| *kek.name > *after);
            keks.extend(response.keks);
            if !response.more {
                return Ok(keks);
            }
            if !progress {
                break;
            }
        }
        Err(Error::answer_invalid("a list without end"))
    }

    /// Wipes the DEKs that the sidecar has cached under `kek`, or under every KEK that we
    /// may purge, and closes the connections that carried them. For operators: it takes the
    /// permission `purge`. Sent again after a broken connection, it counts what was left.
    pub async fn purge(&self, kek: Option<&str>) -> Result<Purged, Error> {
        // The protocol's empty name means every KEK; ours must not come to mean that.
        if kek == Some("") {
            return Err(Error::kek_name_empty());
        }
        let purge = |attempt: Attempt| async move {
            let request = attempt
                .request(wire::PurgeCacheRequest { kek: kek.unwrap_or_default().to_owned() })?;
            attempt.answer(attempt.sidecar.admin().purge_cache(request).await)
        };
        let response = self.call(Op::Purge, purge).await?;
        let wire::PurgeCacheResponse { deks, connections, left_open, sessions } = response;
        Ok(Purged { deks, connections, left_open, sessions })
    }

    /// Takes a KEK away on this sidecar until [`Self::restore`], also over its restarts. For
    /// operators: it takes the permission `revoke`. Sent again after a broken connection, it
    /// counts what was left.
    pub async fn revoke(&self, kek: &str) -> Result<Revoked, Error> {
        let revoke = |attempt: Attempt| async move {
            let request = attempt.request(wire::RevokeKekRequest { kek: kek.to_owned() })?;
            attempt.answer(attempt.sidecar.admin().revoke_kek(request).await)
        };
        let response = self.call(Op::Revoke, revoke).await?;
        let wire::RevokeKekResponse { deks, connections, left_open, kept, sessions } = response;
        Ok(Revoked { purged: Purged { deks, connections, left_open, sessions }, kept })
    }

    /// Gives a revoked KEK back: it is served once it has proven itself anew. For operators:
    /// it takes the permission `restore`.
    pub async fn restore(&self, kek: &str) -> Result<(), Error> {
        let restore = |attempt: Attempt| async move {
            let request = attempt.request(wire::RestoreKekRequest { kek: kek.to_owned() })?;
            attempt.answer(attempt.sidecar.admin().restore_kek(request).await)
        };
        let wire::RestoreKekResponse {} = self.call(Op::Restore, restore).await?;
        Ok(())
    }

    /// Has the sidecar read `kek`, or every KEK that we may reload, from its backend at once.
    /// For operators: it takes the permission `reload`.
    pub async fn reload(&self, kek: Option<&str>) -> Result<Vec<Reloaded>, Error> {
        // As for a purge.
        if kek == Some("") {
            return Err(Error::kek_name_empty());
        }
        let reload = |attempt: Attempt| async move {
            let request =
                attempt.request(wire::ReloadRequest { kek: kek.unwrap_or_default().to_owned() })?;
            attempt.answer(attempt.sidecar.admin().reload(request).await)
        };
        let response = self.call(Op::Reload, reload).await?;
        let reloaded = response.keks.into_iter().map(|reloaded| Reloaded {
            kek: reloaded.kek,
            current: match reloaded.error {
                None => Ok(reloaded.current_version),
                Some(error) => Err(Error::from_item(error)),
            },
        });
        Ok(reloaded.collect())
    }
}

fn generate_request(kek: &str, len: usize, context: &[u8]) -> wire::GenerateDekRequest {
    wire::GenerateDekRequest {
        kek: kek.to_owned(),
        length: u32::try_from(len).unwrap_or(u32::MAX),
        context: context.to_vec(),
        ..Default::default()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({:?})", self.fleet)
    }
}

/// When what may take so long from now has to be done.
fn deadline(within: Duration) -> Instant {
    Instant::now() + within.min(DEADLINE_MAX)
}

fn rewrapped(response: wire::RewrapResponse) -> Result<Rewrapped, Error> {
    let wire::RewrapResponse { wrapped, changed } = response;
    Ok(Rewrapped { wrapped: wrapped.ok_or_else(no_wrapped)?, changed })
}

fn no_wrapped() -> Error {
    Error::answer_invalid("no wrapped DEK")
}
