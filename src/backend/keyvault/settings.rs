//! What the operator sets of a vault or a managed HSM.

use std::{path::PathBuf, time::Duration};

use super::{algorithm::in_azure, vault::VaultUrl};
use crate::{backend::Ceiling, kek::Algorithm};

/// One `[backend.NAME]` of type `key-vault` or `managed-hsm`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Name of the backend.
    pub name: String,
    /// Which of the two it is.
    pub service: Service,
    /// Where it is.
    pub vault: VaultUrl,
    /// As whom the sidecar asks.
    pub identity: Identity,
    /// Where tokens come from: `https://HOST`, without a slash at the end.
    pub authority: String,
    /// PEM file of the authorities to trust instead of the system's.
    pub ca: Option<PathBuf>,
    /// Where RSA keys wrap.
    pub wrap: WrapAt,
    /// Connections at once: 1 to 64.
    pub connections: usize,
    /// Operations that may wait for a connection: 1 to 65536. Beyond it callers are refused
    /// at once.
    pub queue: usize,
    /// How much of the service's documented quota this sidecar may use, in percent: 1 to
    /// 100.
    pub ceiling_percent: u8,
    /// How many sidecars share the vault, this one among them: 1 to 100000. Their leases
    /// together leave more than half of its quota.
    pub fleet: u32,
}

/// Which service keeps the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Azure Key Vault.
    KeyVault,
    /// Azure Key Vault Managed HSM.
    ManagedHsm,
}

impl Service {
    /// The name, as in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KeyVault => "key-vault",
            Self::ManagedHsm => "managed-hsm",
        }
    }

    /// Whether the service does `algorithm`.
    pub fn does(self, algorithm: Algorithm) -> bool {
        in_azure(algorithm, self).is_some()
    }

    /// What the service allows of everybody together, as documented. What is saved up and
    /// what comes in ten seconds are together no more than a vault allows in ten.
    pub(super) fn quota(self) -> Ceiling {
        match self {
            Self::KeyVault => {
                Ceiling { per_second: 360.0, burst: 400.0, window: Duration::from_secs(10) }
            }
            Self::ManagedHsm => {
                Ceiling { per_second: 1800.0, burst: 180.0, window: Duration::from_secs(1) }
            }
        }
    }
}

/// Where an RSA key wraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WrapAt {
    /// In the sidecar, with the public key, which is pinned with the version.
    Local,
    /// In the service.
    Service,
}

/// As whom the sidecar asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The identity of the machine or the app: the system's, or one that a user assigned.
    Managed(Option<UserAssigned>),
    /// Workload identity federation, as on Kubernetes. What is not set comes from the
    /// environment that the webhook makes (`AZURE_TENANT_ID`, `AZURE_CLIENT_ID`,
    /// `AZURE_FEDERATED_TOKEN_FILE`).
    Workload {
        /// The tenant.
        tenant: Option<String>,
        /// The client (application) id.
        client: Option<String>,
        /// The file that the platform keeps the token in.
        token_file: Option<PathBuf>,
    },
    /// A client secret.
    Secret {
        /// The tenant.
        tenant: String,
        /// The client (application) id.
        client: String,
        /// File whose first line is the secret; only its owner may be able to read it.
        file: PathBuf,
    },
    /// A client certificate.
    Certificate {
        /// The tenant.
        tenant: String,
        /// The client (application) id.
        client: String,
        /// PEM file of the certificate.
        certificate: PathBuf,
        /// PEM file of its private RSA key; only its owner may be able to read it.
        key: PathBuf,
    },
    /// Whoever is logged in with the Azure CLI: for development.
    Cli,
}

/// Which of the identities that a user assigned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserAssigned {
    /// By its client id.
    Client(String),
    /// By its object (principal) id.
    Object(String),
    /// By its resource id.
    Resource(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten seconds of a vault allow 4000 units, to everybody together.
    #[test]
    fn a_vaults_window_is_never_overdrawn() {
        let quota = Service::KeyVault.quota();
        assert!(quota.burst + 10.0 * quota.per_second <= 4000.0);
        // The heaviest operation must fit what can be saved up, also at one percent.
        assert!(quota.burst / 100.0 >= 1.0);
    }
}
