//! `[[kek]]`: what callers may name, and the key behind each name.

use super::{
    BackendConfig,
    fields::Fields,
    mistake::{Wrong, did_you_mean, quoted},
    schema,
};
use crate::{
    backend::keyvault::is_key_name,
    kek::{Algorithm, KekName, KeyRef, Mode, NewestDisabled, ServiceRules},
};

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
    /// What it means that its newest version is disabled.
    pub newest_disabled: NewestDisabled,
    /// Who owns it.
    pub mode: Mode,
}

/// Reads every KEK. `backends` are the names that the file gives to backends, whether
/// or not they were read without a mistake: one mistake should not be told twice. `known`
/// are those that were.
pub(super) fn read(
    entries: &[Fields<'_>],
    backends: &[&str],
    known: &[&BackendConfig],
) -> Option<Vec<KekConfig>> {
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
        let kek = read_one(fields, name, backends);
        let keeper =
            kek.as_ref().and_then(|kek| known.iter().find(|backend| backend.name() == kek.backend));
        if let (Some(kek), Some(keeper)) = (&kek, keeper) {
            check_fit(fields, kek, keeper);
        }
        keks.push(kek);
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
    let mode = read_mode(fields);
    let newest_disabled = fields.parsed(&schema::NEWEST_DISABLED, parse_newest_disabled);
    let name = name?;
    let key = match fields.given(&schema::KEY) {
        true => key?,
        false => KeyRef { label: name.as_str().into(), pinned: None },
    };
    let mode = mode?;
    if key.pinned.is_some() && mode.rules().is_some() {
        let wrong =
            Wrong::new("a KEK that is rotated has no version of its own", "name the key alone");
        fields.refuse(&schema::KEY, wrong);
    }
    let (algorithm, newest_disabled) = (algorithm?, newest_disabled?);
    Some(KekConfig { name, backend: backend?, key, algorithm, newest_disabled, mode })
}

/// Notes what the KEK asks for that its backend cannot give.
fn check_fit(fields: &Fields<'_>, kek: &KekConfig, keeper: &BackendConfig) {
    let refuse = |what: String, fix: &str| {
        fields.refuse(&schema::ALGORITHM, Wrong::new(what, fix));
    };
    let algorithm = kek.algorithm;
    match keeper {
        BackendConfig::Pkcs11(_) if algorithm.aes_bits().is_some_and(|bits| bits != 256) => {
            refuse(
                format!(
                    "{algorithm} is for managed HSMs: a PKCS#11 backend does AES with 256 bits"
                ),
                "use A256KW or A256KWP, or an RSA key",
            );
        }
        BackendConfig::Pkcs11(_) => {}
        BackendConfig::KeyVault(settings) => {
            let service = settings.service;
            if !service.does(algorithm) {
                let names = Algorithm::ALL.into_iter().filter(|one| service.does(*one));
                let names: Vec<_> = names.map(Algorithm::name).collect();
                let fix = format!("use one of: {}", names.join(", "));
                refuse(format!("a {} does not do {algorithm}", service.as_str()), &fix);
            }
            if !is_key_name(&kek.key.label) {
                let at = if fields.given(&schema::KEY) { &schema::KEY } else { &schema::NAME };
                fields.refuse(
                    at,
                    Wrong::new(
                        format!("{} is not a name for a key in a vault", quoted(&kek.key.label)),
                        "set key to the key's name: 1 to 127 of 0-9 A-Z a-z -",
                    ),
                );
            }
        }
    }
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

fn parse_newest_disabled(text: &str) -> Result<NewestDisabled, Wrong> {
    match text {
        "revokes" => Ok(NewestDisabled::Revokes),
        "stops-wraps" => Ok(NewestDisabled::StopsWraps),
        _ => Err(Wrong::new(
            format!("{} is not what a disabled version can mean", quoted(text)),
            r#"use "revokes" or "stops-wraps""#,
        )),
    }
}

/// Who owns the KEK, and by what rules.
fn read_mode(fields: &Fields<'_>) -> Option<Mode> {
    let is_service = fields.parsed(&schema::MODE, |text| match text {
        "customer-managed" => Ok(false),
        "service-managed" => Ok(true),
        _ => Err(Wrong::new(
            format!("{} is no mode", quoted(text)),
            r#"use "customer-managed" or "service-managed""#,
        )),
    });
    let rsa_bits = fields.number(&schema::RSA_BITS);
    if rsa_bits.is_some_and(|bits| ![2048, 3072, 4096].contains(&bits)) {
        let wrong = Wrong::new("no RSA key of that size is made", "choose 2048, 3072 or 4096");
        fields.refuse(&schema::RSA_BITS, wrong);
    }
    let rotate_every = fields.duration(&schema::ROTATE_EVERY);
    let [expire_after, retire_quiet] =
        [&schema::EXPIRE_AFTER, &schema::RETIRE_QUIET].map(|key| match fields.given(key) {
            true => fields.duration(key).map(Some),
            false => Some(None),
        });
    if !is_service? {
        let given = schema::OF_SERVICE.iter().filter(|key| fields.given(key));
        given.for_each(|key| {
            let what = "this is for service-managed KEKs: a customer's is left as it is";
            fields.refuse(key, Wrong::new(what, "remove it"));
        });
        return Some(Mode::CustomerManaged);
    }
    let (rotate_every, expire_after) = (rotate_every?, expire_after?);
    if expire_after.is_some_and(|expire_after| expire_after <= rotate_every) {
        let what = "a version would end before the next one is current";
        let fix = "choose a longer time than rotate_every";
        fields.refuse(&schema::EXPIRE_AFTER, Wrong::new(what, fix));
    }
    Some(Mode::ServiceManaged(ServiceRules {
        rsa_bits: u32::try_from(rsa_bits?).ok()?,
        rotate_every,
        expire_after,
        retire_quiet: retire_quiet?,
    }))
}
