//! Keyward's algorithms in Azure's words, and which service and key can do which.
//!
//! Pure. RSA1_5, which vaults offer, has no name here.

use azure_security_keyvault_keys::models::{EncryptionAlgorithm, KeyType};

use super::settings::Service;
use crate::kek::{Algorithm, Family};

/// What `algorithm` is called in a request; `None` if the service does not do it.
pub(super) fn in_azure(algorithm: Algorithm, service: Service) -> Option<EncryptionAlgorithm> {
    // AES keys in a vault are a preview.
    let hsm = service == Service::ManagedHsm;
    match algorithm {
        Algorithm::RsaOaep => Some(EncryptionAlgorithm::RsaOaep),
        Algorithm::RsaOaep256 => Some(EncryptionAlgorithm::RsaOaep256),
        Algorithm::RsaOaep384 | Algorithm::RsaOaep512 => None,
        Algorithm::A128Kw => hsm.then_some(EncryptionAlgorithm::A128Kw),
        Algorithm::A192Kw => hsm.then_some(EncryptionAlgorithm::A192Kw),
        Algorithm::A256Kw => hsm.then_some(EncryptionAlgorithm::A256Kw),
        Algorithm::A256Kwp => hsm.then_some(EncryptionAlgorithm::CkmAesKeyWrapPad),
    }
}

/// What an operator should set instead of an algorithm that the service does not do.
pub(super) fn fix(service: Service) -> &'static str {
    match service {
        Service::KeyVault => {
            "set `algorithm = \"RSA-OAEP-256\"` for this KEK: a key vault does RSA-OAEP and RSA-OAEP-256"
        }
        Service::ManagedHsm => {
            "set `algorithm = \"RSA-OAEP-256\"` for this KEK (or RSA-OAEP, or for AES keys A128KW, A192KW, A256KW or A256KWP)"
        }
    }
}

/// Whether keys of this type are kept in an HSM.
pub(super) fn in_hsm(kind: &KeyType) -> bool {
    matches!(kind, KeyType::RsaHsm | KeyType::OctHsm | KeyType::EcHsm)
}

/// Whether keys of this type are those that `algorithm` works with.
pub(super) fn fits(kind: &KeyType, algorithm: Algorithm) -> bool {
    match algorithm.family() {
        Family::Rsa(_) => matches!(kind, KeyType::Rsa | KeyType::RsaHsm),
        Family::Aes => matches!(kind, KeyType::Oct | KeyType::OctHsm),
    }
}

/// What an operation counts for, in units of [`Service::quota`]: the documented limits of
/// each key size, in proportion.
pub(super) fn units(service: Service, bits: u32, in_hsm: bool) -> u32 {
    match (service, bits) {
        // Of 4000 operations with a software RSA-2048 key in 10 s.
        (Service::KeyVault, bits) => {
            let units = match bits {
                0..=2048 => 1,
                2049..=3072 => 4,
                _ => 8,
            };
            if in_hsm { 2 * units } else { units }
        }
        // Of 1800 operations with an AES key in 1 s.
        (Service::ManagedHsm, 0..=256) => 1,
        (Service::ManagedHsm, 257..=2048) => 2,
        (Service::ManagedHsm, 2049..=3072) => 5,
        (Service::ManagedHsm, _) => 12,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_service_does_it_does_under_its_own_name() {
        use Service::{KeyVault, ManagedHsm};
        for (algorithm, service, name) in [
            (Algorithm::RsaOaep, KeyVault, Some("RSA-OAEP")),
            (Algorithm::RsaOaep256, KeyVault, Some("RSA-OAEP-256")),
            (Algorithm::RsaOaep384, KeyVault, None),
            (Algorithm::RsaOaep512, ManagedHsm, None),
            (Algorithm::A256Kw, KeyVault, None),
            (Algorithm::A128Kw, ManagedHsm, Some("A128KW")),
            (Algorithm::A192Kw, ManagedHsm, Some("A192KW")),
            (Algorithm::A256Kw, ManagedHsm, Some("A256KW")),
            (Algorithm::A256Kwp, ManagedHsm, Some("CKM_AES_KEY_WRAP_PAD")),
        ] {
            let found = in_azure(algorithm, service);
            assert_eq!(found.as_ref().map(|found| found.as_ref()), name, "{algorithm}");
        }
    }

    /// The arithmetic of the documented limits, per 10 s and vault.
    #[test]
    fn units_are_in_the_proportion_of_the_limits() {
        for (bits, in_hsm, limit) in [
            (2048, true, 2000),
            (3072, true, 500),
            (4096, true, 250),
            (2048, false, 4000),
            (3072, false, 1000),
            (4096, false, 500),
        ] {
            assert_eq!(units(Service::KeyVault, bits, in_hsm) * limit, 4000, "{bits} {in_hsm}");
        }
        // Rounded to whole units, never so that more would be allowed than is documented.
        for (bits, limit) in [(256, 1800), (2048, 1100), (3072, 360), (4096, 160)] {
            assert!(1800 / units(Service::ManagedHsm, bits, true) <= limit, "{bits}");
        }
    }
}
