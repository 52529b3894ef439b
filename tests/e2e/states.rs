//! What state a KEK takes when something is wrong with its vault, how long that takes, and
//! that it serves again by itself: one row of `docs/azure.md` after another, under load.
//!
//! A state is what callers are answered and what `/metrics` and `keyward kek show` say; a
//! row fails if the three do not agree. Refuses to know: what was broken.

use std::{
    fmt,
    time::{Duration, Instant},
};

use keyward::client::Client;
use tokio::{runtime::Runtime, time::sleep};

use super::{
    home::House,
    load::{Call, Caller, Calls, Load, Wants, assert_only, last_success, outcomes, wrap},
    served::{KEK, Served},
};

pub const INTERVAL: Duration = Duration::from_secs(2);
pub const GRACE: Duration = Duration::from_secs(2);

/// What it may take beyond that to look: the page of metrics is up to a second old.
const SLACK: Duration = Duration::from_millis(1500);
const PATIENCE: Duration = Duration::from_secs(20);

/// A miss that is refused sooner did not wait for the vault.
const FAST: Duration = Duration::from_millis(500);

/// How long a state is watched for that should not change.
const WATCHED: Duration = Duration::from_millis(500);

/// A sidecar whose KEK is in a vault.
pub struct Scene {
    pub served: Served,
    pub client: Client,
    runtime: Runtime,
}

/// What is done, how it is mended if it can be, and what a KEK does about it.
pub struct Row<'a> {
    pub cause: &'a str,
    pub happens: &'a dyn Fn(),
    pub mended: Option<&'a dyn Fn()>,
    pub expected: Expected<'a>,
    /// How long it has no effect.
    pub held_off: Duration,
}

pub enum Expected<'a> {
    /// Nothing is served, for one of these reasons.
    Dark(&'a [&'a str]),
    /// What is cached is served until the grace ends; the rest is refused, for one of these
    /// reasons.
    Grace(&'a [&'a str]),
}

/// How a KEK stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Serving,
    Grace,
    Dark,
}

/// Time, as a multiple of the lease interval.
struct Intervals(Duration);

impl fmt::Display for Intervals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2}", self.0.as_secs_f64() / INTERVAL.as_secs_f64())
    }
}

impl Scene {
    pub fn start(house: House) -> Self {
        let mut served = Served::prepare_in(house);
        served.configure(|config| {
            let config = config
                .replace("[server]", "[server]\nadmin = \"127.0.0.1:0\"")
                .replace("interval = \"1s\"", &format!("interval = \"{}s\"", INTERVAL.as_secs()));
            format!("{config}\n[cache]\noutage_grace = \"{}s\"\n", GRACE.as_secs())
        });
        served.serve();
        let runtime = Runtime::new().expect("a runtime");
        // So short that the client does not try again, and each call says how it is now.
        let client = {
            let _in_it = runtime.enter();
            served.client().with_deadline(Duration::from_secs(1))
        };
        Self { served, client, runtime }
    }

    /// One row.
    pub fn show(&self, row: &Row<'_>) {
        self.runtime.block_on(async {
            let load = Load::start(&self.client, callers());
            self.until(State::Serving, PATIENCE).await;
            load.served().await;
            let (steady, before) = load.served_only().await;
            (row.happens)();
            let gone = Instant::now();
            let course = match row.expected {
                Expected::Dark(_) => self.go_dark(row, &load, gone).await,
                Expected::Grace(_) => self.go_through_grace(row, &load, gone).await,
            };
            let usable = self.usable();
            assert!(!usable, "{}: `kek show` still calls it usable", row.cause);
            let back = match row.mended {
                Some(mend) => Some(self.come_back(mend, &load).await),
                None => None,
            };
            let calls = load.end().await;
            let cause = row.cause;
            assert_only(&outcomes(all(&calls), steady, before), &["OK"]);
            course.assert_held_off(&calls);
            match &row.expected {
                Expected::Dark(reasons) => course.assert_dark(cause, &calls, reasons),
                Expected::Grace(reasons) => course.assert_grace(cause, &calls, reasons),
            }
            if let Some(back) = &back {
                assert_only(&outcomes(all(&calls), back.again, back.until), &["OK"]);
            }
            course.tell(cause, &calls, back.as_ref());
        });
    }

    async fn go_dark(&self, row: &Row<'_>, load: &Load, gone: Instant) -> Course {
        let dark = self.until(State::Dark, row.held_off + INTERVAL + SLACK).await;
        load.refused().await;
        sleep(WATCHED).await;
        assert_eq!(self.state(), State::Dark, "{}: it stays so", row.cause);
        Course { gone, held_off: row.held_off, grace: None, dark, end: Instant::now() }
    }

    async fn go_through_grace(&self, row: &Row<'_>, load: &Load, gone: Instant) -> Course {
        let grace = self.until(State::Grace, row.held_off + INTERVAL + SLACK).await;
        let left = (gone + row.held_off + INTERVAL + GRACE + SLACK) - Instant::now();
        let dark = self.until(State::Dark, left).await;
        load.refused().await;
        sleep(WATCHED).await;
        assert_eq!(self.state(), State::Dark, "{}: it stays so", row.cause);
        Course { gone, held_off: row.held_off, grace: Some(grace), dark, end: Instant::now() }
    }

    async fn come_back(&self, mend: &dyn Fn(), load: &Load) -> Back {
        mend();
        let mended = Instant::now();
        self.until(State::Serving, PATIENCE).await;
        self.serves_again().await;
        let again = Instant::now();
        load.served().await;
        assert_eq!(self.state(), State::Serving, "it stays so");
        assert!(self.usable(), "`kek show` does not call it usable");
        Back { mended, again, until: Instant::now() }
    }

    /// Waits until a DEK is served that nobody asked for before. A vault that asked to be
    /// spared is not asked for a while.
    async fn serves_again(&self) {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Ok(wrapped) = wrap(&self.client, KEK).await
                && self.client.unwrap(&wrapped, b"").await.is_ok()
            {
                return;
            }
            assert!(Instant::now() < until, "it does not recover:\n{}", self.served.log());
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the state is seen, and says when it was.
    async fn until(&self, state: State, patience: Duration) -> Instant {
        let until = Instant::now() + patience;
        loop {
            let found = self.state();
            let now = Instant::now();
            if found == state {
                return now;
            }
            assert!(now < until, "{found:?}, not {state:?}:\n{}", self.served.log());
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// As the metrics say.
    pub fn state(&self) -> State {
        let metrics = self.served.get("/metrics");
        let leases = format!("keyward_lease_state{{kek=\"{KEK}\"");
        let lease = |state: &str| {
            let state = format!("state=\"{state}\"");
            metrics.lines().any(|line| line.starts_with(&leases) && line.contains(&state))
        };
        match (lease("live"), lease("outage")) {
            (true, _) => State::Serving,
            (false, true) => State::Grace,
            (false, false) => State::Dark,
        }
    }

    fn usable(&self) -> bool {
        let shown = self.served.ok(&["kek", "show", KEK, "--json"], b"");
        let shown: serde_json::Value = serde_json::from_slice(&shown).expect("JSON");
        shown["usable"].as_bool().expect("yes or no")
    }

    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }
}

/// A few, who leave the machine time for what is measured.
pub fn callers() -> impl Iterator<Item = Caller> {
    (0..6).map(|n| Caller {
        kek: KEK,
        wants: if n < 3 { Wants::Cached } else { Wants::Fresh },
        rest: Duration::from_millis(if n < 3 { 20 } else { 50 }),
    })
}

fn all(calls: &Calls) -> impl Iterator<Item = &Call> {
    calls.values().flatten()
}

fn who_wants(calls: &Calls, wants: Wants) -> impl Iterator<Item = &Call> {
    calls.iter().filter(move |(who, _)| who.wants == wants).flat_map(|(_, calls)| calls)
}

/// What a KEK went through.
struct Course {
    gone: Instant,
    held_off: Duration,
    grace: Option<Instant>,
    dark: Instant,
    end: Instant,
}

/// When it was mended, from when on it served again, and until when it was watched.
struct Back {
    mended: Instant,
    again: Instant,
    until: Instant,
}

impl Course {
    /// Whether everything was served while the cause was held off. When that ends is not
    /// known to the second.
    fn assert_held_off(&self, calls: &Calls) {
        if !self.held_off.is_zero() {
            assert_only(&outcomes(all(calls), self.gone, self.gone + self.held_off / 2), &["OK"]);
        }
    }

    fn assert_dark(&self, cause: &str, calls: &Calls, reasons: &[&str]) {
        let late = last_success(all(calls), self.gone, self.end);
        assert!(late <= self.held_off + INTERVAL, "{cause}: served {late:?} after it was gone");
        let latest = self.gone + self.held_off + INTERVAL;
        assert_only(&outcomes(all(calls), self.dark.min(latest), self.end), reasons);
        // A call from before may have been overtaken by the end of its lease.
        let meanwhile = [reasons, &["OK", "KEK_UNPROVEN"]].concat();
        assert_only(&outcomes(all(calls), self.gone, self.end), &meanwhile);
    }

    fn assert_grace(&self, cause: &str, calls: &Calls, reasons: &[&str]) {
        let grace = self.grace.expect("it was seen");
        let hits = || who_wants(calls, Wants::Cached);
        let late = last_success(hits(), self.gone, self.end);
        // Well into the grace: the last proof was at most three quarters of an interval old.
        assert!(late > INTERVAL, "{cause}: what is cached was refused {late:?} after it began");
        let latest = self.held_off + INTERVAL + GRACE;
        assert!(late <= latest, "{cause}: served {late:?} after it began");
        assert_only(&outcomes(hits(), self.gone, self.gone + late), &["OK"]);
        // Once the grace is over there is one reason for all.
        let over = outcomes(all(calls), self.dark, self.end);
        assert_only(&over, &["BACKEND_UNREACHABLE"]);
        let misses = || who_wants(calls, Wants::Fresh);
        assert_only(&outcomes(misses(), grace, self.end), reasons);
        let refused = misses().filter(|call| call.began >= grace && call.ended < self.end);
        for call in refused {
            assert!(call.retry_after.is_some(), "{cause}: {} says not when", call.outcome);
            assert!(call.took() < FAST, "{cause}: a miss waited for {:?}", call.took());
        }
    }

    /// The row, as callers saw it.
    fn tell(&self, cause: &str, calls: &Calls, back: Option<&Back>) {
        let dark = Intervals(last_success(all(calls), self.gone, self.end));
        let state = match self.grace {
            None => format!("dark after {dark}"),
            Some(_) => {
                let refused = who_wants(calls, Wants::Fresh)
                    .filter(|call| call.outcome != "OK" && call.began >= self.gone);
                let first = refused.map(|call| call.ended).min().expect("a miss is refused");
                format!("grace after {}, dark after {dark}", Intervals(first - self.gone))
            }
        };
        let back = match back {
            None => "no way back".to_owned(),
            Some(back) => {
                let first = all(calls)
                    .filter(|call| call.outcome == "OK" && call.began >= back.mended)
                    .map(|call| call.ended)
                    .min()
                    .expect("it serves again");
                format!("serving again {} later", Intervals(first - back.mended))
            }
        };
        let met = outcomes(all(calls), self.gone, self.end);
        let reasons: Vec<_> = met.keys().filter(|outcome| **outcome != "OK").collect();
        println!("{cause}: {state}, {reasons:?}, {back}");
    }
}
