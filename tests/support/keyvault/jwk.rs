//! What a client sends about a key: type, size, operations, attributes, and for an import
//! its material as a plain JSON Web Key.
//!
//! Refuses to know: BYOK packages, which `byok` opens; where keys are kept.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{
    errors::{self, Refusal},
    material::{Material, RsaParts},
    message::decode,
    state::{Kind, Version},
};

/// The operations that a key can permit.
const OPS: [&str; 8] =
    ["encrypt", "decrypt", "sign", "verify", "wrapKey", "unwrapKey", "import", "export"];

/// What kind of key is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub rsa: bool,
    pub hsm: bool,
}

/// What `kty` means in this kind of vault.
pub fn wanted(kty: Option<&str>, hsm_flag: bool, kind: Kind) -> Result<Wanted, Refusal> {
    let (rsa, hsm) = match kty {
        Some("RSA") => (true, hsm_flag),
        Some("RSA-HSM") => (true, true),
        Some("oct") => (false, hsm_flag),
        Some("oct-HSM") => (false, true),
        // Elliptic curves cannot wrap, so nothing here has use for them.
        _ => return Err(errors::bad_parameter("Property 'key.kty' has invalid value\r\n")),
    };
    // A Managed HSM makes HSM keys of whatever it is asked for.
    let hsm = hsm || kind == Kind::ManagedHsm;
    match (rsa, hsm, kind) {
        (_, true, Kind::Standard) => {
            Err(errors::bad_parameter("The vault's SKU does not allow HSM-protected keys"))
        }
        (false, false, _) => {
            Err(errors::bad_parameter("Symmetric keys must be HSM-protected: use kty oct-HSM"))
        }
        _ => Ok(Wanted { rsa, hsm }),
    }
}

/// New material as `create` asks for it. Takes up to seconds for RSA.
pub fn generate(body: &Value, wanted: Wanted) -> Result<Material, Refusal> {
    let default = if wanted.rsa { 2048 } else { 256 };
    let bits = match &body["key_size"] {
        Value::Null => Some(default),
        size => size.as_u64().and_then(|bits| usize::try_from(bits).ok()),
    };
    bits.and_then(|bits| match wanted.rsa {
        true => Material::generate_rsa(bits),
        false => Material::generate_oct(bits),
    })
    .ok_or_else(|| errors::bad_parameter("Property 'key_size' has invalid value\r\n"))
}

/// The material in a JSON Web Key.
pub fn import(key: &Value, wanted: Wanted) -> Result<Material, Refusal> {
    let part = |name: &str| {
        let text = key[name].as_str().unwrap_or_default();
        decode(text).filter(|bytes| !bytes.is_empty()).ok_or_else(|| errors::not_base64url(name))
    };
    if !wanted.rsa {
        return Material::from_oct(&part("k")?).ok_or_else(not_a_key);
    }
    let parts = RsaParts {
        n: part("n")?,
        e: part("e")?,
        d: part("d")?,
        p: part("p")?,
        q: part("q")?,
        dp: part("dp")?,
        dq: part("dq")?,
        qi: part("qi")?,
    };
    Material::from_parts(&parts).ok_or_else(not_a_key)
}

fn not_a_key() -> Refusal {
    errors::bad_parameter("The parameter 'key' must be a valid JsonWebKey object")
}

/// A version with what the client wants of it.
pub fn version(
    material: Material,
    wanted: Wanted,
    body: &Value,
    now: i64,
) -> Result<Version, Refusal> {
    let mut version = Version::new(Arc::new(material), wanted.hsm, now);
    apply(&mut version, body, now)?;
    Ok(version)
}

/// Sets the attributes, operations and tags that a body names, and leaves the others.
pub fn apply(version: &mut Version, body: &Value, now: i64) -> Result<(), Refusal> {
    let attributes = &body["attributes"];
    if let Some(enabled) = attributes["enabled"].as_bool() {
        version.enabled = enabled;
    }
    if let Some(not_before) = attributes["nbf"].as_i64() {
        version.not_before = Some(not_before);
    }
    if let Some(expires) = attributes["exp"].as_i64() {
        version.expires = Some(expires);
    }
    // An import has its operations inside the key.
    let ops = [&body["key_ops"], &body["key"]["key_ops"]];
    if let Some(ops) = ops.iter().find_map(|ops| ops.as_array()) {
        version.ops = checked_ops(ops)?;
    }
    if let Some(tags) = body["tags"].as_object() {
        version.tags = checked_tags(tags)?;
    }
    version.updated = now;
    Ok(())
}

fn checked_ops(ops: &[Value]) -> Result<Vec<String>, Refusal> {
    let bad = || errors::bad_parameter("Property 'key_ops' has invalid value\r\n");
    let known = |op: &Value| {
        let op = op.as_str()?;
        OPS.contains(&op).then(|| op.to_owned())
    };
    let ops: Vec<String> = ops.iter().map(known).collect::<Option<_>>().ok_or_else(bad)?;
    // A key that imports others does nothing else.
    if ops.len() > 1 && ops.iter().any(|op| op == "import") {
        return Err(bad());
    }
    Ok(ops)
}

fn checked_tags(tags: &Map<String, Value>) -> Result<Map<String, Value>, Refusal> {
    match tags.len() <= 15 && tags.values().all(Value::is_string) {
        true => Ok(tags.clone()),
        false => Err(errors::bad_parameter("Property 'tags' has invalid value\r\n")),
    }
}
