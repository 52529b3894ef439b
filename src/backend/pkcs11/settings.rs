//! What the operator sets of a PKCS#11 backend.

use std::{path::PathBuf, time::Duration};

/// One `[backend.NAME]` of type `pkcs11`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Name of the backend.
    pub name: String,
    /// Path of the module, a shared library.
    pub module: PathBuf,
    /// Handed to `C_Initialize` as `pReserved`, which NSS wants; empty for none.
    pub module_args: String,
    /// Which token.
    pub token: TokenSelector,
    /// Where the user PIN is read from, at every login.
    pub pin: PinSource,
    /// Worker threads, each with one session: 1 to 64. Sessions beyond what the device
    /// does in parallel only queue.
    pub sessions: usize,
    /// Operations that may wait for a worker: 1 to 65536. Beyond it callers are
    /// refused at once.
    pub queue: usize,
    /// How long one call into the module may take before it counts as hung and its
    /// caller is answered. The call itself cannot be cancelled.
    pub call_timeout: Duration,
    /// Log in although the token says that one more wrong PIN locks it.
    pub allow_final_try: bool,
}

/// Which token: by label, by serial number, or by both where labels are not unique.
/// At least one is given. Slot numbers are not offered: they change when a token is
/// initialised or a reader is plugged in elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenSelector {
    /// `CK_TOKEN_INFO.label`, without its padding.
    pub label: Option<String>,
    /// `CK_TOKEN_INFO.serialNumber`, without its padding.
    pub serial: Option<String>,
}

/// Where a PIN is read from. Never the command line or the configuration itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PinSource {
    /// The first line of a file that only its owner can read.
    File(PathBuf),
    /// An environment variable.
    Env(String),
}
