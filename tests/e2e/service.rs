//! KEKs that the service owns: made at the first start, rotated when they are old, retired
//! when nobody uses them; and that a mode is what it was at first.

use std::{
    fs,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant, SystemTime},
};

use super::{
    home::{Home, on_each_home},
    served::Served,
};

const DEK: &[u8] = b"0123456789abcdef0123456789abcdef";
const DAY: u64 = 24 * 3600;

/// A sidecar whose KEK `own` is the service's, with these rules.
fn prepare(home: Home, rules: &str) -> Served {
    let served = Served::prepare_on(home);
    configure(&served, &format!("mode = \"service-managed\"\n{rules}"));
    served
}

fn configure(served: &Served, rules: &str) {
    let state = format!("[server]\nstate = \"{}\"\n", served.dir().join("state").display());
    served.configure(|config| {
        let algorithm = config.lines().find(|line| line.starts_with("algorithm")).expect("one");
        let own = format!("\n[[kek]]\nname = \"own\"\nbackend = \"hsm\"\n{algorithm}\n{rules}\n");
        config.replacen("[server]\n", &state, 1) + &own
    });
}

fn days_ago(days: u64) -> u64 {
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("a clock after 1970").as_secs();
    now - days * DAY
}

/// A name as Keyward gave it so long ago.
fn named(days: u64) -> String {
    format!("{:012x}{}", days_ago(days) * 1000, "ab".repeat(10))
}

/// Waits for something that a caretaker does, who may hold back for a minute.
fn until(what: &str, served: &Served, done: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(100);
    while !done() {
        assert!(Instant::now() < end, "not {what}:\n{}", served.log());
        thread::sleep(Duration::from_millis(200));
    }
}

fn versions(served: &Served) -> Vec<(String, String)> {
    let shown = served.ok(&["kek", "show", "--json", "own"], b"");
    let shown: serde_json::Value = serde_json::from_slice(&shown).expect("JSON");
    let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
    let versions = shown["versions"].as_array().expect("versions").iter();
    versions.map(|one| (text(&one["version"]), text(&one["state"]))).collect()
}

fn a_kek_of_the_service_is_made_at_the_first_start_and_stays_the_services(home: Home) {
    let mut served = prepare(home, "");
    served.serve();
    let wrapped = served.ok(&["wrap", "--kek", "own"], DEK);
    assert_eq!(served.ok(&["unwrap"], &wrapped), DEK);
    assert_eq!(versions(&served).len(), 1);
    // The customer's KEK beside it is as it was.
    assert!(!served.log().contains("first version was made kek=orders"), "{}", served.log());
    served.signal("-TERM");
    served.wait();
    served.serve();
    assert_eq!(versions(&served).len(), 1, "it is made once");
    assert_eq!(served.ok(&["unwrap"], &wrapped), DEK);
    served.signal("-TERM");
    served.wait();

    configure(&served, "mode = \"customer-managed\"");
    let told = served.serve_fails();
    assert!(told.contains("KEK own has been service-managed"), "{told}");
    assert!(told.contains("set mode = \"service-managed\" again"), "{told}");
    served.configure(|config| {
        let state = format!("[server]\nstate = \"{}\"\n", served.dir().join("state").display());
        config
            .replacen("[server]\n", &state, 1)
            .replace("name = \"orders\"\n", "name = \"orders\"\nmode = \"service-managed\"\n")
    });
    assert!(served.serve_fails().contains("KEK orders has been customer-managed"));
    served.configure(|config| {
        config.replace("name = \"orders\"\n", "name = \"orders\"\nmode = \"service-managed\"\n")
    });
    assert!(served.serve_fails().contains("set `state` in [server]"), "nothing would be recorded");
}

fn an_old_version_is_followed_by_the_next_one(home: Home) {
    let mut served = prepare(home, "rotate_every = \"2160h\"\nexpire_after = \"2640h\"");
    let old = match home {
        Home::SoftHsm => {
            served.token().generate_rsa(2048, "own", &named(100));
            named(100)
        }
        _ => {
            let version = served.fake().create_rsa("own", 2048);
            let made = i64::try_from(days_ago(100)).expect("a time");
            served.fake().set_created("own", &version, made);
            served.fake().set_rotation_policy("own", None);
            version
        }
    };
    served.serve();
    let wrapped = served.ok(&["wrap", "--kek", "own"], DEK);
    // Ten of 110 days are left: that is told, too.
    until("told", &served, || served.log().contains("event=\"EXPIRING\""));
    until("rotated", &served, || versions(&served).len() == 2);
    let now = versions(&served);
    assert_ne!(now[0].0, old);
    until("followed", &served, || {
        let again = served.ok(&["wrap", "--kek", "own"], DEK);
        String::from_utf8_lossy(&again).contains(&now[0].0)
    });
    assert_eq!(served.ok(&["unwrap"], &wrapped), DEK, "the old one unwraps");
    let moved = served.ok(&["rewrap"], &wrapped);
    assert!(String::from_utf8_lossy(&moved).contains(&now[0].0));
}

/// A second sidecar of the same KEKs, as on another node: its socket and its state are its own.
struct Second {
    process: Child,
    socket: String,
}

impl Second {
    fn spawn(served: &Served) -> Self {
        let dir = served.dir();
        let config = fs::read_to_string(served.config_file()).expect("a configuration");
        let config = config.replace("k.sock", "second.sock").replace("/state\"", "/state-2\"");
        let file = served.file("second.toml", config.as_bytes());
        let log = fs::File::create(dir.join("second.log")).expect("a log");
        let mut serve = served.command(&["serve", "--config"]);
        let process = serve.arg(file).stdout(Stdio::null()).stderr(log).spawn();
        let socket = dir.join("second.sock").to_string_lossy().into_owned();
        Self { process: process.expect("it starts"), socket }
    }

    /// What it has to say once it has ended by itself.
    fn ends(mut self, served: &Served) -> String {
        let _status = self.process.wait().expect("it ends");
        fs::read_to_string(served.dir().join("second.log")).expect("a log")
    }

    fn versions(&self, served: &Served) -> Vec<String> {
        let args = ["kek", "show", "--json", "--socket", &self.socket, "own"];
        let shown = served.call(&args, b"").stdout;
        let shown: serde_json::Value = serde_json::from_slice(&shown).unwrap_or_default();
        let versions = shown["versions"].as_array().cloned().unwrap_or_default();
        let usable = versions.iter().filter(|one| one["state"] == "ACTIVE");
        usable.map(|one| one["version"].as_str().expect("text").to_owned()).collect()
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        let _killed = self.process.kill();
        let _ended = self.process.wait();
    }
}

fn two_sidecars_of_one_kek_make_it_and_agree(home: Home) {
    let mut served = prepare(home, "");
    // Both at once, where the home can take that: of two processes that write to a token of
    // SoftHSM's at the same moment, one may not see what the other wrote until the token is
    // written to again.
    let second = match home {
        Home::SoftHsm => {
            served.serve();
            Second::spawn(&served)
        }
        _ => {
            let second = Second::spawn(&served);
            served.serve();
            second
        }
    };
    let both = || {
        let first: Vec<_> = versions(&served).into_iter().map(|(version, _)| version).collect();
        (first, second.versions(&served))
    };
    let end = Instant::now() + Duration::from_secs(60);
    let there = loop {
        let (first, second) = both();
        if !first.is_empty() && first == second {
            break first;
        }
        let log = || fs::read_to_string(served.dir().join("second.log")).unwrap_or_default();
        assert!(Instant::now() < end, "{first:?} {second:?}\n{}\n{}", served.log(), log());
        thread::sleep(Duration::from_millis(100));
    };
    assert!(there.len() <= 2, "one made it, or both did: {there:?}");
    let wrapped = served.ok(&["wrap", "--kek", "own"], DEK);
    assert_eq!(served.ok(&["unwrap", "--socket", &second.socket], &wrapped), DEK);
    let wrapped = served.ok(&["wrap", "--kek", "own", "--socket", &second.socket], DEK);
    assert_eq!(served.ok(&["unwrap"], &wrapped), DEK);
}

on_each_home! {
    blocking: two_sidecars_of_one_kek_make_it_and_agree,
        a_kek_of_the_service_is_made_at_the_first_start_and_stays_the_services,
        an_old_version_is_followed_by_the_next_one;
}

#[test]
fn a_version_that_is_too_old_does_nothing_any_more() {
    let mut served = prepare(Home::SoftHsm, "rotate_every = \"2160h\"\nexpire_after = \"2640h\"");
    served.token().generate_rsa(2048, "own", &named(120));
    served.token().generate_rsa(2048, "own", &named(10));
    served.serve();
    let states: Vec<_> = versions(&served).into_iter().map(|(_, state)| state).collect();
    assert_eq!(states, ["ACTIVE", "EXPIRED"]);
}

#[test]
fn a_version_that_nobody_uses_is_retired_and_can_be_brought_back() {
    let mut served = prepare(Home::SoftHsm, "retire_quiet = \"720h\"");
    let (old, new) = (named(70), named(40));
    served.token().generate_rsa(2048, "own", &old);
    served.token().generate_rsa(2048, "own", &new);
    // It has been counted for long.
    let state = served.dir().join("state");
    fs::create_dir(&state).expect("a directory");
    let census = format!(
        r#"{{"format":"keyward-census-1","node":"n","since":{},"at":{},"keks":{{}}}}"#,
        days_ago(60),
        days_ago(1)
    );
    fs::write(state.join("census.json"), census).expect("a census");
    served.serve();
    until("retired", &served, || versions(&served).contains(&(old.clone(), "DISABLED".to_owned())));
    assert_eq!(versions(&served)[0], (new, "ACTIVE".to_owned()), "the newest never is");
    assert!(served.log().contains("a version was retired"), "{}", served.log());
    let config = served.config_file().to_string_lossy().into_owned();
    served.ok(&["key", "enable", "--config", &config, &format!("own/{old}")], b"");
    until("back", &served, || versions(&served).contains(&(old.clone(), "ACTIVE".to_owned())));
}

#[test]
fn a_token_tells_other_nodes_whose_its_keys_are() {
    let mut served = prepare(Home::SoftHsm, "");
    served.serve();
    for (label, mode) in [("own", "service-managed\n"), ("orders", "customer-managed\n")] {
        let args = ["--read-object", "--type", "data", "--application-label", "keyward-mode"];
        let there = served.token().pkcs11_tool_user(&[&args[..], &["--label", label]].concat());
        assert!(there.ends_with(mode), "another tool reads {there:?}");
    }
    // A node that has never seen it, and thinks that it is a customer's.
    configure(&served, "mode = \"customer-managed\"");
    let told = Second::spawn(&served).ends(&served);
    assert!(told.contains("KEK own has been service-managed since it was first used"), "{told}");
    assert!(told.contains("recorded beside the key in backend hsm"), "{told}");
    assert!(told.contains("set mode = \"service-managed\" again"), "{told}");
    let config = served.config_file();
    let config = config.to_str().expect("a path");
    let checked = served.call(&["check", "--config", config], b"");
    let page = String::from_utf8_lossy(&checked.stdout);
    assert!(page.contains("KEK own has been service-managed since it was first used"), "{page}");
    assert_eq!(checked.status.code(), Some(1));

    // What nobody can read is nobody's leave.
    let file = served.file("mode", b"whoever's\n");
    let file = file.to_str().expect("a path");
    let record = ["--type", "data", "--label", "own", "--application-label", "keyward-mode"];
    let write = || {
        served.token().pkcs11_tool_user(&[&["--write-object", file][..], &record].concat());
    };
    write();
    let told = Second::spawn(&served).ends(&served);
    assert!(told.contains("the token says two things of who owns the keys called own"), "{told}");
    for _ in 0..2 {
        served.token().pkcs11_tool_user(&[&["--delete-object"][..], &record].concat());
    }
    write();
    let told = Second::spawn(&served).ends(&served);
    assert!(told.contains("what is recorded of KEK own does not say who owns it"), "{told}");
}
