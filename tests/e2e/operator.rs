//! What an operator does to a running sidecar with the command line: take a KEK away, over
//! restarts and crashes, and give it back.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    home::{Home, on_each_home},
    served::{KEK, Served, run_with_input},
};

const DEK: &[u8] = b"0123456789abcdef0123456789abcdef";

fn state(served: &Served) -> PathBuf {
    served.dir().join("state")
}

/// A sidecar that keeps what its operators, who are we, revoke.
fn start(home: Home) -> Served {
    let mut served = Served::prepare_on(home);
    configure(&served, &format!("state = \"{}\"\n", state(&served).display()));
    served.serve();
    served
}

fn configure(served: &Served, server: &str) {
    served.configure(|config| {
        config
            .replacen("[server]\n", &format!("[server]\n{server}"), 1)
            .replace("\"describe\"]", "\"describe\", \"purge\", \"revoke\", \"restore\"]")
    });
}

fn restart(served: &mut Served, signal: &str) {
    served.signal(signal);
    served.wait();
    serve_revoked(served);
}

/// Starts it and waits until it says that it is ready, whether or not every KEK is usable.
fn serve_revoked(served: &mut Served) {
    let ready = |served: &Served| served.log().matches("keyward::app: ready").count();
    let before = ready(served);
    served.spawn();
    let until = Instant::now() + Duration::from_secs(30);
    while ready(served) == before {
        assert!(Instant::now() < until, "it does not get ready:\n{}", served.log());
        thread::sleep(Duration::from_millis(20));
    }
}

fn served_soon(served: &Served, wrapped: &[u8]) {
    for _ in 0..100 {
        if served.call(&["unwrap"], wrapped).status.success() {
            return;
        }
        thread::sleep(Duration::from_millis(100));
    }
    panic!("it is not served again:\n{}", served.log());
}

fn a_kek_that_was_revoked_stays_so_over_restarts_and_crashes(home: Home) {
    let mut served = start(home);
    let wrapped = served.ok(&["wrap", "--kek", KEK], DEK);
    assert_eq!(served.ok(&["unwrap"], &wrapped), DEK);
    let done: Value =
        serde_json::from_slice(&served.ok(&["kek", "revoke", "--json", KEK], b"")).expect("JSON");
    // The two commands' sessions, which outlived their connections.
    let expected =
        json!({ "deks": 1, "connections": 0, "left_open": 0, "sessions": 2, "kept": true });
    assert_eq!(done, expected);
    for signal in ["-TERM", "-KILL"] {
        assert_eq!(served.refused(&["unwrap"], &wrapped), "KEK_REVOKED");
        assert_eq!(served.refused(&["wrap", "--kek", KEK], DEK), "KEK_REVOKED");
        // It is ready all the same: nobody waits for what an operator took away.
        restart(&mut served, signal);
    }
    assert_eq!(served.refused(&["unwrap"], &wrapped), "KEK_REVOKED");
    assert!(served.log().contains("gives it back"), "{}", served.log());
    assert_eq!(served.ok(&["kek", "restore", KEK], b""), format!("restored {KEK}\n").as_bytes());
    served_soon(&served, &wrapped);
    restart(&mut served, "-KILL");
    assert_eq!(served.ok(&["unwrap"], &wrapped), DEK);
}

on_each_home! {
    blocking: a_kek_that_was_revoked_stays_so_over_restarts_and_crashes;
}

#[test]
fn a_revocation_that_is_not_kept_is_made_and_told() {
    let mut served = Served::prepare();
    configure(&served, "");
    served.serve();
    let wrapped = served.ok(&["wrap", "--kek", KEK], DEK);
    let told = run_with_input(&mut served.command(&["kek", "revoke", KEK]), b"");
    assert_eq!(told.status.code(), Some(1));
    let error = String::from_utf8(told.stderr).expect("text");
    assert!(error.contains("only until the sidecar is restarted"), "{error}");
    assert!(error.contains("fix:"), "{error}");
    assert_eq!(served.refused(&["unwrap"], &wrapped), "KEK_REVOKED");
    restart(&mut served, "-TERM");
    assert_eq!(served.ok(&["unwrap"], &wrapped), DEK);
}

#[test]
fn a_state_directory_that_fails_takes_no_revocation_back() {
    let mut served = start(Home::SoftHsm);
    let wrapped = served.ok(&["wrap", "--kek", KEK], DEK);
    // Gone under the sidecar's feet.
    let (state, aside) = (state(&served), served.dir().join("aside"));
    fs::rename(&state, &aside).expect("moved");
    let told = served.call(&["kek", "revoke", KEK], b"");
    assert_eq!(told.status.code(), Some(1), "it would not outlast a restart");
    assert_eq!(served.refused(&["unwrap"], &wrapped), "KEK_REVOKED");
    fs::rename(&aside, &state).expect("moved back");
    served.ok(&["kek", "revoke", KEK], b"");

    // What others may write to says nothing, and then nothing is served.
    served.signal("-TERM");
    served.wait();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o777)).expect("its mode");
    let told = served.serve_fails();
    assert!(told.contains("others may write there"), "{told}");
    assert!(told.contains("fix:"), "{told}");
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).expect("its mode");
    fs::write(state.join("revoked/.stray"), "").expect("a file");
    assert!(served.serve_fails().contains("no KEK can be called so"));
    fs::remove_file(state.join("revoked/.stray")).expect("removed");
    serve_revoked(&mut served);
    assert_eq!(served.refused(&["unwrap"], &wrapped), "KEK_REVOKED");
}
