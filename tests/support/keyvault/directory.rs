//! Who there is in the tenant: applications with their credentials, and managed
//! identities with what their platform remembers.
//!
//! Refuses to know: HTTP, the vault.

use std::collections::BTreeMap;

use super::{access::Principal, clock::Now};

/// An application with its credentials.
pub struct App {
    pub principal: Principal,
    pub secrets: Vec<Secret>,
    /// Certificates, DER.
    pub certificates: Vec<Vec<u8>>,
    /// Subjects of the cluster's tokens that stand for it.
    pub subjects: Vec<String>,
}

pub struct Secret {
    pub value: String,
    pub expires: Option<Now>,
}

/// A managed identity of the machine.
pub struct Identity {
    pub principal: Principal,
    pub resource_id: String,
    /// Belongs to the machine itself.
    pub system: bool,
}

pub struct Directory {
    pub apps: Vec<App>,
    pub identities: Vec<Identity>,
    /// How long access tokens of applications live, seconds.
    pub token_lifetime: i64,
    /// How long those of managed identities live, seconds.
    pub identity_lifetime: i64,
    /// Tokens of managed identities by object id and resource, with their ends: the
    /// platform hands out the same one for as long as it is good.
    pub remembered: BTreeMap<(String, String), (i64, String)>,
}

impl Directory {
    pub fn new() -> Self {
        Self {
            apps: Vec::new(),
            identities: Vec::new(),
            token_lifetime: 3599,
            identity_lifetime: 86_399,
            remembered: BTreeMap::new(),
        }
    }

    pub fn app(&self, client_id: &str) -> Option<&App> {
        self.apps.iter().find(|app| app.principal.client_id == client_id)
    }

    pub fn app_mut(&mut self, client_id: &str) -> Option<&mut App> {
        self.apps.iter_mut().find(|app| app.principal.client_id == client_id)
    }
}
