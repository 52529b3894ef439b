//! Azure's vaults and managed HSMs.

#![allow(dead_code)]

mod algorithm;
mod error;
mod fault;
mod settings;
mod transport;
mod vault;

pub use settings::{Identity, Service, Settings, UserAssigned, WrapAt};
pub use vault::{VaultUrl, is_key_name};
