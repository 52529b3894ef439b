//! One call: which sidecar, under which session, how often, and until when.

use std::{future::Future, mem, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Request, Status};

use super::{Client, Delivery, Error, deadline, retry, session::Session, sidecar::Sidecar};
use crate::{
    op::{DEK_MAX_BYTES, DEK_MIN_BYTES, MESSAGE_MAX_BYTES, Op},
    sealed::About,
    secret::{Locker, Secret},
    wire::SealedDek,
};

/// One attempt at a call.
#[derive(Clone)]
pub(super) struct Attempt {
    pub(super) sidecar: Arc<Sidecar>,
    /// If DEKs are to be sealed.
    pub(super) session: Option<Arc<Session>>,
    deadline: Instant,
}

impl Attempt {
    /// A message of it. `Err` if it is one that the sidecar would refuse, after it was sent.
    pub(super) fn request<Q: prost::Message>(&self, message: Q) -> Result<Request<Q>, Error> {
        self.check(&message)?;
        let mut request = Request::new(message);
        request.set_timeout(self.deadline.saturating_duration_since(Instant::now()));
        Ok(request)
    }

    /// `Err` if it is a message that the sidecar would refuse, after it was sent.
    pub(super) fn check(&self, message: &impl prost::Message) -> Result<(), Error> {
        match message.encoded_len() > MESSAGE_MAX_BYTES {
            true => Err(Error::message_too_large()),
            false => Ok(()),
        }
    }

    /// What is left of its deadline, as items of streams say it.
    pub(super) fn timeout(&self) -> Option<prost_types::Duration> {
        left(self.deadline).try_into().ok()
    }

    /// What a status says.
    pub(super) fn error(&self, status: &Status) -> Error {
        Error::from_status(status, self.sidecar.target())
    }

    /// The name of its session in requests; empty if there is none.
    pub(super) fn session_id(&self) -> Vec<u8> {
        self.session.as_ref().map_or_else(Vec::new, |session| session.id().to_vec())
    }
}

impl Client {
    /// Makes one call: attempts, pauses and all within one deadline.
    pub(super) async fn call<T, F>(
        &self,
        op: Op,
        attempt: impl Fn(Attempt) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let within = self.deadline.unwrap_or(op.spec().deadline);
        self.call_until(op, deadline(within), attempt).await
    }

    pub(super) async fn call_until<T, F>(
        &self,
        op: Op,
        deadline: Instant,
        attempt: impl Fn(Attempt) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut attempts = retry::Attempts::default();
        let mut last: Option<Error> = None;
        loop {
            let sidecar = self.fleet.pick(attempts.all());
            let one = self.attempt_at(op, &sidecar, deadline, &attempt);
            let error = match timeout_at(deadline, one).await {
                Ok(Ok(answer)) => {
                    sidecar.did_well();
                    return Ok(answer);
                }
                Ok(Err(error)) => error,
                // What kept it from an answer says more than that there is none.
                Err(_elapsed) => return Err(last.unwrap_or_else(Error::deadline_exceeded)),
            };
            sidecar.failed_with(&error);
            let others = self.fleet.others_up(&sidecar);
            let left = deadline.saturating_duration_since(Instant::now());
            let pause =
                attempts.next(op, error.trouble(), others, self.patient, left, retry::jitter());
            let Some(pause) = pause else {
                // That nobody is there now says less than what was said before.
                let unsent = error.trouble() == retry::Trouble::NotSent;
                return Err(last.filter(|_| unsent).unwrap_or(error));
            };
            last = Some(error);
            sleep(pause).await;
        }
    }

    async fn attempt_at<T, F>(
        &self,
        op: Op,
        sidecar: &Arc<Sidecar>,
        deadline: Instant,
        attempt: &impl Fn(Attempt) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let session = match self.seals(op) {
            true => Some(sidecar.session(self.locker.as_ref(), deadline).await?),
            false => None,
        };
        let sealed_under = session.clone();
        let answer = attempt(Attempt { sidecar: Arc::clone(sidecar), session, deadline }).await;
        if let (Err(error), Some(session)) = (&answer, sealed_under)
            && error.is_session_not_found()
        {
            sidecar.forget(&session);
        }
        answer
    }

    /// Whether the DEKs of an operation are sealed.
    pub(super) fn seals(&self, op: Op) -> bool {
        self.delivery == Delivery::Sealed && op.carries_dek()
    }

    /// A DEK out of an answer.
    pub(super) fn received(
        &self,
        session: Option<&Session>,
        plain: Vec<u8>,
        sealed: Option<&SealedDek>,
        about: About<'_>,
    ) -> Result<Secret, Error> {
        Receiver { locker: self.locker.as_ref() }.received(session, plain, sealed, about)
    }
}

/// Where received DEKs go.
#[derive(Clone, Copy)]
pub(super) struct Receiver<'a> {
    pub(super) locker: Option<&'a Locker>,
}

impl Receiver<'_> {
    pub(super) fn received(
        self,
        session: Option<&Session>,
        plain: Vec<u8>,
        sealed: Option<&SealedDek>,
        about: About<'_>,
    ) -> Result<Secret, Error> {
        let plain = Secret::new(plain);
        let dek = match (session, sealed) {
            (None, None) => self.kept(plain)?,
            // A sidecar that answers in the clear what was to be sealed is not to be trusted
            // with the next question.
            (Some(session), Some(sealed)) if plain.is_empty() => {
                session.open(sealed, about, |len| self.memory(len))?
            }
            _ => return Err(Error::answer_invalid("a DEK that is delivered in another way")),
        };
        match (DEK_MIN_BYTES..=DEK_MAX_BYTES).contains(&dek.len()) {
            true => Ok(dek),
            false => Err(Error::answer_invalid("a DEK of a length that no DEK has")),
        }
    }

    /// A DEK that came in the clear, where DEKs are to be kept.
    fn kept(self, plain: Secret) -> Result<Secret, Error> {
        if self.locker.is_none() || plain.len() > DEK_MAX_BYTES {
            return Ok(plain);
        }
        let mut dek = self.memory(plain.len()).ok_or_else(Error::locker_full)?;
        dek.expose_mut().copy_from_slice(plain.expose());
        Ok(dek)
    }

    /// Room for a DEK. `None` if there is no more, or no DEK is so long.
    fn memory(self, len: usize) -> Option<Secret> {
        if len > DEK_MAX_BYTES {
            return None;
        }
        match self.locker {
            Some(locker) => locker.take(len),
            None => Some(Secret::zeroed(len)),
        }
    }
}

/// Takes a field out of a message that wipes itself.
pub(super) fn taken<T: Default>(field: &mut T) -> T {
    mem::take(field)
}

/// How long a stream or a watch may take to be opened.
pub(super) fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}
