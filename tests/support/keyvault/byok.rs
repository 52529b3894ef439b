//! BYOK: the package that a customer's HSM makes, unwrapped by the key exchange key of
//! this vault.
//!
//! A JSON file, in it a ciphertext of two parts: RSA-OAEP (SHA-1) of an AES key, as long as
//! the exchange key's modulus, then RFC 5649 under that AES key of PKCS#8, or of the raw
//! bytes of an AES key. Refuses to know: attributes, rights. Curves are not built.

use serde_json::Value;

use super::{
    errors::{self, Refusal},
    jwk::Wanted,
    keywrap,
    material::{Material, Wrapping},
    message::decode,
    operation::Operation,
    state::{Kind, State, Version},
};

/// Some HSMs fill a private key up to a multiple of 8 before they wrap it.
const FILL_MAX: usize = 7;

fn bad(what: &str) -> Refusal {
    errors::bad_parameter(format!("The transfer package is not valid: {what}"))
}

/// The key in a package. `host` is this vault as the client named it.
pub fn open(
    package: &str,
    wanted: Wanted,
    state: &State,
    host: &str,
    kind: Kind,
) -> Result<Material, Refusal> {
    if !wanted.hsm {
        return Err(bad("its key must be of a type that ends in -HSM"));
    }
    if !wanted.rsa && kind != Kind::ManagedHsm {
        return Err(bad("only a Managed HSM takes symmetric keys"));
    }
    let file = decode(package).ok_or_else(|| errors::not_base64url("key_hsm"))?;
    let file: Value = serde_json::from_slice(&file).map_err(|_| bad("it is no JSON"))?;
    let header = &file["header"];
    for (field, value, expected) in [
        ("schema_version", &file["schema_version"], "1.0.0"),
        ("alg", &header["alg"], "dir"),
        ("enc", &header["enc"], "CKM_RSA_AES_KEY_WRAP"),
    ] {
        if value.as_str() != Some(expected) {
            return Err(bad(&format!("{field} is not {expected}")));
        }
    }
    let kek = exchange_key(header["kid"].as_str().unwrap_or_default(), state, host)?;
    let ciphertext = decode(file["ciphertext"].as_str().unwrap_or_default())
        .ok_or_else(|| errors::not_base64url("ciphertext"))?;
    let (wrapped_aes, wrapped_key) = ciphertext
        .split_at_checked(kek.material.bits() / 8)
        .ok_or_else(|| bad("its ciphertext is too short"))?;
    let aes = kek
        .material
        .unwrap(Wrapping::Oaep, wrapped_aes)
        .ok()
        .filter(|aes| matches!(aes.len(), 16 | 24 | 32))
        .ok_or_else(|| bad("the exchange key does not decrypt it"))?;
    let key = keywrap::unwrap_padded(&aes, wrapped_key)
        .ok_or_else(|| bad("its AES key does not unwrap it"))?;
    let material = match wanted.rsa {
        true => without_fill(&key).and_then(Material::from_pkcs8),
        false => Material::from_oct(&key),
    };
    material.ok_or_else(|| bad("what is in it is no key of this type"))
}

/// The exchange key that a package names: of this vault, with its version, made for this.
fn exchange_key<'a>(kid: &str, state: &'a State, host: &str) -> Result<&'a Version, Refusal> {
    let (name, id) = kid
        .strip_prefix(&format!("https://{host}/keys/"))
        .and_then(|rest| rest.split_once('/'))
        .filter(|(_, id)| !id.is_empty())
        .ok_or_else(|| bad("kid names no version of a key in this vault"))?;
    let version = state
        .key(name)
        .and_then(|key| key.version(id))
        .ok_or_else(|| errors::key_not_found(&format!("{name}/{id}")))?;
    if !version.enabled {
        return Err(errors::key_disabled(Operation::Import));
    }
    if !version.hsm || version.ops != ["import"] {
        return Err(errors::operation_forbidden(Operation::Import));
    }
    Ok(version)
}

/// DER without the zeros that an HSM may have put behind it. `None` for anything else
/// behind it.
fn without_fill(der: &[u8]) -> Option<&[u8]> {
    // A sequence whose length takes two bytes, as that of every RSA key here.
    let [0x30, 0x82, high, low, ..] = der else { return None };
    let end = 4 + usize::from(u16::from_be_bytes([*high, *low]));
    let (key, fill) = der.split_at_checked(end)?;
    (fill.len() <= FILL_MAX && fill.iter().all(|byte| *byte == 0)).then_some(key)
}
