//! `[[kek]]`: what callers may name, and the key behind each name.

use super::{
    fields::Fields,
    mistake::{Wrong, did_you_mean, quoted},
    schema,
};
use crate::kek::{Algorithm, KekName, KeyRef};

/// A KEK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KekConfig {
    /// What callers call it. No two have the same.
    pub name: KekName,
    /// The name of a configured backend.
    pub backend: String,
    /// What the backend calls it.
    pub key: KeyRef,
    /// What new DEKs are wrapped with.
    pub algorithm: Algorithm,
}

/// Reads every KEK. `backends` are the names that the file gives to backends, whether
/// or not they were read without a mistake: one mistake should not be told twice.
pub(super) fn read(entries: &[Fields<'_>], backends: &[&str]) -> Option<Vec<KekConfig>> {
    let mut names: Vec<KekName> = Vec::new();
    let mut keks = Vec::with_capacity(entries.len());
    for fields in entries {
        let name = fields.parsed(&schema::NAME, |text| {
            KekName::parse(text).ok_or_else(|| {
                Wrong::new(
                    format!("{} is not a name for a KEK", quoted(text)),
                    "choose 1 to 64 of a-z A-Z 0-9 . _ -, starting with a letter or a digit",
                )
            })
        });
        if let Some(name) = &name {
            if names.contains(name) {
                let wrong = Wrong::new(
                    format!("another KEK is called {name} too"),
                    "choose another name; versions of one KEK are found by themselves",
                );
                fields.refuse(&schema::NAME, wrong);
            }
            names.push(name.clone());
        }
        keks.push(read_one(fields, name, backends));
    }
    keks.into_iter().collect()
}

fn read_one(fields: &Fields<'_>, name: Option<KekName>, backends: &[&str]) -> Option<KekConfig> {
    let backend = fields.parsed(&schema::KEK_BACKEND, |text| {
        if backends.contains(&text) {
            return Ok(text.to_owned());
        }
        let fix = match (did_you_mean(text, backends.iter().copied()), backends) {
            (Some(near), _) => format!("did you mean {near}?"),
            (None, []) => "add a [backend.NAME] section".to_owned(),
            (None, _) => format!("use one of: {}", backends.join(", ")),
        };
        Err(Wrong::new(format!("there is no backend {}", quoted(text)), fix))
    });
    let key = fields.parsed(&schema::KEY, parse_key);
    let algorithm = fields.parsed(&schema::ALGORITHM, parse_algorithm);
    let mode = fields.parsed(&schema::MODE, parse_mode);
    let name = name?;
    let key = match fields.given(&schema::KEY) {
        true => key?,
        false => KeyRef { label: name.as_str().into(), pinned: None },
    };
    mode?;
    Some(KekConfig { name, backend: backend?, key, algorithm: algorithm? })
}

fn parse_key(text: &str) -> Result<KeyRef, Wrong> {
    KeyRef::parse(text).ok_or_else(|| {
        Wrong::new(
            format!("{} is neither a label nor label/version", quoted(text)),
            format!("write the key's label, at most {} bytes", KeyRef::LABEL_MAX),
        )
    })
}

/// Parses the name of an algorithm.
pub(super) fn parse_algorithm(text: &str) -> Result<Algorithm, Wrong> {
    if let Some(algorithm) = Algorithm::from_name(text) {
        return Ok(algorithm);
    }
    if matches!(text.to_ascii_uppercase().as_str(), "RSA1_5" | "RSA-PKCS1-V1_5" | "RSA-PKCS") {
        return Err(Wrong::new(
            "RSA PKCS#1 v1.5 padding can be probed for plaintexts (Bleichenbacher), and some \
             tokens answer a bad ciphertext with random bytes: Keyward does not use it",
            "use RSA-OAEP-256; the same key can do both",
        ));
    }
    let names: Vec<_> = Algorithm::ALL.iter().map(|algorithm| algorithm.name()).collect();
    let fix = match did_you_mean(text, names.iter().copied()) {
        Some(near) => format!("did you mean {near}? Known are {}", names.join(", ")),
        None => format!("use one of: {}", names.join(", ")),
    };
    Err(Wrong::new(format!("{} is no algorithm", quoted(text)), fix))
}

fn parse_mode(text: &str) -> Result<(), Wrong> {
    match text {
        "customer-managed" => Ok(()),
        "service-managed" => Err(Wrong::new(
            "service-managed keys are not in this release",
            r#"use mode = "customer-managed" and create the key with `keyward key create`"#,
        )),
        _ => Err(Wrong::new(
            format!("{} is no mode", quoted(text)),
            r#"use mode = "customer-managed""#,
        )),
    }
}
