//! Security officers' work in a vault: create and list keys.

use std::time::Instant;

use async_trait::async_trait;
use azure_security_keyvault_keys::models::KeyType;

use super::{
    KeyVaultBackend,
    keys::{Found, check_name},
    settings::Service,
};
use crate::{
    backend::{KeyDescription, KeyKind, NewKey, Officer},
    error::{Error, Reason},
    kek::KeyRef,
};

#[async_trait]
impl Officer for KeyVaultBackend {
    /// In an HSM: a premium vault's or a managed one.
    async fn create(&self, key: &NewKey, deadline: Instant) -> Result<KeyDescription, Error> {
        if check_name(&key.label).is_err() {
            return Err(Error::new(Reason::RequestInvalid, "not a name for a key in a vault")
                .with_fix("use 1 to 127 of 0-9 A-Z a-z -"));
        }
        let (kind, bits) = match (key.kind, self.service) {
            (KeyKind::Rsa(bits), _) => (KeyType::RsaHsm, bits),
            (KeyKind::Aes256, Service::ManagedHsm) => (KeyType::OctHsm, 256),
            (KeyKind::Aes256, Service::KeyVault) => {
                return Err(Error::new(Reason::RequestInvalid, "a key vault keeps no AES keys")
                    .with_fix("create an RSA key, or use a managed HSM"));
            }
        };
        match self.client.versions(&key.label, deadline).await {
            // A key without versions was never made.
            Ok(versions) if versions.is_empty() => {}
            Ok(_) => {
                return Err(Error::new(
                    Reason::RequestInvalid,
                    format!("the vault already has a key {}", key.label),
                )
                .with_fix("choose another name; `keyward key show` describes what is there"));
            }
            Err(error) if error.reason() == Reason::KekNotFound => {}
            Err(error) => return Err(error),
        }
        self.client.create(&key.label, kind, bits, deadline).await.map_err(|error| {
            match error.reason() {
                Reason::BackendMisconfigured => error.with_fix(
                    "see whether the vault is a premium one: Keyward creates keys in HSMs only",
                ),
                Reason::KekRevoked => error.with_fix(
                    "an officer's identity needs a role that may create keys, such as Key Vault Crypto Officer",
                ),
                _ => error,
            }
        })?;
        let listed = self.list(Some(&key.label), deadline).await?;
        listed.into_iter().next().ok_or_else(|| {
            Error::new(
                Reason::BackendMisconfigured,
                "the vault does not show the key that it created",
            )
        })
    }

    async fn list(
        &self,
        label: Option<&str>,
        deadline: Instant,
    ) -> Result<Vec<KeyDescription>, Error> {
        let names = match label {
            Some(label) => vec![label.to_owned()],
            None => {
                let keys = self.client.keys(deadline).await?;
                keys.into_iter().map(|listed| listed.name).collect()
            }
        };
        let mut listed = Vec::new();
        for name in names {
            let key = KeyRef { label: name.into(), pinned: None };
            let found = match self.keys.versions(&self.client, &key, deadline).await {
                Ok(found) => found,
                // One that is not there, was deleted since, or is no KEK, is not listed.
                Err(error)
                    if matches!(
                        error.reason(),
                        Reason::KekNotFound | Reason::BackendMisconfigured
                    ) =>
                {
                    continue;
                }
                Err(error) => return Err(error),
            };
            listed.extend(found.into_iter().filter_map(Found::describe));
        }
        listed.sort_by(|a, b| {
            a.info.key.label.cmp(&b.info.key.label).then_with(|| b.info.age_order(&a.info))
        });
        Ok(listed)
    }
}
