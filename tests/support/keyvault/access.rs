//! Who may do what: roles, access policies, and the checks of a bearer token.
//!
//! Refuses to know: how tokens come into being; keys.

use serde_json::Value;

use super::{
    clock::Now,
    clock::seconds,
    errors::{self, Caller, Refusal},
    jwt::{self, Signer},
    operation::Operation,
    state::{Kind, Network, Profile, State},
};

/// How far a token's nbf may lie ahead, seconds.
const SKEW: i64 = 300;

/// Which of the two systems decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permissions {
    /// Roles, in vaults of Azure's RBAC, in a Managed HSM of its own.
    Rbac,
    /// The older access policies, which a Managed HSM does not have.
    AccessPolicies,
}

/// The built-in roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Read, wrap, unwrap: what a service with customer-managed keys gets.
    ServiceEncryptionUser,
    CryptoUser,
    CryptoOfficer,
}

impl Role {
    fn allows(self, operation: Operation, kind: Kind) -> bool {
        use Operation::*;
        let reads = matches!(operation, Get | List | ListVersions);
        let uses = reads || matches!(operation, Wrap | Unwrap);
        match (self, kind) {
            (Self::ServiceEncryptionUser, _) => uses,
            // Of the same name, but a Managed HSM's lets its holder manage keys.
            (Self::CryptoUser, Kind::ManagedHsm) => {
                !matches!(operation, Purge | Recover | GetDeleted | ListDeleted)
            }
            (Self::CryptoUser, _) => uses || matches!(operation, Update | Backup),
            (Self::CryptoOfficer, _) => true,
        }
    }
}

/// Checks the token of a request. `authorization` is the header's value.
pub fn authenticate(
    authorization: Option<&str>,
    signer: &Signer,
    audience: &str,
    issuer: &str,
    now: Now,
) -> Result<Caller, Refusal> {
    let token = authorization
        .and_then(|value| value.strip_prefix("Bearer "))
        .filter(|token| !token.is_empty())
        .ok_or_else(errors::no_token)?;
    let claims = match signer.verify(token) {
        Ok(claims) => claims,
        Err(jwt::Flaw::UnknownKey { header }) => return Err(errors::unknown_signing_key(&header)),
        Err(jwt::Flaw::Malformed) => return Err(errors::bad_token("it is no JSON Web Token")),
        Err(jwt::Flaw::Signature) => return Err(errors::bad_token("its signature is wrong")),
    };
    let text = |name: &str| claims[name].as_str().unwrap_or_default().to_owned();
    let time = |name: &str| claims[name].as_i64();
    if text("aud") != audience {
        return Err(errors::wrong_audience(audience, &text("aud")));
    }
    if text("iss") != issuer {
        return Err(errors::wrong_issuer(issuer, &text("iss")));
    }
    let now = seconds(now);
    if time("exp").is_none_or(|expires| expires <= now) {
        return Err(errors::expired_token());
    }
    if time("nbf").is_some_and(|not_before| not_before > now + SKEW) {
        return Err(errors::bad_token("it is not yet valid"));
    }
    Ok(Caller { app_id: text("appid"), object_id: text("oid"), issuer: text("iss") })
}

/// Whether the network lets the request in.
pub fn from_here(
    state: &State,
    caller: &Caller,
    address: &str,
    profile: &Profile,
) -> Result<(), Refusal> {
    match state.network {
        Network::Open => Ok(()),
        Network::Firewall => Err(errors::by_firewall(caller, address, &profile.name)),
        Network::PrivateOnly => Err(errors::by_connection(caller, &profile.name)),
    }
}

/// Whether the caller may do this.
pub fn authorize(
    state: &State,
    caller: &Caller,
    operation: Operation,
    key: &str,
    profile: &Profile,
    permissions: Permissions,
) -> Result<(), Refusal> {
    let id = &caller.object_id;
    match permissions {
        Permissions::Rbac => {
            let roles = state.roles.get(id);
            roles
                .is_some_and(|roles| roles.iter().any(|role| role.allows(operation, profile.kind)))
                .then_some(())
                .ok_or_else(|| errors::by_rbac(caller, operation, &profile.name, key))
        }
        Permissions::AccessPolicies => {
            let policy = state.policies.get(id);
            policy
                .is_some_and(|allowed| allowed.contains(&operation))
                .then_some(())
                .ok_or_else(|| errors::by_policy(caller, operation, &profile.name))
        }
    }
}

/// The claims of an access token, as Entra's first version writes them.
pub fn claims(
    principal: &Principal,
    audience: &str,
    tenant: &str,
    now: Now,
    lifetime_seconds: i64,
) -> Value {
    let now = seconds(now);
    serde_json::json!({
        "aud": audience,
        "iss": issuer(tenant),
        "iat": now,
        "nbf": now,
        "exp": now + lifetime_seconds,
        "appid": principal.client_id,
        "oid": principal.object_id,
        "sub": principal.object_id,
        "tid": tenant,
        "idtyp": "app",
        "ver": "1.0",
    })
}

/// The issuer of a tenant's access tokens.
pub fn issuer(tenant: &str) -> String {
    format!("https://sts.windows.net/{tenant}/")
}

/// Someone who can have tokens and rights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    pub client_id: String,
    pub object_id: String,
}

impl Principal {
    pub fn new() -> Self {
        Self { client_id: new_guid(), object_id: new_guid() }
    }
}

pub fn new_guid() -> String {
    let digits = super::state::new_version_id();
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32];
    parts.map(|range| digits[range].to_owned()).join("-")
}
