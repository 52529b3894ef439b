//! The client library: what a storage node links to have its DEKs wrapped and
//! unwrapped by the sidecar beside it.
//!
//! It builds alone (`default-features = false, features = ["client"]`): no server, no
//! PKCS#11. It knows no KEK but by name, keeps no DEK and no state but a connection,
//! which it opens when needed and opens again when it breaks.
//!
//! Invariants: every call has a deadline, which the sidecar is told; a DEK is a
//! [`Secret`] and nothing else; a call is sent again only where the sidecar says that
//! this can help, or its connection ended, and the table of operations that it does no
//! harm, at most [`ATTEMPTS_MAX`] times, and within its deadline.
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

mod endpoint;
mod error;
mod retry;
mod streams;
mod transport;
mod watch;

use std::{fmt, future::Future, mem, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Request, Response, Status};

pub use endpoint::{Endpoint, TlsFiles};
pub use error::Error;
pub use retry::ATTEMPTS_MAX;
pub use streams::{Answer, Answers, Item};
pub use tonic::Code;
pub use watch::Events;

use transport::Transport;

pub use crate::wire::{
    Algorithm, Assurance, Kek, KekCondition, KekEvent, KekEventKind, KekState, KekVersion,
    WrappedDek,
};

use crate::{
    op::{DEK_MAX_BYTES, DEK_MIN_BYTES, MESSAGE_MAX_BYTES, Op},
    secret::Secret,
    wire::{self, admin_client::AdminClient, key_wrap_client::KeyWrapClient},
};

/// Messages that one list of KEKs may take. Each holds a hundred KEKs and more.
const LIST_PAGES_MAX: usize = 1000;
/// Longest deadline of a call or a stream. A longer one means this: the clock cannot count
/// to every one.
const DEADLINE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// A client of one sidecar. Cheap to clone; clones share one connection.
#[derive(Clone)]
pub struct Client {
    inner: KeyWrapClient<Transport>,
    /// Over a connection of its own, opened when it is first needed: a purge closes those
    /// that carried DEKs, and would wait for itself on one.
    admin: AdminClient<Transport>,
    /// Instead of the deadline that the table of operations has.
    deadline: Option<Duration>,
    /// For messages.
    target: Arc<str>,
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
    /// A client of the sidecar at `endpoint`. Connects when the first call is made.
    /// Must be called inside a Tokio runtime. `Err` if the endpoint's TLS files cannot
    /// be used.
    pub fn new(endpoint: &Endpoint) -> Result<Self, Error> {
        let inner = KeyWrapClient::new(Transport::new(endpoint.connector()?))
            .max_decoding_message_size(MESSAGE_MAX_BYTES)
            .max_encoding_message_size(MESSAGE_MAX_BYTES);
        let admin = AdminClient::new(Transport::new(endpoint.connector()?))
            .max_decoding_message_size(MESSAGE_MAX_BYTES)
            .max_encoding_message_size(MESSAGE_MAX_BYTES);
        Ok(Self { inner, admin, deadline: None, target: endpoint.to_string().into() })
    }

    /// Gives every unary call this long, attempts and pauses together. Without it a
    /// call takes at most 10 seconds, a rewrap 30. More than 24 hours are 24 hours.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Wraps `dek`, 16 to 64 bytes, under the current version of `kek`. An empty
    /// `context` binds it to none.
    pub async fn wrap(&self, kek: &str, dek: &Secret, context: &[u8]) -> Result<WrappedDek, Error> {
        let request = || wire::WrapRequest {
            kek: kek.to_owned(),
            // The message wipes itself.
            dek: dek.expose().to_vec(),
            context: context.to_vec(),
        };
        let send =
            |mut client: KeyWrapClient<_>, request| async move { client.wrap(request).await };
        self.call(Op::Wrap, request, send).await?.wrapped.ok_or_else(no_wrapped)
    }

    /// Unwraps with the KEK version that `wrapped` names.
    pub async fn unwrap(&self, wrapped: &WrappedDek, context: &[u8]) -> Result<Secret, Error> {
        let request =
            || wire::UnwrapRequest { wrapped: Some(wrapped.clone()), context: context.to_vec() };
        let send =
            |mut client: KeyWrapClient<_>, request| async move { client.unwrap(request).await };
        let mut response = self.call(Op::Unwrap, request, send).await?;
        dek_of(mem::take(&mut response.dek))
    }

    /// Makes a DEK of `len` bytes, 16 to 64.
    pub async fn generate(
        &self,
        kek: &str,
        len: usize,
        context: &[u8],
    ) -> Result<(Secret, WrappedDek), Error> {
        let mut response = self.generate_dek(kek, len, context, false).await?;
        let dek = dek_of(mem::take(&mut response.dek))?;
        if dek.len() != len {
            return Err(Error::answer_invalid("a DEK of another length"));
        }
        Ok((dek, response.wrapped.take().ok_or_else(no_wrapped)?))
    }

    /// Makes a DEK and returns only its wrapped form, to provision it for others.
    pub async fn generate_wrapped(
        &self,
        kek: &str,
        len: usize,
        context: &[u8],
    ) -> Result<WrappedDek, Error> {
        let mut response = self.generate_dek(kek, len, context, true).await?;
        response.wrapped.take().ok_or_else(no_wrapped)
    }

    async fn generate_dek(
        &self,
        kek: &str,
        len: usize,
        context: &[u8],
        without_plaintext: bool,
    ) -> Result<wire::GenerateDekResponse, Error> {
        let request = || wire::GenerateDekRequest {
            kek: kek.to_owned(),
            length: u32::try_from(len).unwrap_or(u32::MAX),
            context: context.to_vec(),
            without_plaintext,
        };
        let send = |mut client: KeyWrapClient<_>, request| async move {
            client.generate_dek(request).await
        };
        self.call(Op::Generate, request, send).await
    }

    /// Wraps a DEK anew under the current version of its KEK, inside the sidecar.
    pub async fn rewrap(&self, wrapped: &WrappedDek, context: &[u8]) -> Result<Rewrapped, Error> {
        let request =
            || wire::RewrapRequest { wrapped: Some(wrapped.clone()), context: context.to_vec() };
        let send =
            |mut client: KeyWrapClient<_>, request| async move { client.rewrap(request).await };
        rewrapped(self.call(Op::Rewrap, request, send).await?)
    }

    /// What the sidecar knows of one KEK.
    pub async fn get_kek(&self, name: &str) -> Result<Kek, Error> {
        let request = || wire::GetKekRequest { name: name.to_owned() };
        let send =
            |mut client: KeyWrapClient<_>, request| async move { client.get_kek(request).await };
        let response = self.call(Op::Describe, request, send).await?;
        response.kek.ok_or_else(|| Error::answer_invalid("no KEK"))
    }

    /// What the sidecar knows of every KEK that we may describe, by name.
    pub async fn list_keks(&self) -> Result<Vec<Kek>, Error> {
        let mut keks: Vec<Kek> = Vec::new();
        for _ in 0..LIST_PAGES_MAX {
            let after = keks.last().map_or("", |kek| &kek.name);
            let request = || wire::ListKeksRequest { after: after.to_owned() };
            let send = |mut client: KeyWrapClient<_>, request| async move {
                client.list_keks(request).await
            };
            let response = self.call(Op::Describe, request, send).await?;
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
        let request = || wire::PurgeCacheRequest { kek: kek.unwrap_or_default().to_owned() };
        let send = |_, request| {
            let mut admin = self.admin.clone();
            async move { admin.purge_cache(request).await }
        };
        let response = self.call(Op::Purge, request, send).await?;
        let wire::PurgeCacheResponse { deks, connections, left_open } = response;
        Ok(Purged { deks, connections, left_open })
    }

    /// Takes a KEK away on this sidecar until [`Self::restore`], also over its restarts. For
    /// operators: it takes the permission `revoke`. Sent again after a broken connection, it
    /// counts what was left.
    pub async fn revoke(&self, kek: &str) -> Result<Revoked, Error> {
        let request = || wire::RevokeKekRequest { kek: kek.to_owned() };
        let send = |_, request| {
            let mut admin = self.admin.clone();
            async move { admin.revoke_kek(request).await }
        };
        let response = self.call(Op::Revoke, request, send).await?;
        let wire::RevokeKekResponse { deks, connections, left_open, kept } = response;
        Ok(Revoked { purged: Purged { deks, connections, left_open }, kept })
    }

    /// Gives a revoked KEK back: it is served once it has proven itself anew. For operators:
    /// it takes the permission `restore`.
    pub async fn restore(&self, kek: &str) -> Result<(), Error> {
        let request = || wire::RestoreKekRequest { kek: kek.to_owned() };
        let send = |_, request| {
            let mut admin = self.admin.clone();
            async move { admin.restore_kek(request).await }
        };
        let wire::RestoreKekResponse {} = self.call(Op::Restore, request, send).await?;
        Ok(())
    }

    /// Has the sidecar read `kek`, or every KEK that we may reload, from its backend at once.
    /// For operators: it takes the permission `reload`.
    pub async fn reload(&self, kek: Option<&str>) -> Result<Vec<Reloaded>, Error> {
        // As for a purge.
        if kek == Some("") {
            return Err(Error::kek_name_empty());
        }
        let request = || wire::ReloadRequest { kek: kek.unwrap_or_default().to_owned() };
        let send = |_, request| {
            let mut admin = self.admin.clone();
            async move { admin.reload(request).await }
        };
        let response = self.call(Op::Reload, request, send).await?;
        let reloaded = response.keks.into_iter().map(|reloaded| Reloaded {
            kek: reloaded.kek,
            current: match reloaded.error {
                None => Ok(reloaded.current_version),
                Some(error) => Err(Error::from_item(error)),
            },
        });
        Ok(reloaded.collect())
    }

    /// Makes one call: attempts, pauses and all within one deadline.
    async fn call<Q, A, F>(
        &self,
        op: Op,
        request: impl Fn() -> Q,
        send: impl Fn(KeyWrapClient<Transport>, Request<Q>) -> F,
    ) -> Result<A, Error>
    where
        Q: prost::Message,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        // The sidecar would refuse it, after it was sent.
        if request().encoded_len() > MESSAGE_MAX_BYTES {
            return Err(Error::message_too_large());
        }
        let deadline = deadline(self.deadline.unwrap_or(op.spec().deadline));
        let mut attempt = 1;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut request = Request::new(request());
            request.set_timeout(left);
            let error = match timeout_at(deadline, send(self.inner.clone(), request)).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => Error::from_status(&status, &self.target),
                Err(_elapsed) => return Err(Error::deadline_exceeded()),
            };
            let left = deadline.saturating_duration_since(Instant::now());
            let pause = retry::pause(op, attempt, error.retry_after(), left, retry::jitter());
            let Some(pause) = pause else { return Err(error) };
            sleep(pause).await;
            attempt += 1;
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.target)
    }
}

/// When what may take so long from now has to be done.
fn deadline(within: Duration) -> Instant {
    Instant::now() + within.min(DEADLINE_MAX)
}

/// A DEK out of an answer.
fn dek_of(bytes: Vec<u8>) -> Result<Secret, Error> {
    let dek = Secret::new(bytes);
    if (DEK_MIN_BYTES..=DEK_MAX_BYTES).contains(&dek.len()) {
        return Ok(dek);
    }
    Err(Error::answer_invalid("a DEK of a length that no DEK has"))
}

fn rewrapped(response: wire::RewrapResponse) -> Result<Rewrapped, Error> {
    let wire::RewrapResponse { wrapped, changed } = response;
    Ok(Rewrapped { wrapped: wrapped.ok_or_else(no_wrapped)?, changed })
}

fn no_wrapped() -> Error {
    Error::answer_invalid("no wrapped DEK")
}
