//! `[backend.NAME]` of type `key-vault` or `managed-hsm`: where the vault is, and as whom
//! the sidecar asks it.

use super::{
    fields::Fields,
    mistake::{Wrong, did_you_mean, quoted},
    schema::{self, Key},
};
use crate::backend::keyvault::{Identity, Service, Settings, UserAssigned, VaultUrl, WrapAt};

/// Longest id of a tenant or an application, and longest id of a resource, in bytes.
const ID_MAX: usize = 128;
const RESOURCE_ID_MAX: usize = 1024;

pub(super) fn read(name: &str, service: Service, fields: &Fields<'_>) -> Option<Settings> {
    let vault = fields.demand(&schema::VAULT).then(|| vault(service, fields));
    let identity = identity(fields);
    let authority = fields.parsed(&schema::AUTHORITY, authority);
    let ca = fields.path(&schema::CA);
    let wrap = fields.parsed(&schema::WRAP, wrap);
    let connections = fields.number(&schema::VAULT_CONNECTIONS);
    let queue = fields.number(&schema::QUEUE);
    let ceiling = fields.number(&schema::CEILING);
    let fleet = fields.number(&schema::FLEET);
    if fields.given(&schema::CA) {
        // Bad, it is not "the system's".
        ca.as_ref()?;
    }
    Some(Settings {
        name: name.to_owned(),
        service,
        vault: vault??,
        identity: identity?,
        authority: authority?,
        ca,
        wrap: wrap?,
        connections: connections?,
        queue: queue?,
        ceiling_percent: u8::try_from(ceiling?).ok()?,
        fleet: u32::try_from(fleet?).ok()?,
    })
}

fn vault(service: Service, fields: &Fields<'_>) -> Option<VaultUrl> {
    fields.parsed(&schema::VAULT, |text| {
        let example = match service {
            Service::KeyVault => "https://NAME.vault.azure.net",
            Service::ManagedHsm => "https://NAME.managedhsm.azure.net",
        };
        let wrong = |what: &str| {
            Wrong::new(format!("{} {what}", quoted(text)), format!("write for example {example}"))
        };
        let vault = VaultUrl::parse(text).map_err(wrong)?;
        match vault.looks_like() {
            Some(other) if other != service => {
                Err(wrong(&format!("is the address of a {}", other.as_str())))
            }
            _ => Ok(vault),
        }
    })
}

fn authority(text: &str) -> Result<String, Wrong> {
    // The rules for a vault's host are those for any host in a domain.
    VaultUrl::parse(text).map(|host| host.as_str().to_owned()).or_else(|what| {
        // A shorter name than a vault's may do, as `login.localhost` does.
        match text
            .strip_prefix("https://")
            .is_some_and(|rest| VaultUrl::parse(&format!("https://x.{rest}")).is_ok())
        {
            true => Ok(text.trim_end_matches('/').to_owned()),
            false => Err(Wrong::new(
                format!("{} {what}", quoted(text)),
                "write the host only, for example https://login.microsoftonline.us",
            )),
        }
    })
}

fn wrap(text: &str) -> Result<WrapAt, Wrong> {
    match text {
        "local" => Ok(WrapAt::Local),
        "service" => Ok(WrapAt::Service),
        _ => Err(Wrong::new(
            format!("{} is no place to wrap", quoted(text)),
            r#"use wrap = "local" or "service""#,
        )),
    }
}

/// Each kind, and which keys it may and must have.
struct IdentityKind {
    name: &'static str,
    may: &'static [&'static Key],
    must: &'static [&'static Key],
}

static KINDS: [IdentityKind; 5] = [
    IdentityKind {
        name: "managed",
        may: &[&schema::CLIENT_ID, &schema::OBJECT_ID, &schema::RESOURCE_ID],
        must: &[],
    },
    IdentityKind {
        name: "workload",
        may: &[&schema::TENANT_ID, &schema::CLIENT_ID, &schema::TOKEN_FILE],
        must: &[],
    },
    IdentityKind {
        name: "secret",
        may: &[],
        must: &[&schema::TENANT_ID, &schema::CLIENT_ID, &schema::SECRET_FILE],
    },
    IdentityKind {
        name: "certificate",
        may: &[],
        must: &[&schema::TENANT_ID, &schema::CLIENT_ID, &schema::ID_CERTIFICATE, &schema::ID_KEY],
    },
    IdentityKind { name: "cli", may: &[], must: &[] },
];

static IDENTITY_KEYS: [&Key; 8] = [
    &schema::TENANT_ID,
    &schema::CLIENT_ID,
    &schema::OBJECT_ID,
    &schema::RESOURCE_ID,
    &schema::SECRET_FILE,
    &schema::ID_CERTIFICATE,
    &schema::ID_KEY,
    &schema::TOKEN_FILE,
];

/// `None` if it is bad. Absent, it is the machine's own.
fn identity(fields: &Fields<'_>) -> Option<Identity> {
    if !fields.given(&schema::IDENTITY) {
        return Some(Identity::Managed(None));
    }
    let fields = fields.table(&schema::IDENTITY)?;
    let kind = fields.parsed(&schema::ID_KIND, |text| {
        KINDS.iter().find(|kind| kind.name == text).ok_or_else(|| {
            let names: Vec<_> = KINDS.iter().map(|kind| kind.name).collect();
            let fix = match did_you_mean(text, names.iter().copied()) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("use one of: {}", names.join(", ")),
            };
            Wrong::new(format!("{} is no kind of identity", quoted(text)), fix)
        })
    });
    let id = |key: &'static Key| fields.parsed(key, |text| plain_id(text, ID_MAX));
    let (tenant, client, object) =
        (id(&schema::TENANT_ID), id(&schema::CLIENT_ID), id(&schema::OBJECT_ID));
    let resource = fields.parsed(&schema::RESOURCE_ID, resource_id);
    let [secret_file, certificate, key, token_file] =
        [&schema::SECRET_FILE, &schema::ID_CERTIFICATE, &schema::ID_KEY, &schema::TOKEN_FILE]
            .map(|key| fields.path(key));
    let kind = kind?;
    let mut right = true;
    for key in IDENTITY_KEYS.iter().filter(|key| fields.given(key)) {
        if !kind.may.iter().chain(kind.must).any(|known| known.name == key.name) {
            let what = format!("means nothing to an identity of kind {}", kind.name);
            fields.refuse(key, Wrong::new(what, "remove it, or change kind"));
            right = false;
        }
    }
    for key in kind.must {
        right &= fields.demand(key);
    }
    if !right {
        return None;
    }
    // What is given and bad is noted, and is not the same as what is absent.
    let unless_bad = |key: &Key, read: bool| (read || !fields.given(key)).then_some(());
    unless_bad(&schema::TENANT_ID, tenant.is_some())?;
    unless_bad(&schema::CLIENT_ID, client.is_some())?;
    unless_bad(&schema::OBJECT_ID, object.is_some())?;
    unless_bad(&schema::RESOURCE_ID, resource.is_some())?;
    unless_bad(&schema::TOKEN_FILE, token_file.is_some())?;
    match kind.name {
        "managed" => user_assigned(&fields, client, object, resource).map(Identity::Managed),
        "workload" => Some(Identity::Workload { tenant, client, token_file }),
        "secret" => Some(Identity::Secret { tenant: tenant?, client: client?, file: secret_file? }),
        "certificate" => Some(Identity::Certificate {
            tenant: tenant?,
            client: client?,
            certificate: certificate?,
            key: key?,
        }),
        _ => Some(Identity::Cli),
    }
}

/// `None` if more than one is named.
fn user_assigned(
    fields: &Fields<'_>,
    client: Option<String>,
    object: Option<String>,
    resource: Option<String>,
) -> Option<Option<UserAssigned>> {
    match (client, object, resource) {
        (None, None, None) => Some(None),
        (Some(id), None, None) => Some(Some(UserAssigned::Client(id))),
        (None, Some(id), None) => Some(Some(UserAssigned::Object(id))),
        (None, None, Some(id)) => Some(Some(UserAssigned::Resource(id))),
        _ => {
            fields.refuse_all(Wrong::new(
                "more than one of client_id, object_id and resource_id is set",
                "keep one of them: they name the same identity",
            ));
            None
        }
    }
}

fn plain_id(text: &str, max: usize) -> Result<String, Wrong> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    match (1..=max).contains(&text.len()) && text.bytes().all(plain) {
        true => Ok(text.to_owned()),
        false => Err(Wrong::new(
            format!("{} is no id", quoted(text)),
            "write the id as the portal shows it, such as 00000000-0000-0000-0000-000000000000",
        )),
    }
}

fn resource_id(text: &str) -> Result<String, Wrong> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._()".contains(&byte);
    let ok = text.starts_with("/subscriptions/")
        && text.len() <= RESOURCE_ID_MAX
        && text.bytes().all(plain);
    match ok {
        true => Ok(text.to_owned()),
        false => Err(Wrong::new(
            format!("{} is no resource id", quoted(text)),
            "write it as the portal shows it: /subscriptions/…/userAssignedIdentities/NAME",
        )),
    }
}
