//! The clock that leases, guards and the cache are timed by: tokio's, so that a simulation
//! can turn it. A sidecar's is the monotonic clock of its machine.
//!
//! Deadlines, and how long something took, may come from either: outside a simulation
//! they are the same.

use std::time::Instant;

/// Now.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
