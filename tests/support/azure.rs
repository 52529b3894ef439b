//! A fake vault and a backend of ours that may use it.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use keyward::backend::keyvault::{Identity, KeyVaultBackend, Service, Settings, VaultUrl, WrapAt};

use crate::keyvault::{
    self, FakeVault,
    access::{Principal, Role},
};

/// A vault, an application that may do everything in it, and its secret.
pub struct Azure {
    pub fake: FakeVault,
    pub app: Principal,
    pub service: Service,
}

impl Azure {
    /// Without quotas: what is tested is not how long to wait.
    pub fn start(service: Service) -> Self {
        let settings = match service {
            Service::KeyVault => keyvault::Settings::premium(),
            Service::ManagedHsm => keyvault::Settings::managed_hsm(),
        };
        let fake = FakeVault::start(keyvault::Settings { throttled: false, ..settings });
        let app = fake.add_app("a secret");
        fake.grant(&app, Role::CryptoOfficer);
        Self { fake, app, service }
    }

    /// A file of mode 0600.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.fake.dir().join(name);
        fs::write(&path, content).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode");
        path
    }

    pub fn settings(&self) -> Settings {
        Settings {
            name: "azure".into(),
            service: self.service,
            vault: VaultUrl::parse(&self.fake.url()).expect("the address of a vault"),
            identity: Identity::Secret {
                tenant: self.fake.tenant().into(),
                client: self.app.client_id.clone(),
                file: self.file("secret", "a secret\n"),
            },
            authority: self.fake.authority(),
            ca: Some(self.fake.ca()),
            wrap: WrapAt::Local,
            connections: 8,
            queue: 1024,
            ceiling_percent: 100,
            fleet: 1,
        }
    }

    pub fn open(&self) -> KeyVaultBackend {
        KeyVaultBackend::open(self.settings()).expect("a backend")
    }
}
