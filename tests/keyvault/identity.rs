//! Every kind of identity gets a token, reads its files again for the next, and says what
//! is wrong when it gets none.

use std::{fs, process::Command, time::Duration};

use keyward::{
    backend::{
        Backend,
        keyvault::{Identity, KeyVaultBackend, Service, Settings},
    },
    error::{Error, Reason},
    kek::Algorithm,
};

use super::{key, reason, soon};
use crate::{azure::Azure, keyvault::access::Role};

const ALGORITHM: Algorithm = Algorithm::RsaOaep256;

fn azure() -> Azure {
    let azure = Azure::start(Service::KeyVault);
    azure.fake.create_rsa("orders", 2048);
    azure
}

async fn ask(settings: Settings) -> Result<(), Error> {
    let backend = KeyVaultBackend::open(settings)?;
    let versions = backend.versions(&key("orders"), ALGORITHM, soon()).await?;
    backend.prove(&versions[0], ALGORITHM, soon()).await.map(drop)
}

#[tokio::test]
async fn a_client_secret_is_read_from_its_file() {
    let azure = azure();
    // Making settings writes the file: once.
    let settings = azure.settings();
    ask(settings.clone()).await.unwrap();
    azure.file("secret", "another secret");
    let refused = ask(settings.clone()).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::BackendMisconfigured);
    assert!(refused.detail().unwrap().contains("AADSTS7000215"), "{refused:?}");
    azure.fake.add_secret(&azure.app, "another secret", None);
    ask(settings.clone()).await.unwrap();
    let open = azure.file("secret", "another secret");
    fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let refused = ask(settings.clone()).await.unwrap_err();
    assert!(refused.message().contains("open to others"), "{refused:?}");
}

#[tokio::test]
async fn a_certificate_signs_for_its_application() {
    let azure = azure();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["keyward".into()]).unwrap().self_signed(&key).unwrap();
    let settings = || Settings {
        identity: Identity::Certificate {
            tenant: azure.fake.tenant().into(),
            client: azure.app.client_id.clone(),
            certificate: azure.file("client.pem", &certificate.pem()),
            key: azure.file("client.key", &key.serialize_pem()),
        },
        ..azure.settings()
    };
    assert_eq!(reason(ask(settings()).await), Reason::BackendMisconfigured, "not registered");
    azure.fake.add_certificate(&azure.app, certificate.der());
    ask(settings()).await.unwrap();
}

#[tokio::test]
async fn a_workload_is_federated_by_its_token_file() {
    let azure = azure();
    let subject = "system:serviceaccount:db:keyward";
    azure.fake.trust_subject(&azure.app, subject);
    let file = azure.file("token", &azure.fake.federated_token(subject, Duration::from_secs(600)));
    let settings = |file| Settings {
        identity: Identity::Workload {
            tenant: Some(azure.fake.tenant().into()),
            client: Some(azure.app.client_id.clone()),
            token_file: Some(file),
        },
        ..azure.settings()
    };
    ask(settings(file)).await.unwrap();
    let other = azure.fake.federated_token("another", Duration::from_secs(600));
    let refused = ask(settings(azure.file("token", &other))).await;
    assert_eq!(reason(refused), Reason::BackendMisconfigured);
    let missing = ask(settings("/nonexistent".into())).await;
    assert_eq!(reason(missing), Reason::BackendMisconfigured);
}

/// The command, in a process whose environment names the endpoint that App Service has;
/// the machine's own has an address that no test can take. Gives the reason if it fails.
fn ask_as_managed(azure: &Azure, id: &str) -> Result<(), String> {
    let config = format!(
        "[backend.cloud]\ntype = \"key-vault\"\nvault = \"{}\"\nca = \"{}\"\n\
         identity = {{ kind = \"managed\"{id} }}\n",
        azure.fake.url(),
        azure.fake.ca().display(),
    );
    let (endpoint, header) = azure.fake.app_service();
    let output = Command::new(env!("CARGO_BIN_EXE_keyward"))
        .args(["key", "list", "--json", "--backend", "cloud", "--config"])
        .arg(azure.file("keyward.toml", &config))
        .env("IDENTITY_ENDPOINT", endpoint)
        .env("IDENTITY_HEADER", header)
        .output()
        .expect("the command runs");
    if output.status.success() {
        assert!(String::from_utf8_lossy(&output.stdout).contains("orders"));
        return Ok(());
    }
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).expect("JSON");
    Err(error["reason"].as_str().unwrap_or_else(|| panic!("{error}")).to_owned())
}

#[test]
fn managed_identities_are_the_systems_or_one_that_was_assigned() {
    let azure = azure();
    assert!(ask_as_managed(&azure, "").is_err(), "there is none yet");
    let system = azure.fake.add_identity(None);
    let assigned = azure.fake.add_identity(Some("/subscriptions/s/x"));
    assert_eq!(ask_as_managed(&azure, ""), Err("KEK_REVOKED".into()), "it has no role yet");
    azure.fake.grant(&system, Role::ServiceEncryptionUser);
    ask_as_managed(&azure, "").unwrap();
    let by_client = format!(", client_id = \"{}\"", assigned.client_id);
    assert_eq!(ask_as_managed(&azure, &by_client), Err("KEK_REVOKED".into()));
    azure.fake.grant(&assigned, Role::ServiceEncryptionUser);
    ask_as_managed(&azure, &by_client).unwrap();
    let by_object = format!(", object_id = \"{}\"", assigned.object_id);
    ask_as_managed(&azure, &by_object).unwrap();
    let unknown = ", client_id = \"00000000-0000-0000-0000-000000000009\"";
    assert_eq!(ask_as_managed(&azure, unknown), Err("BACKEND_MISCONFIGURED".into()));
}

#[tokio::test]
async fn an_endpoint_that_is_away_is_trouble_that_passes() {
    let azure = azure();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let authority = format!("https://login.localhost:{}", nobody.port());
    let refused = ask(Settings { authority, ..azure.settings() }).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::BackendUnreachable);
    assert!(refused.detail().unwrap().contains("asking for a token"), "{refused:?}");
}
