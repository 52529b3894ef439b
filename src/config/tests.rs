//! The configuration as a whole: the example, mistakes and their lines, arbitrary
//! text.

mod vault;

use std::{path::Path, time::Duration};

use proptest::prelude::*;
use toml::de::DeValue;

use super::{
    schema::{self, Key, Kind, Need, REFUSED, SECTIONS},
    *,
};
use crate::{
    backend::pkcs11::PinSource,
    kek::{Algorithm, Mode, NewestDisabled, ServiceRules},
    lease::Terms,
    server::{SocketSettings, TcpSettings},
};

const GOOD: &str = r#"
[server]
socket = "run/keyward.sock"

[backend.hsm]
type = "pkcs11"
module = "/usr/lib/softhsm/libsofthsm2.so"
token = "keyward"
pin_file = "pin"

[[kek]]
name = "orders-db"
backend = "hsm"

[[policy]]
who = ["uid:0"]
may = ["wrap"]
kek = ["*"]
"#;

/// Accounts of a host that has one user and one group.
struct OneAccount;

impl Accounts for OneAccount {
    fn user(&self, name: &str) -> Option<u32> {
        (name == "keyward").then_some(901)
    }

    fn group(&self, name: &str) -> Option<u32> {
        (name == "database").then_some(902)
    }
}

fn check(text: &str) -> Result<Config, Mistakes> {
    parse(Path::new("/etc/keyward/k.toml"), text, &OneAccount)
}

/// Line, key and fix of each mistake.
fn mistakes(text: &str) -> Vec<(usize, String, String, String)> {
    let mistakes = check(text).expect_err("the file has mistakes");
    mistakes.iter().map(|m| (m.line, m.key.clone(), m.what.clone(), m.fix.clone())).collect()
}

/// The one mistake of `GOOD` with `old` replaced: its key and all that is said of it.
fn only_mistake(old: &str, new: &str) -> (String, String) {
    assert!(GOOD.contains(old), "{old}");
    let found = mistakes(&GOOD.replacen(old, new, 1));
    assert_eq!(found.len(), 1, "{found:?}");
    let (_, key, what, fix) = found.into_iter().next().unwrap();
    (key, format!("{what}; {fix}"))
}

#[test]
fn the_least_file_gets_the_defaults() {
    let config = check(GOOD).unwrap();
    assert_eq!(
        config.server.socket,
        Some(SocketSettings {
            path: "/etc/keyward/run/keyward.sock".into(),
            mode: 0o660,
            owner: None,
            group: None,
        })
    );
    assert_eq!((config.server.tcp, config.server.admin), (None, None));
    assert_eq!((config.server.connections, config.server.drain), (4096, Duration::from_secs(20)));
    assert_eq!(config.threads, 1);
    let CacheConfig { settings, terms, allow_unlocked } = config.cache;
    let minutes = |n: u64| Duration::from_secs(60 * n);
    assert_eq!((settings.capacity, allow_unlocked), (100_000, false));
    assert_eq!((settings.ttl, settings.idle), (minutes(60), minutes(30)));
    assert_eq!(terms, Terms { interval: Duration::from_secs(30), outage_grace: minutes(10) });
    assert_eq!(config.log.filter, "info");
    let [BackendConfig::Pkcs11(hsm)] = &config.backends[..] else { panic!("one backend") };
    assert_eq!((hsm.name.as_str(), hsm.sessions, hsm.queue), ("hsm", 4, 1024));
    assert_eq!(hsm.call_timeout, Duration::from_secs(10));
    assert_eq!(hsm.pin, PinSource::File("/etc/keyward/pin".into()));
    assert_eq!((hsm.token.label.as_deref(), hsm.token.serial.as_deref()), (Some("keyward"), None));
    assert!(hsm.module_args.is_empty() && !hsm.allow_final_try);
    let [kek] = &config.keks[..] else { panic!("one KEK") };
    assert_eq!((kek.name.as_str(), kek.key.to_string()), ("orders-db", "orders-db".into()));
    assert_eq!(kek.algorithm, Algorithm::RsaOaep256);
}

#[test]
fn everything_can_be_set() {
    let text = r#"
limits = { connections = 7 }
lease.interval = "1m"
[log]
format = "json"
filter = "warn,keyward=debug"
[server]
socket = "/s"
socket_mode = "600"
socket_owner = "keyward"
socket_group = "17"
listen = "[::1]:7443"
admin = "0.0.0.0:0"
drain = "0s"
[server.tls]
certificate = "c"
key = "k"
client_ca = "/ca"
[backend.nss]
type = "pkcs11"
module = "m"
module_args = "configdir='sql:x'"
token = "t"
serial = "s"
pin_env = "PIN"
sessions = 64
queue = 1
call_timeout = "100ms"
allow_final_try = true
[[kek]]
name = "a"
backend = "nss"
key = "some label/0a"
algorithm = "A256KWP"
mode = "customer-managed"
newest_disabled = "stops-wraps"
[[policy]]
who = ["gid:5", "dns:*.example.org"]
may = ["unwrap"]
kek = ["a"]
context = "required"
"#;
    let config = check(text).unwrap();
    let socket = config.server.socket.unwrap();
    assert_eq!((socket.mode, socket.owner, socket.group), (0o600, Some(901), Some(17)));
    assert_eq!(config.server.admin.unwrap().to_string(), "0.0.0.0:0");
    let TcpSettings { listen, tls } = config.server.tcp.unwrap();
    assert_eq!(listen.to_string(), "[::1]:7443");
    assert_eq!(tls.key, Path::new("/etc/keyward/k"));
    assert_eq!(tls.client_ca, Path::new("/ca"));
    assert_eq!((config.server.connections, config.server.drain), (7, Duration::ZERO));
    assert_eq!(config.cache.terms.interval, Duration::from_secs(60));
    let [BackendConfig::Pkcs11(nss)] = &config.backends[..] else { panic!("one backend") };
    assert_eq!(nss.pin, PinSource::Env("PIN".into()));
    assert_eq!((nss.sessions, nss.queue, nss.allow_final_try), (64, 1, true));
    assert_eq!(config.keks[0].key.to_string(), "some label/0a");
    assert_eq!(config.keks[0].newest_disabled, NewestDisabled::StopsWraps);
}

#[test]
fn every_mistake_is_told_at_once_with_its_line() {
    let text = r#"[server]
sokcet = "/s"
listen = "localhost:7443"
drain = 20

[backend.hsm]
type = "pkcs12"
module = ""
pin = "do not repeat me"
sessions = 65

[[kek]]
name = "orders db"
backend = "hms"
algorithm = "RSA1_5"
mode = "nobody-managed"

[[kek]]
name = "a"

[[kek]]
name = "a"
backend = "hsm"

[cache]
ttl = "5d"

[[policy]]
who = "uid:0"
may = ["warp", "status"]
kek = []
"#;
    let found = mistakes(text);
    let places: Vec<_> = found.iter().map(|(line, key, ..)| (*line, key.as_str())).collect();
    assert_eq!(
        places,
        [
            (2, "server.sokcet"),
            (3, "server.listen"),
            (3, "server.listen"),
            (4, "server.drain"),
            (6, "backend.hsm"),
            (6, "backend.hsm"),
            (7, "backend.hsm.type"),
            (8, "backend.hsm.module"),
            (9, "backend.hsm.pin"),
            (10, "backend.hsm.sessions"),
            (13, "kek[1].name"),
            (14, "kek[1].backend"),
            (15, "kek[1].algorithm"),
            (16, "kek[1].mode"),
            (18, "kek[2].backend"),
            (22, "kek[3].name"),
            (26, "cache.ttl"),
            (29, "policy[1].who"),
            (30, "policy[1].may"),
            (30, "policy[1].may"),
            (31, "policy[1].kek"),
        ]
    );
    let all = check(text).unwrap_err().to_string();
    for part in [
        "/etc/keyward/k.toml:2: server.sokcet: unknown key\n  fix: did you mean socket?",
        "did you mean pkcs11?",
        "did you mean hsm?",
        "did you mean wrap?",
        "Bleichenbacher",
        "\"status\" is not in this release",
        "is not a duration",
        "choose a number from 1 to 64",
    ] {
        assert!(all.contains(part), "{part}\nis not in\n{all}");
    }
    assert!(!all.contains("do not repeat me"), "{all}");
}

#[test]
fn each_mistake_alone_is_the_only_one_told() {
    let cases = [
        ("socket = \"run/keyward.sock\"", "", "server", "nobody could call"),
        ("socket = ", "socket_mode = \"0x1\"\nsocket = ", "server.socket_mode", "octal"),
        ("socket = ", "socket_mode = \"1777\"\nsocket = ", "server.socket_mode", "octal"),
        ("socket = ", "socket_mode = 660\nsocket = ", "server.socket_mode", "\"0660\""),
        ("socket = ", "socket_group = \"nobodies\"\nsocket = ", "server.socket_group", "no group"),
        ("socket = ", "admin = \"9464\"\nsocket = ", "server.admin", "127.0.0.1:9464"),
        ("socket = ", "sessions = 1\nsocket = ", "server.sessions", "belongs in [backend.NAME]"),
        ("socket = ", "drain = \"11m\"\nsocket = ", "server.drain", "from 0s to 10m"),
        ("socket = ", "drain = \"1 h\"\nsocket = ", "server.drain", "\"30s\""),
        ("socket = ", "listen = \"127.0.0.1:1\"\nsocket = ", "server.listen", "keyward tls dev"),
        (
            "socket = ",
            "listen = \"127.0.0.1:1\"\ntls = { certificate = \"c\", key = \"k\" }\nsocket = ",
            "server.tls.client_ca",
            "is missing",
        ),
        (
            "socket = ",
            "tls = { certificate = \"c\", key = \"k\", client_ca = \"a\" }\nsocket = ",
            "server.tls",
            "without listen",
        ),
        ("\"run/keyward.sock\"", "\"a\\u0000b\"", "server.socket", "control character"),
        ("[server]", "[lease]\ninterval = \"0s\"\n[server]", "lease.interval", "from 1s to 10m"),
        ("[server]", "[limits]\nconnections = -1\n[server]", "limits.connections", "65536"),
        ("[server]", "[log]\nformat = \"xml\"\n[server]", "log.format", "\"json\""),
        ("[server]", "[log]\nfilter = \"a=b=c\"\n[server]", "log.filter", "not a filter"),
        ("[server]", "[sevrer]\n[server]", "sevrer", "did you mean server?"),
        ("[server]", "[\"\\u001b\"]\n[server]", "\"\\u{1b}\"", "unknown section"),
        ("\"pkcs11\"", "\"key-vualt\"", "backend.hsm.type", "did you mean key-vault?"),
        (
            "token =",
            "vault = \"https://a.vault.azure.net\"\ntoken =",
            "backend.hsm.vault",
            "only to",
        ),
        ("token = \"keyward\"", "", "backend.hsm", "neither token nor serial"),
        ("token = \"keyward\"", "token = \"\"", "backend.hsm.token", "empty"),
        ("\"keyward\"", "\"0123456789abcdef0123456789abcdef0\"", "backend.hsm.token", "32"),
        ("pin_file = \"pin\"", "", "backend.hsm", "neither pin_file nor pin_env"),
        ("pin_file =", "pin_env = \"P\"\npin_file =", "backend.hsm.pin_env", "both"),
        ("pin_file = \"pin\"", "pin_env = \"P=1234\"", "backend.hsm.pin_env", "not the PIN"),
        ("token =", "slot = 3\ntoken =", "backend.hsm.slot", "it changes"),
        ("token =", "queue = 1.5\ntoken =", "backend.hsm.queue", "a fraction"),
        ("token =", "allow_final_try = \"yes\"\ntoken =", "backend.hsm.allow_final_try", "true"),
        ("backend = \"hsm\"", "backend = \"hsn\"", "kek[1].backend", "did you mean hsm?"),
        ("backend = \"hsm\"", "backend = \"vault\"", "kek[1].backend", "use one of: hsm"),
        ("backend = \"hsm\"", "backend = \"hsm\"\nkey = \"a/b/c\"", "kek[1].key", "label/version"),
        (
            "backend = \"hsm\"",
            "backend = \"hsm\"\nalgorithm = \"RSA-OEAP-256\"",
            "kek[1].algorithm",
            "did you mean RSA-OAEP-256?",
        ),
        ("[[kek]]", "[kek]", "kek", "[[kek]]"),
        ("\"uid:0\"", "\"uid:root\"", "policy[1].who", "id -u"),
        ("\"uid:0\"", "7", "policy[1].who", "a list of strings"),
        ("kek = [\"*\"]", "kek = [\"a b\"]", "policy[1].kek", "KEK pattern"),
        ("kek = [\"*\"]", "kek = [\"*\"]\ncontext = \"must\"", "policy[1].context", "\"required\""),
    ];
    for (old, new, key, said) in cases {
        let (found, all) = only_mistake(old, new);
        assert_eq!(found, key, "{new}");
        assert!(all.contains(said), "{said} is not in {all}");
    }
}

#[test]
fn missing_sections_are_each_told() {
    let keys: Vec<_> = mistakes("").into_iter().map(|(line, key, ..)| (line, key)).collect();
    let expected = ["server", "backend", "kek", "policy"].map(|key| (1, key.to_owned()));
    assert_eq!(keys, expected);
    let found =
        mistakes(&GOOD.replace("uid:0", "uid:0\", \"").replace("[[policy]]", "[[polices]]"));
    assert!(found.iter().any(|(.., fix)| fix == "did you mean policy?"), "{found:?}");
    assert!(found.iter().any(|(_, _, what, _)| what.contains("nobody could call")), "{found:?}");
}

#[test]
fn what_is_not_toml_is_told_with_its_lines() {
    let found = mistakes("[server]\nsocket = /run\n\n[log\nfilter = \"info\"\n");
    let lines: Vec<_> = found.iter().map(|(line, ..)| *line).collect();
    assert_eq!(lines, [2, 4], "{found:?}");
    let twice = mistakes("[server]\nsocket = \"a\"\nsocket = \"b\"\n");
    assert_eq!(twice[0].0, 3, "{twice:?}");
}

#[test]
fn an_officer_needs_only_a_backend() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("k.toml");
    let start = GOOD.find("[backend").unwrap();
    let end = GOOD.find("[[kek]]").unwrap();
    std::fs::write(&file, &GOOD[start..end]).unwrap();
    assert_eq!(load_backends(&file).unwrap()[0].name(), "hsm");
    assert!(load(&file).is_err());
}

// === the schema and the example ===

#[test]
fn the_example_in_the_repository_is_the_generated_one() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("keyward.example.toml");
    let stored = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        stored == example(),
        "keyward.example.toml is stale: run `cargo run -- config example > keyward.example.toml`"
    );
}

#[test]
fn the_example_is_a_good_configuration() {
    check(&example()).unwrap();
}

/// Uncommenting every setting leaves only the mistakes of settings that exclude each
/// other, so every key of the schema is known to the reader and every example fits.
#[test]
fn everything_that_the_example_comments_out_is_right_too() {
    let text: String = example()
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if !setting.starts_with(' ') => setting.to_owned() + "\n",
            _ => line.to_owned() + "\n",
        })
        .collect();
    let found = mistakes(&text);
    let keys: Vec<_> = found.iter().map(|(_, key, ..)| key.as_str()).collect();
    let of_vaults =
        ["vault", "identity", "authority", "ca", "wrap", "connections", "ceiling", "fleet"]
            .map(|key| format!("backend.hsm.{key}"));
    let mut expected = vec!["backend.hsm.pin_env"];
    expected.extend(of_vaults.iter().map(String::as_str));
    // The example's KEK is a customer's.
    let of_service = schema::OF_SERVICE.map(|key| format!("kek[1].{}", key.name));
    expected.extend(of_service.iter().map(String::as_str));
    assert_eq!(keys, expected, "{found:?}");
}

#[test]
fn the_schema_is_sound() {
    let mut keys: Vec<&Key> = SECTIONS.iter().flat_map(|section| section.keys).copied().collect();
    for key in keys.clone() {
        if let Kind::Table(inner) = key.kind {
            keys.extend(inner);
        }
    }
    for key in keys {
        DeValue::parse(key.example).unwrap_or_else(|error| panic!("{}: {error}", key.name));
        if let Kind::Duration { min, max } = key.kind {
            assert!(duration::parse(min).unwrap() < duration::parse(max).unwrap(), "{}", key.name);
        }
        assert!(key.need != Need::Required || key.shown, "{} is required", key.name);
    }
    for section in SECTIONS {
        assert!(!section.doc.is_empty() && !section.keys.is_empty(), "{}", section.name);
        let undocumented = section.keys.iter().find(|key| key.doc.is_empty());
        assert!(undocumented.is_none(), "{undocumented:?}");
    }
    for refused in &REFUSED {
        let mut sections = SECTIONS.iter().filter(|section| section.name == refused.section);
        let known = sections.any(|section| section.keys.iter().any(|key| key.name == refused.name));
        assert!(!known, "{} is both known and refused", refused.name);
    }
}

// === arbitrary text ===

/// What must hold of any text: no panic, and a refusal says something.
fn holds(text: &str) {
    if let Err(mistakes) = parse(Path::new("k.toml"), text, &NoAccounts) {
        assert!(mistakes.iter().count() > 0);
        assert!(mistakes.iter().all(|m| m.line >= 1 && !m.what.is_empty() && !m.fix.is_empty()));
        assert!(!mistakes.to_string().contains('\u{1b}'));
    }
}

proptest! {
    #[test]
    fn any_text_is_taken_calmly(text in any::<String>()) {
        holds(&text);
    }

    #[test]
    fn any_toml_like_text_is_taken_calmly(
        text in r#"(\[{1,2}(server|backend\.a|kek|policy|tls|x)\]{1,2}\n|(socket|tls|name|who|type|drain|sessions) ?= ?("[a-z0-9:*/.]{0,6}"|[0-9]{1,3}|\[("a",?){0,2}\]|\{ ?key = "a" ?\}|true)\n){0,12}"#
    ) {
        holds(&text);
    }

    #[test]
    fn any_mutation_of_the_example_is_taken_calmly(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 1..8)
    ) {
        let mut bytes = example().replace("\n#", "\n").into_bytes();
        for (at, byte, edit) in edits {
            let at = at.index(bytes.len());
            match edit {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => drop(bytes.remove(at)),
            }
        }
        holds(&String::from_utf8_lossy(&bytes));
    }
}

#[test]
fn a_kek_of_the_service_has_rules_that_fit_each_other() {
    let with = |rules: &str| {
        let kek = GOOD.find("[[kek]]").unwrap() + "[[kek]]\n".len();
        let text = format!("{}{rules}\n{}", &GOOD[..kek], &GOOD[kek..]);
        check(&text).map(|config| config.keks[0].mode)
    };
    let day = Duration::from_secs(24 * 3600);
    let default = ServiceRules {
        rsa_bits: 3072,
        rotate_every: 90 * day,
        expire_after: None,
        retire_quiet: None,
    };
    assert_eq!(with("").unwrap(), Mode::CustomerManaged);
    assert_eq!(with("mode = \"service-managed\"").unwrap(), Mode::ServiceManaged(default));
    let all = "mode = \"service-managed\"\nrsa_bits = 4096\nrotate_every = \"24h\"\n\
               expire_after = \"48h\"\nretire_quiet = \"24h\"";
    let rules = ServiceRules {
        rsa_bits: 4096,
        rotate_every: day,
        expire_after: Some(2 * day),
        retire_quiet: Some(day),
    };
    assert_eq!(with(all).unwrap(), Mode::ServiceManaged(rules));
    for (rules, part) in [
        ("rotate_every = \"24h\"", "a customer's is left as it is"),
        ("mode = \"service-managed\"\nexpire_after = \"2160h\"", "before the next one"),
        ("mode = \"service-managed\"\nrsa_bits = 2049", "no RSA key of that size"),
        ("mode = \"service-managed\"\nkey = \"x/a1\"", "no version of its own"),
        ("mode = \"mine\"", "is no mode"),
    ] {
        let refused = with(rules).unwrap_err().to_string();
        assert!(refused.contains(part), "{rules}: {refused}");
    }
}
