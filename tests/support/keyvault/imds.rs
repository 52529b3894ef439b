//! Where a machine gets the tokens of its managed identities: IMDS, and App Service's
//! endpoint.
//!
//! Refuses to know: applications, the vault's rights. As on Azure, the platform remembers
//! a token and hands it out again, also after rights were taken.

use serde_json::json;

use super::{
    access,
    clock::seconds,
    directory::{Directory, Identity},
    message::{Answer, Asked},
    operation::{Operation, Route},
    world::{TENANT, World},
};

const IMDS: &str = "/metadata/identity/oauth2/token";
const APP_SERVICE: &str = "/msi/token";

/// What App Service puts into IDENTITY_HEADER.
pub const APP_SERVICE_SECRET: &str = "853b9a84-5bfa-4b22-a3f3-0b9a43d9ad8a";

/// A token that ends within so many seconds is no longer handed out.
const RENEW_BEFORE: i64 = 300;

pub fn route(method: &str, path: &str) -> Route {
    let known = method == "GET" && (path == IMDS || path == APP_SERVICE);
    let operation = if known { Operation::ManagedIdentity } else { Operation::Unknown };
    Route { operation, key: String::new(), version: String::new() }
}

fn no(status: u16, error: &str, description: &str) -> Answer {
    Answer::json(status, &json!({ "error": error, "error_description": description }))
}

pub fn answer(world: &World, route: &Route, asked: &Asked) -> Answer {
    if route.operation != Operation::ManagedIdentity {
        return Answer::empty(404);
    }
    token(world, asked).unwrap_or_else(|no| no)
}

fn token(world: &World, asked: &Asked) -> Result<Answer, Answer> {
    let bad = |text: &str| no(400, "invalid_request", text);
    let app_service = asked.path == APP_SERVICE;
    let versions: &[&str] =
        if app_service { &["2019-08-01"] } else { &["2018-02-01", "2019-08-01"] };
    if app_service {
        if asked.header("x-identity-header") != Some(APP_SERVICE_SECRET) {
            return Err(no(401, "unauthorized", "The X-IDENTITY-HEADER header is wrong"));
        }
    } else if asked.header("metadata") != Some("true") {
        return Err(bad("Required metadata header not specified"));
    } else if asked.headers.contains_key("x-forwarded-for") {
        return Err(bad("The request came through a proxy"));
    }
    if !asked.query("api-version").is_some_and(|version| versions.contains(&version)) {
        return Err(bad("Required query variable 'api-version' is missing or not supported"));
    }
    let resource = asked
        .query("resource")
        .filter(|resource| !resource.is_empty())
        .ok_or_else(|| bad("Required query variable 'resource' is missing"))?
        .to_owned();
    let mut directory = world.directory.lock().unwrap();
    let identity = find(&directory, asked).map_err(bad)?;
    let principal = identity.principal.clone();
    let now = world.clock.now();
    let remembered = directory.remembered.get(&(principal.object_id.clone(), resource.clone()));
    let (expires, token) = match remembered {
        Some((expires, token)) if *expires > seconds(now) + RENEW_BEFORE => {
            (*expires, token.clone())
        }
        _ => {
            let lifetime = directory.identity_lifetime;
            let claims = access::claims(&principal, &resource, TENANT, now, lifetime);
            let made = (seconds(now) + lifetime, world.signer.sign(&claims));
            let place = (principal.object_id.clone(), resource.clone());
            directory.remembered.insert(place, made.clone());
            made
        }
    };
    // Every field is text, also the numbers.
    let left = (expires - seconds(now)).to_string();
    Ok(Answer::json(
        200,
        &json!({
            "access_token": token,
            "client_id": principal.client_id,
            "expires_in": left,
            "expires_on": expires.to_string(),
            "ext_expires_in": left,
            "not_before": seconds(now).to_string(),
            "resource": resource,
            "token_type": "Bearer",
        }),
    ))
}

fn find<'a>(directory: &'a Directory, asked: &Asked) -> Result<&'a Identity, &'static str> {
    let by = |names: &[&str]| names.iter().find_map(|name| asked.query(name));
    let client = by(&["client_id"]);
    let object = by(&["object_id", "principal_id"]);
    let resource = by(&["msi_res_id", "mi_res_id"]);
    if [client, object, resource].iter().flatten().count() > 1 {
        return Err("Only one of client_id, object_id and msi_res_id may be specified");
    }
    let identities = &directory.identities;
    let named = client.or(object).or(resource);
    if named.is_some() {
        let fits = |identity: &&Identity| {
            client == Some(identity.principal.client_id.as_str())
                || object == Some(identity.principal.object_id.as_str())
                || resource == Some(identity.resource_id.as_str())
        };
        return identities.iter().find(fits).ok_or("Identity not found");
    }
    if let Some(system) = identities.iter().find(|identity| identity.system) {
        return Ok(system);
    }
    match identities.as_slice() {
        [] => Err("Identity not found"),
        [only] => Ok(only),
        _ => Err("Multiple user assigned identities exist, please specify the clientId / \
                  resourceId of the identity in the token request"),
    }
}
