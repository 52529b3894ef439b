//! What the integration tests share. Each test file uses a part of it.

#![allow(dead_code)]

pub mod fake;
pub mod pki;
pub mod sidecar;
pub mod token;
