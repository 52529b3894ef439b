//! The table of operations. Each is listed once: what the policy calls it, how
//! long it may take, whether a client may send it twice. The policy, the engine's
//! log, the client's retries and the documentation all read this table.
//!
//! The limits that the protocol promises stand here too.

use std::{fmt, time::Duration};

/// Shortest DEK, in bytes.
pub const DEK_MIN_BYTES: usize = 16;
/// Longest DEK, in bytes.
pub const DEK_MAX_BYTES: usize = 64;
/// Longest context, in bytes.
pub const CONTEXT_MAX_BYTES: usize = 4096;
/// Longest ciphertext of a wrapped DEK, in bytes: RSA-8192.
pub const CIPHERTEXT_MAX_BYTES: usize = 1024;
/// Longest gRPC message, in bytes.
pub const MESSAGE_MAX_BYTES: usize = 64 * 1024;
/// Items of one UnwrapStream that are worked on at once.
pub const UNWRAP_STREAM_WINDOW: usize = 64;
/// Items of one RewrapStream that are worked on at once. Small, because a rewrap
/// is background work and every item in work holds a place in the HSM's queue.
pub const REWRAP_STREAM_WINDOW: usize = 4;

/// Calls of WatchKeks at once.
pub const WATCHERS_MAX: usize = 1024;
/// KEKs that one of them may name.
pub const WATCHED_MAX: usize = 1024;

/// An operation that a policy can allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Wrap a DEK that the caller has.
    Wrap,
    /// Unwrap a DEK.
    Unwrap,
    /// Make a DEK.
    Generate,
    /// Wrap a DEK anew under the current version.
    Rewrap,
    /// Read what the sidecar knows of a KEK.
    Describe,
    /// Wipe the cached DEKs of a KEK. For operators.
    Purge,
    /// Take a KEK away until it is restored. For operators.
    Revoke,
    /// Give a revoked KEK back. For operators.
    Restore,
    /// Have a KEK read from its backend at once. For operators.
    Reload,
}

/// How loudly an operation is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audit {
    /// One line an operation.
    Always,
    /// One line an operation; at `debug` if it succeeded from memory alone, so that
    /// by default a hit in the cache leaves its trace in the metrics only.
    UnlessCached,
    /// One line if it was refused or failed.
    Failures,
}

/// What the table says of an operation.
#[derive(Debug)]
pub struct OpSpec {
    /// The operation.
    pub op: Op,
    /// Its name in policies (`may`), logs and metrics.
    pub name: &'static str,
    /// How long it may take if the caller sets no deadline.
    pub deadline: Duration,
    /// Whether sending it twice does no harm. Wrap and generate leave nothing
    /// behind in the sidecar, so all of today's operations are.
    pub idempotent: bool,
    /// Whether a plaintext DEK goes over the caller's connection, in or out.
    pub carries_dek: bool,
    /// How loudly it is recorded.
    pub audit: Audit,
}

/// The table.
pub const OPS: [OpSpec; 9] = [
    OpSpec {
        op: Op::Wrap,
        name: "wrap",
        deadline: SECONDS_10,
        idempotent: true,
        carries_dek: true,
        audit: Audit::Always,
    },
    OpSpec {
        op: Op::Unwrap,
        name: "unwrap",
        deadline: SECONDS_10,
        idempotent: true,
        carries_dek: true,
        audit: Audit::UnlessCached,
    },
    OpSpec {
        op: Op::Generate,
        name: "generate",
        deadline: SECONDS_10,
        idempotent: true,
        carries_dek: true,
        audit: Audit::Always,
    },
    OpSpec {
        op: Op::Rewrap,
        name: "rewrap",
        deadline: SECONDS_30,
        idempotent: true,
        carries_dek: false,
        audit: Audit::Always,
    },
    OpSpec {
        op: Op::Describe,
        name: "describe",
        deadline: SECONDS_10,
        idempotent: true,
        carries_dek: false,
        audit: Audit::Failures,
    },
    OpSpec {
        op: Op::Purge,
        name: "purge",
        deadline: SECONDS_30,
        idempotent: true,
        carries_dek: false,
        audit: Audit::Always,
    },
    OpSpec {
        op: Op::Revoke,
        name: "revoke",
        deadline: SECONDS_30,
        idempotent: true,
        carries_dek: false,
        audit: Audit::Always,
    },
    OpSpec {
        op: Op::Restore,
        name: "restore",
        deadline: SECONDS_30,
        idempotent: true,
        carries_dek: false,
        audit: Audit::Always,
    },
    OpSpec {
        op: Op::Reload,
        name: "reload",
        deadline: SECONDS_30,
        idempotent: true,
        carries_dek: false,
        audit: Audit::Always,
    },
];

const SECONDS_10: Duration = Duration::from_secs(10);
const SECONDS_30: Duration = Duration::from_secs(30);

impl Op {
    /// The operation's row of the table.
    pub fn spec(self) -> &'static OpSpec {
        // The order of the table is the order of the enum; a test holds them together.
        &OPS[self as usize]
    }

    /// The name in policies, logs and metrics.
    pub fn name(self) -> &'static str {
        self.spec().name
    }

    /// Whether a plaintext DEK goes over the caller's connection, in or out.
    pub fn carries_dek(self) -> bool {
        self.spec().carries_dek
    }

    /// The operation of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        OPS.iter().find(|spec| spec.name == name).map(|spec| spec.op)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for spec in &OPS {
            assert_eq!(spec.op.spec().name, spec.name);
            assert_eq!(Op::from_name(spec.name), Some(spec.op));
        }
        assert_eq!(Op::from_name("status"), None);
    }
}
