//! What a security officer does to a key with `keyward key`, and what the sidecar makes of it.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    home::{Home, on_each_home},
    served::{KEK, Served},
};

const DEK: &[u8] = b"0123456789abcdef0123456789abcdef";

fn key(served: &Served, args: &[&str]) -> std::process::Output {
    let config = served.config_file().to_string_lossy().into_owned();
    served.call(&[&["key", args[0], "--config", &config], &args[1..]].concat(), b"")
}

fn key_ok(served: &Served, args: &[&str]) -> Value {
    let output = key(served, &[args, &["--json"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Exit code and what it says.
fn key_fails(served: &Served, args: &[&str]) -> (Option<i32>, String) {
    let output = key(served, args);
    assert!(output.stdout.is_empty(), "{args:?} wrote something though it failed");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Waits until a call is answered so: with success, or for this reason.
fn until(served: &Served, args: &[&str], input: &[u8], expected: Result<(), &str>) {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let output = served.call(&[&["--json"], args].concat(), input);
        let stderr = String::from_utf8_lossy(&output.stderr);
        let is = match expected {
            Ok(()) => output.status.success(),
            Err(reason) => stderr.contains(reason),
        };
        if is {
            return;
        }
        assert!(Instant::now() < end, "{args:?} is not {expected:?}: {stderr}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn a_sidecar_follows_its_officer(home: Home) {
    let served = Served::start_on(home);
    if home != Home::SoftHsm {
        served.fake().set_rotation_policy(KEK, None);
    }
    let old = served.current_version().expect("a version");
    let wrapped = served.ok(&["wrap", "--kek", KEK], DEK);

    let rotated = key_ok(&served, &["rotate", KEK]);
    let new = rotated["version"].as_str().expect("a version").to_owned();
    assert_ne!(new, old);
    let end = Instant::now() + Duration::from_secs(20);
    while served.current_version().as_deref() != Some(&*new) {
        assert!(Instant::now() < end, "it does not follow:\n{}", served.log());
        thread::sleep(Duration::from_millis(50));
    }
    let again = served.ok(&["wrap", "--kek", KEK], DEK);
    assert_eq!(served.ok(&["unwrap"], &wrapped), DEK);

    // The old one concerns what it wrapped.
    let pinned = format!("{KEK}/{old}");
    let shown = key_ok(&served, &["disable", &pinned]);
    assert_eq!(
        (&shown["keys"][0]["version"], &shown["keys"][0]["enabled"]),
        (&old.clone().into(), &false.into())
    );
    until(&served, &["unwrap"], &wrapped, Err("KEK_DISABLED"));
    assert_eq!(served.ok(&["unwrap"], &again), DEK);
    key_ok(&served, &["enable", &pinned]);
    until(&served, &["unwrap"], &wrapped, Ok(()));

    // The newest takes all along.
    let shown = key_ok(&served, &["disable", KEK]);
    assert_eq!(shown["keys"][0]["version"], new);
    for dek in [&wrapped, &again] {
        until(&served, &["unwrap"], dek, Err("KEK_DISABLED"));
    }
    let listed = key(&served, &["list"]);
    assert!(String::from_utf8_lossy(&listed.stdout).contains("disabled"), "{listed:?}");
    key_ok(&served, &["enable", KEK]);
    for dek in [&wrapped, &again] {
        until(&served, &["unwrap"], dek, Ok(()));
    }
    let (code, told) = key_fails(&served, &["rotate", "nothing"]);
    assert_eq!(code, Some(1), "{told}");
}

on_each_home! {
    blocking: a_sidecar_follows_its_officer;
}

#[test]
fn a_version_on_a_token_is_destroyed_by_two_calls_with_a_grace_between() {
    let served = Served::start();
    let old = served.current_version().expect("a version");
    served.add_version("b2");
    let first = format!("{KEK}/{old}");
    // Nothing happens by itself, or by half.
    let (code, told) = key_fails(&served, &["destroy", &first]);
    assert!(code == Some(2) && told.contains(&format!("--confirm {first}")), "{told}");
    let (code, _) = key_fails(&served, &["destroy", &first, "--confirm", KEK]);
    assert_eq!(code, Some(2));
    let (code, told) = key_fails(&served, &["destroy", KEK, "--confirm", KEK]);
    assert!(code == Some(2) && told.contains("more than one version"), "{told}");
    let wrapped = served.ok(&["wrap", "--kek", KEK], DEK);
    assert_eq!(served.ok(&["unwrap"], &wrapped), DEK);

    let planned = key_ok(&served, &["destroy", &first, "--confirm", &first]);
    assert!(planned["destroy_after"].is_string(), "{planned}");
    let shown = key_ok(&served, &["show", KEK]);
    let of = |version: &str| {
        let keys = shown["keys"].as_array().expect("keys");
        keys.iter().find(|key| key["version"] == version).expect("it is there").clone()
    };
    assert_eq!((&of(&old)["enabled"], &of("b2")["enabled"]), (&false.into(), &true.into()));
    assert_eq!(of(&old)["destroy_after"], planned["destroy_after"]);
    let (code, told) = key_fails(&served, &["destroy", &first, "--confirm", &first]);
    assert!(code == Some(1) && told.contains("grace is not over"), "{told}");
    // Other tools see it.
    let objects = served.token().pkcs11_tool_user(&["--list-objects", "--type", "data"]);
    assert!(objects.contains(KEK) && objects.contains("'keyward'"), "{objects}");

    key_ok(&served, &["enable", &first]);
    let objects = served.token().pkcs11_tool_user(&["--list-objects", "--type", "data"]);
    assert!(!objects.contains("'keyward'"), "it is called off: {objects}");

    let planned = ["destroy", &first, "--confirm", &first, "--grace", "0s"];
    key_ok(&served, &planned);
    // As a call that was killed half way leaves it.
    served.token().pkcs11_tool_user(&["--delete-object", "--type", "pubkey", "--id", &old]);
    let done = key_ok(&served, &["destroy", &first, "--confirm", &first]);
    assert_eq!(done["destroyed"], first);
    let objects = served.token().pkcs11_tool_user(&["--list-objects"]);
    assert!(
        !objects.contains(&format!("ID:         {old}")) && objects.contains("b2"),
        "{objects}"
    );
    assert!(!objects.contains("'keyward'"), "no notice is left: {objects}");
    let (code, told) = key_fails(&served, &["destroy", &first, "--confirm", &first]);
    assert_eq!(code, Some(1), "{told}");
    let (code, told) = key_fails(&served, &["recover", KEK]);
    assert!(code == Some(1) && told.contains("key enable"), "{told}");
}

#[test]
fn a_key_in_a_vault_is_deleted_whole_and_recovered() {
    let served = Served::start_on(Home::KeyVault);
    let wrapped = served.ok(&["wrap", "--kek", KEK], DEK);
    let version = served.current_version().expect("a version");
    let (code, told) = key_fails(&served, &["destroy", &format!("{KEK}/{version}")]);
    assert!(code == Some(1) && told.contains("a single version"), "{told}");
    assert!(told.contains("key disable"), "{told}");
    let (code, told) = key_fails(&served, &["destroy", KEK]);
    assert!(code == Some(2) && told.contains("--confirm"), "{told}");
    let deleted = key_ok(&served, &["destroy", KEK, "--confirm", KEK]);
    assert!(deleted["purged_at"].is_string(), "{deleted}");
    until(&served, &["unwrap"], &wrapped, Err("NOT_FOUND"));
    let back = key_ok(&served, &["recover", KEK]);
    assert_eq!(back["keys"][0]["version"], version);
    until(&served, &["unwrap"], &wrapped, Ok(()));
    // Who may not, is told which role it takes.
    served.fake().remove_role(&served.azure().app, super::keyvault::access::Role::CryptoOfficer);
    served.fake().grant(&served.azure().app, super::keyvault::access::Role::ServiceEncryptionUser);
    for args in [&["rotate", KEK][..], &["disable", KEK], &["destroy", KEK, "--confirm", KEK]] {
        let (code, told) = key_fails(&served, args);
        assert!(code == Some(1) && told.contains("Key Vault Crypto Officer"), "{args:?}: {told}");
    }
    assert_eq!(served.ok(&["unwrap"], &wrapped), DEK, "{}", served.log());
}
