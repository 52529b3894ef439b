//! The fake of Azure Key Vault and Managed HSM that the tests use, to run by hand.
//!
//! An example and not a binary, because examples are built with the dependencies of tests
//! and are in no release. Prints where it is and who may use it, as lines that a shell can
//! read, then takes commands from its standard input, and ends with it.

use std::{
    error::Error,
    io::{self, BufRead as _, Write as _},
    time::Duration,
};

use aws_lc_rs::{
    encoding::AsDer as _,
    rsa::{KeyPair, KeySize},
};
use clap::{Parser, ValueEnum};

#[allow(dead_code)]
#[path = "../tests/support/keyvault/mod.rs"]
mod keyvault;

use keyvault::{
    FakeVault, Settings,
    access::{Permissions, Principal, Role},
    faults::Operation,
};

/// Runs a fake of Azure Key Vault or Managed HSM on 127.0.0.1.
#[derive(Parser)]
struct Args {
    /// What to fake.
    #[arg(long, value_enum, default_value_t = Kind::ManagedHsm)]
    kind: Kind,
    /// Use access policies instead of roles (vaults only).
    #[arg(long)]
    access_policies: bool,
    /// Hold no quota.
    #[arg(long)]
    unthrottled: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Kind {
    Standard,
    Premium,
    ManagedHsm,
}

const SUBJECT: &str = "system:serviceaccount:default:keyward";

const COMMANDS: &str = "commands:
  create-rsa KEY BITS, create-oct KEY BITS, rotate KEY
  disable KEY [VERSION], enable KEY [VERSION], delete KEY, recover KEY
  close-firewall, open-network, delete-vault, recover-vault
  take-role, give-role              the role of the application
  counts                            what was asked";

/// Everything that an officer of keys may.
const ALL: [Operation; 19] = [
    Operation::Create,
    Operation::Import,
    Operation::Get,
    Operation::List,
    Operation::ListVersions,
    Operation::Update,
    Operation::Wrap,
    Operation::Unwrap,
    Operation::Rotate,
    Operation::GetRotationPolicy,
    Operation::SetRotationPolicy,
    Operation::Backup,
    Operation::Restore,
    Operation::Delete,
    Operation::GetDeleted,
    Operation::ListDeleted,
    Operation::Recover,
    Operation::Purge,
    Operation::Random,
];

/// A certificate and its key in one PEM file, as Azure's SDKs take them, and the
/// certificate's DER.
fn certificate() -> Result<(String, Vec<u8>), Box<dyn Error>> {
    let key = KeyPair::generate(KeySize::Rsa2048)?;
    let key = rcgen::KeyPair::try_from(key.as_der()?.as_ref().to_vec())?;
    let certificate = rcgen::CertificateParams::new(vec!["app".into()])?.self_signed(&key)?;
    Ok((format!("{}{}", certificate.pem(), key.serialize_pem()), certificate.der().to_vec()))
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let mut settings = match args.kind {
        Kind::Standard => Settings::standard(),
        Kind::Premium => Settings::premium(),
        Kind::ManagedHsm => Settings::managed_hsm(),
    };
    if args.access_policies && args.kind == Kind::ManagedHsm {
        return Err("a Managed HSM has no access policies".into());
    }
    if args.access_policies {
        settings.permissions = Permissions::AccessPolicies;
    }
    settings.throttled = !args.unthrottled;
    let vault = FakeVault::start(settings);
    let app = vault.add_app("secret");
    // One that may only use keys, by access policy, or nothing at all, by roles.
    let blind = vault.add_app("secret");
    let identity = vault.add_identity(Some("/subscriptions/keyward/identity"));
    for principal in [&app, &identity] {
        vault.grant(principal, Role::CryptoOfficer);
        vault.set_policy(principal, &ALL);
    }
    vault.set_policy(&blind, &[Operation::Wrap, Operation::Unwrap]);
    vault.trust_subject(&app, SUBJECT);
    let (pem, der) = certificate()?;
    vault.add_certificate(&app, &der);
    let file = |name: &str, text: String| -> io::Result<String> {
        let path = vault.dir().join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let token_file =
        file("federated-token", vault.federated_token(SUBJECT, Duration::from_secs(86_400)))?;
    let (app_service, app_service_header) = vault.app_service();
    let mut out = io::stdout().lock();
    for (name, value) in [
        ("URL", vault.url()),
        ("LOOPBACK_URL", vault.loopback_url()),
        ("AUDIENCE", vault.audience()),
        ("AUTHORITY", vault.authority()),
        ("LOOPBACK_AUTHORITY", vault.loopback_authority()),
        ("TENANT", vault.tenant().into()),
        ("CA", vault.ca().display().to_string()),
        ("CLIENT_ID", app.client_id.clone()),
        ("CLIENT_SECRET", "secret".into()),
        ("CERTIFICATE", file("app.pem", pem)?),
        ("FEDERATED_TOKEN_FILE", token_file),
        ("BLIND_CLIENT_ID", blind.client_id.clone()),
        ("IDENTITY_CLIENT_ID", identity.client_id.clone()),
        ("IMDS", vault.imds()),
        ("APP_SERVICE", app_service),
        ("APP_SERVICE_HEADER", app_service_header.into()),
    ] {
        writeln!(out, "FAKE_{name}={value}")?;
    }
    writeln!(
        out,
        "# a token:  curl -s --cacert $FAKE_CA $FAKE_LOOPBACK_AUTHORITY/$FAKE_TENANT/oauth2/v2.0/\
         token -d grant_type=client_credentials -d client_id=$FAKE_CLIENT_ID -d \
         client_secret=$FAKE_CLIENT_SECRET -d scope=$FAKE_AUDIENCE/.default\n\
         # a request: curl -s --cacert $FAKE_CA -H \"Authorization: Bearer $TOKEN\" \
         $FAKE_LOOPBACK_URL/keys?api-version=2025-07-01\n\
         # ready; `help` tells what can be typed, end of input ends"
    )?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let said = command(&vault, &app, &words).unwrap_or_else(|why| format!("error: {why}"));
        writeln!(out, "# {}", said.replace('\n', "\n# "))?;
    }
    Ok(())
}

/// Does what a line says, and says what came of it.
fn command(vault: &FakeVault, app: &Principal, words: &[&str]) -> Result<String, String> {
    let there = |key: &str, is: bool| if is { Ok(()) } else { Err(format!("no such key: {key}")) };
    let number = |text: &str, sizes: [usize; 3]| {
        let bits = text.parse().ok().filter(|bits| sizes.contains(bits));
        bits.ok_or_else(|| format!("bits are one of {sizes:?}"))
    };
    match words {
        [] => {}
        ["help"] => return Ok(COMMANDS.into()),
        ["create-rsa", key, bits] => {
            return Ok(vault.create_rsa(key, number(bits, [2048, 3072, 4096])?));
        }
        ["create-oct", key, bits] => {
            return Ok(vault.create_oct(key, number(bits, [128, 192, 256])?));
        }
        ["rotate", key] => {
            there(key, vault.has(key))?;
            return Ok(vault.rotate(key));
        }
        [word @ ("disable" | "enable"), key, version @ ..] if version.len() < 2 => {
            let version = version.first().copied().unwrap_or_default();
            there(key, vault.has_version(key, version))?;
            match *word {
                "disable" => vault.disable(key, version),
                _ => vault.enable(key, version),
            }
        }
        ["delete", key] => {
            there(key, vault.has(key))?;
            vault.delete(key);
        }
        ["recover", key] => {
            there(key, vault.is_deleted(key))?;
            vault.recover(key);
        }
        ["close-firewall"] => vault.close_firewall(),
        ["open-network"] => vault.open_network(),
        ["delete-vault"] => vault.delete_vault(),
        ["recover-vault"] => vault.recover_vault(),
        ["take-role"] => vault.remove_role(app, Role::CryptoOfficer),
        ["give-role"] => vault.grant(app, Role::CryptoOfficer),
        ["counts"] => {
            let counts = ALL.map(|operation| (operation, vault.count(operation)));
            let asked = counts.into_iter().filter(|(_, count)| *count > 0);
            return Ok(asked
                .map(|(operation, count)| format!("{operation:?} {count}"))
                .collect::<Vec<_>>()
                .join("\n"));
        }
        _ => return Err(format!("unknown: {}; try help", words.join(" "))),
    }
    Ok("ok".into())
}
