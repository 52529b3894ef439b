//! A KEK that is taken away while 64 callers use it, and one that cannot be asked for too
//! long. Real time, a real token or a vault; each test says what it measured.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use keyward::client::{Client, WrappedDek};
use tokio::{runtime::Runtime, time::sleep};

use super::{
    home::{Home, on_each_home},
    load::{Call, Caller, DEK, Load, Wants, assert_only, last_success, outcomes, wrap},
    served::{FIRST, KEK, Served, own_uid},
};

on_each_home! {
    blocking:
        a_key_that_is_deleted_under_load_is_dark_within_one_interval,
        a_key_that_is_made_unusable_under_load_is_dark_within_one_interval,
        a_backend_that_is_away_past_the_grace_takes_its_deks_along;
}

/// Another KEK in the same backend, whose callers must notice nothing.
const OTHER: &str = "billing";
const INTERVAL: Duration = Duration::from_secs(2);
const GRACE: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(20);

/// A sidecar with two KEKs in one backend, leases of two seconds, and this outage grace.
fn start(home: Home, grace: &str) -> Served {
    let mut served = Served::prepare_on(home);
    served.house.make(OTHER, "1a");
    let algorithm = served.house.algorithm();
    served.configure(|config| {
        let config = config
            .replace("[server]", "[server]\nadmin = \"127.0.0.1:0\"")
            .replace("interval = \"1s\"", "interval = \"2s\"");
        format!(
            "{config}\n[cache]\noutage_grace = \"{grace}\"\n\
             [[kek]]\nname = \"{OTHER}\"\nbackend = \"hsm\"\nalgorithm = \"{algorithm}\"\n\
             [[policy]]\nwho = [\"uid:{}\"]\nmay = [\"purge\"]\nkek = [\"*\"]\n",
            own_uid()
        )
    });
    served.serve();
    served
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
fn callers(mix: Mix) -> impl Iterator<Item = Caller> {
    (0..64).map(move |n| Caller {
        kek: if n % 4 == 0 { OTHER } else { KEK },
        wants: if mix == Mix::HotAndFresh && n % 8 >= 4 { Wants::Fresh } else { Wants::Cached },
        rest: Duration::ZERO,
    })
}

/// All calls of a load that ends now, by KEK.
async fn by_kek(load: Load) -> BTreeMap<&'static str, Vec<Call>> {
    let mut calls: BTreeMap<_, Vec<Call>> = BTreeMap::new();
    for (caller, made) in load.end().await {
        calls.entry(caller.kek).or_default().extend(made);
    }
    calls
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
        if let Ok(wrapped) = wrap(client, KEK).await
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
    let load = Load::start(client, callers(mix));
    sleep(Duration::from_secs(3)).await;
    let before = Instant::now();
    take_away();
    let gone = Instant::now();
    sleep(2 * INTERVAL).await;
    let end = Instant::now();
    let calls = by_kek(load).await;
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

fn a_key_that_is_deleted_under_load_is_dark_within_one_interval(home: Home) {
    let served = start(home, "10m");
    Runtime::new().expect("a runtime").block_on(async {
        let client = served.client();
        let delete = |id| {
            let house = &served.house;
            move || house.delete(KEK, id)
        };
        let reasons = ["KEK_NOT_FOUND", "KEK_VERSION_NOT_FOUND"];
        dark_within_one_interval(&served, &client, Mix::HotAndFresh, delete(FIRST), &reasons).await;
        let second = served.add_version("0b");
        assert_eq!(recovered(&client, &served).await.version, second);
        // Once more, with nobody who asks the backend: the lease alone must tell.
        dark_within_one_interval(&served, &client, Mix::Hot, delete("0b"), &reasons).await;
        let third = served.add_version("0c");
        assert_eq!(recovered(&client, &served).await.version, third);
        wrap(&client, OTHER).await.expect("it was never away");
    });
}

fn a_key_that_is_made_unusable_under_load_is_dark_within_one_interval(home: Home) {
    let served = start(home, "10m");
    let owner = served.house.owner();
    Runtime::new().expect("a runtime").block_on(async {
        let client = served.client();
        let version = wrap(&client, KEK).await.expect("it can be used").version;
        for mix in [Mix::HotAndFresh, Mix::Hot] {
            let disable = || owner.allow_use(KEK, false);
            dark_within_one_interval(&served, &client, mix, disable, &["KEK_DISABLED"]).await;
            owner.allow_use(KEK, true);
            assert_eq!(recovered(&client, &served).await.version, version, "the same key again");
        }
    });
}

fn a_backend_that_is_away_past_the_grace_takes_its_deks_along(home: Home) {
    let served = start(home, "2s");
    Runtime::new().expect("a runtime").block_on(async {
        // So short that the client does not try again, and each call says how it is now.
        let client = served.client().with_deadline(Duration::from_secs(1));
        let load = Load::start(&client, callers(Mix::HotAndFresh));
        sleep(Duration::from_secs(2)).await;
        served.house.take_away();
        let gone = Instant::now();
        let dark_by = gone + INTERVAL + GRACE;
        sleep(INTERVAL + GRACE + Duration::from_secs(2)).await;
        let end = Instant::now();
        assert_nothing_cached(&served);
        served.house.bring_back();
        recovered(&client, &served).await;
        println!("it served again {:?} after the backend was back", end.elapsed());
        sleep(Duration::from_secs(1)).await;
        let back = Instant::now();
        sleep(Duration::from_secs(2)).await;
        let calls = by_kek(load).await;
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
