//! Callers that ask for DEKs all the time, and what each call met.
//!
//! Refuses to know: backends, and what should have come of a call. Invariant: a DEK that is
//! not the one that was wrapped fails the test.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use keyward::{
    client::{Client, Error, WrappedDek},
    secret::Secret,
};
use tokio::{task::JoinSet, time::sleep};

pub const DEK: [u8; 32] = [0x42; 32];
const PATIENCE: Duration = Duration::from_secs(20);

/// One call of a caller.
pub struct Call {
    pub began: Instant,
    pub ended: Instant,
    /// Why it failed, or `OK`.
    pub outcome: String,
    /// When it may be made again, if it failed and that is worth it.
    pub retry_after: Option<Duration>,
}

impl Call {
    pub fn took(&self) -> Duration {
        self.ended - self.began
    }
}

/// What a caller asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wants {
    /// A DEK that is in memory.
    Cached,
    /// One that is new each time.
    Fresh,
    /// To unwrap what no key has wrapped.
    Garbage,
}

/// Who asks for what, and how long he rests after each call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Caller {
    pub kek: &'static str,
    pub wants: Wants,
    pub rest: Duration,
}

/// All calls, by who made them.
pub type Calls = BTreeMap<Caller, Vec<Call>>;

/// Callers at work.
pub struct Load {
    now: Arc<Now>,
    callers: JoinSet<(Caller, Vec<Call>)>,
}

/// How the work goes.
#[derive(Default)]
struct Now {
    stop: AtomicBool,
    good: AtomicUsize,
    bad: AtomicUsize,
}

impl Load {
    pub fn start(client: &Client, who: impl IntoIterator<Item = Caller>) -> Self {
        let (now, mut callers) = (Arc::new(Now::default()), JoinSet::new());
        for caller in who {
            let (client, now) = (client.clone(), Arc::clone(&now));
            callers.spawn(async move { (caller, caller.run(&client, &now).await) });
        }
        Self { now, callers }
    }

    /// Waits for as many answers with a DEK as twice the callers: only one of each can be to
    /// a call that began before this.
    pub async fn served(&self) {
        self.more(&self.now.good).await;
    }

    /// Waits for as long as that without a refusal, and says from when to when. A backend
    /// that was in trouble is asked gently at first, and some are turned away.
    pub async fn served_only(&self) -> (Instant, Instant) {
        let until = Instant::now() + PATIENCE;
        loop {
            let (began, bad) = (Instant::now(), self.now.bad.load(Ordering::Relaxed));
            self.served().await;
            if self.now.bad.load(Ordering::Relaxed) == bad {
                return (began, Instant::now());
            }
            assert!(Instant::now() < until, "somebody is always refused");
        }
    }

    /// The same as [`Self::served`], for refusals.
    pub async fn refused(&self) {
        self.more(&self.now.bad).await;
    }

    async fn more(&self, count: &AtomicUsize) {
        let wanted = count.load(Ordering::Relaxed) + 2 * self.callers.len();
        let until = Instant::now() + PATIENCE;
        while count.load(Ordering::Relaxed) < wanted {
            assert!(Instant::now() < until, "there is no load");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Has them stop, and returns what they met.
    pub async fn end(mut self) -> Calls {
        self.now.stop.store(true, Ordering::Relaxed);
        let mut calls = Calls::new();
        while let Some(caller) = self.callers.join_next().await {
            let (who, made) = caller.expect("no caller saw a wrong answer");
            calls.entry(who).or_default().extend(made);
        }
        calls
    }
}

impl Caller {
    async fn run(self, client: &Client, now: &Now) -> Vec<Call> {
        let mut wrapped = wrap(client, self.kek).await.expect("the KEK can be used at first");
        if self.wants == Wants::Garbage {
            wrapped.ciphertext[7] ^= 1;
        }
        let mut calls = Vec::new();
        while !now.stop.load(Ordering::Relaxed) {
            if self.wants == Wants::Fresh {
                // RSA wraps in software, to something else each time. Once the KEK is gone
                // there is nothing new to ask for.
                wrapped = wrap(client, self.kek).await.unwrap_or(wrapped);
            }
            let began = Instant::now();
            let answer = client.unwrap(&wrapped, b"").await;
            let ended = Instant::now();
            let (outcome, retry_after) = match answer {
                Ok(dek) => {
                    assert!(dek.ct_eq(&DEK), "another's DEK");
                    now.good.fetch_add(1, Ordering::Relaxed);
                    ("OK".to_owned(), None)
                }
                Err(error) => {
                    now.bad.fetch_add(1, Ordering::Relaxed);
                    sleep(Duration::from_millis(20)).await;
                    (error.reason().to_owned(), error.retry_after())
                }
            };
            calls.push(Call { began, ended, outcome, retry_after });
            if !self.rest.is_zero() {
                sleep(self.rest).await;
            }
        }
        calls
    }
}

pub async fn wrap(client: &Client, kek: &str) -> Result<WrappedDek, Error> {
    client.wrap(kek, &Secret::copy_of(&DEK), b"").await
}

/// How many calls that began and ended in a span ended how.
pub fn outcomes<'a>(
    calls: impl IntoIterator<Item = &'a Call>,
    from: Instant,
    to: Instant,
) -> BTreeMap<&'a str, usize> {
    let mut outcomes = BTreeMap::new();
    for call in calls.into_iter().filter(|call| call.began >= from && call.ended < to) {
        *outcomes.entry(call.outcome.as_str()).or_default() += 1;
    }
    outcomes
}

/// Whether every call ended so, and there were some.
#[track_caller]
pub fn assert_only(outcomes: &BTreeMap<&str, usize>, allowed: &[&str]) {
    assert!(!outcomes.is_empty(), "there was no load");
    assert!(outcomes.keys().all(|outcome| allowed.contains(outcome)), "{outcomes:?}");
}

/// How long after `since` the last call began that was answered with a DEK before `until`.
pub fn last_success<'a>(
    calls: impl IntoIterator<Item = &'a Call>,
    since: Instant,
    until: Instant,
) -> Duration {
    let good = calls.into_iter().filter(|call| call.outcome == "OK" && call.ended < until);
    good.map(|call| call.began)
        .max()
        .map_or(Duration::ZERO, |last| last.saturating_duration_since(since))
}
