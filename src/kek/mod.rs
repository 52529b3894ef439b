//! Key-encryption keys: their names, versions, algorithms, public halves and life
//! cycle.
//!
//! Everything here is pure: `now` is a value, nothing is read or written. The
//! life cycle ([`Version::usable`]) is the sole maker of [`UsableVersion`], which
//! is what a backend asks for before it touches a key. So no path reaches a key
//! that is expired, disabled or unproven: it does not compile.

mod algorithm;
mod census;
mod lifecycle;
mod name;
mod public_key;
mod requirements;
mod service;
mod version;
mod watch;

pub use algorithm::{Algorithm, Family, OaepHash};
pub use census::{Callers, Census, QUIET_FOR, Report, Usage, Usages, Verdict};
pub use lifecycle::{
    NewestDisabled, PROOF_MAX_AGE, Proof, Purpose, State, UsableVersion, Version,
    check_not_taken_away, current,
};
pub use name::{KekName, KeyRef};
pub use public_key::PublicKey;
pub use requirements::{Finding, Level, Requirement, findings};
pub use service::{Mode, ServiceRules, Task, made_at};
pub use version::{Assurance, Fingerprint, Recovery, Validity, VersionId, VersionInfo, VersionSet};
pub use watch::{
    Condition, EXPIRY_NOTICE, Event, EventKind, Released, Sight, Tracker, VersionSight,
};
