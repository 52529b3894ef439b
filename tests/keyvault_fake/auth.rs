//! Challenges and tokens: what the vault asks for, and what it takes.

use std::time::Duration;

use crate::{
    client::{Client, VERSION},
    keyvault::{
        FakeVault, Settings,
        access::{Permissions, Role},
        operation::Operation,
    },
    scene,
};

#[tokio::test]
async fn without_a_token_there_is_a_challenge() {
    for (settings, domain) in
        [(Settings::premium(), "vault"), (Settings::managed_hsm(), "managedhsm")]
    {
        let (vault, client) = scene(settings);
        let client = client.without_token();
        // As SDKs begin: without a body, on a POST, too; and before anything else is looked at.
        for (method, path) in
            [("GET", "/keys/k/"), ("POST", "/keys/k//wrapkey"), ("GET", "/no/such/path")]
        {
            let reply = client.send(method, path, None).await;
            assert_eq!(reply.status, 401);
            let (authority, tenant) = (vault.authority(), vault.tenant());
            let audience = vault.audience();
            assert!(audience.starts_with(&format!("https://{domain}.localhost:")));
            assert_eq!(
                reply.header("www-authenticate"),
                format!("Bearer authorization=\"{authority}/{tenant}\", resource=\"{audience}\"")
            );
            assert_eq!(reply.header("content-length"), reply.body.len().to_string());
            assert!(!reply.header("x-ms-request-id").is_empty());
            match domain {
                "vault" => assert!(reply.message().starts_with("AKV10000:")),
                _ => assert!(reply.body.is_empty()),
            }
        }
        assert_eq!(vault.record().answered(Operation::Wrap, 401), 1);
        assert!(vault.record().seen().iter().all(|seen| !seen.authorized && seen.body == 0));
    }
}

#[tokio::test]
async fn a_token_must_be_for_this_vault_from_this_tenant_in_its_time() {
    let (vault, client) = scene(Settings::premium());
    vault.create_rsa("k", 2048);
    let user = vault.add_app("secret");
    vault.grant(&user, Role::ServiceEncryptionUser);
    let (audience, tenant) = (vault.audience(), vault.tenant());
    let ask = async |token: &str| client.with_token(token).get("/keys/k/").await;

    ask(&vault.token(&user)).await.ok();
    let refused = |reply: &crate::client::Reply, number: &str| {
        assert_eq!(reply.status, 401);
        assert!(reply.message().starts_with(number), "{}", reply.message());
        assert!(!reply.header("www-authenticate").is_empty());
    };
    for wrong in ["https://management.azure.com", &vault.url(), &format!("{audience}/")] {
        let reply = ask(&vault.token_with(&user, wrong, tenant, 60)).await;
        refused(&reply, "AKV10022");
        assert!(reply.message().contains(wrong));
    }
    let stranger = "22222222-2222-2222-2222-222222222222";
    refused(&ask(&vault.token_with(&user, &audience, stranger, 60)).await, "AKV10032");
    refused(&ask(&vault.token_of_unknown_key(&user)).await, "AKV10046");
    refused(&ask("not a token").await, "The token cannot be used");
    let mut forged = vault.token(&user);
    forged.truncate(forged.len() - 8);
    refused(&ask(&format!("{forged}AAAAAAAA")).await, "The token cannot be used");

    // Good until its end, and then a challenge without a body.
    vault.clock().hold();
    let token = vault.token_with(&user, &audience, tenant, 60);
    vault.clock().advance(Duration::from_secs(59));
    ask(&token).await.ok();
    vault.clock().advance(Duration::from_secs(1));
    let reply = ask(&token).await;
    assert_eq!((reply.status, reply.body.len()), (401, 0));
    assert!(!reply.header("www-authenticate").is_empty());
}

#[tokio::test]
async fn the_api_version_is_mandatory() {
    let (vault, client) = scene(Settings::premium());
    vault.create_rsa("k", 2048);
    let ask = async |target: &str| client.try_send("GET", target, None).await.unwrap();
    for known in ["7.5", "7.6", "2025-07-01", "2026-04-01"] {
        ask(&format!("/keys/k?api-version={known}")).await.ok();
    }
    // The JavaScript SDK writes the name so.
    ask("/keys/k?api%2Dversion=7.6").await.ok();
    ask("/keys/k").await.is(400, "BadParameter", "");
    ask("/keys/k?api-version=").await.is(400, "BadParameter", "");
    ask("/keys/k?api-version=2099-01-01").await.is(400, "BadParameter", "");
}

/// Every operation with a path that means it.
fn requests() -> [(Operation, &'static str, &'static str); 19] {
    use Operation::*;
    [
        (Create, "POST", "/keys/n/create"),
        (Import, "PUT", "/keys/n"),
        (Get, "GET", "/keys/k"),
        (List, "GET", "/keys"),
        (ListVersions, "GET", "/keys/k/versions"),
        (Update, "PATCH", "/keys/k/"),
        (Wrap, "POST", "/keys/k//wrapkey"),
        (Unwrap, "POST", "/keys/k//unwrapkey"),
        (Rotate, "POST", "/keys/k/rotate"),
        (GetRotationPolicy, "GET", "/keys/k/rotationpolicy"),
        (SetRotationPolicy, "PUT", "/keys/k/rotationpolicy"),
        (Backup, "POST", "/keys/k/backup"),
        (Restore, "POST", "/keys/restore"),
        (Delete, "DELETE", "/keys/k"),
        (GetDeleted, "GET", "/deletedkeys/k"),
        (ListDeleted, "GET", "/deletedkeys"),
        (Recover, "POST", "/deletedkeys/k/recover"),
        (Purge, "DELETE", "/deletedkeys/k"),
        (Random, "POST", "/rng"),
    ]
}

/// Which operations a client is let through to, whatever they say then.
async fn let_through(client: &Client, vault: &FakeVault) -> Vec<Operation> {
    let mut through = Vec::new();
    for (operation, method, path) in requests() {
        let reply = client.send(method, path, None).await;
        assert!(vault.count(operation) > 0, "{method} {path} is not {operation:?}");
        match reply.status {
            403 => {
                let (_, code, inner) = reply.codes();
                assert_eq!(code, "Forbidden");
                assert!(["ForbiddenByRbac", "ForbiddenByPolicy"].contains(&inner.as_str()));
            }
            _ => through.push(operation),
        }
    }
    through
}

#[tokio::test]
async fn roles_decide_by_operation() {
    use Operation::*;
    let (vault, client) = scene(Settings::premium());
    vault.create_rsa("k", 2048);
    let user = vault.add_app("secret");
    let client = client.with_token(&vault.token(&user));
    assert_eq!(let_through(&client, &vault).await, []);

    vault.grant(&user, Role::ServiceEncryptionUser);
    let uses = [Get, List, ListVersions, Wrap, Unwrap];
    assert_eq!(let_through(&client, &vault).await, uses);

    vault.grant(&user, Role::CryptoUser);
    vault.remove_role(&user, Role::ServiceEncryptionUser);
    let through = let_through(&client, &vault).await;
    assert_eq!(through, [Get, List, ListVersions, Update, Wrap, Unwrap, Backup]);

    vault.remove_role(&user, Role::CryptoUser);
    let reply = client.get("/keys/k").await;
    reply.is(403, "Forbidden", "ForbiddenByRbac");
    // With line ends, which unescaped JSON readers stumble over.
    let text = reply.message();
    assert!(text.starts_with("Caller is not authorized to perform action on resource.\r\nIf role"));
    assert!(text.contains(&format!("oid={}", user.object_id)));
    assert!(text.contains("Action: 'Microsoft.KeyVault/vaults/keys/read'\r\n"));
}

#[tokio::test]
async fn access_policies_decide_by_operation() {
    use Operation::*;
    let settings = Settings { permissions: Permissions::AccessPolicies, ..Settings::premium() };
    let (vault, client) = scene(settings);
    vault.create_rsa("k", 2048);
    let user = vault.add_app("secret");
    let client = client.with_token(&vault.token(&user));
    // Roles mean nothing here.
    vault.grant(&user, Role::CryptoOfficer);
    assert_eq!(let_through(&client, &vault).await, []);
    vault.set_policy(&user, &[Get, Wrap, Unwrap]);
    assert_eq!(let_through(&client, &vault).await, [Get, Wrap, Unwrap]);
    vault.set_policy(&user, &[Get]);
    let reply = client.send("POST", "/keys/k//unwrapkey", None).await;
    reply.is(403, "Forbidden", "ForbiddenByPolicy");
    assert!(reply.message().contains("does not have keys unwrapKey permission on key vault"));
}

#[tokio::test]
async fn paths_as_the_sdks_write_them() {
    let (vault, client) = scene(Settings::premium());
    let version = vault.create_rsa("k", 2048);
    for path in ["/keys/k", "/keys/k/", &format!("/keys/k/{version}")] {
        let answer = client.get(path).await.ok();
        assert_eq!(answer["key"]["kid"], vault.kid("k", &version), "{path}");
    }
    for (method, path) in [
        ("PUT", "/keys"),
        ("POST", "/keys/k"),
        ("GET", "/secrets/k"),
        ("GET", "/keys/k/a/b"),
        ("POST", "/keys/k//sign"),
        ("GET", "//keys/k/x/y"),
    ] {
        let reply = client.send(method, path, None).await;
        assert_eq!(reply.status, 404, "{method} {path}");
    }
    for path in ["/keys/a_b", "/keys/a.b", "/keys/k%20", "/keys/k/..", "/keys/k/a-b"] {
        client.get(path).await.is(400, "BadParameter", "");
    }
    // The name of the vault is that which the client used.
    let by_address = client.get_with(&format!("/keys/k?{VERSION}"), &[]).await.ok();
    assert!(by_address["key"]["kid"].as_str().unwrap().starts_with(&vault.url()));
}
