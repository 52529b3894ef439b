//! What a vault holds: keys with their versions, deleted keys, who may what, which
//! networks. Plain values; everything that time decides takes `now`.
//!
//! Refuses to know: HTTP, tokens, faults.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::{Map, Value, json};

use super::{access::Role, material::Material, message::encode, operation::Operation};

/// What is being faked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A vault without an HSM.
    Standard,
    /// A vault with software and HSM keys.
    Premium,
    ManagedHsm,
}

/// The fixed properties of a vault.
#[derive(Clone)]
pub struct Profile {
    pub kind: Kind,
    /// Its name, the first label of its host.
    pub name: String,
    pub purge_protection: bool,
    /// How long deleted keys can be recovered, days: 7 to 90.
    pub retention_days: i64,
}

impl Profile {
    pub fn recovery_level(&self) -> String {
        let level = if self.retention_days == 90 { "Recoverable" } else { "CustomizedRecoverable" };
        let purgeable = if self.purge_protection { "" } else { "+Purgeable" };
        format!("{level}{purgeable}")
    }
}

/// From where requests are let in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    #[default]
    Open,
    /// The firewall does not list the client.
    Firewall,
    /// Public access is disabled: private links only.
    PrivateOnly,
}

#[derive(Clone, Default)]
pub struct State {
    pub keys: BTreeMap<String, Key>,
    pub deleted: BTreeMap<String, Deleted>,
    /// Role assignments by object id.
    pub roles: BTreeMap<String, BTreeSet<Role>>,
    /// Access policies by object id.
    pub policies: BTreeMap<String, BTreeSet<Operation>>,
    pub network: Network,
    /// The vault itself is soft-deleted.
    pub gone: bool,
}

#[derive(Clone)]
pub struct Key {
    /// In the order they were made. Never empty.
    pub versions: Vec<Version>,
    pub rotation: Option<Rotation>,
}

/// A rotation policy as it was set.
#[derive(Clone)]
pub struct Rotation {
    /// `lifetimeActions` and `attributes.expiryTime`, checked.
    pub policy: Value,
    /// Unix seconds.
    pub created: i64,
    pub updated: i64,
    /// Days that a new version lives.
    pub expiry_days: Option<i64>,
}

#[derive(Clone)]
pub struct Version {
    /// 32 hexadecimal digits.
    pub id: String,
    pub material: Arc<Material>,
    pub hsm: bool,
    pub ops: Vec<String>,
    pub enabled: bool,
    /// Unix seconds, these four.
    pub not_before: Option<i64>,
    pub expires: Option<i64>,
    pub created: i64,
    pub updated: i64,
    pub tags: Map<String, Value>,
}

#[derive(Clone)]
pub struct Deleted {
    pub key: Key,
    /// Unix seconds, both.
    pub at: i64,
    pub purged_at: i64,
}

/// 32 random hexadecimal digits, so that their order says nothing.
pub fn new_version_id() -> String {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).expect("random bytes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Key {
    pub fn latest(&self) -> &Version {
        self.versions.last().expect("a key has a version")
    }

    /// A version by its id; the latest for an empty one.
    pub fn version(&self, id: &str) -> Option<&Version> {
        if id.is_empty() {
            return self.versions.last();
        }
        self.versions.iter().find(|version| version.id == id)
    }

    pub fn version_mut(&mut self, id: &str) -> Option<&mut Version> {
        if id.is_empty() {
            return self.versions.last_mut();
        }
        self.versions.iter_mut().find(|version| version.id == id)
    }
}

impl Version {
    pub fn new(material: Arc<Material>, hsm: bool, now: i64) -> Self {
        let ops: &[&str] = match *material {
            Material::Rsa(_) => &["encrypt", "decrypt", "sign", "verify", "wrapKey", "unwrapKey"],
            Material::Oct(_) => &["encrypt", "decrypt", "wrapKey", "unwrapKey"],
        };
        Self {
            id: new_version_id(),
            material,
            hsm,
            ops: ops.iter().map(|op| (*op).into()).collect(),
            enabled: true,
            not_before: None,
            expires: None,
            created: now,
            updated: now,
            tags: Map::new(),
        }
    }

    pub fn kty(&self) -> &'static str {
        match (&*self.material, self.hsm) {
            (Material::Rsa(_), false) => "RSA",
            (Material::Rsa(_), true) => "RSA-HSM",
            (Material::Oct(_), false) => "oct",
            (Material::Oct(_), true) => "oct-HSM",
        }
    }

    pub fn attributes(&self, profile: &Profile) -> Value {
        let mut attributes = json!({
            "enabled": self.enabled,
            "created": self.created,
            "updated": self.updated,
            "recoveryLevel": profile.recovery_level(),
            "recoverableDays": profile.retention_days,
            "exportable": false,
        });
        if profile.kind != Kind::ManagedHsm {
            attributes["hsmPlatform"] = json!(if self.hsm { "2" } else { "0" });
        }
        if let Some(not_before) = self.not_before {
            attributes["nbf"] = json!(not_before);
        }
        if let Some(expires) = self.expires {
            attributes["exp"] = json!(expires);
        }
        attributes
    }

    /// The key bundle of the API. `host` is the vault as the client named it.
    pub fn bundle(&self, profile: &Profile, host: &str, name: &str) -> Value {
        let mut key = json!({
            "kid": format!("https://{host}/keys/{name}/{}", self.id),
            "kty": self.kty(),
            "key_ops": self.ops,
        });
        if let Material::Rsa(rsa) = &*self.material {
            key["n"] = json!(encode(&rsa.n));
            key["e"] = json!(encode(&rsa.e));
        }
        json!({ "key": key, "attributes": self.attributes(profile), "tags": self.tags })
    }
}

impl State {
    pub fn key(&self, name: &str) -> Option<&Key> {
        self.keys.get(name)
    }

    /// A deleted key that was not purged meanwhile.
    pub fn deleted(&self, name: &str, now: i64) -> Option<&Deleted> {
        self.deleted.get(name).filter(|deleted| now < deleted.purged_at)
    }

    /// Adds a version to a key, which it makes if there is none of that name.
    pub fn add(&mut self, name: &str, version: Version) {
        let key = self.keys.entry(name.into());
        key.or_insert_with(|| Key { versions: Vec::new(), rotation: None }).versions.push(version);
    }

    /// Soft-deletes a key. `None` if there is none.
    pub fn delete(&mut self, name: &str, profile: &Profile, now: i64) -> Option<&Deleted> {
        let key = self.keys.remove(name)?;
        let purged_at = now + profile.retention_days * 24 * 3600;
        self.deleted.insert(name.into(), Deleted { key, at: now, purged_at });
        self.deleted.get(name)
    }

    /// Takes a key back from the deleted ones. `None` if it is not among them.
    pub fn recover(&mut self, name: &str, now: i64) -> Option<&Key> {
        let deleted = self.deleted.remove(name).filter(|deleted| now < deleted.purged_at)?;
        self.keys.insert(name.into(), deleted.key);
        self.keys.get(name)
    }
}
