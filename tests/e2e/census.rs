//! Which versions unwrap, as a sidecar counts it: over restarts, damage and several sidecars.

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    home::{Home, on_each_home},
    served::{KEK, Served},
};

const DEK: &[u8] = b"0123456789abcdef0123456789abcdef";

fn file(served: &Served) -> PathBuf {
    served.dir().join("state/census.json")
}

fn start(home: Home) -> Served {
    let mut served = Served::prepare_on(home);
    let state = format!("[server]\nstate = \"{}\"\n", served.dir().join("state").display());
    served.configure(|config| config.replacen("[server]\n", &state, 1));
    served.serve();
    served
}

fn json(served: &Served, args: &[&str]) -> Value {
    serde_json::from_slice(&served.ok(&[args, &["--json"]].concat(), b"")).expect("JSON")
}

/// What `kek show` says of the census of a version.
fn shown(served: &Served, version: &str) -> Value {
    let shown = json(served, &["kek", "show", KEK]);
    let versions = shown["versions"].as_array().expect("versions");
    let of = versions.iter().find(|one| one["version"] == version);
    of.unwrap_or_else(|| panic!("no version {version}: {shown}"))["census"].clone()
}

fn unwraps(served: &Served, version: &str) -> u64 {
    shown(served, version)["unwraps"].as_u64().expect("a number")
}

/// Waits until the file says so.
fn until_written(served: &Served, unwraps: u64) {
    let until = Instant::now() + Duration::from_secs(30);
    let says = format!("\"unwraps\":{unwraps}");
    while !fs::read_to_string(file(served)).is_ok_and(|text| text.contains(&says)) {
        assert!(Instant::now() < until, "it is not written:\n{}", served.log());
        thread::sleep(Duration::from_millis(100));
    }
}

fn restart(served: &mut Served, signal: &str) {
    served.signal(signal);
    served.wait();
    served.serve();
}

fn what_unwraps_is_counted_over_restarts_and_shown_with_its_limits(home: Home) {
    let mut served = start(home);
    let old = served.current_version().expect("a version");
    let wrapped = served.ok(&["wrap", "--kek", KEK], DEK);
    assert_eq!(shown(&served, &old)["verdict"], "too-early", "nothing was unwrapped yet");
    // From the backend, and from the cache.
    for _ in 0..3 {
        served.ok(&["unwrap"], &wrapped);
    }
    let census = shown(&served, &old);
    assert_eq!(
        (&census["unwraps"], &census["callers"], &census["verdict"]),
        (&3.into(), &1.into(), &"in-use".into())
    );
    assert!(census["last"].is_string(), "{census}");
    let new = served.add_version("b2");
    let until = Instant::now() + Duration::from_secs(20);
    while served.current_version().as_deref() != Some(&*new) {
        assert!(Instant::now() < until, "it does not follow:\n{}", served.log());
        thread::sleep(Duration::from_millis(50));
    }
    // A DEK that moves is not in use where it was.
    let moved = served.ok(&["rewrap"], &wrapped);
    assert_eq!((unwraps(&served, &old), unwraps(&served, &new)), (3, 0));
    served.ok(&["unwrap"], &moved);
    restart(&mut served, "-TERM");
    assert_eq!((unwraps(&served, &old), unwraps(&served, &new)), (3, 1), "{}", served.log());
    served.ok(&["unwrap"], &moved);
    until_written(&served, 2);
    restart(&mut served, "-KILL");
    assert_eq!((unwraps(&served, &old), unwraps(&served, &new)), (3, 2));
    let page = String::from_utf8(served.ok(&["kek", "show", KEK], b"")).expect("text");
    for part in ["in use", "Counted on this sidecar alone", "What lies in storage unread"] {
        assert!(page.contains(part), "no {part:?} in\n{page}");
    }
}

on_each_home! {
    blocking: what_unwraps_is_counted_over_restarts_and_shown_with_its_limits;
}

#[test]
fn a_census_that_is_damaged_is_set_aside_and_begins_anew() {
    let mut served = start(Home::SoftHsm);
    let version = served.current_version().expect("a version");
    let wrapped = served.ok(&["wrap", "--kek", KEK], DEK);
    served.ok(&["unwrap"], &wrapped);
    served.signal("-TERM");
    served.wait();
    let whole = fs::read(file(&served)).expect("the census");
    fs::write(file(&served), &whole[..whole.len() / 2]).expect("damaged");
    served.serve();
    assert_eq!(unwraps(&served, &version), 0);
    assert!(served.log().contains("set aside"), "{}", served.log());
    let aside = file(&served).with_extension("json.unreadable");
    assert_eq!(fs::read(aside).expect("what was set aside"), &whole[..whole.len() / 2]);
    // A directory that is gone is told once, and costs no caller anything.
    let (state, away) = (served.dir().join("state"), served.dir().join("away"));
    fs::rename(&state, &away).expect("moved");
    served.ok(&["unwrap"], &wrapped);
    let until = Instant::now() + Duration::from_secs(30);
    while !served.log().contains("census cannot be written") {
        assert!(Instant::now() < until, "{}", served.log());
        thread::sleep(Duration::from_millis(100));
    }
    served.ok(&["unwrap"], &wrapped);
    fs::rename(&away, &state).expect("moved back");
    until_written(&served, 2);
}

#[test]
fn what_several_sidecars_counted_is_joined() {
    let (one, other) = (start(Home::SoftHsm), start(Home::SoftHsm));
    let mut files = Vec::new();
    for (n, served) in [&one, &other].into_iter().enumerate() {
        let wrapped = served.ok(&["wrap", "--kek", KEK], DEK);
        for _ in 0..=n {
            served.ok(&["unwrap"], &wrapped);
        }
        let census = served.ok(&["kek", "census"], b"");
        files.push(one.file(&format!("{n}.json"), &census).to_string_lossy().into_owned());
    }
    // Once more of the same sidecar: it is not counted twice.
    let again = other.ok(&["kek", "census", KEK], b"");
    files.push(one.file("again.json", &again).to_string_lossy().into_owned());
    let files: Vec<_> = files.iter().map(String::as_str).collect();
    let merge = [&["kek", "census", "--merge"], &files[..]].concat();
    let merged = json(&one, &merge);
    let version = &merged["keks"][0]["versions"][0];
    // The same user, on both.
    assert_eq!((&version["unwraps"], &version["callers"]), (&3.into(), &1.into()), "{merged}");
    assert_eq!(
        (merged["sidecars"].as_array().map(Vec::len), &version["verdict"]),
        (Some(2), &"in-use".into())
    );
    let page = String::from_utf8(one.ok(&merge, b"")).expect("text");
    assert!(page.contains("in use") && page.contains("a sidecar that is not listed"), "{page}");
    let bad = one.file("bad.json", b"{}").to_string_lossy().into_owned();
    let refused = one.call(&["kek", "census", "--merge", &bad], b"");
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && told.contains("is no census"), "{told}");
}
