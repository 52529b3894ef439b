//! Everything that one fake is made of, shared by its listeners and its handle.

use std::sync::{LazyLock, Mutex};

use super::{
    access::Permissions,
    backup::Geography,
    clock::Clock,
    directory::Directory,
    faults::Faults,
    jwt::Signer,
    record::Record,
    server::Gates,
    state::{Kind, Profile},
    store::Store,
    throttle::Throttle,
};

/// The one tenant that there is.
pub const TENANT: &str = "11111111-1111-1111-1111-111111111111";

/// What `api-version` may be.
pub const API_VERSIONS: [&str; 4] = ["7.5", "7.6", "2025-07-01", "2026-04-01"];

/// Where the three listeners are, on 127.0.0.1.
#[derive(Clone, Copy)]
pub struct Ports {
    pub vault: u16,
    pub entra: u16,
    pub imds: u16,
}

pub struct World {
    pub profile: Profile,
    pub permissions: Permissions,
    pub geography: Geography,
    pub ports: Ports,
    pub gates: Gates,
    pub clock: Clock,
    pub store: Store,
    pub directory: Mutex<Directory>,
    /// Signs access tokens.
    pub signer: Signer,
    /// Signs the tokens of a cluster's service accounts. Few tests need it, and it takes
    /// a while to make.
    pub cluster: LazyLock<Signer>,
    /// `None`: no quota.
    pub throttle: Mutex<Option<Throttle>>,
    /// What 429 says about when to come back, seconds.
    pub retry_after: Mutex<Option<u32>>,
    pub faults: Faults,
    pub record: Record,
}

impl World {
    /// The domain below which vaults of this kind are.
    pub fn domain(&self) -> &'static str {
        match self.profile.kind {
            Kind::Standard | Kind::Premium => "vault.localhost",
            Kind::ManagedHsm => "managedhsm.localhost",
        }
    }

    /// The host of the vault, without a port.
    pub fn host(&self) -> String {
        format!("{}.{}", self.profile.name, self.domain())
    }

    /// What tokens for it must be for.
    pub fn audience(&self) -> String {
        format!("https://{}:{}", self.domain(), self.ports.vault)
    }

    /// Entra, without a tenant.
    pub fn authority(&self) -> String {
        format!("https://login.localhost:{}", self.ports.entra)
    }
}
