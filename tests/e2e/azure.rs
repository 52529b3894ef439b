//! One sidecar with a token, a key vault and a managed HSM, which are fakes over TLS.

use std::{
    thread,
    time::{Duration, Instant},
};

use keyward::backend::keyvault::Service;

use super::{
    home::Home,
    keyvault::{access::Role, operation::Operation},
    served::{KEK, Served},
    vaults::{Azure, SECRET},
};

const DEK: [u8; 32] = [0x42; 32];

/// Longest that a lease of a second, its renewal and a look every quarter may take.
const SOON: Duration = Duration::from_secs(5);

struct Scene {
    served: Served,
    vault: Azure,
    hsm: Azure,
}

fn start() -> Scene {
    let vault = Azure::start(Service::KeyVault);
    vault.fake.create_rsa("orders-db", 2048);
    let hsm = Azure::start(Service::ManagedHsm);
    hsm.fake.create_oct("billing", 256);
    let mut served = Served::prepare();
    let sections = vault.section("vault", SECRET) + &hsm.section("hsm2", SECRET);
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
}

/// Waits until an unwrap is refused, and says for what reason.
fn refused_soon(served: &Served, wrapped: &[u8]) -> String {
    let until = Instant::now() + SOON;
    while served.call(&["unwrap"], wrapped).status.success() {
        assert!(Instant::now() < until, "it is served still:\n{}", served.log());
        thread::sleep(Duration::from_millis(50));
    }
    served.refused(&["unwrap"], wrapped)
}

fn served_soon(served: &Served, wrapped: &[u8]) {
    let until = Instant::now() + SOON;
    while !served.call(&["unwrap"], wrapped).status.success() {
        assert!(Instant::now() < until, "it is dark still:\n{}", served.log());
        thread::sleep(Duration::from_millis(50));
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
    assert_eq!(refused_soon(&scene.served, &wrapped[1]), "KEK_DISABLED");
    assert_eq!(scene.served.ok(&["unwrap"], &wrapped[2]), DEK);
    scene.vault.fake.enable("orders-db", "");
    served_soon(&scene.served, &wrapped[1]);

    scene.hsm.fake.remove_role(&scene.hsm.app, Role::CryptoOfficer);
    assert_eq!(refused_soon(&scene.served, &wrapped[2]), "KEK_REVOKED");
    assert_eq!(scene.served.ok(&["unwrap"], &wrapped[1]), DEK);
    assert_eq!(scene.served.ok(&["unwrap"], &wrapped[0]), DEK);

    // A vault whose key has expired would unwrap all the same.
    scene.vault.fake.set_validity("orders-db", "", None, Some(1_000_000_000));
    assert_eq!(refused_soon(&scene.served, &wrapped[1]), "KEK_EXPIRED");

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
    for secret in [SECRET, "Bearer", "eyJ"] {
        assert!(!log.contains(secret), "{secret} is in\n{log}");
    }
}

/// A managed identity, from the endpoint that App Service names in the environment: the
/// machine's own has an address that no test can take.
#[test]
fn a_managed_identity_needs_no_secret_and_its_token_outlives_it() {
    let mut served = Served::prepare_on(Home::KeyVault);
    let identity = served.fake().add_identity(None);
    served.fake().grant(&identity, Role::ServiceEncryptionUser);
    served.fake().remove_role(&served.azure().app, Role::CryptoOfficer);
    served.configure(|config| {
        let lines = config.lines().map(|line| match line.starts_with("identity") {
            true => "identity = { kind = \"managed\" }",
            false => line,
        });
        lines.collect::<Vec<_>>().join("\n")
    });
    let (endpoint, header) = served.fake().app_service();
    served.environment =
        vec![("IDENTITY_ENDPOINT", endpoint), ("IDENTITY_HEADER", header.to_owned())];
    served.serve();
    let wrapped = served.ok(&["wrap", "--kek", KEK], &DEK);
    assert_eq!(served.ok(&["unwrap"], &wrapped), DEK);
    assert_eq!(served.fake().count(Operation::ManagedIdentity), 1);
    assert_eq!(served.fake().count(Operation::Token), 0);

    // The token that the sidecar holds is good for a day. Who wants the KEK dark takes the
    // role away.
    served.fake().delete_identity(&identity);
    thread::sleep(Duration::from_secs(3));
    assert_eq!(served.ok(&["unwrap"], &wrapped), DEK);
    served.fake().remove_role(&identity, Role::ServiceEncryptionUser);
    assert_eq!(refused_soon(&served, &wrapped), "KEK_REVOKED");
    let log = served.log();
    assert!(!log.contains(header) && !log.contains("eyJ"), "{log}");
}
