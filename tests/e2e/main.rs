//! The binary, a real token, real clients: what a user of the product meets.
//!
//! Each test starts `keyward serve` as a process of its own on a fresh SoftHSM token.

#[path = "../support/token.rs"]
#[allow(dead_code)]
mod token;
#[path = "../support/azure.rs"]
#[allow(dead_code)]
mod vaults;

#[allow(dead_code)]
#[path = "../support/keyvault/mod.rs"]
mod keyvault;

mod azure;
mod bad_input;
mod bench;
mod commands;
mod faults;
mod lifecycle;
mod revocation;
mod served;
mod watched;
