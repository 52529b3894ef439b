//! The binary, a real token, real clients: what a user of the product meets.
//!
//! Each test starts `keyward serve` as a process of its own on a fresh SoftHSM token.

#[path = "../support/token.rs"]
#[allow(dead_code)]
mod token;

mod bad_input;
mod bench;
mod commands;
mod faults;
mod lifecycle;
mod revocation;
mod served;
mod watched;
