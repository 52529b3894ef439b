//! The versions of keys: which there are, what they are, and how they stand.
//!
//! What a version is made of never changes, so it is read once and remembered by its name:
//! for RSA the public half, for AES a check value that the HSM makes. What may change
//! (enabled, dates) comes with every list. So to see how a key with 25 versions stands
//! costs one request.
//!
//! Invariant: a fingerprint of what was not seen is the fingerprint of nothing else, and
//! stands only for versions that cannot be used.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use aws_lc_rs::digest;
use azure_security_keyvault_keys::models::{JsonWebKey, KeyType};
use tracing::warn;

use super::{
    algorithm::{self, in_azure},
    client::{Attributes, Client, Listed},
    settings::Service,
    vault::is_key_name,
};
use crate::{
    backend::KeyDescription,
    error::{Error, Reason},
    kek::{Algorithm, Assurance, Fingerprint, KeyRef, PublicKey, Validity, VersionId, VersionInfo},
    secret::Secret,
};

/// Most versions that are remembered; a bound that no configuration reaches.
const REMEMBERED_MAX: usize = 4096;

/// What a version is made of.
#[derive(Clone, Debug)]
pub(super) struct Material {
    kind: KeyType,
    pub(super) bits: u32,
    pub(super) fingerprint: Fingerprint,
    public_key: Option<PublicKey>,
    /// What it might be used for when it was read, for people: that may change.
    usage: Vec<&'static str>,
}

impl Material {
    pub(super) fn in_hsm(&self) -> bool {
        algorithm::in_hsm(&self.kind)
    }

    fn fits(&self, wanted: Algorithm) -> bool {
        algorithm::fits(&self.kind, wanted)
            && wanted.aes_bits().is_none_or(|bits| bits == self.bits)
    }
}

/// A version, and what may be done with it as the vault lists it.
pub(super) struct Found {
    pub(super) info: VersionInfo,
    /// `None` if it could not be read, and cannot be used.
    pub(super) material: Option<Material>,
}

/// What is known of the versions of one vault.
pub(super) struct Keys {
    service: Service,
    known: Mutex<HashMap<(String, VersionId), Material>>,
}

impl Keys {
    pub(super) fn new(service: Service) -> Self {
        Self { service, known: Mutex::default() }
    }

    /// What is remembered of a version.
    pub(super) fn remembered(&self, name: &str, version: &VersionId) -> Option<Material> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&(name.to_owned(), version.clone())).cloned()
    }

    /// Every version of a key.
    pub(super) async fn versions(
        &self,
        client: &Client,
        key: &KeyRef,
        deadline: Instant,
    ) -> Result<Vec<Found>, Error> {
        check_name(&key.label)?;
        let mut listed = client.versions(&key.label, deadline).await?;
        self.settle_ties(client, &key.label, &mut listed, deadline).await?;
        let mut found = Vec::with_capacity(listed.len());
        let mut unusable = None;
        for Listed { version, attributes, .. } in listed {
            let Some(version) = version else { continue };
            if key.pinned.as_ref().is_some_and(|pinned| *pinned != version) {
                continue;
            }
            match self.read(client, &key.label, &version, &attributes, deadline).await {
                Ok(material) => {
                    found.push(self.found(key, version, attributes, material));
                }
                // One key that is none must not hide the others. Anything else may pass.
                Err(error) if error.reason() == Reason::BackendMisconfigured => {
                    warn!(key = %key, version = %version, "a version is passed over: {error}");
                    unusable.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        match unusable {
            Some(error) if found.is_empty() => Err(error),
            _ => Ok(found),
        }
    }

    /// What a version is made of; `None` if it cannot be used now, nor read.
    async fn read(
        &self,
        client: &Client,
        name: &str,
        version: &VersionId,
        attributes: &Attributes,
        deadline: Instant,
    ) -> Result<Option<Material>, Error> {
        match self.material(client, name, version, deadline).await {
            Ok(material) => Ok(Some(material)),
            // What is disabled or out of date does not let its check value be made, or
            // does not even show itself. It is there all the same, and may be the newest.
            Err(error)
                if !is_usable(attributes, SystemTime::now())
                    && matches!(error.reason(), Reason::KekDisabled | Reason::KekRevoked) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// What a version is made of, remembered or read.
    pub(super) async fn material(
        &self,
        client: &Client,
        name: &str,
        version: &VersionId,
        deadline: Instant,
    ) -> Result<Material, Error> {
        if let Some(material) = self.remembered(name, version) {
            return Ok(material);
        }
        let (_, key) = client.get(name, Some(version), deadline).await?;
        let jwk = key.key.unwrap_or_default();
        let material = match jwk.kty.clone() {
            Some(kind @ (KeyType::Rsa | KeyType::RsaHsm)) => rsa(kind, &jwk, usage(&jwk))?,
            Some(kind @ (KeyType::Oct | KeyType::OctHsm))
                if self.service == Service::ManagedHsm =>
            {
                let (bits, fingerprint) = check_value(client, name, version, deadline).await?;
                Material { kind, bits, fingerprint, public_key: None, usage: usage(&jwk) }
            }
            _ => return Err(not_a_kek("it is neither an RSA key nor an AES key of a managed HSM")),
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED_MAX {
            known.clear();
        }
        known.insert((name.to_owned(), version.clone()), material.clone());
        Ok(material)
    }

    /// The vault tells when a version was made in whole seconds. Of two newest of one
    /// second, the newer is the one that it gives to who asks for none in particular.
    async fn settle_ties(
        &self,
        client: &Client,
        name: &str,
        listed: &mut [Listed],
        deadline: Instant,
    ) -> Result<(), Error> {
        let newest = listed.iter().map(|found| found.attributes.created).max().flatten();
        let ties = listed.iter().filter(|found| found.attributes.created == newest).count();
        if newest.is_none() || ties < 2 {
            return Ok(());
        }
        let (latest, _) = client.get(name, None, deadline).await?;
        for found in listed {
            if found.version.as_ref() == Some(&latest) && found.attributes.created == newest {
                let made = &mut found.attributes.created;
                *made = made.map(|made| made + Duration::from_millis(1));
            }
        }
        Ok(())
    }

    fn found(
        &self,
        key: &KeyRef,
        id: VersionId,
        attributes: Attributes,
        material: Option<Material>,
    ) -> Found {
        let in_hsm = material.as_ref().is_some_and(Material::in_hsm);
        let info = VersionInfo {
            key: key.clone(),
            bits: material.as_ref().map_or(0, |material| material.bits),
            fingerprint: material
                .as_ref()
                .map_or_else(|| unseen(&key.label, &id), |material| material.fingerprint),
            public_key: material.as_ref().and_then(|material| material.public_key.clone()),
            id,
            validity: Validity { not_before: attributes.not_before, not_after: attributes.expires },
            created: attributes.created,
            enabled: attributes.enabled,
            assurance: Assurance {
                device: device(self.service, in_hsm, attributes.platform.as_deref()),
                sensitive: true,
                extractable: attributes.exportable,
                recovery: Some(attributes.recovery),
                // A vault tells nothing of where a key was before.
                ..Assurance::default()
            },
        };
        Found { info, material }
    }
}

impl Found {
    /// Whether `algorithm` could work with it. What could not be read might.
    pub(super) fn fits(&self, algorithm: Algorithm) -> bool {
        self.material.as_ref().is_none_or(|material| material.fits(algorithm))
    }

    /// As an officer sees it.
    pub(super) fn describe(self) -> KeyDescription {
        let kind = match &self.material {
            Some(Material { public_key: Some(_), .. }) => "rsa",
            Some(_) => "aes",
            None => "-",
        };
        let usage = self.material.map(|material| material.usage).unwrap_or_default();
        KeyDescription { kind, info: self.info, usage, destroy_after: None }
    }
}

/// Names go into requests as they are.
pub(super) fn check_name(name: &str) -> Result<(), Error> {
    if is_key_name(name) {
        return Ok(());
    }
    Err(Error::new(Reason::KekNotFound, "a vault has no key of such a name")
        .with_fix("keys in a vault are called by 1 to 127 of 0-9 A-Z a-z -"))
}

fn is_usable(attributes: &Attributes, now: SystemTime) -> bool {
    attributes.enabled
        && attributes.not_before.is_none_or(|start| now >= start)
        && attributes.expires.is_none_or(|end| now < end)
}

fn not_a_kek(why: &str) -> Error {
    Error::new(Reason::BackendMisconfigured, format!("the key cannot be a KEK: {why}"))
        .with_fix("use an RSA key of 2048, 3072 or 4096 bits, or an AES key of a managed HSM")
}

/// The operations of a key, by the names that they have in PKCS#11.
fn usage(jwk: &JsonWebKey) -> Vec<&'static str> {
    let named = [
        ("encrypt", "ENCRYPT"),
        ("decrypt", "DECRYPT"),
        ("wrapKey", "WRAP"),
        ("unwrapKey", "UNWRAP"),
    ];
    let has = |operation| jwk.key_ops.iter().flatten().any(|one| one == operation);
    named.into_iter().filter(|(operation, _)| has(*operation)).map(|(_, name)| name).collect()
}

fn rsa(kind: KeyType, jwk: &JsonWebKey, usage: Vec<&'static str>) -> Result<Material, Error> {
    let (Some(modulus), Some(exponent)) = (&jwk.n, &jwk.e) else {
        return Err(not_a_kek("the vault does not tell its public half"));
    };
    let public = PublicKey::from_components(modulus, exponent)?;
    Ok(Material {
        kind,
        bits: public.bits(),
        fingerprint: public.fingerprint(),
        public_key: Some(public),
        usage,
    })
}

/// Identifies an AES key, without its value, and finds its size, which no HSM tells: the
/// SHA-256 of what it makes of sixteen zero octets by RFC 3394. The same key in a PKCS#11
/// token has the same.
async fn check_value(
    client: &Client,
    name: &str,
    version: &VersionId,
    deadline: Instant,
) -> Result<(u32, Fingerprint), Error> {
    let zeros = Secret::zeroed(16);
    let mut refused = None;
    for algorithm in [Algorithm::A256Kw, Algorithm::A128Kw, Algorithm::A192Kw] {
        let (Some(named), Some(bits)) =
            (in_azure(algorithm, Service::ManagedHsm), algorithm.aes_bits())
        else {
            continue;
        };
        match client.wrap(name, version, named, &zeros, deadline).await {
            Ok(wrapped) => {
                let parts = [
                    &b"keyward/v1 check value\0"[..],
                    algorithm.name().as_bytes(),
                    b"\0",
                    &wrapped,
                ];
                return Ok((bits, sha256(&parts)));
            }
            // What it says to the algorithm of another size.
            Err(error) if error.reason() == Reason::BackendMisconfigured => refused = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(refused.unwrap_or_else(|| not_a_kek("it wraps nothing")))
}

/// Stands for material that was not seen.
fn unseen(name: &str, version: &VersionId) -> Fingerprint {
    sha256(&[b"keyward/v1 unseen\0", name.as_bytes(), b"\0", version.as_str().as_bytes()])
}

fn sha256(parts: &[&[u8]]) -> Fingerprint {
    let mut context = digest::Context::new(&digest::SHA256);
    parts.iter().for_each(|part| context.update(part));
    Fingerprint::parse(context.finish().as_ref()).expect("SHA-256 gives 32 bytes")
}

fn device(service: Service, in_hsm: bool, platform: Option<&str>) -> String {
    let kept = match (service, in_hsm) {
        (Service::ManagedHsm, _) => "Azure Key Vault Managed HSM",
        (Service::KeyVault, true) => "Azure Key Vault (HSM)",
        (Service::KeyVault, false) => "Azure Key Vault (software)",
    };
    match platform {
        Some(platform) => format!("{kept}, hsmPlatform {platform}"),
        None => kept.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_counts_as_usable_only_within_its_dates_and_enabled() {
        let at = |secs| SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
        let attributes = Attributes {
            enabled: true,
            not_before: Some(at(10)),
            expires: Some(at(20)),
            ..Attributes::default()
        };
        for (secs, usable) in [(9, false), (10, true), (19, true), (20, false)] {
            assert_eq!(is_usable(&attributes, at(secs)), usable, "{secs}");
        }
        assert!(!is_usable(&Attributes { enabled: false, ..attributes }, at(15)));
        assert!(!is_usable(&Attributes::default(), at(15)), "what is not told is not assumed");
    }

    #[test]
    fn what_was_not_seen_is_like_nothing_else() {
        let version = |text| VersionId::parse(text).unwrap();
        let one = unseen("a", &version("1"));
        assert_eq!(one, unseen("a", &version("1")));
        assert_ne!(one, unseen("a", &version("2")));
        assert_ne!(one, unseen("b", &version("1")));
    }
}
