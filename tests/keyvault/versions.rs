//! Versions: their order, their fingerprints, and what is asked to find out.

use keyward::{
    backend::{
        Backend, KeyKind, NewKey,
        keyvault::{KeyVaultBackend, Service, Settings, WrapAt},
    },
    error::Reason,
    kek::{Algorithm, VersionSet},
};

use super::{key, only_version, reason, round_trip, soon};
use crate::{azure::Azure, keyvault::operation::Operation};

const ALGORITHM: Algorithm = Algorithm::RsaOaep256;

async fn newest(backend: &KeyVaultBackend, label: &str) -> String {
    let versions = backend.versions(&key(label), ALGORITHM, soon()).await.expect("versions");
    let set = VersionSet::new(versions).expect("no twins");
    set.iter().next().expect("a version").id.to_string()
}

/// Names of versions are random: what was made last is the newest, also within a second.
#[tokio::test]
async fn the_newest_version_is_the_one_that_was_made_last() {
    let azure = Azure::start(Service::KeyVault);
    let backend = azure.open();
    let first = azure.fake.create_rsa("orders", 2048);
    assert_eq!(newest(&backend, "orders").await, first);
    for _ in 0..6 {
        let made = azure.fake.rotate("orders");
        assert_eq!(newest(&backend, "orders").await, made, "of one second");
    }
    let versions = backend.versions(&key("orders"), ALGORITHM, soon()).await.unwrap();
    assert_eq!(versions.len(), 7);
    for (age, version) in versions.iter().enumerate() {
        azure.fake.set_created("orders", version.id.as_str(), 1_700_000_000 - age as i64);
    }
    assert_eq!(newest(&backend, "orders").await, versions[0].id.to_string());
}

/// A key of thirty versions is two pages; what they are is read once.
#[tokio::test]
async fn how_a_key_stands_costs_a_list() {
    let azure = Azure::start(Service::KeyVault);
    azure.fake.create_rsa("orders", 2048);
    for age in 0..29 {
        let id = azure.fake.rotate("orders");
        azure.fake.set_created("orders", &id, 1_700_000_000 + age);
    }
    let backend = azure.open();
    let versions = backend.versions(&key("orders"), ALGORITHM, soon()).await.unwrap();
    assert_eq!(versions.len(), 30);
    let gets = azure.fake.count(Operation::Get);
    assert_eq!(gets, 30);
    let lists = azure.fake.count(Operation::ListVersions);
    backend.versions(&key("orders"), ALGORITHM, soon()).await.unwrap();
    assert_eq!(azure.fake.count(Operation::Get), gets);
    assert_eq!(azure.fake.count(Operation::ListVersions), lists + 2);
}

#[tokio::test]
async fn a_pinned_version_is_the_only_one() {
    let azure = Azure::start(Service::KeyVault);
    let first = azure.fake.create_rsa("orders", 2048);
    azure.fake.rotate("orders");
    let backend = azure.open();
    let info = only_version(&backend, &format!("orders/{first}"), ALGORITHM).await;
    assert_eq!(info.id.as_str(), first);
    let none = backend.versions(&key("orders/0000"), ALGORITHM, soon()).await;
    assert_eq!(reason(none), Reason::KekNotFound);
}

/// A newest version that is disabled is seen, however little the vault tells of it: an
/// older one must not be taken for the current one.
#[tokio::test]
async fn a_disabled_newest_version_hides_behind_nothing() {
    for service in [Service::KeyVault, Service::ManagedHsm] {
        let azure = Azure::start(service);
        let algorithm = match service {
            Service::KeyVault => ALGORITHM,
            Service::ManagedHsm => Algorithm::A256Kw,
        };
        let first = match service {
            Service::KeyVault => azure.fake.create_rsa("orders", 2048),
            Service::ManagedHsm => azure.fake.create_oct("orders", 256),
        };
        azure.fake.set_created("orders", &first, 1_700_000_000);
        let second = azure.fake.rotate("orders");
        azure.fake.disable("orders", &second);
        let backend = azure.open();
        let versions = backend.versions(&key("orders"), algorithm, soon()).await.unwrap();
        let set = VersionSet::new(versions).unwrap();
        let newest = set.iter().next().unwrap();
        assert_eq!((newest.id.as_str(), newest.enabled), (second.as_str(), false));
        azure.fake.enable("orders", &second);
        let versions = backend.versions(&key("orders"), algorithm, soon()).await.unwrap();
        let enabled = versions.iter().find(|version| version.id.as_str() == second).unwrap();
        backend.prove(enabled, algorithm, soon()).await.unwrap();
    }
}

/// Each size of AES has its algorithm; the size is found by asking the HSM.
#[tokio::test]
async fn aes_keys_of_every_size_wrap_as_rfc_3394_says() {
    let azure = Azure::start(Service::ManagedHsm);
    let backend = azure.open();
    for (bits, algorithm, others) in [
        (128, Algorithm::A128Kw, [Algorithm::A192Kw, Algorithm::A256Kw]),
        (192, Algorithm::A192Kw, [Algorithm::A128Kw, Algorithm::A256Kwp]),
        (256, Algorithm::A256Kw, [Algorithm::A128Kw, Algorithm::A192Kw]),
    ] {
        let label = format!("aes-{bits}");
        azure.fake.create_oct(&label, bits);
        let info = only_version(&backend, &label, algorithm).await;
        assert_eq!(info.bits, bits as u32);
        backend.prove(&info, algorithm, soon()).await.unwrap();
        round_trip(&backend, &info, algorithm).await.unwrap();
        for other in others {
            let none = backend.versions(&key(&label), other, soon()).await;
            assert_eq!(reason(none), Reason::KekNotFound, "{bits} {other}");
        }
    }
}

/// What is wrapped in the service unwraps, and is asked of it.
#[tokio::test]
async fn wrapping_in_the_service_is_a_setting() {
    let azure = Azure::start(Service::KeyVault);
    azure.fake.create_rsa("orders", 2048);
    for (wrap, in_service) in [(WrapAt::Local, false), (WrapAt::Service, true)] {
        let backend = KeyVaultBackend::open(Settings { wrap, ..azure.settings() }).unwrap();
        assert_eq!(backend.wraps_locally(ALGORITHM), !in_service);
        let info = only_version(&backend, "orders", ALGORITHM).await;
        let before = azure.fake.count(Operation::Wrap);
        round_trip(&backend, &info, ALGORITHM).await.unwrap();
        assert_eq!(azure.fake.count(Operation::Wrap) > before, in_service);
    }
}

#[tokio::test]
async fn units_are_those_of_the_key() {
    let azure = Azure::start(Service::KeyVault);
    let officer_made = NewKey { label: "heavy".into(), kind: KeyKind::Rsa(4096) };
    let backend = azure.open();
    let officer = backend.officer().expect("an officer");
    officer.create(&officer_made, soon()).await.expect("a key");
    let info = only_version(&backend, "heavy", ALGORITHM).await;
    assert!(info.assurance.device.contains("HSM"), "{:?}", info.assurance);
    assert_eq!(backend.units(&info), 16, "an HSM's RSA-4096: 250 of 4000 in ten seconds");
    let ceiling = backend.room().ceiling.expect("a ceiling");
    let percent = Settings { ceiling_percent: 10, ..azure.settings() };
    let tenth = KeyVaultBackend::open(percent).unwrap().room().ceiling.unwrap();
    assert!((ceiling.per_second / tenth.per_second - 10.0).abs() < 1e-9);
}

#[tokio::test]
async fn an_officer_sees_every_key_that_could_be_a_kek() {
    let azure = Azure::start(Service::ManagedHsm);
    azure.fake.create_rsa("rsa", 2048);
    azure.fake.create_oct("aes", 192);
    let backend = azure.open();
    let listed = backend.officer().unwrap().list(None, soon()).await.unwrap();
    let seen: Vec<_> =
        listed.iter().map(|one| (&*one.info.key.label, one.kind, one.info.bits)).collect();
    assert_eq!(seen, [("aes", "aes", 192), ("rsa", "rsa", 2048)]);
    assert!(listed.iter().all(|one| one.usage.contains(&"UNWRAP")), "{listed:?}");
    let bad = NewKey { label: "a.b".into(), kind: KeyKind::Aes256 };
    let refused = backend.officer().unwrap().create(&bad, soon()).await;
    assert_eq!(reason(refused), Reason::RequestInvalid);
}
