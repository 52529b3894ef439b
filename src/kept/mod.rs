//! What is kept over a restart, in the state directory (`[server] state`).
//!
//! Nothing in it is secret, and nothing in it lets anybody do anything: what stands there
//! only takes away, or is evidence. So whoever may write there could undo that, and nobody but the sidecar
//! may. It knows no KEK beyond its name and decides nothing.
//!
//! Invariant: what has been recorded is found after a crash at any moment, or the call that
//! was to record it said that it might not be.

mod ledger;
mod modes;
mod revocations;

use std::{fs::File, io, path::Path};

pub use ledger::{Ledger, Opened};
pub use modes::Modes;
pub use revocations::Revocations;

use crate::error::{Error, Reason};

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn misconfigured(path: &Path, what: &str) -> Error {
    Error::new(Reason::BackendMisconfigured, format!("the state directory cannot be used: {what}"))
        .with_detail(path.display().to_string())
}

fn unusable(path: &Path, error: &io::Error) -> Error {
    misconfigured(path, &error.kind().to_string())
        .with_fix("see whether the sidecar's user may write there, and whether the disk is full")
}
