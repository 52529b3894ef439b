//! The binary, a real token, real clients: what a user of the product meets.
//!
//! Each test starts `keyward serve` as a process of its own, on a fresh SoftHSM token or a
//! fake vault of its own. What does not depend on a KEK's home is tested at two (`home`).

#[path = "../support/crowd.rs"]
mod crowd;
#[path = "../support/token.rs"]
#[allow(dead_code)]
mod token;
#[path = "../support/azure.rs"]
mod vaults;
#[path = "../support/wall_clock.rs"]
mod wall_clock;

#[allow(dead_code)]
#[path = "../support/keyvault/mod.rs"]
mod keyvault;

mod azure;
mod bad_input;
mod bench;
mod census;
mod check;
mod commands;
mod faults;
mod home;
mod lifecycle;
mod load;
mod officer;
mod operator;
mod revocation;
mod rotation;
mod served;
mod service;
mod states;
mod table;
mod upheaval;
mod vault_states;
mod watch;
mod watched;
