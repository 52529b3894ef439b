//! The contract of `Backend`, checked on every backend: SoftHSM and kryoptic, a key vault
//! and a managed HSM.
//!
//! A new backend adds a [`Subject`] and a line to `suite!`. Each case runs on a fresh
//! device in a process of its own.

#[path = "support/azure.rs"]
mod azure;
#[path = "support/keyvault/mod.rs"]
#[allow(dead_code)]
mod keyvault;
mod support;

use std::{
    any::Any,
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use azure::Azure;
use keyward::{
    backend::{
        Backend, ByVersion, KeyKind, NewKey, Officer, Remover, Whole, keyvault::Service,
        pkcs11::Pkcs11Backend,
    },
    error::Reason,
    kek::{Algorithm, KeyRef, VersionId, VersionInfo, VersionSet},
    secret::Secret,
};
use support::{
    token::{Kind, TestToken},
    usable,
};

/// What keeps the keys of a subject.
#[derive(Clone, Copy)]
enum Device {
    Token(Kind),
    Vault(Service),
}

/// A backend under test, and what its device is known to do.
struct Subject {
    backend: Arc<dyn Backend>,
    algorithms: &'static [Algorithm],
    not_supported: &'static [Algorithm],
    /// Those for AES-256 keys among them; none if the device keeps no such keys.
    aes: &'static [Algorithm],
    /// Whether its A256KWP gives back any length as it was.
    pads_any_length: bool,
    /// Whether it tells where a key has been.
    tells_history: bool,
    /// Whether it gives random bytes.
    random: bool,
    /// Whatever its device asks for before a key has another version.
    let_rotate: fn(&dyn Any, &str),
    device: Box<dyn Any>,
}

fn subject(device: Device) -> Subject {
    match device {
        Device::Token(kind) => on_token(kind),
        Device::Vault(service) => in_vault(service),
    }
}

fn on_token(kind: Kind) -> Subject {
    use Algorithm::*;
    let token = TestToken::new(kind);
    token.enter();
    let backend = Pkcs11Backend::open(token.settings()).expect("the token opens");
    let (algorithms, not_supported): (&[_], &[_]) = match kind {
        Kind::SoftHsm => (&[RsaOaep, A256Kw, A256Kwp], &[RsaOaep256, RsaOaep384, RsaOaep512]),
        Kind::Kryoptic => (&[RsaOaep, RsaOaep256, RsaOaep384, RsaOaep512, A256Kw, A256Kwp], &[]),
    };
    Subject {
        backend: Arc::new(backend),
        algorithms,
        not_supported,
        aes: &[A256Kw, A256Kwp],
        pads_any_length: kind == Kind::Kryoptic,
        tells_history: true,
        random: true,
        let_rotate: |_, _| {},
        device: Box::new(token),
    }
}

fn in_vault(service: Service) -> Subject {
    use Algorithm::*;
    let azure = Azure::start(service);
    let (algorithms, aes): (&[_], &[_]) = match service {
        Service::KeyVault => (&[RsaOaep, RsaOaep256], &[]),
        Service::ManagedHsm => (&[RsaOaep, RsaOaep256, A256Kw, A256Kwp], &[A256Kw, A256Kwp]),
    };
    Subject {
        backend: Arc::new(azure.open()),
        algorithms,
        not_supported: &[RsaOaep384, RsaOaep512],
        aes,
        pads_any_length: true,
        tells_history: false,
        random: service == Service::ManagedHsm,
        let_rotate: |azure, key| {
            let azure = azure.downcast_ref::<Azure>().expect("a vault");
            azure.fake.set_rotation_policy(key, None);
        },
        device: Box::new(azure),
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn key(label: &str) -> KeyRef {
    KeyRef::parse(label).expect("a label")
}

impl Subject {
    async fn create(&self, label: &str, kind: KeyKind) {
        let officer = self.backend.officer().expect("an officer");
        // Primes are found by luck.
        let patiently = Instant::now() + Duration::from_secs(120);
        officer.create(&NewKey { label: label.into(), kind }, patiently).await.expect("a key");
    }

    /// Creates a key for `algorithm` and returns its only version.
    async fn key_for(&self, algorithm: Algorithm) -> VersionInfo {
        let kind = match algorithm {
            Algorithm::A256Kw | Algorithm::A256Kwp => KeyKind::Aes256,
            _ => KeyKind::Rsa(2048),
        };
        let label = format!("key-{algorithm}");
        self.create(&label, kind).await;
        let mut versions =
            self.backend.versions(&key(&label), algorithm, soon()).await.expect("versions");
        assert_eq!(versions.len(), 1);
        versions.remove(0)
    }

    async fn unwrap(
        &self,
        info: &VersionInfo,
        algorithm: Algorithm,
        ciphertext: &[u8],
    ) -> Result<Secret, Reason> {
        let unwrapped = self.backend.unwrap(&usable(info), algorithm, ciphertext, soon()).await;
        unwrapped.map_err(|error| error.reason())
    }
}

async fn what_is_wrapped_unwraps(subject: Subject) {
    for algorithm in subject.algorithms {
        let info = subject.key_for(*algorithm).await;
        subject.backend.prove(&info, *algorithm, soon()).await.expect("the self-test");
        for len in [16, 24, 32, 64, 104] {
            let payload = Secret::new((0..len).map(|i| i as u8).collect());
            let wrapped = subject.backend.wrap(&usable(&info), *algorithm, &payload, soon()).await;
            let wrapped = wrapped.expect("a ciphertext");
            let unwrapped = subject.unwrap(&info, *algorithm, &wrapped).await.expect("a payload");
            assert!(unwrapped.ct_eq(payload.expose()), "{algorithm} {len}");
        }
    }
}

/// A length comes back as it was, or is refused: never with zeros at its end.
async fn other_lengths_than_multiples_of_eight_are_kept_or_refused(subject: Subject) {
    for algorithm in subject.aes.iter().copied() {
        let info = subject.key_for(algorithm).await;
        for len in [17, 23, 33, 63] {
            let payload = Secret::new(vec![0xa5; len]);
            match subject.backend.wrap(&usable(&info), algorithm, &payload, soon()).await {
                Ok(wrapped) => {
                    assert_eq!(algorithm, Algorithm::A256Kwp);
                    let unwrapped = subject.unwrap(&info, algorithm, &wrapped).await.unwrap();
                    assert!(unwrapped.ct_eq(payload.expose()));
                }
                Err(error) => {
                    assert_eq!(error.reason(), Reason::DekLengthInvalid);
                    assert!(algorithm == Algorithm::A256Kw || !subject.pads_any_length);
                }
            }
        }
    }
}

async fn every_size_of_rsa_works(subject: Subject) {
    let algorithm = subject.algorithms[0];
    for bits in [2048, 3072, 4096] {
        let label = format!("rsa-{bits}");
        subject.create(&label, KeyKind::Rsa(bits)).await;
        let versions = subject.backend.versions(&key(&label), algorithm, soon()).await.unwrap();
        assert_eq!(versions[0].bits, bits);
        subject.backend.prove(&versions[0], algorithm, soon()).await.expect("the self-test");
    }
}

async fn a_created_key_cannot_leave(subject: Subject) {
    for algorithm in subject.algorithms[..1].iter().chain(subject.aes.first()) {
        let info = subject.key_for(*algorithm).await;
        let assurance = &info.assurance;
        assert!(assurance.sensitive && !assurance.extractable, "{assurance:?}");
        let told = [assurance.always_sensitive, assurance.never_extractable, assurance.local];
        assert_eq!(told, [subject.tells_history; 3], "{assurance:?}");
        assert!(info.enabled);
    }
}

async fn a_label_is_created_once(subject: Subject) {
    subject.create("once", KeyKind::Rsa(2048)).await;
    let officer = subject.backend.officer().expect("an officer");
    for kind in [KeyKind::Rsa(2048), KeyKind::Aes256] {
        let again = officer.create(&NewKey { label: "once".into(), kind }, soon()).await;
        assert_eq!(again.unwrap_err().reason(), Reason::RequestInvalid);
    }
    assert_eq!(officer.list(Some("once"), soon()).await.unwrap().len(), 1);
}

async fn garbage_is_always_the_same_error_and_does_no_harm(subject: Subject) {
    for algorithm in subject.algorithms {
        let info = subject.key_for(*algorithm).await;
        let payload = Secret::new(vec![7; 32]);
        let good =
            subject.backend.wrap(&usable(&info), *algorithm, &payload, soon()).await.unwrap();
        let mut flipped = good.clone();
        flipped[5] ^= 0x40;
        let mut garbage = vec![
            vec![],
            vec![0],
            good[..good.len() - 1].to_vec(),
            [&good[..], &[0]].concat(),
            [&good[..], &[0; 8]].concat(),
            vec![0; good.len()],
            vec![0xff; good.len()],
            flipped,
        ];
        garbage.push((0..good.len()).map(|i| (i * 37) as u8).collect());
        for bad in &garbage {
            let refused = subject.unwrap(&info, *algorithm, bad).await.map(|_| ());
            assert_eq!(refused, Err(Reason::CiphertextInvalid), "{algorithm} {bad:02x?}");
            let still = subject.unwrap(&info, *algorithm, &good).await.expect("still works");
            assert!(still.ct_eq(payload.expose()));
        }
    }
}

async fn another_keys_ciphertext_is_garbage(subject: Subject) {
    let algorithm = subject.algorithms[0];
    subject.create("a", KeyKind::Rsa(2048)).await;
    subject.create("b", KeyKind::Rsa(2048)).await;
    let a = subject.backend.versions(&key("a"), algorithm, soon()).await.unwrap().remove(0);
    let b = subject.backend.versions(&key("b"), algorithm, soon()).await.unwrap().remove(0);
    let payload = Secret::new(vec![7; 32]);
    let of_a = subject.backend.wrap(&usable(&a), algorithm, &payload, soon()).await.unwrap();
    let refused = subject.unwrap(&b, algorithm, &of_a).await.map(|_| ());
    assert_eq!(refused, Err(Reason::CiphertextInvalid));
}

async fn a_key_of_another_fingerprint_is_never_used(subject: Subject) {
    let algorithm = subject.algorithms[0];
    subject.create("a", KeyKind::Rsa(2048)).await;
    subject.create("b", KeyKind::Rsa(2048)).await;
    let a = subject.backend.versions(&key("a"), algorithm, soon()).await.unwrap().remove(0);
    let b = subject.backend.versions(&key("b"), algorithm, soon()).await.unwrap().remove(0);
    // What a replaced key looks like: the name of one, the material of another.
    let replaced = VersionInfo { fingerprint: a.fingerprint, public_key: a.public_key, ..b };
    let refused = subject.unwrap(&replaced, algorithm, &[7; 256]).await.map(|_| ());
    assert_eq!(refused, Err(Reason::KekMismatch));
}

async fn an_algorithm_that_the_device_lacks_is_said_to_be_so(subject: Subject) {
    for algorithm in subject.not_supported {
        let info = subject.key_for(*algorithm).await;
        let refused = subject.backend.prove(&info, *algorithm, soon()).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::BackendMisconfigured);
        assert!(refused.fix().is_some_and(|fix| fix.contains("RSA-OAEP")), "{refused:?}");
        let refused = subject.unwrap(&info, *algorithm, &[7; 256]).await.map(|_| ());
        assert_eq!(refused, Err(Reason::AlgorithmUnsupported));
    }
}

async fn a_key_that_is_not_there_is_not_found(subject: Subject) {
    let algorithm = subject.algorithms[0];
    let none = subject.backend.versions(&key("nothing"), algorithm, soon()).await;
    assert_eq!(none.unwrap_err().reason(), Reason::KekNotFound);
    subject.create("thing", KeyKind::Rsa(2048)).await;
    let pinned = subject.backend.versions(&key("thing/00ff"), algorithm, soon()).await;
    assert_eq!(pinned.unwrap_err().reason(), Reason::KekNotFound);
    let aes = subject.backend.versions(&key("thing"), Algorithm::A256Kw, soon()).await;
    assert_eq!(aes.unwrap_err().reason(), Reason::KekNotFound, "an RSA key is no AES key");
}

async fn random_bytes_are_random(subject: Subject) {
    let one = subject.backend.random(64, soon()).await.unwrap();
    assert_eq!(one.is_some(), subject.random);
    let Some(one) = one else { return };
    let two = subject.backend.random(64, soon()).await.unwrap().expect("a generator");
    assert_eq!(one.len(), 64);
    assert!(!one.ct_eq(two.expose()));
}

async fn a_deadline_that_passed_is_kept(subject: Subject) {
    let info = subject.key_for(subject.algorithms[0]).await;
    let past = Instant::now();
    let late = subject.backend.unwrap(&usable(&info), subject.algorithms[0], &[7; 256], past).await;
    assert_eq!(late.unwrap_err().reason(), Reason::DeadlineExceeded);
}

async fn many_callers_share_it(subject: Subject) {
    let algorithm = subject.algorithms[0];
    let info = subject.key_for(algorithm).await;
    let payload = Secret::new(vec![9; 32]);
    let good = subject.backend.wrap(&usable(&info), algorithm, &payload, soon()).await.unwrap();
    let tasks: Vec<_> = (0..200)
        .map(|i| {
            let (backend, info, mut bytes) =
                (Arc::clone(&subject.backend), info.clone(), good.clone());
            if i % 10 == 0 {
                bytes[0] ^= 1;
            }
            tokio::spawn(async move {
                (i, backend.unwrap(&usable(&info), algorithm, &bytes, soon()).await)
            })
        })
        .collect();
    for task in tasks {
        match task.await.unwrap() {
            (i, Ok(unwrapped)) => assert!(i % 10 != 0 && unwrapped.ct_eq(payload.expose())),
            (i, Err(error)) => {
                assert_eq!((i % 10, error.reason()), (0, Reason::CiphertextInvalid));
            }
        }
    }
}

async fn a_closed_backend_refuses(subject: Subject) {
    let info = subject.key_for(subject.algorithms[0]).await;
    subject.backend.close().await;
    let refused = subject.unwrap(&info, subject.algorithms[0], &[7; 256]).await.map(|_| ());
    assert_eq!(refused, Err(Reason::ShuttingDown));
}

async fn who_owns_a_key_is_recorded_once(subject: Subject) {
    let Some(register) = subject.backend.register() else {
        // It would be a right more that every sidecar has to be given.
        assert!(subject.backend.service().is_some(), "a token has a place for it");
        return;
    };
    let mode_of = |label| register.mode_of(label, soon());
    assert_eq!(mode_of("mine").await.expect("an answer"), None, "the key need not exist");
    register.record_mode("mine", "service-managed", soon()).await.expect("it is recorded");
    register.record_mode("mine", "customer-managed", soon()).await.expect("it was before");
    assert_eq!(mode_of("mine").await.expect("an answer").as_deref(), Some("service-managed"));
    assert_eq!(mode_of("min").await.expect("an answer"), None, "another label's");
    // It is no key, and no notice.
    assert!(subject.officer().list(Some("mine"), soon()).await.expect("a list").is_empty());
    subject.create("mine", KeyKind::Rsa(2048)).await;
    let listed = subject.officer().list(Some("mine"), soon()).await.expect("a list");
    assert_eq!(listed.len(), 1);
}

impl Subject {
    fn officer(&self) -> &dyn Officer {
        self.backend.officer().expect("an officer")
    }

    /// Creates a key, of which there can be more versions.
    async fn key_to_rotate(&self, algorithm: Algorithm) -> VersionInfo {
        let info = self.key_for(algorithm).await;
        (self.let_rotate)(&*self.device, &info.key.label);
        info
    }

    async fn versions(&self, info: &VersionInfo, algorithm: Algorithm) -> Vec<VersionInfo> {
        let key = KeyRef { pinned: None, ..info.key.clone() };
        let found = self.backend.versions(&key, algorithm, soon()).await.expect("versions");
        VersionSet::new(found).expect("no twins").iter().cloned().collect()
    }
}

fn pinned(info: &VersionInfo) -> KeyRef {
    KeyRef { label: info.key.label.clone(), pinned: Some(info.id.clone()) }
}

async fn a_rotated_key_has_a_newer_version_of_the_same_kind(subject: Subject) {
    let algorithms = [subject.algorithms.first(), subject.aes.first()];
    for algorithm in algorithms.into_iter().flatten().copied() {
        let old = subject.key_to_rotate(algorithm).await;
        let payload = Secret::new(vec![7; 32]);
        let wrapped = subject.backend.wrap(&usable(&old), algorithm, &payload, soon()).await;
        let wrapped = wrapped.expect("a ciphertext");
        let mut expected = BTreeSet::from([old.id.clone()]);
        for _ in 0..2 {
            let made = subject.officer().rotate(&old.key.label, soon()).await.expect("a version");
            let versions = subject.versions(&old, algorithm).await;
            assert_eq!(versions[0].id, made.info.id, "newest first");
            expected.insert(made.info.id);
            let ids: BTreeSet<_> = versions.iter().map(|info| info.id.clone()).collect();
            assert_eq!(ids, expected);
            assert_eq!(versions[0].bits, old.bits);
            assert_ne!(versions[0].fingerprint, old.fingerprint);
            subject.backend.prove(&versions[0], algorithm, soon()).await.expect("it works");
        }
        let unwrapped = subject.unwrap(&old, algorithm, &wrapped).await.expect("a payload");
        assert!(unwrapped.ct_eq(payload.expose()));
    }
    let none = subject.officer().rotate("nothing", soon()).await.expect_err("no such key");
    assert_eq!(none.reason(), Reason::KekNotFound);
}

async fn a_disabled_version_unwraps_nothing_until_it_is_enabled(subject: Subject) {
    let algorithms = [subject.algorithms.first(), subject.aes.first()];
    for algorithm in algorithms.into_iter().flatten().copied() {
        let info = subject.key_for(algorithm).await;
        let payload = Secret::new(vec![7; 32]);
        let wrapped = subject.backend.wrap(&usable(&info), algorithm, &payload, soon()).await;
        let wrapped = wrapped.expect("a ciphertext");
        let is_enabled = async || subject.versions(&info, algorithm).await[0].enabled;
        for _ in 0..2 {
            subject.officer().set_enabled(&pinned(&info), false, soon()).await.expect("disabled");
            assert!(!is_enabled().await);
        }
        let refused = subject.unwrap(&info, algorithm, &wrapped).await.map(|_| ());
        assert_eq!(refused, Err(Reason::KekDisabled), "{algorithm}");
        for _ in 0..2 {
            subject.officer().set_enabled(&pinned(&info), true, soon()).await.expect("enabled");
            assert!(is_enabled().await);
        }
        // A handle may be believed for a moment after what it stands for was changed.
        let mut unwrapped = subject.unwrap(&info, algorithm, &wrapped).await;
        let until = soon();
        while unwrapped.is_err() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(100)).await;
            unwrapped = subject.unwrap(&info, algorithm, &wrapped).await;
        }
        assert!(unwrapped.expect("a payload").ct_eq(payload.expose()));
        let other = KeyRef { pinned: VersionId::parse("00"), ..pinned(&info) };
        let none = subject.officer().set_enabled(&other, false, soon()).await.expect_err("none");
        assert_eq!(none.reason(), Reason::KekVersionNotFound);
    }
}

async fn what_is_removed_can_be_had_back_within_its_grace(subject: Subject) {
    let algorithms = [subject.algorithms.first(), subject.aes.first()];
    for algorithm in algorithms.into_iter().flatten().copied() {
        let info = subject.key_for(algorithm).await;
        match subject.officer().remover() {
            Remover::ByVersion(remover) => by_version(&subject, remover, &info, algorithm).await,
            Remover::Whole(remover) => whole(&subject, remover, &info, algorithm).await,
        }
    }
}

async fn by_version(
    subject: &Subject,
    remover: &dyn ByVersion,
    info: &VersionInfo,
    algorithm: Algorithm,
) {
    let (version, now) = (pinned(info), SystemTime::now());
    let hour = Duration::from_secs(3600);
    let destroy = async |now| remover.destroy(&version, now, soon()).await.map_err(|e| e.reason());
    let listed = async || {
        let listed = subject.officer().list(Some(&version.label), soon()).await.expect("a list");
        listed.into_iter().find(|key| key.info.id == info.id).expect("it is there")
    };
    assert_eq!(destroy(now).await, Err(Reason::RequestInvalid), "nobody planned that");
    remover.schedule(&version, now + hour, soon()).await.expect("planned");
    let planned = listed().await;
    let whole_secs = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert_eq!(planned.destroy_after.map(whole_secs), Some(whole_secs(now + hour)));
    assert!(!planned.info.enabled);
    // A second call does not move the date.
    remover.schedule(&version, now, soon()).await.expect("planned already");
    assert_eq!(listed().await.destroy_after, planned.destroy_after);
    assert_eq!(destroy(now).await, Err(Reason::RequestInvalid), "its grace is not over");
    subject.officer().set_enabled(&version, true, soon()).await.expect("called off");
    let kept = listed().await;
    assert!(kept.info.enabled && kept.destroy_after.is_none());
    assert_eq!(destroy(now + 2 * hour).await, Err(Reason::RequestInvalid), "it was called off");

    remover.schedule(&version, now, soon()).await.expect("planned");
    assert_eq!(destroy(now + hour).await, Ok(()));
    let gone = subject.backend.versions(&info.key, algorithm, soon()).await.expect_err("gone");
    assert_eq!(gone.reason(), Reason::KekNotFound);
    assert_eq!(destroy(now + hour).await, Err(Reason::KekVersionNotFound), "nothing is left");
    // Its name is free again.
    subject.key_for(algorithm).await;
}

async fn whole(subject: &Subject, remover: &dyn Whole, info: &VersionInfo, algorithm: Algorithm) {
    let label = &info.key.label;
    let deleted = remover.delete(label, soon()).await.expect("deleted");
    assert!(deleted.purged_at.is_some_and(|at| at > SystemTime::now()));
    // As the vault is set up.
    assert_eq!(deleted.protected, Some(false));
    let gone = subject.backend.versions(&info.key, algorithm, soon()).await.expect_err("gone");
    assert_eq!(gone.reason(), Reason::KekNotFound);
    let back = remover.recover(label, soon()).await.expect("recovered");
    assert_eq!((back.len(), back[0].info.fingerprint), (1, info.fingerprint));
    subject.backend.prove(info, algorithm, soon()).await.expect("it works as before");
    let none = remover.recover(label, soon()).await.expect_err("it was not deleted");
    assert_eq!(none.reason(), Reason::KekNotFound);
}

macro_rules! suite {
    ($($name:ident: $kind:expr;)+) => {$(
        mod $name {
            use super::*;
            suite!(@cases $kind;
                what_is_wrapped_unwraps,
                other_lengths_than_multiples_of_eight_are_kept_or_refused,
                every_size_of_rsa_works,
                a_created_key_cannot_leave,
                a_label_is_created_once,
                a_rotated_key_has_a_newer_version_of_the_same_kind,
                a_disabled_version_unwraps_nothing_until_it_is_enabled,
                what_is_removed_can_be_had_back_within_its_grace,
                garbage_is_always_the_same_error_and_does_no_harm,
                another_keys_ciphertext_is_garbage,
                a_key_of_another_fingerprint_is_never_used,
                an_algorithm_that_the_device_lacks_is_said_to_be_so,
                a_key_that_is_not_there_is_not_found,
                random_bytes_are_random,
                a_deadline_that_passed_is_kept,
                many_callers_share_it,
                a_closed_backend_refuses,
                who_owns_a_key_is_recorded_once,
            );
        }
    )+};
    (@cases $kind:expr; $($case:ident,)+) => {$(
        #[tokio::test]
        async fn $case() {
            super::$case(subject($kind)).await;
        }
    )+};
}

suite! {
    softhsm: Device::Token(Kind::SoftHsm);
    kryoptic: Device::Token(Kind::Kryoptic);
    key_vault: Device::Vault(Service::KeyVault);
    managed_hsm: Device::Vault(Service::ManagedHsm);
}
