//! Every row of the error table: how it comes about, and what is answered.

use serde_json::{Value, json};

use crate::{
    client::{Client, Reply},
    keyvault::{
        FakeVault, Settings,
        access::{Principal, Role},
        errors::{self, Caller},
        faults::{Fault, On, Operation, Times},
        message::{Answer, encode},
    },
    scene,
};

/// A vault with an AES key, and a client that may use it.
fn user(settings: Settings) -> (FakeVault, Client, Principal) {
    let (vault, client) = scene(settings);
    let user = vault.add_app("secret");
    vault.grant(&user, Role::ServiceEncryptionUser);
    vault.create_oct("k", 256);
    let client = client.with_token(&vault.token(&user));
    (vault, client, user)
}

async fn wrap(client: &Client) -> Reply {
    client.post("/keys/k//wrapkey", json!({ "alg": "A256KW", "value": encode([4; 32]) })).await
}

/// Unwraps what `wrap` gave.
async fn unwrap(client: &Client, wrapped: &Value) -> Reply {
    client.post("/keys/k//unwrapkey", json!({ "alg": "A256KW", "value": wrapped })).await
}

#[tokio::test]
async fn a_disabled_version() {
    let (vault, client, _) = user(Settings::premium());
    let wrapped = wrap(&client).await.ok()["value"].clone();
    let first = vault.version("k", "").id;
    let second = vault.create_oct("k", 256);
    vault.disable("k", &first);
    let path = format!("/keys/k/{first}/unwrapkey");
    let refused = client.post(&path, json!({ "alg": "A256KW", "value": wrapped })).await;
    refused.is(403, "Forbidden", "KeyDisabled");
    assert_eq!(refused.message(), "Operation unwrapKey is not allowed on a disabled key.");
    // It is still shown, and the other version still works.
    let shown = client.get(&format!("/keys/k/{first}")).await.ok();
    assert_eq!(shown["attributes"]["enabled"], false);
    wrap(&client).await.ok();
    vault.disable("k", &second);
    wrap(&client).await.is(403, "Forbidden", "KeyDisabled");
    vault.enable("k", &first);
    let again = client.post(&path, json!({ "alg": "A256KW", "value": wrapped })).await.ok();
    assert_eq!(again["value"], encode([4; 32]));
}

#[tokio::test]
async fn validity_holds_back_wraps_and_never_unwraps() {
    let (vault, client, _) = user(Settings::premium());
    let wrapped = wrap(&client).await.ok()["value"].clone();
    let now = i64::try_from(vault.clock().now().as_secs()).unwrap();
    for (not_before, expires) in [(None, Some(now - 1)), (Some(now + 3600), None)] {
        vault.set_validity("k", "", not_before, expires);
        wrap(&client).await.is(403, "Forbidden", "");
        unwrap(&client, &wrapped).await.ok();
    }
    vault.set_validity("k", "", Some(now - 3600), Some(now + 3600));
    wrap(&client).await.ok();
}

#[tokio::test]
async fn operations_that_the_key_does_not_permit() {
    let (vault, client, _) = user(Settings::premium());
    let wrapped = wrap(&client).await.ok()["value"].clone();
    vault.set_ops("k", "", &["wrapKey"]);
    let refused = unwrap(&client, &wrapped).await;
    refused.is(403, "Forbidden", "KeyOperationForbidden");
    assert_eq!(refused.message(), "Operation unwrapKey is not permitted on this key.");
    wrap(&client).await.ok();
}

#[tokio::test]
async fn rights_are_looked_at_for_each_request() {
    let (vault, client, user) = user(Settings::premium());
    wrap(&client).await.ok();
    vault.remove_role(&user, Role::ServiceEncryptionUser);
    wrap(&client).await.is(403, "Forbidden", "ForbiddenByRbac");
    // Also what is not there is not shown to those who may not.
    client.get("/keys/none").await.is(403, "Forbidden", "ForbiddenByRbac");
    vault.grant(&user, Role::ServiceEncryptionUser);
    wrap(&client).await.ok();
}

#[tokio::test]
async fn the_network() {
    let (vault, client, _) = user(Settings::premium());
    vault.close_firewall();
    let refused = wrap(&client).await;
    refused.is(403, "Forbidden", "ForbiddenByFirewall");
    assert!(refused.message().starts_with(
        "Client address is not authorized and caller is not a trusted service.\r\nClient \
         address: 127.0.0.1\r\nCaller: appid="
    ));
    vault.disable_public_access();
    wrap(&client).await.is(403, "Forbidden", "ForbiddenByConnection");
    vault.open_network();
    wrap(&client).await.ok();
}

#[tokio::test]
async fn what_is_not_there() {
    let (vault, client, _) = user(Settings::premium());
    let refused = client.get("/keys/none/").await;
    refused.is(404, "KeyNotFound", "");
    assert!(refused.message().starts_with(
        "A key with (name/id) none was not found in this key vault. If you recently deleted"
    ));
    let version = vault.unknown_version();
    let refused = client.get(&format!("/keys/k/{version}")).await;
    refused.is(404, "KeyNotFound", "");
    assert!(refused.message().contains(&format!("(name/id) k/{version} was")));
    vault.delete_vault();
    assert_eq!(wrap(&client).await.status, 404);
    vault.recover_vault();
    wrap(&client).await.ok();
}

#[tokio::test]
async fn bodies_that_are_no_requests() {
    let (_vault, client, _) = user(Settings::premium());
    for body in [json!({}), json!([]), json!("x"), json!({ "alg": 1 })] {
        client.post("/keys/k//wrapkey", body).await.is(400, "BadParameter", "");
    }
    client.send("POST", "/keys/k//wrapkey", None).await.is(400, "BadParameter", "");
}

/// Every refusal can be ordered, too, whatever the state; so a test can have it once, or
/// for one operation.
#[tokio::test]
async fn every_refusal_to_order() {
    let (vault, client, user) = user(Settings { throttled: false, ..Settings::premium() });
    let caller = Caller {
        app_id: user.client_id.clone(),
        object_id: user.object_id.clone(),
        issuer: "https://sts.windows.net/x/".into(),
    };
    let op = Operation::Unwrap;
    for (refusal, status, code, inner) in [
        (errors::no_token(), 401, "Unauthorized", ""),
        (errors::wrong_audience("a", "b"), 401, "Unauthorized", ""),
        (errors::wrong_issuer("a", "b"), 401, "Unauthorized", ""),
        (errors::unknown_signing_key("e30"), 401, "Unauthorized", ""),
        (errors::key_disabled(op), 403, "Forbidden", "KeyDisabled"),
        (errors::by_rbac(&caller, op, "kv", "k"), 403, "Forbidden", "ForbiddenByRbac"),
        (errors::by_policy(&caller, op, "kv"), 403, "Forbidden", "ForbiddenByPolicy"),
        (errors::access_denied(&caller, op, "kv"), 403, "Forbidden", "AccessDenied"),
        (errors::by_firewall(&caller, "::1", "kv"), 403, "Forbidden", "ForbiddenByFirewall"),
        (errors::by_connection(&caller, "kv"), 403, "Forbidden", "ForbiddenByConnection"),
        (errors::operation_forbidden(op), 403, "Forbidden", "KeyOperationForbidden"),
        (errors::key_not_found("k"), 404, "KeyNotFound", ""),
        (errors::request_timeout(), 408, "RequestTimeout", ""),
        (errors::deleted_but_recoverable("k"), 409, "Conflict", "ObjectIsDeletedButRecoverable"),
        (errors::oaep_padding(), 400, "BadParameter", ""),
        (errors::throttled(None), 429, "Throttled", ""),
        (errors::internal(), 500, "InternalServerError", ""),
        (errors::bad_gateway(), 502, "BadGateway", ""),
        (errors::unavailable(), 503, "ServiceUnavailable", ""),
        (errors::gateway_timeout(), 504, "GatewayTimeout", ""),
    ] {
        vault.inject(
            On::Operation(Operation::Wrap),
            Fault::Answer(refusal.answer()),
            Times::Next(1),
        );
        // Another operation is not struck.
        client.get("/keys/k").await.ok();
        let reply = wrap(&client).await;
        reply.is(status, code, inner);
        assert!(!reply.header("x-ms-request-id").is_empty());
        wrap(&client).await.ok();
    }
    let bare = errors::expired_token().answer();
    vault.inject(On::Key("k".into()), Fault::Answer(bare), Times::Next(1));
    let reply = wrap(&client).await;
    assert_eq!((reply.status, reply.body.len()), (401, 0));
    for status in [403, 502] {
        vault.inject(On::Vault, Fault::Answer(Answer::html(status)), Times::Next(2));
        for _ in 0..2 {
            let reply = wrap(&client).await;
            assert_eq!((reply.status, reply.header("content-type")), (status, "text/html"));
        }
    }
    wrap(&client).await.ok();
    let later = errors::throttled(Some(7)).answer();
    vault.inject(On::Vault, Fault::Answer(later), Times::Always);
    for _ in 0..3 {
        let reply = wrap(&client).await;
        assert_eq!((reply.status, reply.header("retry-after")), (429, "7"));
    }
    vault.clear_faults();
    wrap(&client).await.ok();
    assert_eq!(vault.record().answered(Operation::Wrap, 429), 4);
}
