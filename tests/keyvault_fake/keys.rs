//! The life of keys: making, listing, changing, rotating, importing, backing up,
//! deleting.

use std::{collections::BTreeSet, time::Duration};

use rsa::{
    BoxedUint, Generate as _,
    traits::{PrivateKeyParts as _, PublicKeyParts as _},
};
use serde_json::{Value, json};

use crate::{
    client::{Client, VERSION},
    keyvault::{FakeVault, Settings, access::Role, message::encode, operation::Operation},
    scene,
};

const DAY: i64 = 24 * 3600;

fn version_of(bundle: &Value) -> String {
    bundle["key"]["kid"].as_str().unwrap().rsplit('/').next().unwrap().into()
}

#[tokio::test]
async fn a_vault_makes_what_it_is_asked_for() {
    let (vault, client) = scene(Settings { throttled: false, ..Settings::premium() });
    for (kty, platform) in [("RSA", "0"), ("RSA-HSM", "2")] {
        for (size, bytes) in [(2048, 256), (3072, 384), (4096, 512)] {
            let body = json!({ "kty": kty, "key_size": size, "attributes": {} });
            let made = client.post("/keys/k/create", body).await.ok();
            assert_eq!(made["key"]["kty"], kty);
            let n = crate::keyvault::message::decode(made["key"]["n"].as_str().unwrap());
            assert_eq!((n.unwrap().len(), &made["key"]["e"]), (bytes, &json!("AQAB")));
            assert_eq!(made["attributes"]["hsmPlatform"], platform);
            assert_eq!(made["attributes"]["recoveryLevel"], "Recoverable+Purgeable");
            assert_eq!(made["attributes"]["enabled"], true);
            assert_eq!(version_of(&made), vault.version("k", "").id);
        }
    }
    let oct = json!({ "kty": "oct-HSM", "key_size": 192 });
    let made = client.post("/keys/aes/create", oct).await.ok();
    assert_eq!(made["key"]["key_ops"], json!(["encrypt", "decrypt", "wrapKey", "unwrapKey"]));
    assert!(made["key"]["n"].is_null());
    for bad in [
        json!({}),
        json!({ "kty": "EC", "crv": "P-256" }),
        json!({ "kty": "RSA", "key_size": 1024 }),
        json!({ "kty": "RSA", "key_size": "2048" }),
        json!({ "kty": "oct", "key_size": 256 }),
        json!({ "kty": "oct-HSM", "key_size": 100 }),
        json!({ "kty": "RSA", "key_ops": ["unwrapKey", "fly"] }),
        // A key that imports does nothing else.
        json!({ "kty": "RSA-HSM", "key_ops": ["import", "wrapKey"] }),
        json!({ "kty": "RSA", "tags": { "n": 1 } }),
    ] {
        client.post("/keys/x/create", bad).await.is(400, "BadParameter", "");
    }
    let (_vault, client) = scene(Settings::standard());
    let hsm = client.post("/keys/k/create", json!({ "kty": "RSA-HSM" })).await;
    hsm.is(400, "BadParameter", "");
    client.post("/keys/k/create", json!({ "kty": "RSA" })).await.ok();
}

#[tokio::test]
async fn a_managed_hsm_makes_hsm_keys_and_random_bytes() {
    let (vault, client) = scene(Settings { throttled: false, ..Settings::managed_hsm() });
    let made = client.post("/keys/k/create", json!({ "kty": "RSA" })).await.ok();
    assert_eq!(made["key"]["kty"], "RSA-HSM");
    assert!(made["attributes"]["hsmPlatform"].is_null());
    let random = client.post("/rng", json!({ "count": 128 })).await.ok();
    assert_eq!(random["value"].as_str().unwrap().len(), 171);
    for count in [0, 129] {
        client.post("/rng", json!({ "count": count })).await.is(400, "BadParameter", "");
    }
    for _ in 0..100 {
        vault.create_oct("many", 128);
    }
    let body = json!({ "kty": "oct-HSM", "key_size": 128 });
    client.post("/keys/many/create", body.clone()).await.is(400, "BadParameter", "");
    client.post("/keys/few/create", body).await.ok();
    let (_vault, client) = scene(Settings::premium());
    assert_eq!(client.post("/rng", json!({ "count": 8 })).await.status, 404);
}

/// Follows a list to its end; gives its entries by page.
async fn pages(vault: &FakeVault, client: &Client, first: &str) -> Vec<Vec<Value>> {
    let mut pages = Vec::new();
    let mut target = first.to_owned();
    loop {
        let page = client.try_send("GET", &target, None).await.unwrap().ok();
        pages.push(page["value"].as_array().unwrap().clone());
        match page["nextLink"].as_str() {
            Some(link) => target = link.strip_prefix(&vault.url()).expect(link).into(),
            None => return pages,
        }
    }
}

#[tokio::test]
async fn lists_come_in_pages() {
    let (vault, client) = scene(Settings::premium());
    let made: Vec<String> = (0..60).map(|_| vault.create_oct("k", 128)).collect();
    let versions = format!("/keys/k/versions?{VERSION}");
    for (more, sizes) in [
        ("", &[25, 25, 10][..]),
        ("&maxresults=20", &[20, 20, 20]),
        ("&maxresults=25", &[25, 25, 10]),
    ] {
        let pages = pages(&vault, &client, &format!("{versions}{more}")).await;
        assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), sizes);
        let listed: Vec<String> =
            pages.concat().iter().map(|entry| version_of(&json!({ "key": entry }))).collect();
        assert_eq!(
            listed.iter().collect::<BTreeSet<_>>(),
            made.iter().collect::<BTreeSet<_>>(),
            "each version once"
        );
        // Their order says nothing about their age.
        assert_ne!(listed, made);
        assert!(listed.is_sorted());
    }
    let entry = &pages(&vault, &client, &versions).await[0][0];
    assert!(entry["attributes"]["created"].is_i64() && entry["key"].is_null());
    for bad in ["0", "26", "x"] {
        let reply = client.try_send("GET", &format!("{versions}&maxresults={bad}"), None).await;
        reply.unwrap().is(400, "BadParameter", "");
    }
    for n in 0..3 {
        vault.create_oct(&format!("other-{n}"), 128);
    }
    let keys = pages(&vault, &client, &format!("/keys?{VERSION}&maxresults=3")).await;
    assert_eq!(keys.iter().map(Vec::len).collect::<Vec<_>>(), [3, 1]);
    // Keys are listed without a version.
    assert_eq!(keys[0][0]["kid"], format!("{}/keys/k", vault.url()));
    client.get("/keys/none/versions").await.is(404, "KeyNotFound", "");
}

#[tokio::test]
async fn attributes_change_one_by_one() {
    let (vault, client) = scene(Settings::premium());
    let old = vault.create_oct("k", 256);
    let new = vault.create_oct("k", 256);
    let patch = async |path: &str, body: Value| client.send("PATCH", path, Some(body)).await;
    // Without a version it is the latest.
    let body = json!({ "attributes": { "enabled": false }, "tags": { "a": "b" } });
    let shown = patch("/keys/k/", body).await.ok();
    assert_eq!(version_of(&shown), new);
    assert_eq!(shown["tags"], json!({ "a": "b" }));
    let body = json!({ "attributes": { "nbf": 1000, "exp": 2000 } });
    let shown = patch(&format!("/keys/k/{new}"), body).await.ok();
    assert_eq!(shown["attributes"]["enabled"], false, "left as it was");
    assert_eq!(
        (&shown["attributes"]["nbf"], &shown["attributes"]["exp"]),
        (&json!(1000), &json!(2000))
    );
    assert!(vault.version("k", &old).enabled, "another version");
    let shown = patch(&format!("/keys/k/{old}"), json!({ "key_ops": ["unwrapKey"] })).await.ok();
    assert_eq!(shown["key"]["key_ops"], json!(["unwrapKey"]));
    patch("/keys/none/", json!({})).await.is(404, "KeyNotFound", "");
    patch(&format!("/keys/k/{}", vault.unknown_version()), json!({})).await.is(
        404,
        "KeyNotFound",
        "",
    );
}

#[tokio::test]
async fn rotation_makes_a_version_like_the_last() {
    let (vault, client) = scene(Settings::premium());
    vault.clock().hold();
    let first = vault.create_rsa("k", 3072);
    vault.set_ops("k", "", &["wrapKey", "unwrapKey"]);
    let policy = client.get("/keys/k/rotationpolicy").await.ok();
    assert_eq!(policy["lifetimeActions"][0]["action"]["type"], "Notify", "the default");
    assert_eq!(policy["id"], format!("{}/keys/k/rotationpolicy", vault.url()));

    let wanted = json!({
        "lifetimeActions": [{
            "trigger": { "timeAfterCreate": "P90D" }, "action": { "type": "rotate" },
        }],
        "attributes": { "expiryTime": "P1Y" },
    });
    let set = client.send("PUT", "/keys/k/rotationpolicy", Some(wanted)).await.ok();
    assert_eq!(set["lifetimeActions"][0]["action"]["type"], "Rotate");
    assert_eq!(client.get("/keys/k/rotationpolicy").await.ok(), set);

    vault.clock().advance(Duration::from_secs(5));
    let rotated = client.send("POST", "/keys/k/rotate", None).await.ok();
    let second = version_of(&rotated);
    assert_ne!(second, first);
    let (old, new) = (vault.version("k", &first), vault.version("k", &second));
    assert_eq!((new.material.bits(), &new.ops, new.hsm), (3072, &old.ops, old.hsm));
    assert_eq!(new.created, old.created + 5);
    assert_eq!(new.expires, Some(new.created + 365 * DAY));
    assert_eq!(version_of(&client.get("/keys/k/").await.ok()), second);

    for bad in [
        json!({ "attributes": { "expiryTime": "P27D" } }),
        json!({ "attributes": { "expiryTime": "soon" } }),
        json!({ "lifetimeActions": {} }),
        json!({ "lifetimeActions": [{ "trigger": {}, "action": { "type": "Notify" } }] }),
        json!({ "lifetimeActions": [{
            "trigger": { "timeAfterCreate": "P6D" }, "action": { "type": "Rotate" },
        }]}),
        json!({ "lifetimeActions": [{
            "trigger": { "timeAfterCreate": "P90D" }, "action": { "type": "Explode" },
        }]}),
    ] {
        let reply = client.send("PUT", "/keys/k/rotationpolicy", Some(bad)).await;
        reply.is(400, "BadParameter", "");
    }
    client.send("POST", "/keys/none/rotate", None).await.is(404, "KeyNotFound", "");

    // A Managed HSM wants a policy first.
    let (vault, client) = scene(Settings { throttled: false, ..Settings::managed_hsm() });
    vault.create_oct("k", 256);
    client.send("POST", "/keys/k/rotate", None).await.is(400, "BadParameter", "");
    let set = client.send("PUT", "/keys/k/rotationpolicy", Some(json!({}))).await;
    set.ok();
    client.send("POST", "/keys/k/rotate", None).await.ok();
}

/// A key of the `rsa` crate as a JSON Web Key.
fn jwk(key: &rsa::PrivateKey) -> Value {
    let bytes = |n: &BoxedUint| {
        let bytes = n.to_be_bytes();
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        encode(&bytes[zeros..])
    };
    let [p, q] = key.primes() else { panic!("two primes") };
    json!({
        "kty": "RSA",
        "n": bytes(key.n()),
        "e": bytes(key.e()),
        "d": bytes(key.d()),
        "p": bytes(p),
        "q": bytes(q),
        "dp": bytes(key.dp().unwrap()),
        "dq": bytes(key.dq().unwrap()),
        "qi": bytes(&key.crt_coefficient().unwrap()),
        "key_ops": ["wrapKey", "unwrapKey"],
    })
}

#[tokio::test]
async fn plain_keys_are_imported() {
    let (vault, client) = scene(Settings::premium());
    let key: rsa::PrivateKey = rsa::PrivateKey::generate();
    let import = async |body: Value| client.send("PUT", "/keys/k", Some(body)).await;
    let jwk = jwk(&key);
    let made = import(json!({ "key": jwk, "attributes": { "exp": 99 } })).await.ok();
    assert_eq!((&made["key"]["kty"], &made["key"]["n"]), (&json!("RSA"), &jwk["n"]));
    assert!(made["key"]["d"].is_null(), "private parts never come out");
    assert_eq!(made["key"]["key_ops"], json!(["wrapKey", "unwrapKey"]));
    assert_eq!(made["attributes"]["exp"], 99);
    let wrapped = key.to_public_key().oaep_encrypt::<sha2::Sha256>(&[5; 32]).unwrap();
    let body = json!({ "alg": "RSA-OAEP-256", "value": encode(wrapped) });
    let opened = client.post("/keys/k//unwrapkey", body).await.ok();
    assert_eq!(opened["value"], encode([5; 32]));
    // An existing name gets another version.
    let again = import(json!({ "key": jwk, "Hsm": true })).await.ok();
    assert_eq!(again["key"]["kty"], "RSA-HSM");
    assert_ne!(version_of(&again), version_of(&made));

    let oct = json!({ "kty": "oct-HSM", "k": encode([3; 32]), "key_ops": ["wrapKey"] });
    import(json!({ "key": oct })).await.ok();
    let mut broken = jwk.clone();
    broken["d"] = jwk["p"].clone();
    let mut unreadable = jwk.clone();
    unreadable["n"] = json!("+/");
    for bad in [broken, unreadable, json!({ "kty": "oct-HSM", "k": "AA" }), json!({})] {
        import(json!({ "key": bad })).await.is(400, "BadParameter", "");
    }
    assert_eq!(vault.count(Operation::Import), 7);
}

#[tokio::test]
async fn backups_restore_where_the_geography_is_the_same() {
    let settings = Settings::premium();
    let (vault, client) = scene(settings.clone());
    let first = vault.create_rsa("k", 2048);
    let second = vault.create_oct("k", 256);
    vault.disable("k", &first);
    let backup = client.send("POST", "/keys/k/backup", None).await.ok();
    let restore = async |client: &Client| client.post("/keys/restore", backup.clone()).await;

    restore(&client).await.is(409, "Conflict", "");
    vault.delete("k");
    restore(&client).await.is(409, "Conflict", "ObjectIsDeletedButRecoverable");
    vault.purge("k");
    let back = restore(&client).await.ok();
    assert_eq!(version_of(&back), second);
    assert!(!vault.version("k", &first).enabled);

    // Another vault takes it, and what is disabled here is not disabled there.
    let (there, client_there) = scene(settings);
    restore(&client_there).await.ok();
    vault.disable("k", &second);
    let body = json!({ "alg": "A256KW", "value": encode([1; 32]) });
    let path = format!("/keys/k/{second}/wrapkey");
    client_there.post(&path, body.clone()).await.ok();
    client.post(&path, body).await.is(403, "Forbidden", "KeyDisabled");
    assert_eq!(there.version("k", "").id, second);

    let (_elsewhere, far) = scene(Settings::premium());
    restore(&far).await.is(400, "BadParameter", "");
    client.post("/keys/restore", json!({ "value": "AA" })).await.is(400, "BadParameter", "");
    client.send("POST", "/keys/none/backup", None).await.is(404, "KeyNotFound", "");
}

#[tokio::test]
async fn deleted_keys_wait_to_be_recovered_or_purged() {
    let settings = Settings { retention_days: 7, ..Settings::premium() };
    let (vault, client) = scene(settings);
    vault.clock().hold();
    let version = vault.create_oct("k", 256);
    let unwrap = json!({ "alg": "A256KW", "value": encode([1; 40]) });

    let deleted = client.send("DELETE", "/keys/k", None).await.ok();
    assert_eq!(deleted["recoveryId"], format!("{}/deletedkeys/k", vault.url()));
    let (at, purged) = (&deleted["deletedDate"], &deleted["scheduledPurgeDate"]);
    assert_eq!(purged.as_i64().unwrap() - at.as_i64().unwrap(), 7 * DAY);
    assert_eq!(deleted["attributes"]["recoveryLevel"], "CustomizedRecoverable+Purgeable");

    // Nothing works but to list, to recover and to purge.
    client.get("/keys/k/").await.is(404, "KeyNotFound", "");
    let path = format!("/keys/k/{version}/unwrapkey");
    let reply = client.post(&path, unwrap.clone()).await;
    reply.is(404, "KeyNotFound", "");
    assert!(reply.message().contains(&format!("k/{version} was not found in this key vault")));
    let create = client.post("/keys/k/create", json!({ "kty": "RSA" })).await;
    create.is(409, "Conflict", "ObjectIsDeletedButRecoverable");
    assert_eq!(client.get("/keys").await.ok()["value"], json!([]));
    assert_eq!(client.get("/deletedkeys/k").await.ok(), deleted);
    let list = client.get("/deletedkeys").await.ok();
    assert_eq!(list["value"][0]["recoveryId"], deleted["recoveryId"]);

    let recovered = client.send("POST", "/deletedkeys/k/recover", None).await.ok();
    assert_eq!(version_of(&recovered), version);
    client.get("/keys/k/").await.ok();
    client.send("POST", "/deletedkeys/k/recover", None).await.is(404, "KeyNotFound", "");
    client.get("/deletedkeys/k").await.is(404, "KeyNotFound", "");

    client.send("DELETE", "/keys/k", None).await.ok();
    let purged = client.send("DELETE", "/deletedkeys/k", None).await;
    assert_eq!((purged.status, purged.header("content-length")), (204, "0"));
    client.send("DELETE", "/deletedkeys/k", None).await.is(404, "KeyNotFound", "");

    // The retention period ends.
    vault.create_oct("k", 256);
    vault.delete("k");
    vault.clock().advance(Duration::from_secs(7 * DAY as u64));
    let late = client.with_token(&{
        let officer = vault.add_app("late");
        vault.grant(&officer, Role::CryptoOfficer);
        vault.token(&officer)
    });
    late.get("/deletedkeys/k").await.is(404, "KeyNotFound", "");
    late.send("POST", "/deletedkeys/k/recover", None).await.is(404, "KeyNotFound", "");
    late.post("/keys/k/create", json!({ "kty": "RSA" })).await.ok();
}

#[tokio::test]
async fn purge_protection_protects() {
    let settings = Settings { purge_protection: true, ..Settings::premium() };
    let (vault, client) = scene(settings);
    vault.create_oct("k", 256);
    let deleted = client.send("DELETE", "/keys/k", None).await.ok();
    assert_eq!(deleted["attributes"]["recoveryLevel"], "Recoverable");
    let purge = client.send("DELETE", "/deletedkeys/k", None).await;
    assert_eq!(purge.codes().0, 403);
    client.get("/deletedkeys/k").await.ok();
}

#[tokio::test]
async fn replicas_lag() {
    let (vault, client) = scene(Settings { throttled: false, ..Settings::premium() });
    vault.clock().hold();
    let version = vault.create_oct("k", 256);
    vault.clock().advance(Duration::from_secs(400));
    let body = json!({ "alg": "A256KW", "value": encode([1; 32]) });
    let path = format!("/keys/k/{version}/wrapkey");

    vault.set_lag(Duration::from_secs(360), 1);
    vault.disable("k", "");
    let new = vault.create_oct("new", 256);
    client.post(&path, body.clone()).await.ok();
    client.get(&format!("/keys/new/{new}")).await.is(404, "KeyNotFound", "");
    vault.clock().advance(Duration::from_secs(360));
    client.post(&path, body.clone()).await.is(403, "Forbidden", "KeyDisabled");
    client.get(&format!("/keys/new/{new}")).await.ok();

    // One of two replicas lags: answers alternate.
    vault.set_lag(Duration::from_secs(360), 2);
    vault.enable("k", "");
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(client.post(&path, body.clone()).await.status);
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 403, 403]);
    vault.end_lag();
    client.post(&path, body).await.ok();
}
