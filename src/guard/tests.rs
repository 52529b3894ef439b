//! The guards together, around a backend that does what it is told, on a clock that the
//! tests turn.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicUsize, Ordering},
};

use async_trait::async_trait;
use tokio::time::sleep;

use super::*;
use crate::backend::{Officer, Register, Room, Service};

const SECOND: Duration = Duration::from_secs(1);

/// Random bytes are all that it has; what is left of the script decides what comes of them.
struct Scripted {
    room: Room,
    script: Mutex<VecDeque<Option<Error>>>,
    takes: Duration,
    asked: AtomicUsize,
}

impl Scripted {
    fn guard(room: Room, takes: Duration, script: Vec<Option<Error>>) -> (Arc<Self>, Guard) {
        let script = Mutex::new(script.into());
        let scripted = Arc::new(Self { room, script, takes, asked: AtomicUsize::new(0) });
        (Arc::clone(&scripted), Guard::new(scripted))
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Backend for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }

    fn kind(&self) -> &'static str {
        "scripted"
    }

    async fn versions(
        &self,
        _: &KeyRef,
        _: Algorithm,
        deadline: Instant,
    ) -> Result<Vec<VersionInfo>, Error> {
        self.random(16, deadline).await.map(|_| Vec::new())
    }

    async fn prove(&self, _: &VersionInfo, _: Algorithm, _: Instant) -> Result<SystemTime, Error> {
        Err(Error::new(Reason::Internal, "not in the script"))
    }

    async fn wrap(
        &self,
        _: &UsableVersion,
        _: Algorithm,
        _: &Secret,
        _: Instant,
    ) -> Result<Vec<u8>, Error> {
        Err(Error::new(Reason::Internal, "not in the script"))
    }

    async fn unwrap(
        &self,
        _: &UsableVersion,
        _: Algorithm,
        _: &[u8],
        _: Instant,
    ) -> Result<Secret, Error> {
        Err(Error::new(Reason::Internal, "not in the script"))
    }

    async fn random(&self, len: usize, _: Instant) -> Result<Option<Secret>, Error> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        sleep(self.takes).await;
        let next = self.script.lock().unwrap().pop_front().flatten();
        next.map_or_else(|| Ok(Some(Secret::zeroed(len))), Err)
    }

    fn wraps_locally(&self, _: Algorithm) -> bool {
        false
    }

    fn units(&self, _: &VersionInfo) -> u32 {
        1
    }

    fn room(&self) -> Room {
        self.room
    }

    fn officer(&self) -> Option<&dyn Officer> {
        None
    }

    fn service(&self) -> Option<&dyn Service> {
        None
    }

    fn register(&self) -> Option<&dyn Register> {
        None
    }

    async fn close(&self) {}
}

fn room(at_once: usize, attempts: u32) -> Room {
    Room { at_once, waiting: 100, attempts, ceiling: None, shared: None, denials: 1 }
}

fn ask() -> Ask {
    Ask { class: Class::Foreground, sender: Sender(1), deadline: now() + 60 * SECOND }
}

async fn random(guard: &Guard) -> Result<Option<Secret>, Error> {
    guard.turn(ask(), 1).await?.random(16).await
}

fn trouble(reason: Reason, times: usize) -> Vec<Option<Error>> {
    vec![Some(Error::new(reason, "as the script says")); times]
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_does_not_answer_is_left_alone_and_found_again() {
    let (backend, guard) =
        Scripted::guard(room(4, 1), SECOND / 100, trouble(Reason::BackendUnreachable, 6));
    for _ in 0..5 {
        random(&guard).await.unwrap_err();
    }
    assert_eq!(guard.standing().breaker, Position::Open);
    let began = now();
    let refused = random(&guard).await.unwrap_err();
    assert_eq!((refused.reason(), now()), (Reason::BackendUnreachable, began));
    let Retry::After(wait) = refused.retry() else { panic!("it says when") };
    assert_eq!(backend.asked(), 5);
    sleep(wait).await;
    random(&guard).await.unwrap_err();
    assert_eq!((backend.asked(), guard.standing().breaker), (6, Position::Open));
    sleep(2 * SECOND).await;
    let probe = tokio::spawn({
        let guard = guard.clone();
        async move { random(&guard).await.map(drop) }
    });
    sleep(SECOND / 1000).await;
    assert_eq!(guard.standing().breaker, Position::HalfOpen);
    assert!(random(&guard).await.is_err(), "one is enough to see");
    probe.await.unwrap().unwrap();
    random(&guard).await.unwrap();
    assert_eq!((backend.asked(), guard.standing().breaker), (8, Position::Closed));
}

#[tokio::test(start_paused = true)]
async fn a_proof_that_succeeds_closes_the_breaker() {
    let (_, guard) = Scripted::guard(room(4, 1), SECOND, trouble(Reason::BackendUnreachable, 5));
    for _ in 0..5 {
        random(&guard).await.unwrap_err();
    }
    assert!(random(&guard).await.is_err());
    let key = KeyRef::parse("orders").unwrap();
    guard.versions(&key, Algorithm::RsaOaep, 1, now() + SECOND * 60).await.unwrap();
    random(&guard).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_probe_whose_caller_went_away_leaves_room_for_the_next() {
    let (_, guard) = Scripted::guard(room(4, 1), SECOND, trouble(Reason::BackendUnreachable, 5));
    for _ in 0..5 {
        random(&guard).await.unwrap_err();
    }
    sleep(20 * SECOND).await;
    let probe = tokio::spawn({
        let guard = guard.clone();
        async move { random(&guard).await.map(drop) }
    });
    sleep(SECOND / 2).await;
    probe.abort();
    let _aborted = probe.await;
    random(&guard).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn answers_of_any_kind_leave_the_breaker_closed() {
    for reason in [Reason::CiphertextInvalid, Reason::KekDisabled, Reason::KekVersionNotFound] {
        let (backend, guard) = Scripted::guard(room(4, 3), SECOND, trouble(reason, 20));
        for _ in 0..20 {
            assert_eq!(random(&guard).await.unwrap_err().reason(), reason);
        }
        assert_eq!((backend.asked(), guard.standing().breaker), (20, Position::Closed));
    }
}

#[tokio::test(start_paused = true)]
async fn callers_in_a_hurry_do_not_trip_it_and_a_backend_that_hangs_does() {
    let (_, guard) = Scripted::guard(room(100, 1), 3600 * SECOND, vec![]);
    let hurried = |within: Duration| {
        let guard = guard.clone();
        async move {
            let ask = Ask { deadline: now() + within, ..ask() };
            let turn = guard.turn(ask, 1).await?;
            turn.random(16).await.map(drop)
        }
    };
    for _ in 0..20 {
        let late = hurried(SECOND / 100).await.unwrap_err();
        assert_eq!(late.reason(), Reason::DeadlineExceeded);
    }
    assert_eq!(guard.standing().breaker, Position::Closed);
    for _ in 0..5 {
        hurried(2 * SECOND).await.unwrap_err();
    }
    assert_eq!(guard.standing().breaker, Position::Open);
}

#[tokio::test(start_paused = true)]
async fn trouble_is_tried_again_and_costs_its_caller_only_time() {
    let (backend, guard) =
        Scripted::guard(room(4, 3), SECOND / 100, trouble(Reason::BackendUnreachable, 2));
    random(&guard).await.unwrap();
    assert_eq!((backend.asked(), guard.standing().retries), (3, 2));
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_the_backend_asks_for_holds_everybody() {
    let throttled = Error::new(Reason::Overloaded, "429").with_retry(Retry::After(5 * SECOND));
    let ceiling =
        Some(crate::backend::Ceiling { per_second: 100.0, burst: 10.0, window: 10 * SECOND });
    let (_, guard) =
        Scripted::guard(Room { ceiling, ..room(4, 1) }, SECOND / 100, vec![Some(throttled)]);
    let began = now();
    random(&guard).await.unwrap_err();
    random(&guard).await.unwrap();
    assert!(now() - began >= 5 * SECOND);
    assert_eq!(guard.standing().breaker, Position::Closed);
}

#[tokio::test(start_paused = true)]
async fn proofs_do_not_wait_and_count() {
    let ceiling =
        Some(crate::backend::Ceiling { per_second: 1.0, burst: 1.0, window: 10 * SECOND });
    let (_, guard) = Scripted::guard(Room { ceiling, ..room(1, 1) }, SECOND / 100, vec![]);
    let key = KeyRef::parse("orders").unwrap();
    let began = now();
    for _ in 0..3 {
        guard.versions(&key, Algorithm::RsaOaep, 1, now() + SECOND).await.unwrap();
    }
    assert!(now() - began < SECOND, "leases are renewed whatever waits");
    random(&guard).await.unwrap();
    assert!(now() - began >= 2 * SECOND, "others wait for what was taken");
    assert_eq!(guard.standing().units, 4);
}
