//! The backend for Azure Key Vault and Managed HSM, on Azure's own SDK.
//!
//! | file | what it knows |
//! |---|---|
//! | `settings`, `vault` | what an operator sets; names: vaults, audiences, keys, versions |
//! | `algorithm` | Azure's words for algorithms, and what an operation counts for |
//! | `error`, `fault` | the one table of HTTP errors; what goes wrong below HTTP |
//! | `transport/` | connections whose buffers are wiped; whom a request may go to |
//! | `identity/` | tokens: where they come from, and the one that is held |
//! | `client` | the one place that calls the SDK's client |
//! | `keys` | versions: what they are, how they stand |
//! | `officer` | creating and listing keys |
//!
//! RSA KEKs wrap in software, with the public key that is pinned with the version, unless
//! the setting `wrap` says otherwise. Everything else is done in the service, always with
//! the version named: a vault would take any other for the latest. A vault unwraps with
//! keys that have expired; Keyward does not (`kek::Version`).

mod algorithm;
mod client;
mod error;
mod fault;
mod identity;
mod keys;
mod officer;
mod rights;
mod settings;
mod transport;
mod vault;

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use async_trait::async_trait;
use azure_core::http::Url;
use azure_security_keyvault_keys::models::EncryptionAlgorithm;

#[doc(hidden)]
pub use error::read_and_judge;
pub use settings::{Identity, Service, Settings, UserAssigned, WrapAt};
pub use vault::{VaultUrl, is_key_name};

use self::{
    client::{Client, Trouble},
    fault::Fault,
    identity::{Source, keeper::Keeper},
    keys::Keys,
    transport::{Origin, Wire, tls},
};
use crate::{
    backend::{Backend, Ceiling, Officer, Room, Shared, judge::Judge},
    error::{Error, Reason},
    kek::{Algorithm, Family, KeyRef, UsableVersion, VersionInfo},
    secret::Secret,
};

/// How often the guard may attempt an operation.
const ATTEMPTS: u32 = 3;

/// How often in a row a vault must deny a key before it is believed: what was changed
/// reaches its replicas one after the other.
const DENIALS: u32 = 3;

/// A vault or a managed HSM.
pub struct KeyVaultBackend {
    name: String,
    service: Service,
    wrap: WrapAt,
    room: Room,
    client: Client,
    keys: Keys,
    judge: Judge,
}

impl KeyVaultBackend {
    /// Reads the authorities and sets everything up. Asks nobody anything yet. `Err` says
    /// what the operator must mend.
    pub fn open(settings: Settings) -> Result<Self, Error> {
        let Settings {
            name,
            service,
            vault,
            identity,
            authority,
            ca,
            wrap,
            connections,
            queue,
            ceiling_percent,
            fleet,
        } = settings;
        let tls = tls::client_config(ca.as_deref())?;
        check_authority(&authority)?;
        let origin = Origin { tls: true, host: vault.host().to_owned(), port: vault.port() };
        let wire = Arc::new(Wire::new(vec![origin], Arc::clone(&tls), connections));
        let source = Source { identity, authority, scope: vault.scope(), tls };
        let keeper = Keeper::new(vault.clone(), Arc::new(source));
        let quota = service.quota();
        let share = f64::from(ceiling_percent.clamp(1, 100)) / 100.0;
        let ceiling = Ceiling {
            per_second: quota.per_second * share,
            burst: (quota.burst * share).max(1.0),
            ..quota
        };
        Ok(Self {
            name,
            service,
            wrap,
            room: Room {
                at_once: connections,
                waiting: queue,
                attempts: ATTEMPTS,
                ceiling: Some(ceiling),
                shared: Some(Shared { sidecars: fleet, per_second: quota.per_second }),
                denials: DENIALS,
            },
            client: Client::new(vault, wire, keeper, connections, queue)?,
            keys: Keys::new(service),
            judge: Judge::default(),
        })
    }

    /// The service's name for an algorithm that it must do.
    fn named(&self, algorithm: Algorithm) -> Result<EncryptionAlgorithm, Error> {
        algorithm::in_azure(algorithm, self.service).ok_or_else(|| {
            Error::new(
                Reason::AlgorithmUnsupported,
                format!("a {} does not do {algorithm}", self.service.as_str()),
            )
        })
    }

    /// Makes sure that the vault's version is the one that `info` is about.
    async fn confirm(&self, info: &VersionInfo, deadline: Instant) -> Result<(), Error> {
        keys::check_name(&info.key.label)?;
        let material =
            self.keys.material(&self.client, &info.key.label, &info.id, deadline).await?;
        if material.fingerprint == info.fingerprint {
            return Ok(());
        }
        Err(Error::new(
            Reason::KekMismatch,
            format!("the vault has another key as version {} of {}", info.id, info.key.label),
        )
        .with_fix("restore the key that was there, or use the new version"))
    }

    /// Unwraps in the service.
    async fn unwrap_in_service(
        &self,
        info: &VersionInfo,
        algorithm: Algorithm,
        ciphertext: &[u8],
        of_caller: bool,
        deadline: Instant,
    ) -> Result<Secret, Trouble> {
        let named = self.named(algorithm)?;
        self.confirm(info, deadline).await?;
        let (name, id) = (&info.key.label, &info.id);
        let payload = self.client.unwrap(name, id, named, ciphertext, of_caller, deadline).await?;
        match is_possible_payload(algorithm, info.bits, ciphertext.len(), payload.len()) {
            true => Ok(payload),
            false => Err(Fault::Answer.into_error().into()),
        }
    }

    /// Wraps in the service.
    async fn wrap_in_service(
        &self,
        info: &VersionInfo,
        algorithm: Algorithm,
        payload: &Secret,
        deadline: Instant,
    ) -> Result<Vec<u8>, Error> {
        let named = self.named(algorithm)?;
        algorithm.check_payload_len(payload.len())?;
        self.confirm(info, deadline).await?;
        self.client.wrap(&info.key.label, &info.id, named, payload, deadline).await
    }
}

/// Tokens come from a host over https and nothing else: there go the secrets.
fn check_authority(authority: &str) -> Result<(), Error> {
    let url = Url::parse(authority).ok();
    let origin = url.as_ref().and_then(Origin::of).filter(|origin| origin.tls);
    match origin.is_some() && !authority.ends_with('/') {
        true => Ok(()),
        false => Err(Error::new(Reason::BackendMisconfigured, "`authority` is not https://HOST")
            .with_fix("write for example https://login.microsoftonline.com")),
    }
}

/// Whether a ciphertext has a length that the algorithm can have produced. Others need not
/// be sent anywhere.
fn has_possible_length(info: &VersionInfo, algorithm: Algorithm, len: usize) -> bool {
    match (algorithm.family(), &info.public_key) {
        (Family::Rsa(_), Some(public)) => len == public.bytes(),
        (Family::Rsa(_), None) => false,
        (Family::Aes, _) => len.is_multiple_of(8) && (24..=128).contains(&len),
    }
}

/// Whether a payload can be what was in the ciphertext. (A managed HSM was seen to turn
/// padding into zeros at the end.)
fn is_possible_payload(algorithm: Algorithm, bits: u32, ciphertext: usize, payload: usize) -> bool {
    match algorithm {
        Algorithm::A128Kw | Algorithm::A192Kw | Algorithm::A256Kw => payload + 8 == ciphertext,
        Algorithm::A256Kwp => {
            (ciphertext.saturating_sub(15)..=ciphertext.saturating_sub(8)).contains(&payload)
        }
        _ => payload < bits as usize / 8,
    }
}

#[async_trait]
impl Backend for KeyVaultBackend {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        self.service.as_str()
    }

    async fn versions(
        &self,
        key: &KeyRef,
        algorithm: Algorithm,
        deadline: Instant,
    ) -> Result<Vec<VersionInfo>, Error> {
        let found = self.keys.versions(&self.client, key, deadline).await?;
        let found: Vec<_> = found
            .into_iter()
            .filter(|found| found.fits(algorithm))
            .map(|found| found.info)
            .collect();
        match found.is_empty() {
            false => Ok(found),
            true => Err(Error::new(
                Reason::KekNotFound,
                format!("the vault has no key {key} for {algorithm}"),
            )
            .with_fix("`keyward key list` shows the keys in the vault")),
        }
    }

    async fn prove(
        &self,
        version: &VersionInfo,
        algorithm: Algorithm,
        deadline: Instant,
    ) -> Result<SystemTime, Error> {
        if let Err(error) = self.named(algorithm) {
            let message = format!("the self-test failed: {error}");
            return Err(Error::new(Reason::BackendMisconfigured, message)
                .with_fix(algorithm::fix(self.service)));
        }
        let mut canary = Secret::zeroed(32);
        aws_lc_rs::rand::fill(canary.expose_mut()).map_err(|_| {
            Error::new(Reason::Internal, "the operating system gave no random bytes")
        })?;
        let ciphertext = match (algorithm.family(), &version.public_key) {
            (Family::Rsa(hash), Some(public)) => public.encrypt(hash, &canary)?,
            // What could not be read is asked all the same, and says why.
            _ => self.wrap_in_service(version, algorithm, &canary, deadline).await?,
        };
        let began = SystemTime::now();
        let returned =
            self.unwrap_in_service(version, algorithm, &ciphertext, false, deadline).await?;
        match returned.ct_eq(canary.expose()) {
            true => Ok(began),
            false => Err(Error::new(
                Reason::KekDisabled,
                "the self-test failed: the vault decrypts to something else",
            )),
        }
    }

    async fn wrap(
        &self,
        version: &UsableVersion,
        algorithm: Algorithm,
        payload: &Secret,
        deadline: Instant,
    ) -> Result<Vec<u8>, Error> {
        let info = version.info();
        match (algorithm.family(), &info.public_key) {
            (Family::Rsa(hash), Some(public)) if self.wraps_locally(algorithm) => {
                public.encrypt(hash, payload)
            }
            _ => self.wrap_in_service(info, algorithm, payload, deadline).await,
        }
    }

    async fn unwrap(
        &self,
        version: &UsableVersion,
        algorithm: Algorithm,
        ciphertext: &[u8],
        deadline: Instant,
    ) -> Result<Secret, Error> {
        let info = version.info();
        self.named(algorithm)?;
        if !has_possible_length(info, algorithm, ciphertext.len()) {
            return Err(Error::ciphertext_invalid());
        }
        match self.unwrap_in_service(info, algorithm, ciphertext, true, deadline).await {
            Ok(payload) => Ok(payload),
            Err(Trouble::Settled(error)) => Err(error),
            Err(Trouble::Suspect(_)) => {
                let canary = async || self.prove(info, algorithm, deadline).await.map(|_| ());
                self.judge.alive_since(info.fingerprint, Instant::now(), deadline, canary).await?;
                Err(Error::ciphertext_invalid())
            }
        }
    }

    async fn random(&self, len: usize, deadline: Instant) -> Result<Option<Secret>, Error> {
        match self.service {
            Service::KeyVault => Ok(None),
            Service::ManagedHsm => self.client.random(len, deadline).await.map(Some),
        }
    }

    fn wraps_locally(&self, algorithm: Algorithm) -> bool {
        self.wrap == WrapAt::Local && matches!(algorithm.family(), Family::Rsa(_))
    }

    fn units(&self, version: &VersionInfo) -> u32 {
        let material = self.keys.remembered(&version.key.label, &version.id);
        // What is not known is taken for the heavier.
        let in_hsm = material.is_none_or(|material| material.in_hsm());
        algorithm::units(self.service, version.bits, in_hsm)
    }

    fn room(&self) -> Room {
        self.room
    }

    fn officer(&self) -> Option<&dyn Officer> {
        Some(self)
    }

    fn service(&self) -> Option<&dyn crate::backend::Service> {
        Some(self)
    }

    /// A tag would be the place, but to write one is a right (`update`) that a sidecar is not
    /// given.
    fn register(&self) -> Option<&dyn crate::backend::Register> {
        None
    }

    async fn close(&self) {
        self.client.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_of_another_length_than_was_wrapped_is_no_payload() {
        for (algorithm, ciphertext, payload, possible) in [
            (Algorithm::A256Kw, 40, 32, true),
            (Algorithm::A256Kw, 40, 33, false),
            (Algorithm::A128Kw, 40, 31, false),
            (Algorithm::A256Kwp, 40, 32, true),
            (Algorithm::A256Kwp, 40, 25, true),
            (Algorithm::A256Kwp, 40, 33, false),
            (Algorithm::A256Kwp, 40, 24, false),
            (Algorithm::RsaOaep256, 256, 104, true),
            (Algorithm::RsaOaep256, 256, 256, false),
        ] {
            let found = is_possible_payload(algorithm, 2048, ciphertext, payload);
            assert_eq!(found, possible, "{algorithm} {ciphertext} {payload}");
        }
    }

    #[test]
    fn tokens_come_over_https() {
        assert!(check_authority("https://login.microsoftonline.com").is_ok());
        for bad in ["http://login.microsoftonline.com", "login", "https://login/", ""] {
            assert!(check_authority(bad).is_err(), "{bad}");
        }
    }
}
