//! What is kept over a restart, in the state directory (`[server] state`).
//!
//! Nothing in it is secret, and nothing in it lets anybody do anything: what stands there
//! only takes away. So whoever may write there could undo that, and nobody but the sidecar
//! may. It knows no KEK beyond its name and decides nothing.
//!
//! Invariant: what has been recorded is found after a crash at any moment, or the call that
//! was to record it said that it might not be.

mod revocations;

pub use revocations::Revocations;
