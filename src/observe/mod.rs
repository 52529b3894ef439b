//! What the sidecar says of itself: one structured line for every operation, metrics,
//! and the set-up of logging.
//!
//! Recorders record; they drive nothing. A line holds names, sizes, reasons and
//! times, never bytes of a DEK, a payload, a context or a PIN. A metric holds less:
//! names from the configuration, and words from fixed lists.

mod log;
mod metrics;
mod operation;
mod refusals;
mod throttle;

pub use log::{Format, check_filter, start};
pub use metrics::{
    Answered, BackendMetrics, CacheSample, Closed, GuardSample, HsmOp, HsmOutcome, KekMetrics,
    LeaseSample, METRICS_CONTENT_TYPE, Metrics, Purge, Samples, TimedHsmOp,
};
pub use operation::Record;
pub use refusals::Refusals;
pub use throttle::Throttle;
