//! WatchKeks: what happens to KEKs, told as it happens.
//!
//! Invariants: whoever watches is told nothing of a KEK that the policy of the moment does
//! not let it describe; it misses nothing that it was not told to have missed, because it
//! listens before it is told how the KEKs stand, and is told that again when it was too slow.

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Instant, SystemTime},
};

use futures_util::{
    Stream, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use tokio::sync::{
    OwnedSemaphorePermit,
    broadcast::{Receiver, error::RecvError},
};
use tonic::{Request, Response, Status};

use super::{Api, decode, encode, on_record, streams::Caller};
use crate::{
    auth::Permit,
    engine::News,
    error::{Error, Reason},
    kek::KekName,
    op::{Op, WATCHED_MAX},
    wire::{self, WatchKeksRequest, WatchKeksResponse},
};

type Answers = BoxStream<'static, Result<WatchKeksResponse, Status>>;

pub(super) fn watch(
    api: &Api,
    request: Request<WatchKeksRequest>,
) -> Result<Response<Answers>, Status> {
    let begun = Instant::now();
    let caller = Caller::of(api, Op::Describe, &request)?;
    let names = request.into_inner().names;
    let watched = admit(api, &caller, names);
    let watched = on_record(&api.metrics, Op::Describe, &caller.peer, "-", begun, watched)?;
    let place = api.watchers.clone().try_acquire_owned().map_err(|_| {
        Error::new(Reason::Overloaded, "too many are watching already")
            .with_fix("watch once for a whole node")
    })?;
    let stop = caller.stop(api.draining.clone());
    let mut watcher = Watcher {
        api: api.clone(),
        caller,
        watched,
        news: api.engine.news(),
        ready: VecDeque::new(),
        _place: place,
    };
    watcher.tell_how_all_stand();
    Ok(Response::new(watcher.told(stop).boxed()))
}

/// The KEKs to watch; `None` for all. `Err` if one of them may not be watched, or none.
fn admit(
    api: &Api,
    caller: &Caller,
    names: Vec<String>,
) -> Result<Option<BTreeSet<KekName>>, Error> {
    let policy = api.policy.load();
    let permit = |name: &KekName| policy.permit(caller.peer.who(), Op::Describe, name);
    if names.is_empty() {
        return match api.engine.names().any(|name| permit(name).is_ok()) {
            true => Ok(None),
            false => Err(Error::new(
                Reason::PermissionDenied,
                "the policy does not allow this caller to describe any KEK",
            )
            .with_fix("ask the operator for a [[policy]] entry that names this caller")),
        };
    }
    if names.len() > WATCHED_MAX {
        return Err(Error::new(Reason::RequestInvalid, "too many KEKs to watch")
            .with_fix("name at most 1024, or none for all"));
    }
    let check = |text: &String| {
        let name = KekName::parse(text).ok_or_else(decode::not_a_kek_name)?;
        // Permission first: a stranger does not learn which KEKs there are.
        api.engine.stand(permit(&name)?)?;
        Ok(name)
    };
    names.iter().map(check).collect::<Result<_, _>>().map(Some)
}

/// One who watches.
struct Watcher {
    api: Api,
    caller: Caller,
    /// `None` for all.
    watched: Option<BTreeSet<KekName>>,
    news: Receiver<News>,
    /// Still to be told, before the news.
    ready: VecDeque<wire::KekEvent>,
    _place: OwnedSemaphorePermit,
}

impl Watcher {
    fn permit(&self, name: &KekName) -> Option<Permit> {
        let wanted = self.watched.as_ref().is_none_or(|watched| watched.contains(name));
        let policy = self.api.policy.load();
        wanted.then(|| policy.permit(self.caller.peer.who(), Op::Describe, name).ok())?
    }

    fn tell_how_all_stand(&mut self) {
        let permits = self.api.engine.names().filter_map(|name| self.permit(name));
        let stands = permits.filter_map(|permit| self.api.engine.stand(permit).ok());
        let at = SystemTime::now();
        self.ready = stands.map(|stand| encode::stand(stand, at)).collect();
    }

    /// The next event; `None` if there will be no more.
    async fn next(&mut self) -> Option<wire::KekEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            match self.news.recv().await {
                Ok(news) if self.permit(&news.stand.kek).is_some() => {
                    return Some(encode::news(news));
                }
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => {
                    // What is still there is older than what is told now.
                    self.news = self.news.resubscribe();
                    self.tell_how_all_stand();
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// Everything that is told, until `stop` says why no more is.
    fn told(
        self,
        stop: BoxFuture<'static, Error>,
    ) -> impl Stream<Item = Result<WatchKeksResponse, Status>> {
        let next = |going_on: Option<(Self, BoxFuture<'static, Error>)>| async move {
            let (mut watcher, mut stop) = going_on?;
            tokio::select! {
                // However much there is to tell.
                biased;
                error = &mut stop => Some((Err(error.into()), None)),
                event = watcher.next() => {
                    let response = WatchKeksResponse { event: Some(event?) };
                    Some((Ok(response), Some((watcher, stop))))
                }
            }
        };
        stream::unfold(Some((self, stop)), next)
    }
}
