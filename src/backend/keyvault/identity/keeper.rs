//! Keeps the token: there is one for a backend, it is renewed in the background long before
//! it expires, and no call waits for that unless there is none.
//!
//! A token that the vault refuses is renewed at once, but not again and again: what is
//! younger than [`REJECTED_NOT_BEFORE`] was not refused for its age. A renewal that fails
//! does no harm while the held token is good.
//!
//! The SDK is told that each token has expired: so it comes back for each request and never
//! uses a token of its own beyond that.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use azure_core::{
    credentials::{AccessToken, Secret as SdkSecret, TokenCredential, TokenRequestOptions},
    error::ErrorKind,
    http::{
        Context, Request, StatusCode,
        headers::AUTHORIZATION,
        policies::{Policy, PolicyResult},
    },
    time::OffsetDateTime,
};
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::{super::vault::VaultUrl, TokenSource};
use crate::{
    backend::jitter,
    clock::now,
    error::{Error, Reason},
    secret::Secret,
};

/// A token that is not good for longer than this is as good as expired.
const SPARE: Duration = Duration::from_secs(10);

/// How long before its end a token is renewed at the latest, if it lives that long.
const RENEW_BEFORE: Duration = Duration::from_secs(600);

/// Least time between a token and its renewal.
const RENEW_NOT_BEFORE: Duration = Duration::from_secs(30);

/// A younger token is not renewed because the vault refused it.
const REJECTED_NOT_BEFORE: Duration = Duration::from_secs(10);

/// Longest that one renewal may take. A machine's own endpoint may be asked again for more
/// than a minute, while it is being set up.
const RENEWAL_MAX: Duration = Duration::from_secs(90);

/// Pauses between renewals that fail.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// For how long a failure is told to whoever needs a token, before they make another be
/// tried for: a fleet that is refused must not ask in every call.
const TROUBLE_KEPT: Duration = Duration::from_secs(5);

/// A token, and how long it is good.
pub(in super::super) struct Token {
    pub(super) secret: Secret,
    /// When it was asked for.
    pub(super) got: Instant,
    pub(super) not_after: Instant,
}

/// Keeps the token for one vault.
pub(in super::super) struct Keeper {
    vault: VaultUrl,
    source: Arc<dyn TokenSource>,
    state: Mutex<State>,
    /// Renewals that came to an end, so far.
    ended: watch::Sender<u64>,
    wanted: Notify,
    task: OnceLock<AbortHandle>,
}

#[derive(Default)]
struct State {
    held: Option<Token>,
    /// The vault refused the held token.
    rejected: bool,
    /// Renewals that failed since the last that did not.
    failures: u32,
    /// Why the last one failed, and when.
    trouble: Option<(Error, Instant)>,
}

impl State {
    /// The token, if it may be used.
    fn good(&self, now: Instant) -> Option<&Token> {
        self.held.as_ref().filter(|token| !self.rejected && now + SPARE < token.not_after)
    }

    /// How long to wait before a renewal that nobody asks for. `jitter` is 0 to 1.
    fn renew_in(&self, now: Instant, jitter: f64) -> Duration {
        let pause = match self.failures {
            0 => Duration::ZERO,
            failures => {
                let doubled = PAUSE_MIN.saturating_mul(1 << (failures - 1).min(8));
                doubled.min(PAUSE_MAX).mul_f64(0.5 + 0.5 * jitter)
            }
        };
        let Some(token) = self.good(now) else { return pause };
        let life = token.not_after.saturating_duration_since(token.got);
        let early = (life / 2).min(RENEW_BEFORE.mul_f64(1.0 + 0.5 * jitter));
        let due = (token.got + (life - early)).max(token.got + RENEW_NOT_BEFORE);
        due.saturating_duration_since(now).max(pause)
    }

    /// What to tell who needs a token, if the last renewal failed a moment ago.
    fn fresh_trouble(&self, now: Instant) -> Option<Error> {
        let (error, at) = self.trouble.as_ref()?;
        (now.saturating_duration_since(*at) < TROUBLE_KEPT).then(|| error.clone())
    }

    /// The vault refused `token`.
    fn reject(&mut self, token: &[u8], now: Instant) -> bool {
        let Some(held) = &self.held else { return false };
        // A request that was under way with the token before this one says nothing.
        let old = now.saturating_duration_since(held.got) >= REJECTED_NOT_BEFORE;
        if old && !self.rejected && held.secret.ct_eq(token) {
            self.rejected = true;
            return true;
        }
        false
    }

    /// A renewal came to an end.
    fn settle(&mut self, renewed: Result<Token, Error>, now: Instant) {
        match renewed {
            Ok(token) => {
                *self = Self { held: Some(token), ..Self::default() };
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                self.trouble = Some((error, now));
            }
        }
    }
}

impl Keeper {
    /// A keeper without a token. It begins to work when it is first asked.
    pub(in super::super) fn new(vault: VaultUrl, source: Arc<dyn TokenSource>) -> Arc<Self> {
        Arc::new(Self {
            vault,
            source,
            state: Mutex::default(),
            ended: watch::Sender::new(0),
            wanted: Notify::new(),
            task: OnceLock::new(),
        })
    }

    /// Ends the work in the background, and wipes the token.
    pub(in super::super) fn stop(&self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
        *self.state() = State::default();
    }

    /// Begins the work in the background.
    fn start(self: &Arc<Self>) {
        self.task.get_or_init(|| tokio::spawn(keep(Arc::clone(self))).abort_handle());
    }

    /// A copy of the token, as soon as there is one.
    async fn token(&self) -> Result<String, Error> {
        let mut ended = self.ended.subscribe();
        loop {
            {
                let state = self.state();
                let now = now();
                if let Some(token) = state.good(now) {
                    return text(&token.secret);
                }
                if let Some(error) = state.fresh_trouble(now) {
                    return Err(error);
                }
            }
            self.wanted.notify_one();
            let stopped = || Error::new(Reason::ShuttingDown, "the backend is closed");
            ended.changed().await.map_err(|_| stopped())?;
        }
    }

    fn rejected(&self, token: &[u8]) {
        if self.state().reject(token, now()) {
            debug!(vault = %self.vault, "the vault refused the token: getting another");
            self.wanted.notify_one();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Renews the token for as long as the task runs.
async fn keep(keeper: Arc<Keeper>) {
    loop {
        let pause = keeper.state().renew_in(now(), jitter());
        tokio::select! {
            () = sleep(pause) => {}
            () = keeper.wanted.notified() => {
                let state = keeper.state();
                if state.good(now()).is_some() || state.fresh_trouble(now()).is_some() {
                    // Whoever asked has been served by now.
                    continue;
                }
            }
        }
        let renewed = timeout(RENEWAL_MAX, keeper.source.token()).await.unwrap_or_else(|_| {
            Err(Error::new(Reason::BackendUnreachable, "no token can be had now")
                .with_detail("the token endpoint did not answer in time"))
        });
        if let Err(error) = &renewed {
            let first = keeper.state().failures == 0;
            let (vault, detail) = (&keeper.vault, error.detail().unwrap_or("-"));
            if first {
                warn!(%vault, detail, "could not renew the token: {error}");
            }
        }
        keeper.state().settle(renewed, now());
        keeper.ended.send_modify(|ended| *ended += 1);
    }
}

#[async_trait]
impl TokenCredential for ByKeeper {
    async fn get_token(
        &self,
        scopes: &[&str],
        _: Option<TokenRequestOptions<'_>>,
    ) -> azure_core::Result<AccessToken> {
        let keeper = &self.0;
        let refuse = |error: Error| {
            azure_core::Error::with_error(ErrorKind::Credential, error, "there is no token")
        };
        // What the vault's challenge asks for, which the SDK checks too loosely.
        if !matches!(scopes, [scope] if keeper.vault.has_scope(scope)) {
            return Err(refuse(
                Error::new(
                    Reason::BackendMisconfigured,
                    "what answers asks for a token that is not for the vault",
                )
                .with_fix("see whether `vault` is right"),
            ));
        }
        keeper.start();
        let token = keeper.token().await.map_err(refuse)?;
        Ok(AccessToken::new(SdkSecret::from(token), OffsetDateTime::UNIX_EPOCH))
    }
}

/// The keeper, as the SDK asks it.
#[derive(Debug)]
pub(in super::super) struct ByKeeper(pub(in super::super) Arc<Keeper>);

/// Tells the keeper of tokens that the vault refused, before the SDK asks for another.
#[derive(Debug)]
pub(in super::super) struct Rejections(pub(in super::super) Arc<Keeper>);

#[async_trait]
impl Policy for Rejections {
    async fn send(
        &self,
        ctx: &Context,
        request: &mut Request,
        next: &[Arc<dyn Policy>],
    ) -> PolicyResult {
        let [policy, rest @ ..] = next else {
            return Err(super::super::fault::Fault::Request.into());
        };
        let answer = policy.send(ctx, request, rest).await?;
        if answer.status() == StatusCode::Unauthorized
            && let Some(header) = request.headers().get_optional_str(&AUTHORIZATION)
            && let Some(token) = header.strip_prefix("Bearer ")
        {
            self.0.rejected(token.as_bytes());
        }
        Ok(answer)
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keeper({})", self.vault)
    }
}

fn text(secret: &Secret) -> Result<String, Error> {
    String::from_utf8(secret.expose().to_vec())
        .map_err(|_| Error::new(Reason::BackendMisconfigured, "the token is no text"))
}

#[cfg(test)]
mod tests;
