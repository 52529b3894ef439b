//! A fake vault and a backend of ours that may use it. Each test file uses a part of it.

#![allow(dead_code)]

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use keyward::backend::keyvault::{Identity, KeyVaultBackend, Service, Settings, VaultUrl, WrapAt};

use crate::keyvault::{
    self, FakeVault,
    access::{Principal, Role},
};

/// The application's secret.
pub const SECRET: &str = "a secret that opens vaults";

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
        Self::start_as(service, keyvault::Settings { throttled: false, ..settings })
    }

    /// With these settings. Where access policies decide, the application has none yet.
    pub fn start_as(service: Service, settings: keyvault::Settings) -> Self {
        let fake = FakeVault::start(settings);
        let app = fake.add_app(SECRET);
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

    /// A section of a configuration: the vault as the backend of this name, asked as the
    /// application with this secret.
    pub fn section(&self, name: &str, secret: &str) -> String {
        format!(
            r#"
[backend.{name}]
type = "{kind}"
vault = "{vault}"
authority = "{authority}"
fleet = 1
ca = "{ca}"
identity = {{ kind = "secret", tenant_id = "{tenant}", client_id = "{client}", secret_file = "{secret}" }}
"#,
            kind = self.service.as_str(),
            vault = self.fake.url(),
            authority = self.fake.authority(),
            ca = self.fake.ca().display(),
            tenant = self.fake.tenant(),
            client = self.app.client_id,
            secret = self.file("secret", secret).display(),
        )
    }

    pub fn settings(&self) -> Settings {
        Settings {
            name: "azure".into(),
            service: self.service,
            vault: VaultUrl::parse(&self.fake.url()).expect("the address of a vault"),
            identity: Identity::Secret {
                tenant: self.fake.tenant().into(),
                client: self.app.client_id.clone(),
                file: self.file("secret", &format!("{SECRET}\n")),
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
