//! Entra ID: the discovery documents, and the token endpoint for client secrets, signed
//! assertions and federated tokens.
//!
//! Refuses to know: keys, the vault's rights. Error texts have the `\r\n` that Entra has
//! long put before the trace id, because clients stumble over it.

use serde_json::{Value, json};

use super::{
    access::{self, new_guid},
    directory::App,
    jwt::{self, Flaw, Parts},
    message::{Answer, Asked, pairs},
    operation::{Operation, Route},
    world::{TENANT, World},
};

const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// What the cluster's tokens must be for.
pub const FEDERATION_AUDIENCE: &str = "api://AzureADTokenExchange";

pub fn route(method: &str, path: &str) -> Route {
    let operation = match method {
        "POST" if path.ends_with("/oauth2/v2.0/token") => Operation::Token,
        "GET" => Operation::Discovery,
        _ => Operation::Unknown,
    };
    Route { operation, key: String::new(), version: String::new() }
}

/// A refusal of the token endpoint.
struct No {
    status: u16,
    error: &'static str,
    number: u32,
    text: String,
}

fn no(status: u16, error: &'static str, number: u32, text: impl Into<String>) -> No {
    No { status, error, number, text: text.into() }
}

impl No {
    fn answer(&self) -> Answer {
        let (trace, correlation) = (new_guid(), new_guid());
        let description = format!(
            "AADSTS{}: {}\r\nTrace ID: {trace}\r\nCorrelation ID: {correlation}\r\nTimestamp: \
             2026-01-01 00:00:00Z",
            self.number, self.text
        );
        Answer::json(
            self.status,
            &json!({
                "error": self.error,
                "error_description": description,
                "error_codes": [self.number],
                "timestamp": "2026-01-01 00:00:00Z",
                "trace_id": trace,
                "correlation_id": correlation,
                "error_uri": format!("https://login.localhost/error?code={}", self.number),
            }),
        )
    }
}

pub fn answer(world: &World, route: &Route, asked: &Asked) -> Answer {
    let answer = match route.operation {
        Operation::Token => token(world, asked).unwrap_or_else(|no| no.answer()),
        _ => discovery(world, asked),
    };
    answer.with("Cache-Control", "no-store, no-cache").with("x-ms-request-id", new_guid())
}

fn discovery(world: &World, asked: &Asked) -> Answer {
    let here = format!("https://{}", asked.host());
    let segments: Vec<&str> = asked.path.trim_start_matches('/').split('/').collect();
    match segments.as_slice() {
        ["common", "discovery", "instance"] => {
            let host = asked.host();
            let document = format!("{here}/{TENANT}/v2.0/.well-known/openid-configuration");
            Answer::json(
                200,
                &json!({
                    "tenant_discovery_endpoint": document,
                    "api-version": "1.1",
                    "metadata": [{
                        "preferred_network": host, "preferred_cache": host, "aliases": [host],
                    }],
                }),
            )
        }
        [tenant, "v2.0", ".well-known", "openid-configuration"] if *tenant == TENANT => {
            let below = format!("{here}/{TENANT}");
            Answer::json(
                200,
                &json!({
                    "issuer": format!("{below}/v2.0"),
                    "authorization_endpoint": format!("{below}/oauth2/v2.0/authorize"),
                    "token_endpoint": format!("{below}/oauth2/v2.0/token"),
                    "token_endpoint_auth_methods_supported":
                        ["client_secret_post", "private_key_jwt"],
                    "jwks_uri": format!("{below}/discovery/v2.0/keys"),
                    "id_token_signing_alg_values_supported": ["RS256"],
                    "response_types_supported": ["code"],
                    "subject_types_supported": ["pairwise"],
                    "tenant_region_scope": "EU",
                    "cloud_instance_name": "localhost",
                }),
            )
        }
        [tenant, "discovery", "v2.0", "keys"] if *tenant == TENANT => {
            Answer::json(200, &world.signer.key_set())
        }
        [_, "v2.0", ".well-known", "openid-configuration"] => no_tenant(segments[0]).answer(),
        _ => Answer::html(404),
    }
}

fn no_tenant(tenant: &str) -> No {
    let text = format!(
        "Tenant '{tenant}' not found. Check to make sure you have the correct tenant ID and are \
         signing into the correct cloud."
    );
    no(400, "invalid_request", 90_002, text)
}

fn token(world: &World, asked: &Asked) -> Result<Answer, No> {
    let tenant = asked.path.trim_start_matches('/').split('/').next().unwrap_or_default();
    if tenant != TENANT {
        return Err(no_tenant(tenant));
    }
    let form = pairs(&String::from_utf8_lossy(&asked.body));
    let field = |name: &str| form.iter().find(|(key, _)| key == name).map(|(_, v)| v.as_str());
    let required = |name: &str| {
        field(name).ok_or_else(|| {
            let text = format!("The request body must contain the following parameter: '{name}'.");
            no(400, "invalid_request", 900_144, text)
        })
    };
    if required("grant_type")? != "client_credentials" {
        let text = "The app requested an unsupported grant type.";
        return Err(no(400, "unsupported_grant_type", 70_003, text));
    }
    let client_id = required("client_id")?;
    let scope = required("scope")?;
    let audience = scope
        .strip_suffix("/.default")
        .filter(|resource| resource.starts_with("https://"))
        .ok_or_else(|| {
            let text = format!("The provided value for scope {scope} is not valid.");
            no(400, "invalid_scope", 1_002_012, text)
        })?;
    let directory = world.directory.lock().unwrap();
    let app = directory.app(client_id).ok_or_else(|| {
        let text = format!(
            "Application with identifier '{client_id}' was not found in the directory 'Keyward'."
        );
        no(400, "unauthorized_client", 700_016, text)
    })?;
    match (field("client_secret"), field("client_assertion")) {
        (Some(secret), None) => check_secret(world, app, secret)?,
        (None, Some(assertion)) => {
            if field("client_assertion_type") != Some(JWT_BEARER) {
                let text = "The client_assertion_type is not supported.";
                return Err(no(400, "invalid_request", 50_012, text));
            }
            check_assertion(world, app, assertion, &token_endpoints(world, asked))?;
        }
        _ => {
            let text = "The request body must contain the following parameter: \
                        'client_assertion' or 'client_secret'.";
            return Err(no(401, "invalid_client", 7_000_218, text));
        }
    }
    let lifetime = directory.token_lifetime;
    let now = world.clock.now();
    let claims = access::claims(&app.principal, audience, TENANT, now, lifetime);
    let token = world.signer.sign(&claims);
    world.record.issued(&token);
    Ok(Answer::json(
        200,
        &json!({
            "token_type": "Bearer",
            "expires_in": lifetime,
            "ext_expires_in": lifetime,
            "access_token": token,
        }),
    ))
}

/// What an assertion may be for.
fn token_endpoints(world: &World, asked: &Asked) -> Vec<String> {
    let hosts = [format!("https://{}", asked.host()), world.authority()];
    hosts
        .iter()
        .flat_map(|host| {
            [format!("{host}/{TENANT}/oauth2/v2.0/token"), format!("{host}/{TENANT}/v2.0")]
        })
        .collect()
}

fn check_secret(world: &World, app: &App, sent: &str) -> Result<(), No> {
    let id = &app.principal.client_id;
    let Some(secret) = app.secrets.iter().find(|secret| secret.value == sent) else {
        let text = format!(
            "Invalid client secret provided. Ensure the secret being sent in the request is the \
             client secret value, not the client secret ID, for a secret added to app '{id}'."
        );
        return Err(no(401, "invalid_client", 7_000_215, text));
    };
    if secret.expires.is_some_and(|expires| expires <= world.clock.now()) {
        let text = format!("The provided client secret keys for app '{id}' are expired.");
        return Err(no(401, "invalid_client", 7_000_222, text));
    }
    Ok(())
}

fn check_times(world: &World, claims: &Value) -> Result<(), No> {
    // MSAL for Python writes fractions of seconds.
    let now = world.clock.now().as_secs_f64();
    let expires = claims["exp"].as_f64().is_some_and(|expires| now < expires);
    let begun = claims["nbf"].as_f64().is_none_or(|not_before| not_before <= now + 300.0);
    if expires && begun {
        return Ok(());
    }
    let text = "Client assertion is not within its valid time range.";
    Err(no(401, "invalid_client", 700_024, text))
}

/// An assertion of the application itself, signed with its certificate's key; or a token
/// of the cluster that stands for it.
fn check_assertion(
    world: &World,
    app: &App,
    assertion: &str,
    endpoints: &[String],
) -> Result<(), No> {
    let malformed = || no(401, "invalid_client", 50_027, "JWT token is invalid or malformed.");
    let parts = Parts::of(assertion).ok_or_else(malformed)?;
    if parts.claims["iss"].as_str() == Some(&cluster_issuer(world)) {
        return check_federated(world, app, assertion);
    }
    let bad = |text: &str| no(401, "invalid_client", 700_027, text);
    let mut claims = None;
    for certificate in &app.certificates {
        match jwt::verify_with_certificate(assertion, certificate) {
            Ok(signed) => claims = Some(signed),
            Err(Flaw::UnknownKey { .. }) => {}
            Err(_) => return Err(bad("The assertion failed signature validation.")),
        }
    }
    let text = "The certificate with identifier used to sign the client assertion is not \
                registered on application.";
    let claims = claims.ok_or_else(|| bad(text))?;
    check_times(world, &claims)?;
    let id = Some(app.principal.client_id.as_str());
    let addressed = claims["aud"].as_str().is_some_and(|aud| endpoints.iter().any(|e| e == aud));
    let names_itself = claims["iss"].as_str() == id && claims["sub"].as_str() == id;
    if !addressed || !names_itself || !claims["jti"].is_string() {
        let text = "The client assertion has an invalid audience, issuer, subject or id.";
        return Err(no(401, "invalid_client", 700_023, text));
    }
    Ok(())
}

/// The issuer of the cluster's tokens.
pub fn cluster_issuer(world: &World) -> String {
    format!("https://cluster.localhost:{}/", world.ports.entra)
}

fn check_federated(world: &World, app: &App, token: &str) -> Result<(), No> {
    let claims = world.cluster.verify(token).map_err(|_| {
        no(401, "invalid_client", 700_027, "The assertion failed signature validation.")
    })?;
    check_times(world, &claims)?;
    let subject = claims["sub"].as_str().unwrap_or_default();
    if claims["aud"].as_str() != Some(FEDERATION_AUDIENCE) {
        let text = "No matching federated identity record found for presented assertion audience.";
        return Err(no(401, "invalid_client", 700_212, text));
    }
    match app.subjects.iter().any(|known| known == subject) {
        true => Ok(()),
        false => {
            let text = format!(
                "No matching federated identity record found for presented assertion subject \
                 '{subject}'."
            );
            Err(no(401, "invalid_client", 700_213, text))
        }
    }
}
