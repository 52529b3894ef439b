//! The way of a request through the vault: token, api-version, network, quota, right,
//! body; then the operation.
//!
//! Refuses to know: what operations do; sockets and faults.

use serde_json::Value;

use super::{
    access::{self, new_guid},
    clock::seconds,
    errors::{self, Refusal},
    keys::Request,
    message::{Answer, Asked},
    operation::{Operation, Route},
    state::{Kind, State},
    throttle::{self, Touched},
    world::{API_VERSIONS, TENANT, World},
};

/// Answers a request. Making an RSA key takes up to seconds.
pub fn answer(world: &World, route: &Route, asked: &Asked, peer: &str) -> Answer {
    let answer = perform(world, route, asked, peer).unwrap_or_else(|refusal| {
        // A Managed HSM challenges without a body.
        let first = refusal.status == 401 && asked.header("authorization").is_none();
        match first && world.profile.kind == Kind::ManagedHsm {
            true => refusal.bare().answer(),
            false => refusal.answer(),
        }
    });
    dress(world, answer, asked, peer)
}

/// Adds the headers that every answer of the service carries.
pub fn dress(world: &World, answer: Answer, asked: &Asked, peer: &str) -> Answer {
    let network = format!("conn_type=Ipv4;addr={peer};act_addr_fam=InterNetwork;");
    let mut answer = answer
        .with("Cache-Control", "no-cache")
        .with("Pragma", "no-cache")
        .with("Expires", "-1")
        .with("x-ms-keyvault-region", "westeurope")
        .with("x-ms-keyvault-service-version", "1.9.2747.1")
        .with("x-ms-keyvault-network-info", network)
        .with("x-ms-request-id", new_guid())
        .with("X-Content-Type-Options", "nosniff")
        .with("Strict-Transport-Security", "max-age=31536000;includeSubDomains");
    if answer.status == 401 {
        let (authority, audience) = (world.authority(), world.audience());
        let challenge =
            format!("Bearer authorization=\"{authority}/{TENANT}\", resource=\"{audience}\"");
        answer = answer.with("WWW-Authenticate", challenge);
    }
    match asked.header("x-ms-client-request-id") {
        Some(id) => answer.with("x-ms-client-request-id", id),
        None => answer,
    }
}

fn perform(world: &World, route: &Route, asked: &Asked, peer: &str) -> Result<Answer, Refusal> {
    let now = world.clock.now();
    let view = match route.operation.writes() {
        true => world.store.current(),
        false => world.store.read(now),
    };
    if view.gone {
        return Err(errors::vault_deleted(&world.profile.name));
    }
    let caller = access::authenticate(
        asked.header("authorization"),
        &world.signer,
        &world.audience(),
        &access::issuer(TENANT),
        now,
    )?;
    check_api_version(asked)?;
    access::from_here(&view, &caller, peer, &world.profile)?;
    if route.operation == Operation::Unknown {
        return Err(errors::no_such_path());
    }
    check_names(route)?;
    let body = read_body(asked)?;
    charge(world, route, &body, &view)?;
    access::authorize(
        &view,
        &caller,
        route.operation,
        &route.key,
        &world.profile,
        world.permissions,
    )?;
    let now = seconds(now);
    Request { world, route, asked, body: &body, view: &view, now }.perform()
}

fn check_api_version(asked: &Asked) -> Result<(), Refusal> {
    match asked.query("api-version") {
        Some(version) if API_VERSIONS.contains(&version) => Ok(()),
        Some(version) => {
            Err(errors::bad_parameter(format!("The api-version '{version}' is not supported")))
        }
        None => Err(errors::bad_parameter("api-version must be specified")),
    }
}

fn check_names(route: &Route) -> Result<(), Refusal> {
    let fits = |name: &str, max: usize, dash: bool| {
        name.len() <= max && name.chars().all(|c| c.is_ascii_alphanumeric() || (dash && c == '-'))
    };
    let has_key = !matches!(
        route.operation,
        Operation::List | Operation::ListDeleted | Operation::Restore | Operation::Random
    );
    if has_key && (route.key.is_empty() || !fits(&route.key, 127, true)) {
        return Err(errors::bad_parameter("The request URI contains an invalid name"));
    }
    match fits(&route.version, 32, false) {
        true => Ok(()),
        false => Err(errors::bad_parameter("The request URI contains an invalid version")),
    }
}

fn read_body(asked: &Asked) -> Result<Value, Refusal> {
    if asked.body.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&asked.body)
        .ok()
        .filter(Value::is_object)
        .ok_or_else(|| errors::bad_parameter("The request body is not valid JSON"))
}

/// Pays for the request from the quota.
fn charge(world: &World, route: &Route, body: &Value, view: &State) -> Result<(), Refusal> {
    let version = view.key(&route.key).and_then(|key| key.version(&route.version));
    let touched = version
        .map(|version| Touched { hsm: version.hsm, bits: version.material.bits() })
        .filter(|_| route.operation != Operation::Create)
        .or_else(|| {
            let kty = body["kty"].as_str().or(body["key"]["kty"].as_str())?;
            Some(Touched { hsm: kty.ends_with("-HSM"), bits: 0 })
        });
    let Some(cost) = throttle::cost(world.profile.kind, route.operation, touched) else {
        return Ok(());
    };
    let mut throttle = world.throttle.lock().unwrap();
    let fits = throttle.as_mut().is_none_or(|quota| quota.admit(world.clock.now(), cost));
    match fits {
        true => Ok(()),
        false => Err(errors::throttled(*world.retry_after.lock().unwrap())),
    }
}
