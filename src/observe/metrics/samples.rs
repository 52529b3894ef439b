//! What is not counted as it happens but asked for when somebody looks: sizes, ages,
//! lengths. Whoever has them registers a source, which fills [`Samples`].

use crate::kek::Condition;

/// What all sources together know at one moment. A source fills in what it has and
/// leaves the rest.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples {
    /// The cache of DEKs.
    pub cache: Option<CacheSample>,
    /// How each KEK stands.
    pub keks: Vec<(String, Condition)>,
    /// One for each KEK version.
    pub leases: Vec<LeaseSample>,
    /// Distinct unwraps that wait for a backend; callers who share one count once.
    pub flights: Option<u64>,
    /// One for each backend.
    pub guards: Vec<GuardSample>,
    /// Open connections of callers.
    pub connections: Option<u64>,
    /// Open sessions of sealed delivery.
    pub sessions: Option<u64>,
}

/// The cache of DEKs. What was evicted counts from the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheSample {
    /// DEKs that are resident now.
    pub entries: u64,
    /// What they take up, in bytes.
    pub bytes: u64,
    /// How many fit.
    pub capacity: u64,
    /// Evicted because another needed the room.
    pub evicted_capacity: u64,
    /// Evicted at the end of their time to live.
    pub evicted_ttl: u64,
    /// Evicted because nobody asked for them.
    pub evicted_idle: u64,
    /// Zeroized by purges.
    pub evicted_purge: u64,
}

/// The lease of one KEK version.
#[derive(Clone, Debug, PartialEq)]
pub struct LeaseSample {
    /// The KEK, by its name in the configuration.
    pub kek: String,
    /// The version.
    pub version: String,
    /// Time since the last proof, in seconds; `None` if there was none.
    pub age_seconds: Option<f64>,
    /// Time since the last private-key operation that succeeded, likewise.
    pub operation_age_seconds: Option<f64>,
    /// How long a proof is good for, in seconds.
    pub interval_seconds: f64,
    /// One word of a fixed list, such as `live`.
    pub state: &'static str,
}

/// What stands around one backend. What is counted counts from the start of the process.
#[derive(Clone, Debug, PartialEq)]
pub struct GuardSample {
    /// The backend, by its name in the configuration.
    pub backend: String,
    /// Operations that wait for a turn, by class.
    pub waiting: Vec<(&'static str, u64)>,
    /// The breaker's position, one word of a fixed list, such as `closed`.
    pub breaker: &'static str,
    /// Units of its ceiling that the backend was given.
    pub units: u64,
    /// Units in a second that it may be given; `None` if there is no ceiling.
    pub ceiling: Option<f64>,
    /// Attempts that were made again.
    pub retries: u64,
    /// Operations that did not reach the backend.
    pub refused: u64,
}
