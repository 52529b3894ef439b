//! A rotation at work: a hundred thousand DEKs are rewrapped by a stream while others
//! unwrap. How busy that keeps the HSM, and what the others notice, as ratios to the HSM's
//! own rate and to a quiet sidecar, in one run.
//!
//! The sidecar, the stream's caller (this process) and the foreground's (`keyward bench`) are
//! processes of their own. SoftHSM is no device beside the machine: what it decrypts takes
//! a core from all of them. With one session it has one core, as if it were a device of its
//! own; with two it has both, as if everybody else had none.
//!
//! Every rewrap is two operations of the HSM: the old version unwraps, and the new one
//! unwraps once more what was made, before it is answered.

#[path = "../tests/e2e/home.rs"]
#[allow(dead_code, unused_macros, unused_imports)]
mod home;
#[allow(dead_code)]
#[path = "../tests/support/keyvault/mod.rs"]
mod keyvault;
#[path = "../tests/e2e/served.rs"]
#[allow(dead_code)]
mod served;
#[path = "../tests/support/token.rs"]
#[allow(dead_code)]
mod token;
#[path = "../tests/support/azure.rs"]
mod vaults;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread::{self, JoinHandle, sleep},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use keyward::{
    client::{Client, Endpoint, Item, WrappedDek},
    secret::Secret,
};
use serde_json::Value;
use tokio::runtime::{self, Runtime};

use served::{KEK, Served};

/// Of the HSM for each rewrap.
const OPERATIONS: f64 = 2.0;

/// Whose answers somebody waits for: callers of one DEK that is in memory, and of DEKs that
/// the HSM has to unwrap. In a second so many of each, whatever the answers do.
const FOREGROUND: [(&str, &str, &[&str]); 2] = [
    ("from memory", "hot", &["--rate", "500", "--callers", "16"]),
    ("by the HSM", "cold", &["--rate", "40", "--callers", "16", "--deks", "1000"]),
];
const SECONDS: &str = "8";
const ROUNDS: usize = 3;

fn runtime() -> Runtime {
    runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// What `keyward bench` measured.
fn bench(served: &Served, args: &[&str]) -> Value {
    let out = served.ok(&[&["bench"], args, &["--json"]].concat(), b"");
    let report: Value = serde_json::from_slice(&out).expect("JSON");
    assert_eq!(report["errors"]["total"], 0, "{report}");
    report
}

/// How long the foreground waits, in microseconds: p50 and p99.
fn foreground(served: &Served, (_, scenario, args): (&str, &str, &[&str])) -> [f64; 2] {
    let common = [scenario, "--kek", KEK, "--seconds", SECONDS, "--no-floors"];
    let report = bench(served, &[&common, args].concat());
    ["p50", "p99"].map(|name| report["latency_us"][name].as_f64().expect("a number"))
}

/// Operations in a second of the HSM alone, by the best number of sessions.
fn raw_rate(served: &Served) -> f64 {
    let config = served.config_file();
    let config = config.to_str().expect("a path");
    let common = ["cold", "--config", config, "--key", KEK, "--seconds", "5"];
    let report = bench(served, &common);
    let rate = |when: &str| report["floors"]["decrypt"][when]["throughput_per_second"].as_f64();
    let (before, after) = (rate("before"), rate("after"));
    (before.expect("a number") + after.expect("a number")) / 2.0
}

fn dek(n: usize) -> Secret {
    Secret::new((n as u64).to_be_bytes().repeat(4))
}

async fn wrapped_deks(client: &Client, deks: usize) -> Vec<WrappedDek> {
    let wrap = |n| async move { client.wrap(KEK, &dek(n), b"").await.expect("a wrapped DEK") };
    stream::iter(0..deks).map(wrap).buffered(64).collect().await
}

/// The stream: its DEKs, and how many were answered.
struct Moving {
    answered: Arc<AtomicUsize>,
    ended: JoinHandle<Vec<(usize, WrappedDek)>>,
}

impl Moving {
    fn start(socket: PathBuf, wrapped: Vec<WrappedDek>) -> Self {
        let answered = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&answered);
        let ended = thread::spawn(move || {
            runtime().block_on(async {
                let client = Client::new(&Endpoint::unix(socket)).expect("a client");
                let items = wrapped.into_iter().enumerate();
                let items =
                    items.map(|(n, wrapped)| Item { id: n as u64, wrapped, context: vec![] });
                let hour = Duration::from_secs(3600);
                let answers = client.rewrap_stream(stream::iter(items), hour).await;
                let moved = answers.expect("a stream").map(|answer| {
                    let answer = answer.expect("the stream goes on");
                    let moved = answer.outcome.expect("it is rewrapped");
                    assert!(moved.changed, "it was under the old version");
                    count.fetch_add(1, Relaxed);
                    (answer.id as usize, moved.wrapped)
                });
                moved.collect().await
            })
        });
        Self { answered, ended }
    }

    fn answered(&self) -> usize {
        self.answered.load(Relaxed)
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn measure(sessions: usize, deks: usize) {
    let mut served = Served::prepare();
    served.configure(|config| {
        config
            .replace("interval = \"1s\"", "interval = \"5s\"")
            .replace("sessions = 2", &format!("sessions = {sessions}"))
    });
    served.serve();
    let runtime = runtime();
    let client = {
        let _inside = runtime.enter();
        served.client().with_deadline(Duration::from_secs(60))
    };
    let wrapped = runtime.block_on(wrapped_deks(&client, deks));
    let new = served.add_version("b2");
    while served.current_version().as_ref() != Some(&new) {
        sleep(Duration::from_millis(100));
    }
    let before = raw_rate(&served);
    let quiet =
        FOREGROUND.map(|whose| (0..ROUNDS).map(|_| foreground(&served, whose)).collect::<Vec<_>>());

    let moving = Moving::start(served.socket(), wrapped);
    while moving.answered() < 1000 {
        sleep(Duration::from_millis(20));
    }
    let (began, already) = (Instant::now(), moving.answered());
    let busy =
        FOREGROUND.map(|whose| (0..ROUNDS).map(|_| foreground(&served, whose)).collect::<Vec<_>>());
    let during = (moving.answered() - already) as f64 / began.elapsed().as_secs_f64();
    assert!(!moving.ended.is_finished(), "the DEKs ran out: nothing was measured");
    let (began, already) = (Instant::now(), moving.answered());
    let mut moved = moving.ended.join().expect("the stream ends");
    let alone = (deks - already) as f64 / began.elapsed().as_secs_f64();
    let after = raw_rate(&served);

    moved.sort_unstable_by_key(|(n, _)| *n);
    assert!(moved.iter().map(|(n, _)| *n).eq(0..deks), "each is answered once");
    assert!(moved.iter().all(|(_, wrapped)| wrapped.version == new), "under the new version");
    runtime.block_on(async {
        for (n, wrapped) in moved.iter().step_by(997) {
            let unwrapped = client.unwrap(wrapped, b"").await.expect("it unwraps");
            assert!(dek(*n).ct_eq(unwrapped.expose()), "another's DEK");
        }
    });

    let raw = (before + after) / 2.0;
    println!("{sessions} sessions, {deks} DEKs rewrapped, each under the new version:");
    println!("  the HSM alone {before:.0} and {after:.0} operations/s");
    println!(
        "  HSM busy, to its own rate: {:.2} beside others, {:.2} with nobody else",
        during * OPERATIONS / raw,
        alone * OPERATIONS / raw
    );
    for (at, (whose, ..)) in FOREGROUND.iter().enumerate() {
        let of = |rounds: &[[f64; 2]], which: usize| {
            median(rounds.iter().map(|round| round[which]).collect())
        };
        for (which, name) in ["p50", "p99"].into_iter().enumerate() {
            let (quiet, busy) = (of(&quiet[at], which), of(&busy[at], which));
            let ratio = busy / quiet;
            println!("  {whose}, {name}: quiet {quiet:.0} us, busy {busy:.0} us, ratio {ratio:.2}");
        }
    }
}

fn main() {
    measure(1, 100_000);
    measure(2, 100_000);
}
