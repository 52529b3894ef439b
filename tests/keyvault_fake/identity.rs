//! Entra's token endpoint, and the endpoints of managed identities.

use std::time::Duration;

use aws_lc_rs::{
    digest,
    encoding::AsDer,
    rand::SystemRandom,
    rsa::{KeyPair, KeySize},
    signature::{RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaEncoding},
};
use serde_json::{Value, json};

use crate::{
    client::{Client, Reply, VERSION},
    keyvault::{
        FakeVault, Settings,
        access::{Principal, Role},
        faults::Operation,
        message::encode,
    },
    scene,
};

const BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// A fake with one application, and a client of its Entra.
fn entra() -> (FakeVault, Client, Principal, String) {
    let (vault, client) = scene(Settings::premium());
    let app = vault.add_app("pa55");
    vault.grant(&app, Role::ServiceEncryptionUser);
    vault.create_rsa("k", 2048);
    let client = client.without_token().at(&vault.authority());
    let path = format!("/{}/oauth2/v2.0/token", vault.tenant());
    (vault, client, app, path)
}

/// A refusal of Entra: status, error, AADSTS number.
fn refused(reply: &Reply) -> (u16, String, u64) {
    let body = reply.json();
    let number = body["error_codes"][0].as_u64().unwrap();
    let text = body["error_description"].as_str().unwrap();
    assert!(text.starts_with(&format!("AADSTS{number}: ")) && text.contains("\r\n"), "{text}");
    (reply.status, body["error"].as_str().unwrap().into(), number)
}

/// Whether the vault takes the token that came back.
async fn works(vault: &FakeVault, reply: &Reply) -> bool {
    let token = reply.ok()["access_token"].as_str().unwrap().to_owned();
    Client::new(vault).with_token(&token).get("/keys/k/").await.status == 200
}

#[tokio::test]
async fn the_documents_name_this_place() {
    let (vault, client, ..) = entra();
    let tenant = vault.tenant();
    let path = format!("/{tenant}/v2.0/.well-known/openid-configuration");
    let document = client.get_with(&path, &[]).await.ok();
    let here = format!("{}/{tenant}", vault.authority());
    assert_eq!(document["issuer"], format!("{here}/v2.0"));
    assert_eq!(document["token_endpoint"], format!("{here}/oauth2/v2.0/token"));
    let keys = client.get_with(&format!("/{tenant}/discovery/v2.0/keys"), &[]).await.ok();
    assert_eq!(keys["keys"].as_array().unwrap().len(), 1);
    let instance = client.get_with("/common/discovery/instance?api-version=1.1", &[]).await.ok();
    assert_eq!(
        instance["tenant_discovery_endpoint"],
        format!("{here}/v2.0/.well-known/openid-configuration")
    );
    let other = "/22222222-2222-2222-2222-222222222222/v2.0/.well-known/openid-configuration";
    let reply = client.get_with(other, &[]).await;
    assert_eq!(refused(&reply), (400, "invalid_request".into(), 90_002));
}

#[tokio::test]
async fn a_client_secret() {
    let (vault, client, app, path) = entra();
    let scope = format!("{}/.default", vault.audience());
    let ask = async |path: &str, id: &str, secret: &str, scope: &str| {
        let fields = [
            ("grant_type", "client_credentials"),
            ("client_id", id),
            ("client_secret", secret),
            ("scope", scope),
            // What MSAL adds.
            ("client_info", "1"),
            ("claims", "{\"access_token\":{\"xms_cc\":{\"values\":[\"CP1\"]}}}"),
        ];
        client.form(path, &fields).await
    };
    let reply = ask(&path, &app.client_id, "pa55", &scope).await;
    assert!(works(&vault, &reply).await);
    assert_eq!(reply.json()["expires_in"], 3599);

    let id = app.client_id.as_str();
    let wrong = ask(&path, id, "other", &scope).await;
    assert_eq!(refused(&wrong), (401, "invalid_client".into(), 7_000_215));
    let nobody = ask(&path, &app.object_id, "pa55", &scope).await;
    assert_eq!(refused(&nobody), (400, "unauthorized_client".into(), 700_016));
    let no_default = ask(&path, id, "pa55", &vault.audience()).await;
    assert_eq!(refused(&no_default), (400, "invalid_scope".into(), 1_002_012));
    let elsewhere = path.replace("1111-", "2222-");
    let no_tenant = ask(&elsewhere, id, "pa55", &scope).await;
    assert_eq!(refused(&no_tenant), (400, "invalid_request".into(), 90_002));
    // A slash too many makes another audience, which the vault refuses.
    let reply = ask(&path, id, "pa55", &format!("{}//.default", vault.audience())).await;
    assert!(!works(&vault, &reply).await);

    vault.clock().hold();
    vault.add_secret(&app, "short", Some(Duration::from_secs(60)));
    assert!(works(&vault, &ask(&path, id, "short", &scope).await).await);
    vault.clock().advance(Duration::from_secs(60));
    let expired = ask(&path, id, "short", &scope).await;
    assert_eq!(refused(&expired), (401, "invalid_client".into(), 7_000_222));
    vault.remove_secret(&app, "pa55");
    let removed = ask(&path, id, "pa55", &scope).await;
    assert_eq!(refused(&removed), (401, "invalid_client".into(), 7_000_215));

    let nothing = client.form(&path, &[("grant_type", "client_credentials")]).await;
    assert_eq!(refused(&nothing), (400, "invalid_request".into(), 900_144));
    let password = client.form(&path, &[("grant_type", "password")]).await;
    assert_eq!(refused(&password), (400, "unsupported_grant_type".into(), 70_003));
    vault.delete_app(&app);
    let deleted = ask(&path, id, "short", &scope).await;
    assert_eq!(refused(&deleted), (400, "unauthorized_client".into(), 700_016));
}

/// A certificate with its key.
struct Certificate {
    key: KeyPair,
    der: Vec<u8>,
}

impl Certificate {
    fn new() -> Self {
        let key = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let pkcs8 = AsDer::as_der(&key).unwrap().as_ref().to_vec();
        let signer = rcgen::KeyPair::try_from(pkcs8).unwrap();
        let params = rcgen::CertificateParams::new(vec!["app".into()]).unwrap();
        let der = params.self_signed(&signer).unwrap().der().to_vec();
        Self { key, der }
    }

    fn sign(&self, alg: &str, thumbprint: (&str, String), claims: &Value) -> String {
        let encoding: &'static dyn RsaEncoding = match alg {
            "PS256" => &RSA_PSS_SHA256,
            _ => &RSA_PKCS1_SHA256,
        };
        let header = json!({ "alg": alg, "typ": "JWT", thumbprint.0: thumbprint.1 });
        let signed = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key.sign(encoding, &SystemRandom::new(), signed.as_bytes(), &mut signature).unwrap();
        format!("{signed}.{}", encode(signature))
    }

    fn sha256(&self) -> (&'static str, String) {
        ("x5t#S256", encode(digest::digest(&digest::SHA256, &self.der)))
    }

    fn sha1(&self) -> (&'static str, String) {
        ("x5t", encode(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &self.der)))
    }
}

#[tokio::test]
async fn an_assertion_signed_by_a_certificate() {
    let (vault, client, app, path) = entra();
    let certificate = Certificate::new();
    let endpoint = format!("{}{path}", vault.authority());
    let scope = format!("{}/.default", vault.audience());
    let now = vault.clock().now().as_secs();
    let claims = |aud: &str, exp: u64| {
        json!({
            "aud": aud, "iss": app.client_id, "sub": app.client_id, "jti": "1",
            "nbf": now, "exp": exp,
        })
    };
    let ask = async |assertion: &str| {
        let fields = [
            ("grant_type", "client_credentials"),
            ("client_id", app.client_id.as_str()),
            ("client_assertion_type", BEARER),
            ("client_assertion", assertion),
            ("scope", scope.as_str()),
        ];
        client.form(&path, &fields).await
    };
    let good = claims(&endpoint, now + 600);
    let token = certificate.sign("PS256", certificate.sha256(), &good);
    let unknown = ask(&token).await;
    assert_eq!(refused(&unknown), (401, "invalid_client".into(), 700_027));

    vault.add_certificate(&app, &certificate.der);
    assert!(works(&vault, &ask(&token).await).await);
    let token = certificate.sign("RS256", certificate.sha1(), &good);
    assert!(works(&vault, &ask(&token).await).await);

    // Another key under the name of this certificate; another algorithm than it says.
    let other = Certificate::new();
    let forged = other.sign("PS256", certificate.sha256(), &good);
    assert_eq!(refused(&ask(&forged).await), (401, "invalid_client".into(), 700_027));
    let none = certificate.sign("none", certificate.sha256(), &good);
    assert_eq!(refused(&ask(&none).await), (401, "invalid_client".into(), 700_027));
    let late = certificate.sign("PS256", certificate.sha256(), &claims(&endpoint, now - 1));
    assert_eq!(refused(&ask(&late).await), (401, "invalid_client".into(), 700_024));
    let astray = claims("https://elsewhere.test", now + 600);
    let astray = certificate.sign("PS256", certificate.sha256(), &astray);
    assert_eq!(refused(&ask(&astray).await), (401, "invalid_client".into(), 700_023));
    assert_eq!(refused(&ask("junk").await), (401, "invalid_client".into(), 50_027));
}

#[tokio::test]
async fn a_token_of_the_cluster_stands_for_an_application() {
    let (vault, client, app, path) = entra();
    let scope = format!("{}/.default", vault.audience());
    let ask = async |assertion: &str| {
        let fields = [
            ("grant_type", "client_credentials"),
            ("client_id", app.client_id.as_str()),
            ("client_assertion_type", BEARER),
            ("client_assertion", assertion),
            ("scope", scope.as_str()),
        ];
        client.form(&path, &fields).await
    };
    let subject = "system:serviceaccount:db:keyward";
    let token = vault.federated_token(subject, Duration::from_secs(600));
    let unknown = ask(&token).await;
    assert_eq!(refused(&unknown), (401, "invalid_client".into(), 700_213));
    vault.trust_subject(&app, subject);
    assert!(works(&vault, &ask(&token).await).await);
    let forged = format!("{}AAAA", &token[..token.len() - 4]);
    assert_eq!(refused(&ask(&forged).await), (401, "invalid_client".into(), 700_027));
    vault.clock().advance(Duration::from_secs(600));
    assert_eq!(refused(&ask(&token).await), (401, "invalid_client".into(), 700_024));
}

const IMDS: &str = "/metadata/identity/oauth2/token?api-version=2018-02-01";

#[tokio::test]
async fn imds_gives_tokens_of_the_identity_that_is_meant() {
    let (vault, client) = scene(Settings::premium());
    vault.create_rsa("k", 2048);
    let imds = client.without_token().at(&vault.imds());
    let here = format!("{IMDS}&resource={}", vault.audience());
    let ask =
        async |more: &str| imds.get_with(&format!("{here}{more}"), &[("Metadata", "true")]).await;
    let whose = |reply: &Reply| reply.ok()["client_id"].as_str().unwrap().to_owned();
    let missing = |reply: &Reply| {
        assert_eq!(reply.status, 400);
        assert_eq!(reply.json()["error"], "invalid_request");
        reply.json()["error_description"].as_str().unwrap().to_owned()
    };
    assert_eq!(missing(&ask("").await), "Identity not found");

    let one = vault.add_identity(Some("/subscriptions/s/one"));
    vault.grant(&one, Role::ServiceEncryptionUser);
    let reply = ask("").await;
    assert_eq!(whose(&reply), one.client_id);
    assert!(works(&vault, &reply).await);
    // Text, where Entra has numbers.
    assert!(reply.json()["expires_on"].is_string() && reply.json()["expires_in"].is_string());
    assert_eq!(reply.json()["resource"], vault.audience());

    let two = vault.add_identity(Some("/subscriptions/s/two"));
    assert!(missing(&ask("").await).starts_with("Multiple user assigned identities exist"));
    for more in [
        format!("&client_id={}", two.client_id),
        format!("&object_id={}", two.object_id),
        "&msi_res_id=%2Fsubscriptions%2Fs%2Ftwo".into(),
    ] {
        assert_eq!(whose(&ask(&more).await), two.client_id, "{more}");
    }
    let both = format!("&client_id={}&object_id={}", two.client_id, two.object_id);
    assert!(missing(&ask(&both).await).starts_with("Only one of"));
    let own = vault.add_identity(None);
    assert_eq!(whose(&ask("").await), own.client_id);

    // What is asked for wrongly.
    for headers in [&[][..], &[("Metadata", "True")], &[("Metadata", "false")]] {
        missing(&imds.get_with(&here, headers).await);
    }
    let proxied = [("Metadata", "true"), ("X-Forwarded-For", "10.0.0.1")];
    missing(&imds.get_with(&here, &proxied).await);
    missing(&imds.get_with(IMDS, &[("Metadata", "true")]).await);

    // Deleted: no more tokens, but those that are out stay good.
    let reply = ask(&format!("&client_id={}", one.client_id)).await;
    vault.delete_identity(&one);
    assert_eq!(missing(&ask(&format!("&client_id={}", one.client_id)).await), "Identity not found");
    assert!(works(&vault, &reply).await);
    assert!(vault.record().answered(Operation::ManagedIdentity, 400) >= 9);
}

#[tokio::test]
async fn the_platform_remembers_tokens() {
    let (vault, client) = scene(Settings::premium());
    let identity = vault.add_identity(None);
    let imds = client.without_token().at(&vault.imds());
    let here = format!("{IMDS}&resource={}", vault.audience());
    let ask = async || {
        let reply = imds.get_with(&here, &[("Metadata", "true")]).await;
        reply.ok()["access_token"].as_str().unwrap().to_owned()
    };
    vault.clock().hold();
    let first = ask().await;
    vault.grant(&identity, Role::CryptoOfficer);
    vault.clock().advance(Duration::from_secs(86_399 - 301));
    assert_eq!(ask().await, first);
    vault.clock().advance(Duration::from_secs(1));
    assert_ne!(ask().await, first);
}

#[tokio::test]
async fn app_service_wants_its_header() {
    let (vault, client) = scene(Settings::premium());
    let identity = vault.add_identity(None);
    let (endpoint, secret) = vault.app_service();
    let client = client.without_token().at(&vault.imds());
    let path = endpoint.strip_prefix(&vault.imds()).unwrap();
    let target = format!("{path}?api-version=2019-08-01&resource={}", vault.audience());
    let reply = client.get_with(&target, &[("X-IDENTITY-HEADER", secret)]).await.ok();
    assert_eq!(reply["client_id"], identity.client_id);
    assert_eq!(client.get_with(&target, &[("X-IDENTITY-HEADER", "other")]).await.status, 401);
    assert_eq!(client.get_with(&target, &[]).await.status, 401);
    let old = target.replace("2019-08-01", "2018-02-01");
    assert_eq!(client.get_with(&old, &[("X-IDENTITY-HEADER", secret)]).await.status, 400);
    assert_eq!(client.get_with(&format!("/other?{VERSION}"), &[]).await.status, 404);
}
