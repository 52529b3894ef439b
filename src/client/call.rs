//! One call: which sidecar, under which session, how often, and until when.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Request, Response, Status};

use super::{Client, Delivery, Error, deadline, retry, session::Session, sidecar::Sidecar};
use crate::{
    op::{DEK_MAX_BYTES, DEK_MIN_BYTES, MESSAGE_MAX_BYTES, Op},
    sealed::About,
    secret::{Locker, Secret},
    wire::SealedDek,
};

/// One attempt at a call.
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
        request.set_timeout(left(self.deadline));
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

    /// What the sidecar answered.
    pub(super) fn answer<A>(&self, answer: Result<Response<A>, Status>) -> Result<A, Error> {
        let error = |status| Error::from_status(&status, self.sidecar.target());
        answer.map(Response::into_inner).map_err(error)
    }

    /// The name of its session in requests; empty if there is none.
    pub(super) fn session_id(&self) -> Vec<u8> {
        self.session.as_ref().map_or_else(Vec::new, |session| session.id().to_vec())
    }
}

/// The attempts at one call, or at one stream, and what the last of them came to.
#[derive(Default)]
pub(super) struct Tries {
    attempts: retry::Attempts,
    last: Option<Error>,
}

impl Tries {
    /// The sidecar for the next one.
    pub(super) fn pick(&self, client: &Client) -> Arc<Sidecar> {
        client.fleet.pick(self.attempts.all())
    }

    /// An answer came, to one of many that go the same way.
    pub(super) fn answered(&mut self) {
        *self = Self::default();
    }

    /// Waits until the next attempt, after one at `sidecar` failed with `error`. `Err` says
    /// why if there is none.
    pub(super) async fn after(
        &mut self,
        client: &Client,
        op: Op,
        sidecar: &Arc<Sidecar>,
        error: Error,
        deadline: Instant,
    ) -> Result<(), Error> {
        sidecar.failed_with(&error);
        let (trouble, others) = (error.trouble(), client.fleet.others_up(sidecar));
        let (left, jitter) = (left(deadline), retry::jitter());
        let pause = self.attempts.next(op, trouble, others, client.patient, left, jitter);
        let Some(pause) = pause else {
            // That nobody is there now says less than what was said before.
            let unsent = trouble == retry::Trouble::NotSent;
            return Err(self.last.take().filter(|_| unsent).unwrap_or(error));
        };
        self.last = Some(error);
        sleep(pause).await;
        Ok(())
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
        let deadline = deadline(self.deadline.unwrap_or(op.spec().deadline));
        let mut tries = Tries::default();
        loop {
            let sidecar = tries.pick(self);
            let one = self.attempt_at(op, &sidecar, deadline, &attempt);
            let error = match timeout_at(deadline, one).await {
                Ok(Ok(answer)) => {
                    sidecar.did_well();
                    return Ok(answer);
                }
                Ok(Err(error)) => error,
                // What kept it from an answer says more than that there is none.
                Err(_elapsed) => return Err(tries.last.unwrap_or_else(Error::deadline_exceeded)),
            };
            tries.after(self, op, &sidecar, error, deadline).await?;
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
        let session = self.session(op, sidecar, deadline).await?;
        let sealed_under = session.clone();
        let answer = attempt(Attempt { sidecar: Arc::clone(sidecar), session, deadline }).await;
        if let (Err(error), Some(session)) = (&answer, sealed_under)
            && error.is_session_not_found()
        {
            sidecar.forget(&session);
        }
        answer
    }

    /// The session that the DEKs of an operation are sealed under, if they are to be.
    pub(super) async fn session(
        &self,
        op: Op,
        sidecar: &Sidecar,
        deadline: Instant,
    ) -> Result<Option<Arc<Session>>, Error> {
        match self.delivery == Delivery::Sealed && op.carries_dek() {
            true => sidecar.session(self.locker.as_ref(), deadline).await.map(Some),
            false => Ok(None),
        }
    }

    /// A DEK out of an answer.
    pub(super) fn received(
        &self,
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
                session.open(sealed, about, |len| self.room(len))?
            }
            _ => return Err(Error::answer_invalid("a DEK that is delivered in another way")),
        };
        match (DEK_MIN_BYTES..=DEK_MAX_BYTES).contains(&dek.len()) {
            true => Ok(dek),
            false => Err(Error::answer_invalid("a DEK of a length that no DEK has")),
        }
    }

    /// A DEK that came in the clear, where DEKs are to be kept.
    fn kept(&self, plain: Secret) -> Result<Secret, Error> {
        if self.locker.is_none() || plain.len() > DEK_MAX_BYTES {
            return Ok(plain);
        }
        let mut dek = self.room(plain.len()).ok_or_else(Error::locker_full)?;
        dek.expose_mut().copy_from_slice(plain.expose());
        Ok(dek)
    }

    /// Room for a DEK. `None` if there is no more, or no DEK is so long.
    fn room(&self, len: usize) -> Option<Secret> {
        match len > DEK_MAX_BYTES {
            true => None,
            false => Locker::room(self.locker.as_ref(), len),
        }
    }
}

/// What is left until a deadline.
pub(super) fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}
