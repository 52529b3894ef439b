//! `keyward check`: set-ups that are broken in one place each, and what it says of them.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;

use super::{
    home::{Home, House},
    keyvault::{
        Settings,
        access::{Permissions, Role},
        errors,
        faults::{Fault, On, Times},
        operation::Operation,
        server::Place,
    },
    served::{KEK, Served, run_with_input},
};

/// What is said of one set-up.
struct Checked {
    code: Option<i32>,
    report: Value,
}

fn check(served: &Served) -> Checked {
    let config = served.config_file().to_string_lossy().into_owned();
    let output = served.call(&["check", "--json", "--config", &config], b"");
    let stderr = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout);
    let report = report.unwrap_or_else(|error| panic!("{error}: {stderr}"));
    Checked { code: output.status.code(), report }
}

impl Checked {
    fn lines(&self) -> &[Value] {
        self.report["checks"].as_array().expect("checks")
    }

    /// The lines of this group and result.
    fn of(&self, group: &str, result: &str) -> Vec<&Value> {
        let is = |line: &&Value| line["group"] == group && line["result"] == result;
        self.lines().iter().filter(is).collect()
    }

    /// It fails, with a line of this group that says `what`, and whose fix says `fix`.
    fn fails(&self, group: &str, what: &str, fix: &str) {
        assert_eq!((self.code, &self.report["ok"]), (Some(1), &false.into()), "{what}");
        self.says("fail", group, what, fix);
    }

    /// Nothing fails, but there is a warning.
    fn warns(&self, group: &str, what: &str, fix: &str) {
        assert_eq!((self.code, &self.report["ok"]), (Some(0), &true.into()), "{what}");
        self.says("warn", group, what, fix);
    }

    fn says(&self, result: &str, group: &str, what: &str, fix: &str) {
        let text = |line: &Value, name: &str| line[name].as_str().unwrap_or_default().to_owned();
        let found = self.of(group, result).into_iter().any(|line| {
            let told = format!("{}: {}", text(line, "subject"), text(line, "what"));
            told.contains(what) && text(line, "fix").contains(fix)
        });
        assert!(found, "no {result} of {group} says {what:?} with {fix:?}:\n{:#}", self.report);
    }

    /// Nothing fails anywhere.
    fn is_well(&self) {
        let failed: Vec<_> = self.lines().iter().filter(|line| line["result"] == "fail").collect();
        assert!(failed.is_empty() && self.code == Some(0), "{failed:#?}");
        for group in ["config", "host", "memory", "hsm", "keks", "permissions", "policy", "tls"] {
            assert!(!self.of(group, "pass").is_empty(), "nothing of {group} passes");
        }
        assert!(!self.of("clock", "pass").is_empty(), "no clock passes");
        for line in self.lines() {
            let amiss = line["result"] == "warn" || line["result"] == "fail";
            assert_eq!(amiss, line["fix"].is_string(), "{line}");
        }
    }
}

/// A set-up with a token, in which nothing is amiss.
fn on_token() -> Served {
    let served = Served::prepare();
    served.configure(well);
    served
}

/// With operators.
fn well(config: String) -> String {
    config.replace("\"describe\"]", "\"describe\", \"revoke\", \"restore\"]")
}

/// A set-up with a vault, in which nothing is amiss.
fn in_vault(permissions: Permissions) -> Served {
    let settings =
        Settings { permissions, purge_protection: true, throttled: false, ..Settings::premium() };
    let served = Served::prepare_in(House::vault(settings));
    served.configure(well);
    served
}

/// A set-up with a token and a broken configuration.
fn broken(change: impl FnOnce(String) -> String) -> Checked {
    let served = on_token();
    served.configure(|config| change(well(config)));
    check(&served)
}

#[test]
fn a_good_set_up_passes_and_the_page_says_so() {
    for served in [on_token(), in_vault(Permissions::Rbac)] {
        check(&served).is_well();
        let config = served.config_file().to_string_lossy().into_owned();
        let page = served.ok(&["check", "--config", &config], b"");
        let page = String::from_utf8(page).expect("text");
        for part in ["\nkeks\n", "  pass  orders: ", " 0 failed, "] {
            assert!(page.contains(part), "no {part:?} in\n{page}");
        }
        assert!(!served.socket().exists(), "it starts nothing");
    }
}

#[test]
fn a_configuration_with_mistakes_tells_them_and_what_was_not_checked() {
    let checked = broken(|config| config.replace("sessions = 2", "sessions = 2000\nspeed = 3"));
    checked.fails("config", "backend.hsm.sessions", "1 to 64");
    checked.fails("config", "backend.hsm.speed", "");
    assert_eq!(checked.of("keks", "skip").len(), 1);
}

#[test]
fn what_is_wrong_with_a_token_is_named() {
    let module = |config: String| config.replace("module = \"/", "module = \"/nowhere/");
    broken(module).fails("hsm", "hsm: ", "module");
    let token = |config: String| config.replace("token = \"", "token = \"another ");
    let checked = broken(token);
    checked.fails("hsm", "the token is not there", "`token`");
    assert_eq!(checked.of("keks", "skip").len(), 1, "{:#}", checked.report);
    let served = on_token();
    let pin = served.token().pin_file.clone();
    fs::write(&pin, "0000").expect("a file");
    check(&served).fails("hsm", "PIN", "pin");
    fs::set_permissions(&pin, fs::Permissions::from_mode(0o644)).expect("its mode");
    check(&served).fails("hsm", "open to others", "0600");
}

#[test]
fn what_is_wrong_with_a_key_on_a_token_is_named() {
    let nothing = |config: String| {
        config.replace("name = \"orders\"", "name = \"orders\"\nkey = \"nothing\"")
    };
    broken(nothing).fails("keks", "orders: ", "key");
    let served = on_token();
    let config = served.config_file().to_string_lossy().into_owned();
    served.ok(&["key", "disable", "--config", &config, KEK], b"");
    check(&served).fails("keks", "enabled: it is disabled", "`keyward key enable`");
    served.ok(&["key", "enable", "--config", &config, KEK], b"");
    check(&served).is_well();
    served.token().pkcs11_tool_user(&[
        "--keypairgen",
        "--key-type",
        "rsa:2048",
        "--label",
        KEK,
        "--id",
        "ff",
        "--usage-decrypt",
        "--extractable",
    ]);
    check(&served).fails("keks", "CKA_EXTRACTABLE is set", "keyward key create");
    // SoftHSM does no other.
    let algorithm = |config: String| config.replace("\"RSA-OAEP\"", "\"RSA-OAEP-256\"");
    broken(algorithm).fails("keks", "self-test failed", "RSA-OAEP");
    let rule = |config: String| {
        config.replace("name = \"orders\"", "name = \"orders\"\nnewest_disabled = \"stops-wraps\"")
    };
    broken(rule).warns("keks", "would not revoke it", "newest_disabled");
}

#[test]
fn what_is_wrong_with_a_vault_is_named() {
    let served = in_vault(Permissions::Rbac);
    let fake = served.fake();
    fake.take_offline(Place::Vault);
    check(&served).fails("keks", "orders: ", "");
    fake.bring_back(Place::Vault);
    fake.clock().advance(Duration::from_secs(120));
    check(&served).warns("clock", "apart", "NTP");
    fake.clock().advance(Duration::from_secs(600));
    check(&served).fails("clock", "apart", "NTP");
    fake.clock().release();
    check(&served).is_well();
    let app = &served.azure().app;
    fake.remove_role(app, Role::CryptoOfficer);
    let checked = check(&served);
    for right in ["list", "get"] {
        let says = format!("{right} does not work");
        checked.fails("permissions", &says, "Key Vault Crypto Service Encryption User");
    }
    fake.grant(app, Role::ServiceEncryptionUser);
    check(&served).is_well();
    fake.delete_app(app);
    check(&served).fails("keks", "orders: ", "");

    let unprotected = Settings { retention_days: 7, throttled: false, ..Settings::premium() };
    let mut served = Served::prepare_in(House::vault(unprotected));
    served.configure(well);
    let checked = check(&served);
    checked.fails("keks", "no purge protection", "--enable-purge-protection");
    checked.says("warn", "keks", "7 days only", "90 days");
    // The sidecar serves all the same, and says so once, however often it looks.
    served.serve();
    std::thread::sleep(Duration::from_secs(3));
    let log = served.log();
    assert_eq!(log.matches("no purge protection").count(), 1, "{log}");
}

#[test]
fn what_is_wrong_with_a_key_in_a_vault_is_named() {
    let served = in_vault(Permissions::Rbac);
    let fake = served.fake();
    let day = 24 * 3600;
    let now = i64::try_from(
        std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a clock after 1970").as_secs(),
    )
    .expect("a time");
    let dates = |start, end| fake.set_validity(KEK, "", start, end);
    dates(None, Some(now - day));
    check(&served).fails("keks", "expiration: it has expired", "later end date");
    dates(None, Some(now + 3 * day));
    check(&served).warns("keks", "expires within 3 days", "later end date");
    dates(Some(now + day), None);
    check(&served).fails("keks", "activation: ", "start date");
    dates(None, None);
    fake.set_ops(KEK, "", &["wrapKey"]);
    check(&served).fails("permissions", "unwrapKey does not work", "");
    fake.set_ops(KEK, "", &["wrapKey", "unwrapKey"]);
    fake.disable(KEK, "");
    check(&served).fails("keks", "enabled: it is disabled", "enable");
    fake.enable(KEK, "");
    fake.delete(KEK);
    check(&served).fails("keks", "orders: ", "");
    fake.recover(KEK);
    check(&served).is_well();

    let served = Served::prepare_on(Home::ManagedHsm);
    served.fake().create_oct("small", 128);
    served.configure(|config| {
        well(config)
            .replace("name = \"orders\"", "name = \"orders\"\nkey = \"small\"")
            .replace("\"RSA-OAEP-256\"", "\"A128KW\"")
    });
    check(&served).fails("keks", "AES with 128 bits", "AES-256");
}

#[test]
fn each_right_that_is_missing_is_named() {
    use Operation::{Get, List, ListVersions, Unwrap, Wrap};
    let served = in_vault(Permissions::AccessPolicies);
    let (fake, app) = (served.fake(), &served.azure().app);
    let all = [Get, List, ListVersions, Wrap, Unwrap];
    fake.set_policy(app, &all);
    check(&served).is_well();
    for (name, without) in [
        ("get", &[Get][..]),
        ("list", &[List, ListVersions]),
        ("wrapKey", &[Wrap]),
        ("unwrapKey", &[Unwrap]),
    ] {
        let left: Vec<_> = all.iter().copied().filter(|one| !without.contains(one)).collect();
        fake.set_policy(app, &left);
        let says = format!("{name} does not work");
        check(&served).fails("permissions", &says, &format!("the permission {name}"));
    }
}

#[test]
fn what_is_wrong_with_the_host_is_named() {
    let socket = |config: String| config.replace("socket = \"/", "socket = \"/nowhere/");
    broken(socket).fails("host", "socket directory", "RuntimeDirectory");
    let served = on_token();
    let (open, state) = (served.dir().join("open"), served.dir().join("state"));
    for dir in [&open, &state] {
        fs::create_dir(dir).expect("a directory");
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).expect("its mode");
    }
    let served = on_token_with(&open, &state);
    let checked = check(&served);
    checked.fails("host", "put a socket of their own", "chmod o-w");
    checked.fails("host", "give back what was revoked", "0700");
    // Below a file nothing can be made.
    let served = on_token();
    served.configure(|config| {
        let state = served.config_file().join("state");
        let state = format!("[server]\nstate = \"{}\"\n", state.display());
        well(config).replacen("[server]\n", &state, 1)
    });
    check(&served).fails("host", "cannot be made", "StateDirectory");
    on_token_is_warned_of_few_files();
}

/// Another set-up, with these directories.
fn on_token_with(open: &Path, state: &Path) -> Served {
    let served = on_token();
    served.configure(|config| {
        let socket = format!("socket = \"{}\"", open.join("k.sock").display());
        let config = well(config).replacen(
            &format!("socket = \"{}\"", served.socket().display()),
            &socket,
            1,
        );
        config.replacen("[server]\n", &format!("[server]\nstate = \"{}\"\n", state.display()), 1)
    });
    served
}

fn on_token_is_warned_of_few_files() {
    let served = on_token();
    let keyward = served.command(&["check", "--config"]);
    let mut limited = served.token().command("sh");
    limited.args(["-c", "ulimit -n 256; exec \"$0\" check --json --config \"$1\""]);
    limited.arg(keyward.get_program()).arg(served.config_file());
    let output = run_with_input(&mut limited, b"");
    let report = serde_json::from_slice(&output.stdout).expect("JSON");
    Checked { code: output.status.code(), report }.warns("host", "open files", "LimitNOFILE");
}

#[test]
fn what_is_wrong_with_who_may_call_is_named() {
    let kek = |pattern: &'static str| {
        move |config: String| config.replace("kek = [\"*\"]", &format!("kek = [\"{pattern}\"]"))
    };
    let checked = broken(kek("billing-*"));
    checked.fails("policy", "nobody may unwrap with it", "may = [\"unwrap\"]");
    checked.says("warn", "policy", "concerns no KEK", "name a KEK");
    let served = Served::prepare();
    check(&served).warns("policy", "nobody may take it away", "\"revoke\", \"restore\"");
    let readers = |config: String| {
        config.replace("may = [\"wrap\", \"unwrap\", \"generate\", ", "may = [\"unwrap\", ")
    };
    broken(readers).warns("policy", "nobody may wrap", "[[policy]]");
    let all =
        |config: String| config.replace("\"restore\"]", "\"restore\", \"purge\", \"reload\"]");
    broken(all).warns("policy", "may do everything", "entry of their own");
}

/// A set-up that listens on TCP with these files.
fn with_tls(certificate: &Path, key: &Path, client_ca: &Path) -> Checked {
    let tls = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\ntls = {{ certificate = \"{}\", key = \"{}\", client_ca = \"{}\" }}\n",
        certificate.display(),
        key.display(),
        client_ca.display()
    );
    broken(|config| config.replacen("[server]\n", &tls, 1))
}

#[test]
fn what_is_wrong_with_tls_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let made = |name: &str| {
        let dir = dir.path().join(name);
        keyward::server::make_dev_tls(&dir).expect("certificates")
    };
    let (one, other) = (made("one"), made("other"));
    let (certificate, key, ca) = (&one.server_certificate, &one.server_key, &one.ca);
    with_tls(certificate, key, ca).is_well();
    with_tls(certificate, &other.server_key, ca).fails("tls", "private key", "belong together");
    let nothing = PathBuf::from("/nowhere.pem");
    with_tls(&nothing, key, ca).fails("tls", "cannot read", "can read");
    with_tls(certificate, key, key).fails("tls", "certificates", "BEGIN CERTIFICATE");
    let open = dir.path().join("open.key");
    fs::copy(key, &open).expect("a copy");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).expect("its mode");
    with_tls(certificate, &open, ca).fails("tls", "others can reach", "chmod 600");
    for (days, expired) in [(-1, true), (3, false)] {
        let (certificate, key) = ending_in(days, dir.path());
        let checked = with_tls(&certificate, &key, ca);
        match expired {
            true => checked.fails("tls", "has expired", "replace it"),
            false => checked.warns("tls", "ends on", "replace it"),
        }
    }
}

#[test]
fn an_identity_of_another_tenant_is_named() {
    let served = in_vault(Permissions::Rbac);
    let refusal = errors::wrong_issuer("the vault's", "another").answer();
    served.fake().inject(On::Vault, Fault::Answer(refusal), Times::Always);
    let cure = "an identity of the vault's own tenant";
    check(&served).fails("keks", "does not take tokens of this tenant", cure);
    check(&served).fails("permissions", "does not take tokens of this tenant", cure);
    served.fake().clear_faults();
    check(&served).is_well();
}

/// A certificate that ends in so many days, and its key.
fn ending_in(days: i64, dir: &Path) -> (PathBuf, PathBuf) {
    let now = time::OffsetDateTime::now_utc();
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    params.not_before = now - time::Duration::days(9);
    params.not_after = now + time::Duration::days(days);
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("a certificate");
    let paths = (dir.join(format!("{days}.pem")), dir.join(format!("{days}.key")));
    fs::write(&paths.0, certificate.pem()).expect("a file");
    fs::write(&paths.1, key.serialize_pem()).expect("a file");
    fs::set_permissions(&paths.1, fs::Permissions::from_mode(0o600)).expect("its mode");
    paths
}
