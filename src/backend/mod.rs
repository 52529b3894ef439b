//! The seam: what Keyward asks of whatever keeps KEKs.
//!
//! A new backend is a folder beside `pkcs11/` that implements [`Backend`], an arm in
//! `config/` that reads its settings, one in `app.rs` that builds it, and a run of
//! the contract suite (`tests/contract.rs`). Nothing else changes.
//!
//! Powers that not every backend has are small traits of their own, reached through
//! a method that returns an `Option`: there is no default "not supported".

mod jitter;
mod judge;
pub mod keyvault;
mod metered;
pub mod pkcs11;
mod secret_file;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use async_trait::async_trait;

pub(crate) use jitter::jitter;
pub use metered::Metered;

use crate::{
    error::Error,
    kek::{Algorithm, KeyRef, UsableVersion, VersionInfo},
    secret::Secret,
};

/// Where KEK versions live.
///
/// # Contract
/// Every backend passes `tests/contract.rs`, which checks what follows.
///
/// - **Fail closed.** What cannot be determined is an error, never a guess.
/// - **Deadlines.** Every method answers by `deadline`, with `DEADLINE_EXCEEDED` if
///   need be, even if the device hangs. What could not be started in time is not
///   started.
/// - **Bounds.** Work that finds the backend's queue full is refused at once with
///   `OVERLOADED`.
/// - **Garbage is the caller's.** A ciphertext that does not unwrap is
///   `CIPHERTEXT_INVALID`, always the same whatever is wrong with it, and leaves the
///   backend as usable as before. Before it says so, a backend makes sure that the
///   key itself still works: a good ciphertext is never called invalid because the
///   device is in trouble. That is `BACKEND_UNREACHABLE`.
/// - **Never another key.** An operation on a version is done with the key whose
///   fingerprint the version carries, or it fails with `KEK_MISMATCH` or
///   `KEK_VERSION_NOT_FOUND`.
/// - **Cancellation.** A caller that goes away costs at most the operation in work;
///   an answer that nobody waits for is wiped.
/// - **Recovery.** After trouble of any kind it works again by itself once the device
///   does, without a restart.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// The name in the configuration.
    fn name(&self) -> &str;

    /// The kind, as in the configuration: `pkcs11`, `key-vault`, `managed-hsm`.
    fn kind(&self) -> &'static str;

    /// The versions of `key` that `algorithm` could work with, in no order; only the
    /// pinned one if the reference pins one. Reads attributes; proves nothing.
    /// `KEK_NOT_FOUND` if there is none; `BACKEND_MISCONFIGURED` if two cannot be told
    /// apart.
    async fn versions(
        &self,
        key: &KeyRef,
        algorithm: Algorithm,
        deadline: Instant,
    ) -> Result<Vec<VersionInfo>, Error>;

    /// Proves that `version` works with `algorithm`, by a real private-key (or
    /// secret-key) operation on a value that this method made itself. Returns when the
    /// proving operation was started. `BACKEND_MISCONFIGURED`, with a fix that names
    /// the setting, if the device refuses the algorithm.
    async fn prove(
        &self,
        version: &VersionInfo,
        algorithm: Algorithm,
        deadline: Instant,
    ) -> Result<SystemTime, Error>;

    /// Wraps `payload` under `version`. The result is exactly the mechanism's output.
    async fn wrap(
        &self,
        version: &UsableVersion,
        algorithm: Algorithm,
        payload: &Secret,
        deadline: Instant,
    ) -> Result<Vec<u8>, Error>;

    /// Unwraps `ciphertext` with `version`. Says nothing of what the payload means.
    async fn unwrap(
        &self,
        version: &UsableVersion,
        algorithm: Algorithm,
        ciphertext: &[u8],
        deadline: Instant,
    ) -> Result<Secret, Error>;

    /// `len` bytes (at most 64) of the device's own random generator; `None` if it has
    /// none.
    async fn random(&self, len: usize, deadline: Instant) -> Result<Option<Secret>, Error>;

    /// Whether [`Backend::wrap`] with `algorithm` asks no device, and so may be done
    /// however busy or far away the device is.
    fn wraps_locally(&self, algorithm: Algorithm) -> bool;

    /// What an operation on `version` counts for, in units of [`Room::ceiling`].
    fn units(&self, version: &VersionInfo) -> u32;

    /// How much work it takes.
    fn room(&self) -> Room;

    /// What a security officer does on the backend itself, if it allows that.
    fn officer(&self) -> Option<&dyn Officer>;

    /// What can be found out about it that its keys do not tell, if it is a service with
    /// rights and a clock of its own.
    fn service(&self) -> Option<&dyn Service>;

    /// Where it is kept beside a key who owns it, if there is such a place.
    fn register(&self) -> Option<&dyn Register>;

    /// Stops work, ends sessions, releases the device. Calls after it fail.
    async fn close(&self);
}

/// How much work a backend takes. What is more waits in front of it, where the order
/// can still be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Room {
    /// Operations at once that keep it busy; more would only queue inside.
    pub at_once: usize,
    /// Operations that may wait, of each class.
    pub waiting: usize,
    /// How often an operation is attempted before its failure is believed. 1 for a backend
    /// that tries again by itself.
    pub attempts: u32,
    /// How much it may be asked for in a time; `None` if it takes what it can.
    pub ceiling: Option<Ceiling>,
    /// What all who share it may ask for together; `None` if what one asks for takes
    /// nothing from others.
    pub shared: Option<Shared>,
    /// How often in a row it must deny a key that was allowed before it is believed, each
    /// time asked anew and all within one lease. 1 for a backend that is never of two minds.
    pub denials: u32,
}

/// How much a backend may be asked for. A unit is whatever the backend counts in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceiling {
    /// Units in a second, in the long run; more than 0.
    pub per_second: f64,
    /// Units at once, after a pause; at least 1.
    pub burst: f64,
    /// The time that the backend itself counts over.
    pub window: Duration,
}

/// What a backend gives to all sidecars together. To see how a key stands counts for no
/// more than an operation with it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shared {
    /// How many sidecars share it, this one among them; at least 1.
    pub sidecars: u32,
    /// Units in a second, for all of them.
    pub per_second: f64,
}

/// Security officers' work: create, list, rotate, enable and disable keys. What else can be
/// done with a key differs, and is reached through [`Officer::remover`].
///
/// Each is whole or not done at all, and can be asked for again after it was interrupted.
#[async_trait]
pub trait Officer: Send + Sync {
    /// Creates a key that cannot leave the device, with the usage flags that wrapping
    /// needs, valid from today
    /// (where the device can keep a date). `REQUEST_INVALID` if a key of that label exists.
    async fn create(&self, key: &NewKey, deadline: Instant) -> Result<KeyDescription, Error>;

    /// Every key that could be a KEK, or only those of one label.
    async fn list(
        &self,
        label: Option<&str>,
        deadline: Instant,
    ) -> Result<Vec<KeyDescription>, Error>;

    /// Makes another version of the key, of the newest one's kind and size, and newer than
    /// all whose time has come. `KEK_NOT_FOUND` if there is no such key.
    async fn rotate(&self, label: &str, deadline: Instant) -> Result<KeyDescription, Error>;

    /// Lets a version unwrap, or does not let it. Enabling it also calls off what
    /// [`ByVersion::schedule`] has planned.
    async fn set_enabled(
        &self,
        version: &KeyRef,
        enabled: bool,
        deadline: Instant,
    ) -> Result<(), Error>;

    /// How keys are removed here.
    fn remover(&self) -> Remover<'_>;
}

/// How a backend removes keys: what it is able to take away at once, and who keeps the
/// grace in which that can be undone.
pub enum Remover<'a> {
    /// Single versions, after a grace that we keep.
    ByVersion(&'a dyn ByVersion),
    /// Whole keys, with a grace that the backend keeps.
    Whole(&'a dyn Whole),
}

/// Removes single versions. `version` is a reference that pins one.
#[async_trait]
pub trait ByVersion: Send + Sync {
    /// Disables the version and writes beside it that it may be destroyed from `after` on.
    async fn schedule(
        &self,
        version: &KeyRef,
        after: SystemTime,
        deadline: Instant,
    ) -> Result<(), Error>;

    /// Destroys a version for good that was scheduled to be, and whose time has come by
    /// `now`; `REQUEST_INVALID` for any other, `KEK_VERSION_NOT_FOUND` if there is nothing of
    /// it. What an earlier call left behind is removed.
    async fn destroy(
        &self,
        version: &KeyRef,
        now: SystemTime,
        deadline: Instant,
    ) -> Result<(), Error>;
}

/// Removes whole keys, all their versions at once. Never for good: that is left to the
/// backend, or to who purges there.
#[async_trait]
pub trait Whole: Send + Sync {
    /// Deletes the key, so that it can be recovered for a while.
    async fn delete(&self, label: &str, deadline: Instant) -> Result<Deleted, Error>;

    /// Brings a deleted key back, as it was.
    async fn recover(&self, label: &str, deadline: Instant) -> Result<Vec<KeyDescription>, Error>;
}

/// A key that was deleted and can be recovered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// When the backend purges it for good, if it says so.
    pub purged_at: Option<SystemTime>,
    /// Whether nobody can purge it before; `None` if the backend does not say.
    pub protected: Option<bool>,
}

/// A backend that is a service: it grants rights one by one, and has a clock.
#[async_trait]
pub trait Service: Send + Sync {
    /// Uses each right that a sidecar needs once, on the version that the service calls the
    /// newest, and says what came of it. In the order in which they are needed.
    async fn try_rights(&self, key: &KeyRef, algorithm: Algorithm, deadline: Instant)
    -> Vec<Right>;

    /// By how many seconds its clock was ahead of ours when it last answered; `None` if it
    /// has not, or did not say.
    fn clock_ahead(&self) -> Option<i64>;
}

/// A backend with a place beside a key that says who owns it (`kek::Mode`), for other
/// sidecars, whose state directories are others, and for other tools.
#[async_trait]
pub trait Register: Send + Sync {
    /// What is recorded for keys of this label, which need not exist: a mode's name, or
    /// whatever else somebody wrote there; `None` if nothing is. `BACKEND_MISCONFIGURED` if it
    /// says two things.
    async fn mode_of(&self, label: &str, deadline: Instant) -> Result<Option<String>, Error>;

    /// Records a mode where nothing is recorded yet; never changes what is.
    async fn record_mode(
        &self,
        label: &str,
        mode: &'static str,
        deadline: Instant,
    ) -> Result<(), Error>;
}

/// A right, and what came of using it.
#[derive(Clone, Debug)]
pub struct Right {
    /// What the service calls it.
    pub name: &'static str,
    /// `Err` says why it could not be used, and which role has it.
    pub outcome: Result<(), Error>,
}

/// The device alone, without what a backend puts around it: for measuring what that costs.
#[async_trait]
pub trait Bare: Send + Sync {
    /// How many operations the device is given at once, at most.
    fn sessions(&self) -> usize;

    /// Unwraps `ciphertexts` in turn in one session, each as soon as the one before is
    /// done, and says how long each took. Ends after `length`, or earlier if so long a hold
    /// on one session would look like a call that hangs; does at least one. The payloads
    /// are wiped unseen.
    async fn time_unwraps(
        &self,
        version: &UsableVersion,
        algorithm: Algorithm,
        ciphertexts: Arc<[Vec<u8>]>,
        length: Duration,
        deadline: Instant,
    ) -> Result<Vec<Duration>, Error>;
}

/// A key to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewKey {
    /// Its label.
    pub label: String,
    /// Its kind and size.
    pub kind: KeyKind,
}

/// Kind and size of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// RSA with a modulus of 2048, 3072 or 4096 bits.
    Rsa(u32),
    /// AES with 256 bits.
    Aes256,
}

impl KeyKind {
    /// The kind of that name and size; `Err` says what is allowed.
    pub fn parse(kind: &str, bits: u32) -> Result<Self, &'static str> {
        match (kind, bits) {
            ("rsa", 2048 | 3072 | 4096) => Ok(Self::Rsa(bits)),
            ("rsa", _) => Err("an RSA key has 2048, 3072 or 4096 bits"),
            ("aes", 256) => Ok(Self::Aes256),
            ("aes", _) => Err("an AES key has 256 bits"),
            _ => Err("a key is rsa or aes"),
        }
    }

    /// An algorithm that a key of this kind works with, to describe it by.
    pub fn algorithm(self) -> Algorithm {
        match self {
            Self::Rsa(_) => Algorithm::RsaOaep256,
            Self::Aes256 => Algorithm::A256Kwp,
        }
    }
}

/// A key as an officer sees it.
#[derive(Clone, Debug)]
pub struct KeyDescription {
    /// `rsa` or `aes`; other kinds are not listed. `-` for one that is disabled, and does not
    /// show what it is.
    pub kind: &'static str,
    /// What a sidecar would see of it.
    pub info: VersionInfo,
    /// Its usage flags that are set, by their PKCS#11 names (`DECRYPT`, `UNWRAP` …).
    pub usage: Vec<&'static str>,
    /// From when on it may be destroyed, if that is planned.
    pub destroy_after: Option<SystemTime>,
}
