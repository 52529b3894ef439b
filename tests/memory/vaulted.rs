//! The same with KEKs in a key vault and a managed HSM: what is unwrapped there and what is
//! wrapped there goes over connections to the vaults, which live on. A vault is told DEKs,
//! and tells them, in base64url: both forms are looked for.
//!
//! And what those connections carry besides DEKs: tokens, of which none but the last may be
//! there, and the secret that tokens are got with, which may not be there at all.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use keyward::{
    backend::keyvault::Service,
    client::{Algorithm, WrappedDek},
    secret::Secret,
};
use tokio::time::sleep;

use super::{
    SHORT, Sidecar, assert_a_purge_leaves_nothing, assert_none, assert_time_leaves_nothing,
    keyvault::{
        faults::{Fault, On, Operation, Times},
        server::Place,
    },
    scanner::{Copies, Sought},
    traffic::{Keks, random},
    vaults::Azure,
};

const IN_VAULTS: Keks = Keks { rsa: "vaulted", aes: "billing" };

/// How long a token lives, and when the sidecar uses it no more: ten seconds before its end.
const TOKEN_LIFE: Duration = Duration::from_secs(14);
const TOKEN_USED: Duration = Duration::from_secs(5);

struct Vaults {
    vault: Azure,
    hsm: Azure,
    secret: String,
}

impl Vaults {
    fn start() -> Self {
        let vault = Azure::start(Service::KeyVault);
        vault.fake.create_rsa(IN_VAULTS.rsa, 2048);
        let hsm = Azure::start(Service::ManagedHsm);
        hsm.fake.create_oct(IN_VAULTS.aes, 256);
        let secret: String = random().iter().map(|byte| format!("{byte:02x}")).collect();
        for azure in [&vault, &hsm] {
            azure.fake.add_secret(&azure.app, &secret, None);
        }
        Self { vault, hsm, secret }
    }

    fn configuration(&self) -> String {
        let Keks { rsa, aes } = IN_VAULTS;
        format!(
            "{}{}[[kek]]\nname = \"{rsa}\"\nbackend = \"azure\"\nalgorithm = \"RSA-OAEP\"\n\
             [[kek]]\nname = \"{aes}\"\nbackend = \"mhsm\"\nalgorithm = \"A256KW\"\n",
            self.vault.section("azure", &self.secret),
            self.hsm.section("mhsm", &self.secret),
        )
    }

    /// Connections that the sidecar keeps open to them.
    fn connections(&self) -> [usize; 2] {
        [&self.vault, &self.hsm].map(|azure| azure.fake.open_connections(Place::Vault))
    }
}

/// The same as a vault is told them.
fn as_told(sought: &[Sought]) -> Vec<Sought> {
    let told = sought.iter().map(|Sought { name, bytes }| Sought {
        name: format!("{name}, base64url"),
        bytes: URL_SAFE_NO_PAD.encode(bytes).into_bytes(),
    });
    told.collect()
}

/// Whether anything with such a name is in memory, and in the core dump.
fn assert_seen(found: &[Copies], name: &str) {
    for in_core in [false, true] {
        let seen = found.iter().any(|copies| {
            copies.secret.starts_with(name) && (copies.mapping == "core dump") == in_core
        });
        assert!(seen, "{name} is not seen (core dump: {in_core})");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_on_its_way_to_a_vault_is_gone_with_its_call() {
    let vaults = Vaults::start();
    let sidecar = Sidecar::start("", &vaults.configuration());
    let dek = random();
    let mut sought = as_told(&[Sought { name: "on its way".into(), bytes: dek.clone() }]);
    vaults.hsm.fake.inject(On::Operation(Operation::Wrap), Fault::Hang, Times::Next(1));
    let client = sidecar.served.client();
    let call = tokio::spawn(async move {
        let hanging = client.wrap(IN_VAULTS.aes, &Secret::new(dek), b"").await;
        panic!("the vault hangs: {:?}", hanging.map(drop));
    });
    sleep(Duration::from_secs(1)).await;
    // It shows, too, that the scanner would see it in this form.
    assert_seen(&sidecar.scan(&sought), "on its way, base64url");
    assert!(!call.is_finished(), "it was not under way any more");
    call.abort();
    sidecar.until("keyward_connections", 0).await;
    let dek = URL_SAFE_NO_PAD.decode(&sought[0].bytes).expect("what was encoded");
    sought.push(Sought { name: "on its way".into(), bytes: dek });
    assert_none("after the call", &sidecar.scan(&sought));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_leaves_nothing_though_connections_to_the_vaults_are_open() {
    let vaults = Vaults::start();
    let sidecar = Sidecar::start("", &vaults.configuration());
    let mut traffic = sidecar.traffic(IN_VAULTS).await;
    traffic.sought.extend(as_told(&traffic.sought));
    assert_a_purge_leaves_nothing(&sidecar, &traffic).await;
    let open = vaults.connections();
    assert!(open.iter().all(|open| *open > 0), "{open:?}: nothing was looked at");
    traffic.ask_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn time_leaves_nothing_of_what_vaults_unwrapped() {
    let vaults = Vaults::start();
    let sidecar = Sidecar::start(SHORT.0, &(vaults.configuration() + SHORT.1));
    let mut traffic = sidecar.traffic(IN_VAULTS).await;
    traffic.sought.extend(as_told(&traffic.sought));
    assert_time_leaves_nothing(&sidecar, &traffic).await;
    let open = vaults.connections();
    assert!(open.iter().all(|open| *open > 0), "{open:?}: nothing was looked at");
    traffic.ask_again().await;
}

/// The pieces of the tokens' signatures: the rest of one is in the next, too.
fn pieces(token: &str, name: &str) -> Vec<Sought> {
    let (_, signature) = token.rsplit_once('.').expect("a JWT");
    let pieces = signature.as_bytes().chunks_exact(64).enumerate();
    let pieces: Vec<_> = pieces
        .map(|(n, bytes)| Sought { name: format!("{name}, piece {n}"), bytes: bytes.to_vec() })
        .collect();
    assert_eq!(pieces.len(), 5, "a signature of 256 bytes");
    pieces
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_replaced_and_the_secret_are_nowhere() {
    let vaults = Vaults::start();
    let live = |life| {
        for azure in [&vaults.vault, &vaults.hsm] {
            azure.fake.set_token_lifetimes(life, life);
        }
    };
    live(TOKEN_LIFE);
    let sidecar = Sidecar::start("", &vaults.configuration());
    let client = sidecar.served.client();
    // The last is not replaced while the scanner looks.
    for life in [TOKEN_LIFE, TOKEN_LIFE, Duration::from_secs(3600)] {
        sleep(TOKEN_USED).await;
        live(life);
        // What was not asked for before takes an operation, hence a token that is good.
        let (version, ciphertext) = sidecar.served.wrap_outside(IN_VAULTS.rsa, &random());
        let wrapped = WrappedDek {
            kek: IN_VAULTS.rsa.into(),
            version,
            algorithm: Algorithm::RsaOaep.into(),
            ciphertext,
            kek_fingerprint: Vec::new(),
        };
        client.unwrap(&wrapped, b"").await.expect("a DEK");
        client.generate(IN_VAULTS.aes, 32, b"").await.expect("a DEK");
    }
    let mut sought =
        vec![Sought { name: "the secret".into(), bytes: vaults.secret.clone().into_bytes() }];
    for (name, azure) in [("vault", &vaults.vault), ("hsm", &vaults.hsm)] {
        let tokens = azure.fake.record().tokens();
        let (present, old) = tokens.split_last().expect("a token");
        assert!(old.len() >= 2, "{name}: renewed {} times", old.len());
        sought.extend(pieces(present, &format!("{name}, present")));
        for (n, token) in old.iter().enumerate() {
            sought.extend(pieces(token, &format!("{name}, old {n}")));
        }
    }
    let found = sidecar.scan(&sought);
    // What is in use shows that the scanner would see the others.
    let (present, others): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|copies| copies.secret.contains("present"));
    for name in ["vault, present", "hsm, present"] {
        assert_seen(&present, name);
    }
    assert_none("after two renewals", &others);
}
