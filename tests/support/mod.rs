//! What the integration tests share. Each test file uses a part of it.

#![allow(dead_code)]

pub mod bench;
pub mod channel;
pub mod crowd;
pub mod fake;
pub mod pki;
pub mod sidecar;
pub mod token;

use std::{sync::Arc, time::SystemTime};

use keyward::kek::{Proof, Purpose, UsableVersion, Version, VersionInfo};

/// A version as the life cycle lets it through once it is proven.
pub fn usable(info: &VersionInfo) -> UsableVersion {
    let now = SystemTime::now();
    Version::new(Arc::new(info.clone()), Proof::Proven { at: now })
        .usable(Purpose::Unwrap, now)
        .expect("the version is usable")
}
