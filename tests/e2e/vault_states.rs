//! Every row of the vaults' error table under load, with the state that the sidecar takes
//! and the time that takes. `docs/azure.md` shows what these tests measure; each prints its
//! rows, in lease intervals.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{
    home::{Home, House},
    keyvault::{
        Settings,
        access::{Permissions, Role},
        errors,
        faults::{Fault, On, Times, Tls},
        operation::Operation,
        server::Place,
    },
    load::{Caller, Load, Wants, assert_only, outcomes, wrap},
    served::{KEK, Served},
    states::{Expected, Row, Scene, State, callers},
    vaults::SECRET,
};

/// Whoever holds a token is let in for so long after the identity is gone.
const TOKEN_GOOD_FOR: Duration = Duration::from_secs(4);

/// A token is not used any more when it has so long to live.
const TOKEN_SPARE: Duration = Duration::from_secs(10);

impl Scene {
    /// A row of a cause after which nothing is served, until it is mended.
    fn dark(&self, cause: &str, reasons: &[&str], happens: &dyn Fn(), mended: &dyn Fn()) {
        let expected = Expected::Dark(reasons);
        let held_off = Duration::ZERO;
        self.show(&Row { cause, happens, mended: Some(mended), expected, held_off });
    }

    /// A row of a cause that says nothing about the key.
    fn grace(&self, cause: &str, reasons: &[&str], happens: &dyn Fn(), mended: &dyn Fn()) {
        let expected = Expected::Grace(reasons);
        let held_off = Duration::ZERO;
        self.show(&Row { cause, happens, mended: Some(mended), expected, held_off });
    }

    /// The same, of what a vault answers to everything.
    fn grace_on(&self, cause: &str, reasons: &[&str], fault: &Fault) {
        let fake = self.served.fake();
        let happens = || fake.inject(On::Vault, fault.clone(), Times::Always);
        self.grace(cause, reasons, &happens, &|| fake.clear_faults());
    }
}

/// Rows after one another, on a scene of their own, beside others: most of a row is waiting.
fn side_by_side(halves: [&(dyn Fn(&Scene) + Sync); 2]) {
    thread::scope(|scope| {
        for rows in halves {
            scope.spawn(move || rows(&Scene::start(House::new(Home::KeyVault))));
        }
    });
}

const AWAY: [&str; 1] = ["BACKEND_UNREACHABLE"];
const REVOKED: [&str; 1] = ["KEK_REVOKED"];
const GONE: [&str; 2] = ["KEK_NOT_FOUND", "KEK_VERSION_NOT_FOUND"];

#[test]
fn what_an_owner_does_to_the_key_makes_it_dark() {
    let taken = |scene: &Scene| {
        let fake = scene.served.fake();
        let (enable, recover) = (|| fake.enable(KEK, ""), || fake.recover(KEK));
        scene.dark("key disabled", &["KEK_DISABLED"], &|| fake.disable(KEK, ""), &enable);
        scene.dark("key deleted", &GONE, &|| fake.delete(KEK), &recover);
    };
    let limited = |scene: &Scene| {
        let fake = scene.served.fake();
        let expires = |at| move || fake.set_validity(KEK, "", None, at);
        // The vault would unwrap with it all the same.
        let past = expires(Some(1_000_000_000));
        scene.dark("key expired", &["KEK_EXPIRED"], &past, &expires(None));
        let ops = |ops: &'static [&str]| move || fake.set_ops(KEK, "", ops);
        let (without, with) = (ops(&["wrapKey"]), ops(&["wrapKey", "unwrapKey"]));
        scene.dark("unwrapKey not among its operations", &["KEK_DISABLED"], &without, &with);
    };
    side_by_side([&taken, &limited]);
}

#[test]
fn a_key_that_is_purged_takes_its_deks_along_for_good() {
    let scene = Scene::start(House::new(Home::KeyVault));
    let fake = scene.served.fake();
    let old = scene.block_on(wrap(&scene.client, KEK)).expect("a wrapped DEK");
    scene.show(&Row {
        cause: "key purged",
        happens: &|| {
            fake.delete(KEK);
            fake.purge(KEK);
        },
        mended: None,
        expected: Expected::Dark(&GONE),
        held_off: Duration::ZERO,
    });
    // Another key of the same name serves new DEKs, and none of the old.
    let version = fake.create_rsa(KEK, 2048);
    let until = Instant::now() + Duration::from_secs(20);
    while scene.state() != State::Serving {
        assert!(Instant::now() < until, "{}", scene.served.log());
        thread::sleep(Duration::from_millis(20));
    }
    scene.block_on(async {
        let new = wrap(&scene.client, KEK).await.expect("a wrapped DEK");
        assert_eq!(new.version, version);
        scene.client.unwrap(&new, b"").await.expect("it unwraps");
        let refused = scene.client.unwrap(&old, b"").await.expect_err("its key is gone");
        assert_eq!(refused.reason(), "KEK_VERSION_NOT_FOUND");
    });
}

#[test]
fn what_an_owner_does_to_the_vault_makes_its_keys_dark() {
    let access = |scene: &Scene| {
        let (fake, app) = (scene.served.fake(), &scene.served.azure().app);
        let remove = || fake.remove_role(app, Role::CryptoOfficer);
        scene.dark("role removed", &REVOKED, &remove, &|| fake.grant(app, Role::CryptoOfficer));
        scene.dark("vault deleted", &GONE, &|| fake.delete_vault(), &|| fake.recover_vault());
    };
    let network = |scene: &Scene| {
        let fake = scene.served.fake();
        let open = || fake.open_network();
        scene.dark("firewall closed", &REVOKED, &|| fake.close_firewall(), &open);
        scene.dark("private links only", &REVOKED, &|| fake.disable_public_access(), &open);
    };
    side_by_side([&access, &network]);
}

#[test]
fn an_access_policy_that_is_taken_back_makes_its_keys_dark() {
    use Operation::{Get, List, ListVersions, Unwrap, Wrap};
    let settings = Settings {
        permissions: Permissions::AccessPolicies,
        throttled: false,
        ..Settings::premium()
    };
    let house = House::vault(settings);
    let all = [Get, List, ListVersions, Wrap, Unwrap];
    house.azure().fake.set_policy(&house.azure().app, &all);
    let scene = Scene::start(house);
    let (fake, app) = (scene.served.fake(), &scene.served.azure().app);
    let give = || fake.set_policy(app, &all);
    scene.dark("access policy removed", &REVOKED, &|| fake.set_policy(app, &[]), &give);
    // What only an unwrap can see.
    scene.dark(
        "access policy without unwrapKey",
        &REVOKED,
        &|| fake.set_policy(app, &[Get, List, ListVersions, Wrap]),
        &give,
    );
}

#[test]
fn what_a_vault_answers_when_it_cannot_is_an_outage() {
    let fails = |scene: &Scene| {
        scene.grace_on("408", &AWAY, &Fault::Answer(errors::request_timeout().answer()));
        scene.grace_on("500", &AWAY, &Fault::Answer(errors::internal().answer()));
        scene.grace_on("503", &AWAY, &Fault::Answer(errors::unavailable().answer()));
    };
    let refuses = |scene: &Scene| {
        let unknown_key = errors::unknown_signing_key("x").answer();
        scene.grace_on("401 AKV10046", &AWAY, &Fault::Answer(unknown_key));
        let busy = ["OVERLOADED", "BACKEND_UNREACHABLE"];
        scene.grace_on("429", &busy, &Fault::Answer(errors::throttled(None).answer()));
    };
    side_by_side([&fails, &refuses]);
}

#[test]
fn what_is_wrong_on_the_way_to_a_vault_is_an_outage() {
    let ends = |scene: &Scene| {
        scene.grace_on("no answer", &AWAY, &Fault::Hang);
        scene.grace_on("connections reset", &AWAY, &Fault::Reset);
    };
    let garbles = |scene: &Scene| {
        scene.grace_on("answers cut short", &AWAY, &Fault::Truncate);
        scene.grace_on("answers that are no JSON", &AWAY, &Fault::Body("<html>".into()));
    };
    side_by_side([&ends, &garbles]);
}

#[test]
fn a_vault_to_which_there_is_no_connection_is_an_outage() {
    let another = |scene: &Scene| {
        let fake = scene.served.fake();
        let tls = |tls| {
            move || {
                fake.set_tls(tls);
                fake.cut_connections(Place::Vault);
            }
        };
        let right = tls(Tls::Right);
        scene.grace("certificate of another host", &AWAY, &tls(Tls::WrongName), &right);
        let unknown = tls(Tls::UnknownAuthority);
        scene.grace("certificate of an unknown authority", &AWAY, &unknown, &right);
    };
    let nobody = |scene: &Scene| {
        let house = &scene.served.house;
        scene.grace("connections refused", &AWAY, &|| house.take_away(), &|| house.bring_back());
    };
    side_by_side([&another, &nobody]);
}

/// Where a name is looked up cannot be changed under a process without rights that a test
/// does not have. So this one never could be resolved.
#[test]
fn a_vault_whose_name_has_no_address_is_waited_for() {
    let mut served = Served::prepare_on(Home::KeyVault);
    let host = served.fake().url();
    let nowhere = host.replace("kv.vault.localhost", "kv.vault.invalid");
    served.configure(|config| config.replace(&host, &nowhere));
    served.spawn();
    let until = Instant::now() + Duration::from_secs(20);
    while !served.log().contains("the name of the host has no address") {
        assert!(Instant::now() < until, "{}", served.log());
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(served.refused(&["wrap", "--kek", KEK], &[7; 32]), "KEK_UNPROVEN");
    assert!(!served.is_ready());
}

#[test]
fn what_only_an_operator_can_mend_is_dark_and_says_so() {
    let scene = Scene::start(House::new(Home::KeyVault));
    let fake = scene.served.fake();
    for (cause, refusal, cure) in [
        (
            "401 AKV10022",
            errors::wrong_audience("a", "b"),
            "each kind of vault has its own audience",
        ),
        ("401 AKV10032", errors::wrong_issuer("a", "b"), "the vault's own tenant"),
    ] {
        let answer = refusal.answer();
        let happens = || fake.inject(On::Vault, Fault::Answer(answer.clone()), Times::Always);
        let mended = || {
            let error = scene.served.call(&["wrap", "--kek", KEK], &[7; 32]);
            let said = String::from_utf8_lossy(&error.stderr).into_owned();
            assert!(said.contains(cure), "{cause}: {said}");
            let (log, number) = (scene.served.log(), &cause[4..]);
            assert!(
                log.contains("BACKEND_MISCONFIGURED") && log.contains(number),
                "{cause}: {log}"
            );
            fake.clear_faults();
        };
        scene.dark(cause, &["BACKEND_MISCONFIGURED"], &happens, &mended);
    }
}

#[test]
fn bad_ciphertexts_are_their_callers_trouble_only() {
    let scene = Scene::start(House::new(Home::KeyVault));
    let garbage = Caller { kek: KEK, wants: Wants::Garbage, rest: Duration::from_millis(10) };
    let who = callers().chain([garbage; 2]);
    let (began, calls) = scene.block_on(async {
        let load = Load::start(&scene.client, who);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let began = Instant::now();
        for _ in 0..30 {
            assert_eq!(scene.state(), State::Serving);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        (began, load.end().await)
    });
    for (who, calls) in &calls {
        let met = outcomes(calls, began, Instant::now());
        println!("400 BadParameter: serving; {:?} met {met:?}", who.wants);
        let expected = if who.wants == Wants::Garbage { "CIPHERTEXT_INVALID" } else { "OK" };
        assert_only(&met, &[expected]);
    }
}

/// Does something just after the sidecar got a token.
fn once_a_token_is_held<'a>(scene: &'a Scene, act: impl Fn() + 'a) -> impl Fn() + 'a {
    move || {
        let fake = scene.served.fake();
        let (asked, until) = (fake.count(Operation::Token), Instant::now() + 3 * TOKEN_GOOD_FOR);
        while fake.count(Operation::Token) == asked {
            assert!(Instant::now() < until, "no token is asked for");
            thread::sleep(Duration::from_millis(5));
        }
        // The answer is on its way.
        thread::sleep(Duration::from_millis(100));
        act();
    }
}

/// A scene whose tokens are good for no longer than [`TOKEN_GOOD_FOR`].
fn with_short_tokens() -> Scene {
    let house = House::new(Home::KeyVault);
    let lifetime = TOKEN_GOOD_FOR + TOKEN_SPARE;
    house.azure().fake.set_token_lifetimes(lifetime, lifetime);
    Scene::start(house)
}

#[test]
fn an_identity_that_is_gone_makes_its_keys_dark_once_the_held_token_ends() {
    let scene = with_short_tokens();
    let (fake, app) = (scene.served.fake(), &scene.served.azure().app);
    let expected = || Expected::Dark(&["BACKEND_MISCONFIGURED"]);
    scene.show(&Row {
        cause: "identity's secret removed",
        happens: &once_a_token_is_held(&scene, || fake.remove_secret(app, SECRET)),
        mended: Some(&|| fake.add_secret(app, SECRET, None)),
        expected: expected(),
        held_off: TOKEN_GOOD_FOR,
    });
    scene.show(&Row {
        cause: "identity deleted",
        happens: &once_a_token_is_held(&scene, || fake.delete_app(app)),
        mended: None,
        expected: expected(),
        held_off: TOKEN_GOOD_FOR,
    });
}

#[test]
fn an_entra_that_cannot_be_reached_is_an_outage_once_the_held_token_ends() {
    let scene = with_short_tokens();
    let fake = scene.served.fake();
    scene.show(&Row {
        cause: "no token to be had",
        happens: &once_a_token_is_held(&scene, || fake.take_offline(Place::Entra)),
        mended: Some(&|| fake.bring_back(Place::Entra)),
        expected: Expected::Grace(&AWAY),
        held_off: TOKEN_GOOD_FOR,
    });
}
