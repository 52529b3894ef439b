//! What can happen to a KEK, on each of its homes, for a DEK that is cached and one that is
//! not: how the KEK stands, what callers are answered, how long it takes, and that it comes
//! back. `docs/customer-managed-keys.md` has the states.
//!
//! Beside it stand `vault_states.rs` (every answer of a vault, under load) and the property
//! tests of `kek/watch.rs` and `tests/model.rs`. SoftHSM keeps no dates on private keys, so
//! what has expired or not begun is shown on kryoptic.

use std::time::{Duration, Instant, SystemTime};

use keyward::client::{Client, Code, KekCondition, WrappedDek};
use time::OffsetDateTime;
use tokio::{runtime::Runtime, time::sleep};

use super::{
    home::{Home, House, Owner},
    keyvault::{Settings, access::Role},
    load::wrap,
    served::{KEK, Served},
    token::TestToken,
    wall_clock::WallClock,
};

const INTERVAL: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(25);

/// What a DEK is answered with: a reason and its code, or nothing for the DEK.
type Answer = Option<(&'static str, Code)>;

/// What is done, and what it comes to.
struct Row<'a> {
    cause: &'a str,
    happens: &'a dyn Fn(),
    mended: Option<&'a dyn Fn()>,
    condition: KekCondition,
    /// For a DEK that is cached, for one that is not.
    answers: [Answer; 2],
    /// For a wrap.
    wraps: Answer,
}

struct Scene {
    /// Where, for who reads.
    place: String,
    served: Served,
    /// The sidecar's.
    clock: WallClock,
    client: Client,
    runtime: Runtime,
}

impl Scene {
    fn start(home: Home) -> Self {
        let settings = Settings { throttled: false, ..Settings::premium() };
        let house = match home {
            Home::KeyVault => House::vault(settings),
            other => House::new(other),
        };
        Self::start_in(&format!("{home:?}"), house)
    }

    fn start_in(place: &str, house: House) -> Self {
        let mut served = Served::prepare_in(house);
        let clock = WallClock::new(served.dir());
        served.environment.extend(clock.environment());
        served.configure(|config| {
            let config = config.replace("\"describe\"]", "\"describe\", \"revoke\", \"restore\"]");
            // For as long as a row takes.
            format!("{config}\n[cache]\noutage_grace = \"10m\"\n")
        });
        served.serve();
        let runtime = Runtime::new().expect("a runtime");
        let client = {
            let _in_it = runtime.enter();
            served.client().with_deadline(Duration::from_secs(2))
        };
        Self { place: place.to_owned(), served, clock, client, runtime }
    }

    fn key(&self, args: &[&str]) {
        let config = self.served.config_file().to_string_lossy().into_owned();
        self.served.ok(&[&["key", args[0], "--config", &config], &args[1..]].concat(), b"");
    }

    async fn is(&self, condition: KekCondition, what: &str) -> Duration {
        let since = Instant::now();
        loop {
            let kek = self.client.get_kek(KEK).await.expect("it is described");
            if kek.condition() == condition {
                return since.elapsed();
            }
            let log = || self.served.log();
            assert!(
                since.elapsed() < PATIENCE,
                "{what}: {:?} {}\n{}",
                kek.condition(),
                kek.reason,
                log()
            );
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// A DEK that is cached, and one that is not.
    async fn deks(&self) -> [WrappedDek; 2] {
        let cached = wrap(&self.client, KEK).await.expect("a wrapped DEK");
        self.client.unwrap(&cached, b"").await.expect("it unwraps");
        [cached, wrap(&self.client, KEK).await.expect("a wrapped DEK")]
    }

    async fn answer(&self, wrapped: &WrappedDek) -> Option<(String, Code)> {
        let answer = self.client.unwrap(wrapped, b"").await;
        answer.err().map(|error| (error.reason().to_owned(), error.code()))
    }

    fn show(&self, row: &Row<'_>) {
        self.runtime.block_on(async {
            self.is(KekCondition::Serving, row.cause).await;
            let deks = self.deks().await;
            (row.happens)();
            let took = self.is(row.condition, row.cause).await;
            for (kind, (wrapped, expected)) in
                ["cached", "not cached"].into_iter().zip(deks.iter().zip(row.answers))
            {
                let answer = self.answer(wrapped).await;
                let expected = expected.map(|(reason, code)| (reason.to_owned(), code));
                assert_eq!(answer, expected, "{}, {kind}\n{}", row.cause, self.served.log());
            }
            let wraps = wrap(&self.client, KEK).await.err();
            let wraps = wraps.map(|error| (error.reason().to_owned(), error.code()));
            assert_eq!(
                wraps,
                row.wraps.map(|(reason, code)| (reason.to_owned(), code)),
                "{}",
                row.cause
            );
            let mut back = String::from("-");
            if let Some(mend) = row.mended {
                mend();
                let took = self.is(KekCondition::Serving, row.cause).await;
                back = format!("{:.2}", took.as_secs_f64() / INTERVAL.as_secs_f64());
                for wrapped in &deks {
                    assert_eq!(self.answer(wrapped).await, None, "{}: it serves again", row.cause);
                }
            }
            let took = took.as_secs_f64() / INTERVAL.as_secs_f64();
            println!(
                "{} | {} | {:?} after {took:.2}, back after {back}",
                self.place, row.cause, row.condition
            );
        });
    }

    /// A row of a cause after which everything is refused.
    fn dark(
        &self,
        cause: &str,
        answer: (&'static str, Code),
        happens: &dyn Fn(),
        mended: Option<&dyn Fn()>,
    ) {
        self.show(&Row {
            cause,
            happens,
            mended,
            condition: KekCondition::Dark,
            answers: [Some(answer); 2],
            wraps: Some(answer),
        });
    }
}

impl Scene {
    /// A key without dates is what it was, whatever the time.
    fn the_clock_is_set(&self, whither: &str, seconds: i64) {
        self.show(&Row {
            cause: &format!("the clock is set four days {whither}, and right again"),
            happens: &|| {
                self.clock.jump(seconds);
                // For whatever that might do to be done.
                std::thread::sleep(3 * INTERVAL);
            },
            mended: Some(&|| {
                self.clock.jump(0);
                std::thread::sleep(3 * INTERVAL);
            }),
            condition: KekCondition::Serving,
            answers: [None; 2],
            wraps: None,
        });
    }

    /// Dates are kept by the clock that there is: they begin and end when it says so, and also
    /// when it had been wrong.
    fn the_clock_leaves_the_dates(&self) {
        // They were set a moment ago.
        std::thread::sleep(3 * INTERVAL);
        let right = || self.clock.jump(0);
        let late = || self.clock.jump(DAYS);
        self.dark(
            "the clock is set past the end date, and right again",
            EXPIRED,
            &late,
            Some(&right),
        );
        let early = || self.clock.jump(-DAYS);
        let cause = "the clock is set before the start date, and right again";
        self.dark(cause, EARLY, &early, Some(&right));
    }
}

/// Four days, in seconds.
const DAYS: i64 = 4 * 24 * 3600;

const DISABLED: (&str, Code) = ("KEK_DISABLED", Code::FailedPrecondition);
const GONE: (&str, Code) = ("KEK_NOT_FOUND", Code::NotFound);
const REVOKED: (&str, Code) = ("KEK_REVOKED", Code::FailedPrecondition);

const EXPIRED: (&str, Code) = ("KEK_EXPIRED", Code::FailedPrecondition);
const EARLY: (&str, Code) = ("KEK_NOT_YET_VALID", Code::FailedPrecondition);

fn every_cause_on(home: Home) {
    let scene = Scene::start(home);
    let first = scene.served.current_version().expect("a version");
    let newest = || format!("{KEK}/{}", scene.served.current_version().expect("a version"));
    scene.dark(
        "disabled, enabled again",
        DISABLED,
        &|| scene.key(&["disable", KEK]),
        Some(&|| scene.key(&["enable", KEK])),
    );
    let (revoke, restore) = (
        || drop(scene.served.call(&["kek", "revoke", KEK], b"")),
        || drop(scene.served.ok(&["kek", "restore", KEK], b"")),
    );
    scene.dark("revoked by an operator, restored", REVOKED, &revoke, Some(&restore));
    scene.show(&Row {
        cause: "unreachable, reachable again",
        happens: &|| {
            scene.served.house.take_away();
            // A miss finds out at once; so does the next proof.
        },
        mended: Some(&|| scene.served.house.bring_back()),
        condition: KekCondition::Grace,
        answers: [None, Some(("BACKEND_UNREACHABLE", Code::Unavailable))],
        // The public key is known, and the lease says for how long it may be believed.
        wraps: None,
    });
    scene.the_clock_is_set("ahead", DAYS);
    scene.the_clock_is_set("back", -DAYS);
    if home != Home::SoftHsm {
        in_a_vault(&scene);
    }

    // A new version: found, proven, current; what the old one wrapped unwraps.
    let old = scene.runtime.block_on(scene.deks());
    let new = scene.served.add_version("b2");
    scene.runtime.block_on(async {
        let since = Instant::now();
        while wrap(&scene.client, KEK).await.expect("a wrapped DEK").version != new {
            assert!(since.elapsed() < PATIENCE, "{}", scene.served.log());
            sleep(Duration::from_millis(20)).await;
        }
        let took = since.elapsed().as_secs_f64() / INTERVAL.as_secs_f64();
        println!("{home:?} | new version | current after {took:.2}");
        for wrapped in &old {
            assert_eq!(scene.answer(wrapped).await, None);
        }
    });
    let latest = newest();
    scene.dark(
        "latest disabled, older ones enabled",
        DISABLED,
        &|| scene.key(&["disable", &latest]),
        Some(&|| scene.key(&["enable", &latest])),
    );
    // What the older one wrapped went dark with it, and came back.
    scene.runtime.block_on(async {
        for wrapped in &old {
            assert_eq!(scene.answer(wrapped).await, None);
        }
    });
    let older = format!("{KEK}/{first}");
    scene.key(&["disable", &older]);
    scene.runtime.block_on(async {
        let since = Instant::now();
        while scene.answer(&old[0]).await.is_none() {
            assert!(since.elapsed() < PATIENCE, "{}", scene.served.log());
            sleep(Duration::from_millis(20)).await;
        }
        for wrapped in &old {
            assert_eq!(scene.answer(wrapped).await, Some((DISABLED.0.to_owned(), DISABLED.1)));
        }
        scene.is(KekCondition::Serving, "an older one disabled").await;
        assert_eq!(wrap(&scene.client, KEK).await.expect("a wrapped DEK").version, new);
    });
    if home == Home::SoftHsm {
        // For good: nothing brings a destroyed key back.
        let gone = || {
            for id in [&first, &new] {
                scene.served.house.delete(KEK, id);
            }
        };
        scene.dark("deleted", GONE, &gone, None);
    } else {
        let fake = scene.served.fake();
        scene.dark(
            "purged",
            GONE,
            &|| {
                fake.delete(KEK);
                fake.purge(KEK);
            },
            None,
        );
    }
}

fn in_a_vault(scene: &Scene) {
    let fake = scene.served.fake();
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("a clock after 1970").as_secs();
    let now = i64::try_from(now).expect("a time");
    let dates = |start, end| move || fake.set_validity(KEK, "", start, end);
    scene.dark(
        "expired, extended",
        EXPIRED,
        &dates(None, Some(now - 10)),
        Some(&dates(None, None)),
    );
    scene.dark(
        "not yet valid, begun",
        EARLY,
        &dates(Some(now + 9000), None),
        Some(&dates(None, None)),
    );
    dates(Some(now - DAYS / 2), Some(now + DAYS / 2))();
    scene.the_clock_leaves_the_dates();
    dates(None, None)();
    scene.dark("deleted, recovered", GONE, &|| fake.delete(KEK), Some(&|| fake.recover(KEK)));
    let app = &scene.served.azure().app;
    scene.dark(
        "permission lost, regained",
        REVOKED,
        &|| fake.remove_role(app, Role::CryptoOfficer),
        Some(&|| fake.grant(app, Role::CryptoOfficer)),
    );
    // A new version that does not unwrap is passed over, and told of.
    let current = scene.served.current_version();
    let bad = scene.served.add_version("-");
    fake.set_ops(KEK, &bad, &["wrapKey"]);
    std::thread::sleep(4 * INTERVAL);
    assert_eq!(scene.served.current_version(), current, "{}", scene.served.log());
    let shown = scene.served.ok(&["kek", "show", KEK], b"");
    assert!(String::from_utf8_lossy(&shown).contains("UNUSABLE"));
    fake.set_created(KEK, &bad, now - 9000);
    println!("{} | new version fails its self-test | the old one stays current", scene.place);
}

#[test]
fn on_a_token() {
    every_cause_on(Home::SoftHsm);
}

#[test]
fn in_a_key_vault() {
    every_cause_on(Home::KeyVault);
}

#[test]
fn in_a_managed_hsm() {
    every_cause_on(Home::ManagedHsm);
}

#[test]
fn on_a_token_that_keeps_dates() {
    let token = TestToken::kryoptic();
    // Before there are threads: the module reads its configuration from the environment.
    let owner = Owner::of(&token);
    let house = House::Token(token);
    let dates = |start: &'static str, end: &'static str| {
        let owner = &owner;
        move || owner.set_dates(KEK, start, end)
    };
    let scene = Scene::start_in("kryoptic", house);
    scene.dark(
        "expired, extended",
        EXPIRED,
        &dates("20200101", "20200102"),
        Some(&dates("20200101", "29991231")),
    );
    scene.dark(
        "not yet valid, begun",
        EARLY,
        &dates("29980101", "29991231"),
        Some(&dates("20200101", "29991231")),
    );
    let date = |days| {
        let date = (OffsetDateTime::now_utc() + time::Duration::days(days)).date();
        format!("{:04}{:02}{:02}", date.year(), u8::from(date.month()), date.day())
    };
    owner.set_dates(KEK, &date(-2), &date(2));
    scene.the_clock_leaves_the_dates();
}
