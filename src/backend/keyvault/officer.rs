//! Security officers' work in a vault. Keys are deleted whole, as the vault does it, and never
//! purged from here.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use azure_security_keyvault_keys::models::KeyType;
use tokio::time::sleep;

use super::{
    KeyVaultBackend,
    keys::{Found, check_name},
    settings::Service,
};
use crate::{
    backend::{Deleted, KeyDescription, KeyKind, NewKey, Officer, Remover, Whole},
    error::{Error, Reason},
    kek::KeyRef,
};

/// How long until a key is looked for again that was recovered.
const AGAIN: Duration = Duration::from_secs(1);

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
        self.client.create(&key.label, kind, bits, deadline).await.map_err(|error| match error
            .reason()
        {
            Reason::BackendMisconfigured => error.with_fix(
                "see whether the vault is a premium one: Keyward creates keys in HSMs only",
            ),
            _ => self.for_officers(error, "create"),
        })?;
        self.newest(&key.label, deadline).await
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
            listed.extend(found.into_iter().map(Found::describe));
        }
        listed.sort_by(|a, b| {
            a.info.key.label.cmp(&b.info.key.label).then_with(|| b.info.age_order(&a.info))
        });
        Ok(listed)
    }

    /// By the key's rotation policy, whose expiry the new version gets.
    async fn rotate(&self, label: &str, deadline: Instant) -> Result<KeyDescription, Error> {
        check_name(label)?;
        self.client.rotate(label, deadline).await.map_err(|error| match error.reason() {
            Reason::BackendMisconfigured => error.with_fix(
                "a managed HSM rotates keys that have a rotation policy: `az keyvault key rotation-policy update`",
            ),
            _ => self.for_officers(error, "rotate"),
        })?;
        self.newest(label, deadline).await
    }

    async fn set_enabled(
        &self,
        version: &KeyRef,
        enabled: bool,
        deadline: Instant,
    ) -> Result<(), Error> {
        let KeyRef { label, pinned } = version;
        check_name(label)?;
        let id = pinned
            .as_ref()
            .ok_or_else(|| Error::new(Reason::Internal, "an officer named no version"))?;
        let changed = self.client.set_enabled(label, id, enabled, deadline).await;
        changed.map_err(|error| self.for_officers(error, "update"))
    }

    fn remover(&self) -> Remover<'_> {
        Remover::Whole(self)
    }
}

#[async_trait]
impl Whole for KeyVaultBackend {
    async fn delete(&self, label: &str, deadline: Instant) -> Result<Deleted, Error> {
        check_name(label)?;
        let deleted = self.client.delete(label, deadline).await;
        deleted.map_err(|error| self.for_officers(error, "delete"))
    }

    async fn recover(&self, label: &str, deadline: Instant) -> Result<Vec<KeyDescription>, Error> {
        check_name(label)?;
        self.client.recover(label, deadline).await.map_err(|error| match error.reason() {
            Reason::KekNotFound => error.with_fix(
                "a key can be recovered until it is purged; `az keyvault key list-deleted` lists what can",
            ),
            _ => self.for_officers(error, "recover"),
        })?;
        // A vault takes a few seconds to have a recovered key back.
        loop {
            let listed = self.list(Some(label), deadline).await?;
            if !listed.is_empty() || Instant::now() + AGAIN >= deadline {
                return Ok(listed);
            }
            sleep(AGAIN).await;
        }
    }
}

impl KeyVaultBackend {
    async fn newest(&self, label: &str, deadline: Instant) -> Result<KeyDescription, Error> {
        let listed = self.list(Some(label), deadline).await?;
        listed.into_iter().next().ok_or_else(|| {
            Error::new(Reason::BackendMisconfigured, "the vault does not show the key that it made")
        })
    }

    /// What is refused to an identity of a sidecar, and allowed to an officer's.
    fn for_officers(&self, error: Error, what: &str) -> Error {
        let role = match self.service {
            Service::KeyVault => "Key Vault Crypto Officer",
            Service::ManagedHsm => "Managed HSM Crypto User",
        };
        match error.reason() {
            Reason::KekRevoked => error.with_fix(format!(
                "an officer's identity needs a role that may {what} keys, such as {role}"
            )),
            _ => error,
        }
    }
}
