//! Sessions of sealed delivery with one sidecar: opened when the first DEK is to be sealed,
//! and opened anew before the sidecar ends them, while the old one goes on.
//!
//! Invariants: at most one is opened at a time; nobody waits for the next one while this one
//! is good; a sidecar that cannot open any is an error, and never a reason to send a DEK in
//! the clear.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use tonic::Request;

use super::{Error, retry, transport::Transport};
use crate::{
    sealed::{self, About, Failure, MESSAGES_MAX, Offer},
    secret::{self, Locker, Secret},
    wire::{self, SealedDek, key_wrap_client::KeyWrapClient},
};

/// Shortest time that a session is good for.
const AGE_MIN: Duration = Duration::from_millis(100);
/// Longest.
const AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// How long opening the next session may take, which nobody waits for.
const RENEW_WITHIN: Duration = Duration::from_secs(10);

/// A session that is open.
pub(super) struct Session {
    keys: sealed::Session,
    /// When the next one is opened.
    renew: Instant,
    /// When this one is not used any more.
    ends: Instant,
    messages: u64,
    /// Messages of the sidecar, as their numbers tell.
    received: AtomicU64,
}

impl Session {
    pub(super) fn id(&self) -> &[u8] {
        self.keys.id()
    }

    /// A DEK, sealed for the sidecar.
    pub(super) fn seal(&self, dek: &Secret, about: About<'_>) -> Result<SealedDek, Error> {
        let sealed = scrubbed(|| self.keys.seal(dek, about));
        let sealed::Sealed { number, ciphertext } = sealed.map_err(|failure| match failure {
            Failure::Spent => Error::session_spent(),
            failure => Error::sealing(&failure),
        })?;
        Ok(SealedDek { session: self.id().to_vec(), number, ciphertext })
    }

    /// A DEK that the sidecar sealed.
    pub(super) fn open(
        &self,
        sealed: &SealedDek,
        about: About<'_>,
        memory: impl FnOnce(usize) -> Option<Secret>,
    ) -> Result<Secret, Error> {
        let SealedDek { session, number, ciphertext } = sealed;
        if session != self.id() {
            return Err(Error::answer_invalid("a DEK of another session"));
        }
        let dek = scrubbed(|| self.keys.open(*number, ciphertext, about, memory));
        let dek = dek.map_err(|failure| match failure {
            Failure::Memory => Error::locker_full(),
            _ => Error::answer_invalid("a DEK that is not sealed for this request"),
        })?;
        self.received.fetch_max(number + 1, Ordering::Relaxed);
        Ok(dek)
    }

    fn spent(&self) -> u64 {
        self.keys.sealed().max(self.received.load(Ordering::Relaxed))
    }

    fn is_good(&self, now: Instant) -> bool {
        now < self.ends && self.spent() < self.messages
    }

    fn is_due(&self, now: Instant) -> bool {
        now >= self.renew || self.spent() >= self.messages - self.messages / 4
    }
}

/// Does what handles keys, and wipes what it left on this thread, which is the caller's and may
/// sleep for long.
fn scrubbed<T>(work: impl FnOnce() -> T) -> T {
    let done = work();
    secret::scrub();
    done
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({} messages of {})", self.spent(), self.messages)
    }
}

/// The sessions with one sidecar.
pub(super) struct Sessions {
    stub: KeyWrapClient<Transport>,
    /// The sidecar, for messages.
    target: Box<str>,
    current: Mutex<Option<Arc<Session>>>,
    /// Held while one is opened, so that one does it for all.
    opening: Arc<tokio::sync::Mutex<()>>,
}

impl Sessions {
    pub(super) fn new(stub: KeyWrapClient<Transport>, target: &str) -> Self {
        let (current, opening) = (Mutex::default(), Arc::default());
        Self { stub, target: target.into(), current, opening }
    }

    /// The session to seal under now, if there is a good one. The next one is opened in the
    /// background when it is time.
    pub(super) fn current(self: &Arc<Self>, locker: Option<&Locker>) -> Option<Arc<Session>> {
        let now = Instant::now();
        let session = self.held().clone().filter(|session| session.is_good(now))?;
        if session.is_due(now)
            && let Ok(alone) = Arc::clone(&self.opening).try_lock_owned()
        {
            let (sessions, locker) = (Arc::clone(self), locker.cloned());
            tokio::spawn(async move {
                let _alone = alone;
                // If it fails, whoever comes next tries again, for as long as there is time.
                if let Ok(next) = sessions.open(locker.as_ref(), RENEW_WITHIN).await {
                    *sessions.held() = Some(Arc::new(next));
                }
            });
        }
        Some(session)
    }

    /// The session to seal under now, for those who found none; opens one if there is none still.
    pub(super) async fn get(
        self: &Arc<Self>,
        locker: Option<&Locker>,
        within: Duration,
    ) -> Result<Arc<Session>, Error> {
        let _alone = self.opening.lock().await;
        if let Some(session) = self.current(locker) {
            return Ok(session);
        }
        let session = Arc::new(self.open(locker, within).await?);
        *self.held() = Some(Arc::clone(&session));
        Ok(session)
    }

    /// Gives a session up that the sidecar does not know.
    pub(super) fn forget(&self, session: &Arc<Session>) {
        let mut held = self.held();
        if held.as_ref().is_some_and(|held| Arc::ptr_eq(held, session)) {
            *held = None;
        }
    }

    async fn open(&self, locker: Option<&Locker>, within: Duration) -> Result<Session, Error> {
        let offer = Offer::new().map_err(|failure| Error::sealing(&failure))?;
        let message = wire::OpenSessionRequest { public_key: offer.public_key().to_vec() };
        let mut request = Request::new(message);
        request.set_timeout(within);
        let asked = Instant::now();
        let answer = self.stub.clone().open_session(request).await;
        let answer = answer.map_err(|status| Error::from_status(&status, &self.target))?;
        let wire::OpenSessionResponse { session, public_key, sealed_keys, age, messages } =
            answer.into_inner();
        let room = |len| Locker::room(locker, len);
        let keys = scrubbed(|| offer.finish(&session, &public_key, &sealed_keys, room));
        let keys = keys.map_err(|failure| match failure {
            Failure::Memory => Error::locker_full(),
            _ => Error::answer_invalid("a session that cannot be opened"),
        })?;
        let age = age.and_then(|age| Duration::try_from(age).ok()).unwrap_or_default();
        let age = age.clamp(AGE_MIN, AGE_MAX);
        Ok(Session {
            keys,
            // A half to three quarters of its age, so that callers do not all come at once.
            renew: asked + age.mul_f64(0.5 + 0.25 * retry::jitter()),
            ends: asked + age,
            messages: messages.clamp(1, MESSAGES_MAX),
            received: AtomicU64::new(0),
        })
    }

    fn held(&self) -> MutexGuard<'_, Option<Arc<Session>>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
