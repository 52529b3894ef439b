//! A KEK that is taken away on the token while 64 callers use it, and one that cannot be
//! asked for too long. Real time, a real token; each test says what it measured.

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    object::{Attribute, ObjectClass},
    session::UserType,
    types::AuthPin,
};
use keyward::{
    client::{Client, WrappedDek},
    secret::Secret,
};
use tokio::{runtime::Runtime, task::JoinSet, time::sleep};

use super::{
    served::{KEK, Served, own_uid},
    token::PIN,
};

/// Another KEK on the same token, whose callers must notice nothing.
const OTHER: &str = "billing";
const INTERVAL: Duration = Duration::from_secs(2);
const GRACE: Duration = Duration::from_secs(2);
const DEK: [u8; 32] = [0x42; 32];
const PATIENCE: Duration = Duration::from_secs(20);

/// A sidecar with two KEKs on one token, leases of two seconds, and this outage grace.
fn start(grace: &str) -> Served {
    let mut served = Served::prepare();
    served.token.generate_rsa(2048, OTHER, "1a");
    served.configure(|config| {
        let config = config
            .replace("[server]", "[server]\nadmin = \"127.0.0.1:0\"")
            .replace("interval = \"1s\"", "interval = \"2s\"");
        format!(
            "{config}\n[cache]\noutage_grace = \"{grace}\"\n\
             [[kek]]\nname = \"{OTHER}\"\nbackend = \"hsm\"\nalgorithm = \"RSA-OAEP\"\n\
             [[policy]]\nwho = [\"uid:{}\"]\nmay = [\"purge\"]\nkek = [\"*\"]\n",
            own_uid()
        )
    });
    served.serve();
    served
}

/// One call of a caller.
struct Call {
    began: Instant,
    ended: Instant,
    /// Why it failed, or `OK`.
    outcome: String,
}

/// What callers ask for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mix {
    /// DEKs that are in memory.
    Hot,
    /// Half of the callers for those, half for one that is new each time.
    HotAndFresh,
}

/// 64 callers of the two KEKs.
struct Load {
    stop: Arc<AtomicBool>,
    callers: JoinSet<(&'static str, Vec<Call>)>,
}

impl Load {
    fn start(client: &Client, mix: Mix) -> Self {
        let (stop, mut callers) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
        for n in 0..64 {
            let kek = if n % 4 == 0 { OTHER } else { KEK };
            let caller = Caller {
                client: client.clone(),
                kek,
                fresh: mix == Mix::HotAndFresh && n % 8 >= 4,
            };
            let stop = Arc::clone(&stop);
            callers.spawn(async move { (kek, caller.run(&stop).await) });
        }
        Self { stop, callers }
    }

    /// All calls, by KEK.
    async fn end(mut self) -> BTreeMap<&'static str, Vec<Call>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut calls: BTreeMap<_, Vec<Call>> = BTreeMap::new();
        while let Some(caller) = self.callers.join_next().await {
            let (kek, made) = caller.expect("no caller saw a wrong answer");
            calls.entry(kek).or_default().extend(made);
        }
        calls
    }
}

struct Caller {
    client: Client,
    kek: &'static str,
    fresh: bool,
}

impl Caller {
    async fn run(self, stop: &AtomicBool) -> Vec<Call> {
        let mut wrapped = self.wrap().await.expect("the KEK can be used at first");
        let mut calls = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            if self.fresh {
                // RSA wraps in software, to something else each time. Once the KEK is gone
                // there is nothing new to ask for.
                wrapped = self.wrap().await.unwrap_or(wrapped);
            }
            let began = Instant::now();
            let answer = self.client.unwrap(&wrapped, b"").await;
            let ended = Instant::now();
            let outcome = match answer {
                Ok(dek) => {
                    assert!(dek.ct_eq(&DEK), "another's DEK");
                    "OK".to_owned()
                }
                Err(error) => {
                    sleep(Duration::from_millis(20)).await;
                    error.reason().to_owned()
                }
            };
            calls.push(Call { began, ended, outcome });
        }
        calls
    }

    async fn wrap(&self) -> Result<WrappedDek, keyward::client::Error> {
        self.client.wrap(self.kek, &Secret::copy_of(&DEK), b"").await
    }
}

/// How many calls that began and ended in a span ended how.
fn outcomes(calls: &[Call], from: Instant, to: Instant) -> BTreeMap<&str, usize> {
    let mut outcomes = BTreeMap::new();
    for call in calls.iter().filter(|call| call.began >= from && call.ended < to) {
        *outcomes.entry(call.outcome.as_str()).or_default() += 1;
    }
    outcomes
}

/// Whether every call ended so, and there were some.
#[track_caller]
fn assert_only(outcomes: &BTreeMap<&str, usize>, allowed: &[&str]) {
    assert!(!outcomes.is_empty(), "there was no load");
    assert!(outcomes.keys().all(|outcome| allowed.contains(outcome)), "{outcomes:?}");
}

/// How long after `since` the last call began that was answered with a DEK before `until`.
fn last_success(calls: &[Call], since: Instant, until: Instant) -> Duration {
    let good = calls.iter().filter(|call| call.outcome == "OK" && call.ended < until);
    good.map(|call| call.began)
        .max()
        .map_or(Duration::ZERO, |last| last.saturating_duration_since(since))
}

/// DEKs that a purge of that KEK finds.
fn resident(served: &Served, kek: &str) -> u64 {
    let purged = served.ok(&["kek", "purge", "--json", kek], b"");
    let purged: serde_json::Value = serde_json::from_slice(&purged).expect("JSON");
    purged["deks"].as_u64().expect("a number")
}

fn assert_nothing_cached(served: &Served) {
    let metrics = served.get("/metrics");
    let line = metrics.lines().find(|line| line.starts_with("keyward_cache_entries "));
    let entries = line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    assert_eq!(entries, Some(0.0), "{metrics}");
}

/// Waits until a DEK that is wrapped now unwraps, and returns it wrapped.
async fn recovered(client: &Client, served: &Served) -> WrappedDek {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Ok(wrapped) = client.wrap(KEK, &Secret::copy_of(&DEK), b"").await
            && let Ok(dek) = client.unwrap(&wrapped, b"").await
        {
            assert!(dek.ct_eq(&DEK));
            return wrapped;
        }
        assert!(Instant::now() < until, "it does not recover:\n{}", served.log());
        sleep(Duration::from_millis(50)).await;
    }
}

/// Takes the KEK away under load. Returns once nothing of it is served.
async fn dark_within_one_interval(
    served: &Served,
    client: &Client,
    mix: Mix,
    take_away: impl FnOnce(),
    reasons: &[&str],
) {
    let load = Load::start(client, mix);
    sleep(Duration::from_secs(3)).await;
    let before = Instant::now();
    take_away();
    let gone = Instant::now();
    sleep(2 * INTERVAL).await;
    let end = Instant::now();
    let calls = load.end().await;
    let (ours, others) = (&calls[KEK], &calls[OTHER]);
    let late = last_success(ours, gone, end);
    let in_between = outcomes(ours, gone, gone + INTERVAL);
    println!("the last success began {late:?} after it was gone; in that interval {in_between:?}");
    assert!(outcomes(ours, before - INTERVAL, before)["OK"] > 64, "there was no load");
    assert!(late <= INTERVAL, "served {late:?} after it was gone:\n{}", served.log());
    assert_only(&outcomes(ours, gone + INTERVAL, end), reasons);
    // A call from before may have been overtaken by the end of its lease.
    assert_only(&in_between, &[reasons, &["OK", "KEK_UNPROVEN"]].concat());
    assert_only(&outcomes(others, before - INTERVAL, end), &["OK"]);
    assert_eq!(resident(served, KEK), 0, "what is cached outlived its KEK");
    assert!(resident(served, OTHER) > 0, "the other KEK's DEKs are still there");
    assert_nothing_cached(served);
}

#[test]
fn a_key_that_is_deleted_under_load_is_dark_within_one_interval() {
    let served = start("10m");
    Runtime::new().expect("a runtime").block_on(async {
        let client = served.client();
        let delete = |id| {
            let (token, args) =
                (&served.token, ["--delete-object", "--type", "privkey", "--id", id]);
            move || drop(token.pkcs11_tool_user(&args))
        };
        let reasons = ["KEK_NOT_FOUND", "KEK_VERSION_NOT_FOUND"];
        dark_within_one_interval(&served, &client, Mix::HotAndFresh, delete("0a"), &reasons).await;
        served.add_version("0b");
        assert_eq!(recovered(&client, &served).await.version, "0b");
        // Once more, with nobody who asks the token: the lease alone must tell.
        dark_within_one_interval(&served, &client, Mix::Hot, delete("0b"), &reasons).await;
        served.add_version("0c");
        assert_eq!(recovered(&client, &served).await.version, "0c");
        client.wrap(OTHER, &Secret::copy_of(&DEK), b"").await.expect("it was never away");
    });
}

/// Sets or clears the flags without which the key may not unwrap, through a handle of our
/// own on the token.
fn allow_use(token: &Pkcs11, allowed: bool) {
    let slots = token.get_slots_with_initialized_token().expect("slots");
    let session = token.open_rw_session(slots[0]).expect("a session");
    session.login(UserType::User, Some(&AuthPin::from(PIN.to_owned()))).expect("a login");
    let wanted = [Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::Label(KEK.into())];
    let [key] = session.find_objects(&wanted).expect("a search")[..] else { panic!("not one key") };
    let flags = [Attribute::Decrypt(allowed), Attribute::Unwrap(allowed)];
    session.update_attributes(key, &flags).expect("flags that can be changed");
}

#[test]
fn a_key_that_is_made_unusable_under_load_is_dark_within_one_interval() {
    let served = start("10m");
    // Before there are threads: the module reads its configuration from the environment.
    served.token.enter();
    let token = Pkcs11::new(&served.token.module).expect("a module");
    token.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).expect("it starts");
    Runtime::new().expect("a runtime").block_on(async {
        let client = served.client();
        for mix in [Mix::HotAndFresh, Mix::Hot] {
            let disable = || allow_use(&token, false);
            dark_within_one_interval(&served, &client, mix, disable, &["KEK_DISABLED"]).await;
            allow_use(&token, true);
            assert_eq!(recovered(&client, &served).await.version, "0a", "the same key again");
        }
    });
}

#[test]
fn a_token_that_is_away_past_the_grace_takes_its_deks_along() {
    let served = start("2s");
    Runtime::new().expect("a runtime").block_on(async {
        // So short that the client does not try again, and each call says how it is now.
        let client = served.client().with_deadline(Duration::from_secs(1));
        let load = Load::start(&client, Mix::HotAndFresh);
        sleep(Duration::from_secs(2)).await;
        let away = served.token.dir.path().join("away");
        fs::rename(served.token.storage(), &away).expect("the token goes away");
        let gone = Instant::now();
        let dark_by = gone + INTERVAL + GRACE;
        sleep(INTERVAL + GRACE + Duration::from_secs(2)).await;
        let end = Instant::now();
        assert_nothing_cached(&served);
        fs::rename(&away, served.token.storage()).expect("the token comes back");
        recovered(&client, &served).await;
        println!("it served again {:?} after the token was back", end.elapsed());
        sleep(Duration::from_secs(1)).await;
        let back = Instant::now();
        sleep(Duration::from_secs(2)).await;
        let calls = load.end().await;
        for (kek, calls) in &calls {
            let late = last_success(calls, gone, end);
            println!("{kek}: the last success in the outage began {late:?} into it");
            // Well into the grace: the last proof was at most three quarters of an interval
            // old.
            assert!(late > INTERVAL, "{kek}: what is cached was refused");
            assert_only(&outcomes(calls, dark_by, end), &["BACKEND_UNREACHABLE"]);
            assert_only(&outcomes(calls, back, Instant::now()), &["OK"]);
        }
    });
}
