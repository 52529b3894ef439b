//! The sessions of sealed delivery that are open: whose each is, what it has carried, and
//! when it ends.
//!
//! A session belongs to an identity, not to a connection, so that a client goes on with it
//! when the sidecar closes a connection. It ends at its age, when DEKs that it carried are to
//! leave no trace, or when its caller opens more than a share of all; its keys are wiped when
//! the last call that uses it is done.
//!
//! Invariants: there are never more than [`Sessions::new`] was given room for, and no caller
//! has more than a quarter of them; a session is found by its own caller only, and to anybody
//! else it is as if it were not there; as in `carriers.rs`, it is marked with a KEK before the
//! lease of a DEK is checked.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak},
    time::{Duration, Instant},
};

use tokio::time::sleep_until;
use tracing::debug;

use super::{Peer, encode};
use crate::{
    auth::Identity,
    carriers::{Carrier, Carriers, Registration, Urgency},
    envelope::Dek,
    error::{Error, Reason},
    kek::KekName,
    observe::Metrics,
    sealed::{
        self, About, Accepted, MESSAGES_MAX, PUBLIC_KEY_BYTES, SESSION_ID_BYTES,
        SESSION_KEYS_BYTES, SessionId,
    },
    secret::{Locker, Secret},
    wire,
};

/// The sessions that are open.
#[derive(Debug)]
pub struct Sessions {
    open: RwLock<HashMap<SessionId, Arc<Open>>>,
    /// Where their keys stand; its size is the bound.
    keys: Locker,
    of_one_max: usize,
    age: Duration,
    carriers: Arc<Carriers>,
}

/// One session.
#[derive(Debug)]
pub(super) struct Open {
    session: sealed::Session,
    who: Arc<Identity>,
    opened: Instant,
    carrier: Carrier,
}

impl Sessions {
    /// None yet; as many as `keys` has room for. Each goes on for `age`, and `carriers` is
    /// the register of those that carried DEKs.
    pub fn new(keys: Locker, age: Duration, carriers: Arc<Carriers>) -> Arc<Self> {
        let of_one_max = (keys.free() / 4).max(1);
        Arc::new(Self { open: RwLock::default(), keys, of_one_max, age, carriers })
    }

    /// Has the metrics ask how many are open, for as long as they are there.
    pub fn be_watched(self: &Arc<Self>, metrics: &Metrics) {
        let sessions = Arc::downgrade(self);
        metrics.register_source(move |samples| {
            samples.sessions = sessions.upgrade().map(|sessions| sessions.len() as u64);
        });
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.read().len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Opens a session for `peer`, inside a Tokio runtime.
    pub(super) fn open(
        self: &Arc<Self>,
        peer: &Peer,
        public_key: &[u8],
    ) -> Result<wire::OpenSessionResponse, Error> {
        if public_key.len() != PUBLIC_KEY_BYTES {
            let what = format!("the public key of a session is {PUBLIC_KEY_BYTES} bytes");
            return Err(Error::new(Reason::RequestInvalid, what));
        }
        self.make_room(peer.who());
        let full = || {
            Error::new(Reason::Overloaded, "too many sessions are open")
                .with_fix("raise limits.sessions, or have clients share one")
        };
        let keys = self.keys.take(SESSION_KEYS_BYTES).ok_or_else(full)?;
        let Accepted { session, public_key, sealed_keys } = sealed::accept(public_key, keys)
            .map_err(|failure| match failure {
                sealed::Failure::Opening => {
                    Error::new(Reason::RequestInvalid, "that is no public key to seal to")
                }
                failure => Error::new(Reason::Internal, "a session cannot be opened")
                    .with_detail(failure.to_string()),
            })?;
        let answer = wire::OpenSessionResponse {
            session: session.id().to_vec(),
            public_key,
            sealed_keys,
            age: Some(encode::duration(self.age)),
            messages: MESSAGES_MAX,
        };
        let registration = self.carriers.register();
        let (id, carrier) = (*session.id(), registration.carrier().clone());
        let (who, opened) = (Arc::clone(peer.who()), Instant::now());
        debug!(%who, "opened a session of sealed delivery");
        self.write().insert(id, Arc::new(Open { session, who, opened, carrier }));
        tokio::spawn(end_in_time(Arc::downgrade(self), id, registration, opened + self.age));
        Ok(answer)
    }

    /// The session of `peer` that is called `id`.
    pub(super) fn find(&self, peer: &Peer, id: &[u8]) -> Result<Arc<Open>, Error> {
        let id: SessionId = id.try_into().map_err(|_| {
            let what = format!("the name of a session is {SESSION_ID_BYTES} bytes");
            Error::new(Reason::RequestInvalid, what)
        })?;
        let found = self.read().get(&id).map(Arc::clone);
        let ours = |open: &Arc<Open>| {
            let same = Arc::ptr_eq(&open.who, peer.who()) || open.who == *peer.who();
            same && open.opened.elapsed() < self.age
        };
        found.filter(ours).ok_or_else(not_found)
    }

    /// Ends the oldest session of `who`, if another would be more than its share.
    fn make_room(&self, who: &Arc<Identity>) {
        let ended = {
            let open = self.read();
            let own = open.values().filter(|open| open.who == *who);
            let (mut count, mut oldest) = (0, None::<&Arc<Open>>);
            for session in own {
                count += 1;
                if oldest.is_none_or(|oldest| session.opened < oldest.opened) {
                    oldest = Some(session);
                }
            }
            oldest.filter(|_| count >= self.of_one_max).map(Arc::clone)
        };
        if let Some(ended) = ended {
            self.write().remove(ended.session.id());
            ended.carrier.close(Urgency::End);
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<SessionId, Arc<Open>>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<SessionId, Arc<Open>>> {
        self.open.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a session at its age, or when it is told to.
async fn end_in_time(
    sessions: Weak<Sessions>,
    id: SessionId,
    registration: Registration,
    until: Instant,
) {
    let mut closing = registration.carrier().closing();
    tokio::select! {
        () = sleep_until(until.into()) => {}
        _told = closing.wait_for(|urgency| *urgency != Urgency::None) => {}
    }
    if let Some(sessions) = sessions.upgrade() {
        sessions.write().remove(&id);
    }
    // Only now has it left the register.
    drop(registration);
}

fn not_found() -> Error {
    Error::new(Reason::SessionNotFound, "there is no such session, or not any more")
        .with_fix("open another with OpenSession, and send the request again under it")
}

/// How the DEKs of a request and its answer are delivered.
#[derive(Debug)]
pub(super) enum Delivery {
    /// As they are.
    Plain,
    /// Sealed under a session.
    Sealed(Arc<Open>),
}

impl Delivery {
    /// Notes that a DEK of `kek` comes or goes this way.
    pub(super) fn carries(&self, peer: &Peer, kek: &KekName) {
        match self {
            Self::Plain => peer.carries(kek),
            Self::Sealed(open) => open.carrier.mark(kek),
        }
    }

    /// A DEK for the caller: as it is, or sealed.
    pub(super) fn give(
        &self,
        dek: Dek,
        about: About<'_>,
    ) -> Result<(Vec<u8>, Option<wire::SealedDek>), Error> {
        let open = match self {
            Self::Plain => return Ok((encode::dek(dek), None)),
            Self::Sealed(open) => open,
        };
        let sealed = open.session.seal(dek.secret(), about).map_err(|failure| match failure {
            sealed::Failure::Spent => not_found(),
            failure => Error::new(Reason::Internal, "a DEK cannot be sealed")
                .with_detail(failure.to_string()),
        })?;
        let sealed::Sealed { number, ciphertext } = sealed;
        let session = open.session.id().to_vec();
        Ok((Vec::new(), Some(wire::SealedDek { session, number, ciphertext })))
    }

    /// The DEK that the caller sealed.
    pub(super) fn take(&self, sealed: &wire::SealedDek, about: About<'_>) -> Result<Dek, Error> {
        let no_dek = || {
            let what = "the sealed DEK is not one of this session, KEK and context";
            Error::new(Reason::RequestInvalid, what)
        };
        let Self::Sealed(open) = self else { return Err(no_dek()) };
        let memory = |len| Some(Secret::zeroed(len));
        let wire::SealedDek { session: _, number, ciphertext } = sealed;
        let dek = open.session.open(*number, ciphertext, about, memory);
        Dek::parse(dek.map_err(|_| no_dek())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sealed::Offer;

    const AGE: Duration = Duration::from_secs(60);

    fn peer(uid: u32) -> Peer {
        Peer::new(Identity::Unix { uid, gid: 0 }, Carrier::new())
    }

    fn sessions(room: usize) -> (Arc<Sessions>, Arc<Carriers>) {
        let carriers = Arc::new(Carriers::default());
        let keys = Locker::new(room, true).unwrap();
        (Sessions::new(keys, AGE, Arc::clone(&carriers)), carriers)
    }

    fn open(sessions: &Arc<Sessions>, uid: u32) -> Result<Vec<u8>, Reason> {
        let offer = Offer::new().unwrap();
        let opened = sessions.open(&peer(uid), offer.public_key());
        opened.map(|answer| answer.session).map_err(|error| error.reason())
    }

    fn find(sessions: &Sessions, uid: u32, id: &[u8]) -> Option<Reason> {
        sessions.find(&peer(uid), id).err().map(|error| error.reason())
    }

    #[tokio::test]
    async fn a_session_is_its_caller_s_alone() {
        let (sessions, _) = sessions(8);
        let id = open(&sessions, 7).unwrap();
        assert_eq!(find(&sessions, 7, &id), None);
        assert_eq!(find(&sessions, 8, &id), Some(Reason::SessionNotFound));
        assert_eq!(find(&sessions, 7, &[0; 16]), Some(Reason::SessionNotFound));
        for len in [1, 15, 17] {
            assert_eq!(find(&sessions, 7, &vec![0; len]), Some(Reason::RequestInvalid), "{len}");
        }
        let bad = sessions.open(&peer(7), &[1; 31]).unwrap_err();
        assert_eq!(bad.reason(), Reason::RequestInvalid);
        let small_order = sessions.open(&peer(7), &[0; 32]).unwrap_err();
        assert_eq!(small_order.reason(), Reason::RequestInvalid);
        assert_eq!(sessions.keys.free(), 7, "what failed gave its room back");
    }

    #[tokio::test]
    async fn nobody_takes_more_than_a_quarter_and_all_together_no_more_than_there_are() {
        let (sessions, _) = sessions(8);
        let ids: Vec<_> = (0..3).map(|_| open(&sessions, 7).unwrap()).collect();
        assert_eq!(find(&sessions, 7, &ids[0]), Some(Reason::SessionNotFound), "the oldest left");
        assert!(ids[1..].iter().all(|id| find(&sessions, 7, id).is_none()));
        for uid in 10..13 {
            open(&sessions, uid).unwrap();
            open(&sessions, uid).unwrap();
        }
        assert_eq!(open(&sessions, 20), Err(Reason::Overloaded));
        assert!(open(&sessions, 7).is_ok(), "one's own room is there to be used anew");
        assert_eq!(sessions.len(), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_ends_at_its_age_and_its_keys_are_wiped() {
        let (sessions, _) = sessions(4);
        let id = open(&sessions, 7).unwrap();
        let used = sessions.find(&peer(7), &id).unwrap();
        tokio::time::sleep(AGE + Duration::from_secs(1)).await;
        assert_eq!(find(&sessions, 7, &id), Some(Reason::SessionNotFound));
        assert_eq!((sessions.len(), sessions.keys.free()), (0, 3));
        drop(used);
        assert_eq!(sessions.keys.free(), 4, "a call in work keeps it no longer than it takes");
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_ends_when_deks_that_it_carried_are_to_leave_no_trace() {
        let (sessions, carriers) = sessions(8);
        let [orders, other] = ["orders", "other"].map(|name| KekName::parse(name).unwrap());
        let [one, two] = [7, 8].map(|uid| open(&sessions, uid).unwrap());
        let delivery = |uid, id: &[u8]| Delivery::Sealed(sessions.find(&peer(uid), id).unwrap());
        let caller = peer(7);
        delivery(7, &one).carries(&caller, &orders);
        delivery(8, &two).carries(&caller, &other);
        let closed = carriers.close(&orders, AGE).await;
        assert_eq!((closed.told, closed.left_open), (1, 0));
        assert_eq!(find(&sessions, 7, &one), Some(Reason::SessionNotFound));
        assert_eq!(find(&sessions, 8, &two), None);
        assert!(!format!("{:?}", caller.carrier()).contains("orders"), "no buffer has it");
    }
}
