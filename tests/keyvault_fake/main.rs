//! The fake of Azure Key Vault does what the documentation, captured answers and the
//! standards say. Over real TLS, asked by a plain HTTP client; `make test-interop` asks
//! it with Azure's own SDKs.

#[allow(dead_code)]
#[path = "../support/keyvault/mod.rs"]
mod keyvault;

mod auth;
mod byok;
mod client;
mod crypto;
mod faults;
mod identity;
mod keys;
mod quota;
mod refusals;

use keyvault::{FakeVault, Settings, access::Role};

/// A fake and a client that may do everything.
fn scene(settings: Settings) -> (FakeVault, client::Client) {
    let vault = FakeVault::start(settings);
    let officer = vault.add_app("secret");
    vault.grant(&officer, Role::CryptoOfficer);
    let client = client::Client::new(&vault).with_token(&vault.token(&officer));
    (vault, client)
}
