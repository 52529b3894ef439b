//! What the sidecar says of itself: one structured line for every operation, and
//! the set-up of logging.
//!
//! Recorders record; they drive nothing. A line holds names, sizes, reasons and
//! times, never bytes of a DEK, a payload, a context or a PIN.

mod log;
mod operation;

pub use log::{Format, check_filter, start};
pub use operation::{Record, record};
