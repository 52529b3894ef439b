//! What the sidecar is told for each thing that a vault, or the way to it, can do.

use std::time::{Duration, Instant};

use keyward::{
    backend::{Backend, keyvault::Service},
    error::{Reason, Retry},
    kek::{Algorithm, VersionInfo},
};

use super::{key, only_version, reason, round_trip, soon};
use crate::{
    azure::Azure,
    keyvault::{
        access::Role,
        errors,
        faults::{Fault, On, Times, Tls},
        operation::Operation,
    },
    support::usable,
};

const ALGORITHM: Algorithm = Algorithm::RsaOaep256;

struct Scene {
    azure: Azure,
    backend: Box<dyn Backend>,
    info: VersionInfo,
    wrapped: Vec<u8>,
}

/// A key that works.
async fn scene() -> Scene {
    let azure = Azure::start(Service::KeyVault);
    azure.fake.create_rsa("orders", 2048);
    let backend: Box<dyn Backend> = Box::new(azure.open());
    let info = only_version(backend.as_ref(), "orders", ALGORITHM).await;
    backend.prove(&info, ALGORITHM, soon()).await.expect("a proof");
    let payload = keyward::secret::Secret::new(vec![7; 32]);
    let wrapped = backend.wrap(&usable(&info), ALGORITHM, &payload, soon()).await.unwrap();
    Scene { azure, backend, info, wrapped }
}

impl Scene {
    async fn unwrap(&self) -> Result<keyward::secret::Secret, keyward::error::Error> {
        self.backend.unwrap(&usable(&self.info), ALGORITHM, &self.wrapped, soon()).await
    }

    /// What an unwrap, a proof and a look at the versions are told.
    async fn told(&self) -> [Result<(), Reason>; 3] {
        let proof = self.backend.prove(&self.info, ALGORITHM, soon()).await;
        let versions = self.backend.versions(&key("orders"), ALGORITHM, soon()).await;
        [
            self.unwrap().await.map(drop).map_err(|error| error.reason()),
            proof.map(drop).map_err(|error| error.reason()),
            versions.map(drop).map_err(|error| error.reason()),
        ]
    }
}

/// What is done, how, how it is undone, and what is told meanwhile.
type Step<'a> = (&'a str, &'a dyn Fn(), &'a dyn Fn(), [Result<(), Reason>; 3]);

#[tokio::test]
async fn what_an_owner_does_is_told_and_undone_without_a_restart() {
    let scene = scene().await;
    let (fake, app) = (&scene.azure.fake, &scene.azure.app);
    let gone = [
        Err(Reason::KekVersionNotFound),
        Err(Reason::KekVersionNotFound),
        Err(Reason::KekNotFound),
    ];
    let disabled = [Err(Reason::KekDisabled), Err(Reason::KekDisabled), Ok(())];
    let steps: [Step<'_>; 7] = [
        ("disabled", &|| fake.disable("orders", ""), &|| fake.enable("orders", ""), disabled),
        ("deleted", &|| fake.delete("orders"), &|| fake.recover("orders"), gone),
        ("vault deleted", &|| fake.delete_vault(), &|| fake.recover_vault(), gone),
        (
            "role removed",
            &|| fake.remove_role(app, Role::CryptoOfficer),
            &|| fake.grant(app, Role::CryptoOfficer),
            [Err(Reason::KekRevoked); 3],
        ),
        (
            "firewall closed",
            &|| fake.close_firewall(),
            &|| fake.open_network(),
            [Err(Reason::KekRevoked); 3],
        ),
        (
            "private links only",
            &|| fake.disable_public_access(),
            &|| fake.open_network(),
            [Err(Reason::KekRevoked); 3],
        ),
        (
            "not for unwrapping",
            &|| fake.set_ops("orders", "", &["wrapKey"]),
            &|| fake.set_ops("orders", "", &["wrapKey", "unwrapKey"]),
            disabled,
        ),
    ];
    for (what, change, undo, expected) in steps {
        change();
        assert_eq!(scene.told().await, expected, "{what}");
        undo();
        assert_eq!(scene.told().await, [Ok(()); 3], "after {what}");
    }
    fake.disable("orders", "");
    let versions = scene.backend.versions(&key("orders"), ALGORITHM, soon()).await.unwrap();
    assert!(!versions[0].enabled);
}

#[tokio::test]
async fn an_expired_key_is_reported_as_such_though_the_vault_unwraps_with_it() {
    let scene = scene().await;
    scene.azure.fake.set_validity("orders", "", Some(1_000_000_000), Some(1_000_000_100));
    let versions = scene.backend.versions(&key("orders"), ALGORITHM, soon()).await.unwrap();
    let at = |secs| Some(std::time::UNIX_EPOCH + Duration::from_secs(secs));
    assert_eq!(versions[0].validity.not_before, at(1_000_000_000));
    assert_eq!(versions[0].validity.not_after, at(1_000_000_100));
    assert!(scene.unwrap().await.is_ok());
}

#[tokio::test]
async fn trouble_that_passes_says_nothing_about_the_key() {
    let scene = scene().await;
    let fake = &scene.azure.fake;
    let header = "x";
    for (what, fault) in [
        ("408", Fault::Answer(errors::request_timeout().answer())),
        ("500", Fault::Answer(errors::internal().answer())),
        ("502", Fault::Answer(errors::bad_gateway().answer())),
        ("503", Fault::Answer(errors::unavailable().answer())),
        ("504", Fault::Answer(errors::gateway_timeout().answer())),
        ("AKV10046", Fault::Answer(errors::unknown_signing_key(header).answer())),
        ("reset", Fault::Reset),
        ("closed", Fault::Close),
        ("cut", Fault::Truncate),
        ("no JSON", Fault::Body("<html>".into())),
        ("other JSON", Fault::Body("{}".into())),
        (
            "another key",
            Fault::Body(r#"{"kid":"https://kv.vault.localhost/keys/a/1","value":"AAAA"}"#.into()),
        ),
    ] {
        fake.inject(On::Operation(Operation::Unwrap), fault, Times::Always);
        assert_eq!(reason(scene.unwrap().await), Reason::BackendUnreachable, "{what}");
        fake.clear_faults();
        assert!(scene.unwrap().await.is_ok(), "after {what}");
    }
    for tls in [Tls::WrongName, Tls::UnknownAuthority, Tls::Expired] {
        let fresh = scene.azure.open();
        fake.set_tls(tls);
        let refused = fresh.versions(&key("orders"), ALGORITHM, soon()).await;
        assert_eq!(reason(refused), Reason::BackendUnreachable, "{tls:?}");
        fake.set_tls(Tls::Right);
        assert!(fresh.versions(&key("orders"), ALGORITHM, soon()).await.is_ok());
    }
}

#[tokio::test]
async fn what_only_an_operator_can_mend_is_told_as_that() {
    let scene = scene().await;
    let fake = &scene.azure.fake;
    for refusal in [errors::wrong_audience("a", "b"), errors::wrong_issuer("a", "b")] {
        fake.inject(On::Vault, Fault::Answer(refusal.answer()), Times::Always);
        let error = scene.unwrap().await.unwrap_err();
        assert_eq!(error.reason(), Reason::BackendMisconfigured);
        assert!(error.fix().is_some());
        fake.clear_faults();
    }
}

#[tokio::test]
async fn a_quota_is_told_with_the_patience_that_the_vault_asks_for() {
    let scene = scene().await;
    let fake = &scene.azure.fake;
    for (asked, told) in [(Some(3), 3), (Some(86_400), 30), (None, 1)] {
        let throttled = Fault::Answer(errors::throttled(asked).answer());
        fake.inject(On::Operation(Operation::Unwrap), throttled, Times::Always);
        let error = scene.unwrap().await.unwrap_err();
        assert_eq!(error.reason(), Reason::Overloaded);
        assert_eq!(error.retry(), Retry::After(Duration::from_secs(told)), "{asked:?}");
        fake.clear_faults();
    }
}

/// A 400 that is not known to be the ciphertext's fault is judged by a canary.
#[tokio::test]
async fn a_good_ciphertext_is_not_called_bad_because_the_vault_is_confused() {
    let scene = scene().await;
    let fake = &scene.azure.fake;
    let mut refusal = errors::bad_parameter("x");
    refusal.code = "BadRequest";
    let confused = || Fault::Answer(refusal.clone().answer());
    // The vault is confused by everything: not the ciphertext's fault.
    fake.inject(On::Operation(Operation::Unwrap), confused(), Times::Always);
    assert_eq!(reason(scene.unwrap().await), Reason::BackendMisconfigured);
    fake.clear_faults();
    // Only by this one: its fault.
    fake.inject(On::Operation(Operation::Unwrap), confused(), Times::Next(1));
    assert_eq!(reason(scene.unwrap().await), Reason::CiphertextInvalid);
}

#[tokio::test]
async fn a_vault_that_hangs_holds_nobody_beyond_the_deadline() {
    let scene = scene().await;
    let fake = &scene.azure.fake;
    for fault in [Fault::Hang, Fault::Slow { piece: 1, pause: Duration::from_millis(100) }] {
        fake.inject(On::Operation(Operation::Unwrap), fault.clone(), Times::Always);
        let began = Instant::now();
        let deadline = began + Duration::from_millis(400);
        let late =
            scene.backend.unwrap(&usable(&scene.info), ALGORITHM, &scene.wrapped, deadline).await;
        assert_eq!(reason(late), Reason::DeadlineExceeded, "{fault:?}");
        assert!(began.elapsed() < Duration::from_secs(2));
        fake.clear_faults();
        assert!(scene.unwrap().await.is_ok());
    }
}

#[tokio::test]
async fn nothing_is_sent_anywhere_for_a_ciphertext_of_an_impossible_length() {
    let scene = scene().await;
    let before = scene.azure.fake.count(Operation::Unwrap);
    for len in [0, 1, 255, 257, 4096] {
        let bad = vec![7; len];
        let refused = scene.backend.unwrap(&usable(&scene.info), ALGORITHM, &bad, soon()).await;
        assert_eq!(reason(refused), Reason::CiphertextInvalid);
    }
    assert_eq!(scene.azure.fake.count(Operation::Unwrap), before);
}

/// Eight connections, a hundred callers, and no more connections than that.
#[tokio::test]
async fn connections_are_bounded_and_used_again() {
    let scene = scene().await;
    let calls = (0..100).map(|_| scene.unwrap());
    let all = futures_util::future::join_all(calls).await;
    assert!(all.iter().all(Result::is_ok));
    let connections = scene.azure.fake.record().connections();
    assert!(connections <= 8, "{connections}");
    round_trip(scene.backend.as_ref(), &scene.info, ALGORITHM).await.unwrap();
}
