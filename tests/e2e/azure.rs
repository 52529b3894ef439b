//! One sidecar with a token, a key vault and a managed HSM, which are fakes over TLS.

use std::{
    thread,
    time::{Duration, Instant},
};

use keyward::backend::keyvault::Service;

use super::{
    served::{KEK, Served},
    vaults::Azure,
};

const DEK: [u8; 32] = [0x42; 32];

/// Longest that a lease of a second, its renewal and a look every quarter may take.
const SOON: Duration = Duration::from_secs(5);

struct Scene {
    served: Served,
    vault: Azure,
    hsm: Azure,
}

fn section(name: &str, azure: &Azure) -> String {
    format!(
        r#"
[backend.{name}]
type = "{kind}"
vault = "{vault}"
authority = "{authority}"
ca = "{ca}"
identity = {{ kind = "secret", tenant_id = "{tenant}", client_id = "{client}", secret_file = "{secret}" }}
"#,
        kind = azure.service.as_str(),
        vault = azure.fake.url(),
        authority = azure.fake.authority(),
        ca = azure.fake.ca().display(),
        tenant = azure.fake.tenant(),
        client = azure.app.client_id,
        secret = azure.file("secret", "a secret").display(),
    )
}

fn start() -> Scene {
    let vault = Azure::start(Service::KeyVault);
    vault.fake.create_rsa("orders-db", 2048);
    let hsm = Azure::start(Service::ManagedHsm);
    hsm.fake.create_oct("billing", 256);
    let mut served = Served::prepare();
    let sections = section("vault", &vault) + &section("hsm2", &hsm);
    served.configure(|config| {
        format!(
            "{config}{sections}\
             [[kek]]\nname = \"vaulted\"\nbackend = \"vault\"\nkey = \"orders-db\"\n\
             [[kek]]\nname = \"billing\"\nbackend = \"hsm2\"\nalgorithm = \"A256KW\"\n"
        )
    });
    served.serve();
    Scene { served, vault, hsm }
}

impl Scene {
    fn wrap(&self, kek: &str) -> Vec<u8> {
        self.served.ok(&["wrap", "--kek", kek], &DEK)
    }

    /// Waits until an unwrap is refused, and says for what reason.
    fn refused_soon(&self, wrapped: &[u8]) -> String {
        let until = Instant::now() + SOON;
        while self.served.call(&["unwrap"], wrapped).status.success() {
            assert!(Instant::now() < until, "it is served still:\n{}", self.served.log());
            thread::sleep(Duration::from_millis(50));
        }
        self.served.refused(&["unwrap"], wrapped)
    }

    fn served_soon(&self, wrapped: &[u8]) {
        let until = Instant::now() + SOON;
        while !self.served.call(&["unwrap"], wrapped).status.success() {
            assert!(Instant::now() < until, "it is dark still:\n{}", self.served.log());
            thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn three_backends_serve_side_by_side_and_each_follows_its_own_key() {
    let scene = start();
    let keks = [KEK, "vaulted", "billing"];
    let wrapped = keks.map(|kek| scene.wrap(kek));
    for (kek, wrapped) in keks.iter().zip(&wrapped) {
        assert_eq!(scene.served.ok(&["unwrap"], wrapped), DEK, "{kek}");
    }
    scene.vault.fake.disable("orders-db", "");
    assert_eq!(scene.refused_soon(&wrapped[1]), "KEK_DISABLED");
    assert_eq!(scene.served.ok(&["unwrap"], &wrapped[2]), DEK);
    scene.vault.fake.enable("orders-db", "");
    scene.served_soon(&wrapped[1]);

    scene.hsm.fake.remove_role(&scene.hsm.app, super::keyvault::access::Role::CryptoOfficer);
    assert_eq!(scene.refused_soon(&wrapped[2]), "KEK_REVOKED");
    assert_eq!(scene.served.ok(&["unwrap"], &wrapped[1]), DEK);
    assert_eq!(scene.served.ok(&["unwrap"], &wrapped[0]), DEK);

    // A vault whose key has expired would unwrap all the same.
    scene.vault.fake.set_validity("orders-db", "", None, Some(1_000_000_000));
    assert_eq!(scene.refused_soon(&wrapped[1]), "KEK_EXPIRED");

    // A rotated key is current within a lease, and what the old version wrapped unwraps.
    scene.vault.fake.set_validity("orders-db", "", None, None);
    let rotated = scene.vault.fake.rotate("orders-db");
    let until = Instant::now() + SOON;
    loop {
        let shown = scene.served.ok(&["kek", "show", "vaulted", "--json"], b"");
        let shown: serde_json::Value = serde_json::from_slice(&shown).expect("JSON");
        if shown["current_version"] == rotated.as_str() {
            break;
        }
        assert!(Instant::now() < until, "{shown}");
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(scene.served.ok(&["unwrap"], &wrapped[1]), DEK);
    let log = scene.served.log();
    for secret in ["a secret", "Bearer", "eyJ"] {
        assert!(!log.contains(secret), "{secret} is in\n{log}");
    }
}
