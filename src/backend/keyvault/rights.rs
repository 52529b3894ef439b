//! The rights of an identity in a vault, each tried by using it.

use std::time::Instant;

use async_trait::async_trait;

use super::{KeyVaultBackend, settings::Service as Kind};
use crate::{
    backend::{Right, Service},
    error::{Error, Reason},
    kek::{Algorithm, Family, KeyRef, PublicKey, VersionId},
    secret::Secret,
};

#[async_trait]
impl Service for KeyVaultBackend {
    async fn try_rights(
        &self,
        key: &KeyRef,
        algorithm: Algorithm,
        deadline: Instant,
    ) -> Vec<Right> {
        let name = &*key.label;
        let listed = self.client.versions(name, deadline).await.map(|_| ());
        let mut rights = vec![self.right("list", listed)];
        let got = self.client.get(name, key.pinned.as_ref(), deadline).await;
        let (version, jwk) = match got {
            Ok((version, key)) => (version, key.key.unwrap_or_default()),
            Err(error) => {
                rights.push(self.right("get", Err(error)));
                return rights;
            }
        };
        rights.push(self.right("get", Ok(())));
        let payload = Secret::zeroed(32);
        let wrapped = self.wrap_with(name, &version, algorithm, &payload, deadline).await;
        let local = match (algorithm.family(), &jwk.n, &jwk.e) {
            (Family::Rsa(hash), Some(n), Some(e)) => PublicKey::from_components(n, e)
                .and_then(|public| public.encrypt(hash, &payload))
                .ok(),
            _ => None,
        };
        let ciphertext = local.or_else(|| wrapped.as_ref().ok().cloned());
        rights.push(self.right("wrapKey", wrapped.map(|_| ())));
        let unwrapped = match ciphertext {
            Some(ciphertext) => {
                self.unwrap_with(name, &version, algorithm, &ciphertext, deadline).await
            }
            None => Err(Error::new(Reason::KekUnproven, "there was nothing wrapped to try it on")),
        };
        rights.push(self.right("unwrapKey", unwrapped));
        rights
    }

    fn clock_ahead(&self) -> Option<i64> {
        self.client.clock_ahead()
    }
}

impl KeyVaultBackend {
    fn right(&self, name: &'static str, outcome: Result<(), Error>) -> Right {
        let role = match self.service {
            Kind::KeyVault => "Key Vault Crypto Service Encryption User",
            Kind::ManagedHsm => "Managed HSM Crypto Service Encryption User",
        };
        let outcome = outcome.map_err(|error| match error.reason() {
            Reason::KekRevoked => error.with_fix(format!(
                "give the identity the role {role} on the key, or the permission {name} in the \
                 vault's access policy; if it has that, see the vault's firewall"
            )),
            _ => error,
        });
        Right { name, outcome }
    }

    async fn wrap_with(
        &self,
        name: &str,
        version: &VersionId,
        algorithm: Algorithm,
        payload: &Secret,
        deadline: Instant,
    ) -> Result<Vec<u8>, Error> {
        let named = self.named(algorithm)?;
        self.client.wrap(name, version, named, payload, deadline).await
    }

    async fn unwrap_with(
        &self,
        name: &str,
        version: &VersionId,
        algorithm: Algorithm,
        ciphertext: &[u8],
        deadline: Instant,
    ) -> Result<(), Error> {
        let named = self.named(algorithm)?;
        let unwrapped = self.client.unwrap(name, version, named, ciphertext, false, deadline).await;
        unwrapped.map(|_| ()).map_err(Error::from)
    }
}
