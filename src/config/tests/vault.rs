//! Backends in Azure: what is read of them, and each mistake.

use super::{super::*, check, mistakes};
use crate::backend::keyvault;

const VAULT: &str = r#"[server]
socket = "/run/keyward.sock"

[backend.cloud]
type = "key-vault"
vault = "https://kv.vault.azure.net"

[[kek]]
name = "orders"
backend = "cloud"

[[policy]]
who = ["uid:0"]
may = ["wrap"]
kek = ["*"]
"#;

fn vault_of(text: &str) -> keyvault::Settings {
    match &check(text).unwrap().backends[..] {
        [BackendConfig::KeyVault(settings)] => settings.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_vault_needs_only_its_address() {
    let vault = vault_of(VAULT);
    assert_eq!(vault.vault.as_str(), "https://kv.vault.azure.net");
    assert_eq!(vault.identity, keyvault::Identity::Managed(None));
    assert_eq!(vault.authority, "https://login.microsoftonline.com");
    assert_eq!((vault.wrap, vault.ca), (keyvault::WrapAt::Local, None));
    assert_eq!((vault.connections, vault.queue, vault.ceiling_percent), (16, 1024, 100));
    assert_eq!(vault.fleet, 50);
    let hsm = VAULT.replace("key-vault", "managed-hsm").replace("kv.vault", "h.managedhsm");
    let hsm = vault_of(&hsm.replace("\"cloud\"\n", "\"cloud\"\nalgorithm = \"A128KW\"\n"));
    assert_eq!(hsm.service, keyvault::Service::ManagedHsm);
}

#[test]
fn every_kind_of_identity_is_read() {
    use keyvault::{Identity, UserAssigned};
    for (text, expected) in [
        (r#"kind = "managed""#, Identity::Managed(None)),
        (
            r#"kind = "managed", client_id = "c""#,
            Identity::Managed(Some(UserAssigned::Client("c".into()))),
        ),
        (
            r#"kind = "managed", object_id = "o""#,
            Identity::Managed(Some(UserAssigned::Object("o".into()))),
        ),
        (
            r#"kind = "managed", resource_id = "/subscriptions/s""#,
            Identity::Managed(Some(UserAssigned::Resource("/subscriptions/s".into()))),
        ),
        (
            r#"kind = "workload", token_file = "t""#,
            Identity::Workload {
                tenant: None,
                client: None,
                token_file: Some("/etc/keyward/t".into()),
            },
        ),
        (
            r#"kind = "secret", tenant_id = "t", client_id = "c", secret_file = "/s""#,
            Identity::Secret { tenant: "t".into(), client: "c".into(), file: "/s".into() },
        ),
        (
            r#"kind = "certificate", tenant_id = "t", client_id = "c", certificate = "/c", key = "/k""#,
            Identity::Certificate {
                tenant: "t".into(),
                client: "c".into(),
                certificate: "/c".into(),
                key: "/k".into(),
            },
        ),
        (r#"kind = "cli""#, Identity::Cli),
    ] {
        let with = VAULT.replace("\n\n[[kek]]", &format!("\nidentity = {{ {text} }}\n\n[[kek]]"));
        assert_eq!(vault_of(&with).identity, expected, "{text}");
    }
}

#[test]
fn each_mistake_of_a_vault_is_told_where_it_is() {
    let add = |line: &str| VAULT.replace("\n\n[[kek]]", &format!("\n{line}\n\n[[kek]]"));
    let with = |old: &str, new: &str| VAULT.replace(old, new);
    let (vault, address) = ("backend.cloud.vault", "https://kv.vault.azure.net");
    for (text, key, said) in [
        (with("vault = \"https", "#vault = \"https"), vault, "is missing"),
        (with(address, "http://kv.vault.azure.net"), vault, "https://"),
        (with(address, "https://kv.vault.azure.net/keys/a"), vault, "more than a scheme"),
        (with(address, "https://h.managedhsm.azure.net"), vault, "address of a managed-hsm"),
        (add("module = \"/m.so\""), "backend.cloud.module", "only to pkcs11"),
        (add("wrap = \"here\""), "backend.cloud.wrap", "no place to wrap"),
        (add("ceiling = 0"), "backend.cloud.ceiling", "1 to 100"),
        (add("fleet = 0"), "backend.cloud.fleet", "1 to 100000"),
        (add("connections = 65"), "backend.cloud.connections", "1 to 64"),
        (add("authority = \"http://login\""), "backend.cloud.authority", "host only"),
        (add("authority = \"https://login.example/t\""), "backend.cloud.authority", "host only"),
        (add("identity = { kind = \"mangaed\" }"), "backend.cloud.identity.kind", "managed?"),
        (add("identity = \"managed\""), "backend.cloud.identity", "not a table"),
        (
            add("identity = { kind = \"managed\", client_id = \"a\", object_id = \"b\" }"),
            "backend.cloud.identity",
            "more than one",
        ),
        (
            add("identity = { kind = \"cli\", client_id = \"a\" }"),
            "backend.cloud.identity.client_id",
            "means nothing",
        ),
        (
            add("identity = { kind = \"managed\", client_id = \"a/b\" }"),
            "backend.cloud.identity.client_id",
            "no id",
        ),
        (
            add("identity = { kind = \"secret\", tenant_id = \"t\", client_id = \"c\" }"),
            "backend.cloud.identity.secret_file",
            "is missing",
        ),
        (
            with("\"cloud\"\n", "\"cloud\"\nalgorithm = \"A256KW\"\n"),
            "kek[1].algorithm",
            "RSA-OAEP",
        ),
        (with("\"cloud\"\n", "\"cloud\"\nkey = \"a b\"\n"), "kek[1].key", "name for a key"),
        (with("\"orders\"", "\"or.ders\""), "kek[1].name", "name for a key"),
    ] {
        let found = mistakes(&text);
        let keys: Vec<_> = found.iter().map(|(_, key, ..)| key.as_str()).collect();
        assert_eq!(keys, [key], "{found:?}");
        let all = check(&text).unwrap_err().to_string();
        assert!(all.contains(said), "{said} is not in {all}");
    }
}
