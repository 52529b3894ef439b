//! Backups: a key with all its versions as one opaque, authenticated value.
//!
//! Can be restored wherever the geography (of a Managed HSM: the security domain) is the
//! same. What was restored is independent of where it came from.

use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde_json::{Value, json};

use super::{
    material::Material,
    message::{decode, encode},
    state::{Key, Version},
};

/// What vaults share that can restore each other's backups.
#[derive(Clone)]
pub struct Geography([u8; 32]);

impl Geography {
    pub fn new() -> Self {
        let mut key = [0; 32];
        aws_lc_rs::rand::fill(&mut key).expect("random bytes");
        Self(key)
    }

    fn key(&self) -> LessSafeKey {
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &self.0).expect("an AES key"))
    }

    /// The backup of a key.
    pub fn seal(&self, name: &str, key: &Key) -> Vec<u8> {
        let versions: Vec<Value> = key.versions.iter().map(version_to_json).collect();
        let mut blob = json!({ "name": name, "versions": versions }).to_string().into_bytes();
        let mut nonce = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).expect("random bytes");
        self.key()
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut blob)
            .expect("sealing");
        [&nonce[..], &blob].concat()
    }

    /// The name and the key of a backup. `None` if it is not one of this geography.
    pub fn open(&self, blob: &[u8]) -> Option<(String, Key)> {
        let (nonce, sealed) = blob.split_at_checked(NONCE_LEN)?;
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let plain = self.key().open_in_place(nonce, Aad::empty(), &mut sealed).ok()?;
        let value: Value = serde_json::from_slice(plain).ok()?;
        let versions =
            value["versions"].as_array()?.iter().map(version_from_json).collect::<Option<_>>()?;
        Some((value["name"].as_str()?.into(), Key { versions, rotation: None }))
    }
}

fn version_to_json(version: &Version) -> Value {
    json!({
        "id": version.id,
        "rsa": matches!(*version.material, Material::Rsa(_)),
        "material": encode(version.material.to_bytes()),
        "hsm": version.hsm,
        "ops": version.ops,
        "enabled": version.enabled,
        "nbf": version.not_before,
        "exp": version.expires,
        "created": version.created,
        "updated": version.updated,
        "tags": version.tags,
    })
}

fn version_from_json(value: &Value) -> Option<Version> {
    let bytes = decode(value["material"].as_str()?)?;
    let material = match value["rsa"].as_bool()? {
        true => Material::from_pkcs8(&bytes),
        false => Material::from_oct(&bytes),
    }?;
    let ops = value["ops"].as_array()?.iter();
    Some(Version {
        id: value["id"].as_str()?.into(),
        material: Arc::new(material),
        hsm: value["hsm"].as_bool()?,
        ops: ops.map(|op| op.as_str().map(Into::into)).collect::<Option<_>>()?,
        enabled: value["enabled"].as_bool()?,
        not_before: value["nbf"].as_i64(),
        expires: value["exp"].as_i64(),
        created: value["created"].as_i64()?,
        updated: value["updated"].as_i64()?,
        tags: value["tags"].as_object()?.clone(),
    })
}
