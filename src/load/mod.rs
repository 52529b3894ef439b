//! The load generator behind `keyward bench`: it sends unwraps, measures them, measures
//! floors in the same run, and says what it found.
//!
//! | file | what it knows |
//! |---|---|
//! | `plan` | which DEK is asked for when: orders, paces, tickets; pure |
//! | `zipf` | the skewed choice of a DEK; pure |
//! | `record` | what was measured: histograms, throughput, errors; pure |
//! | `timer` | waiting until a moment, to some ten microseconds |
//! | `target` | who is asked: a sidecar or a backend; the DEKs that are asked for |
//! | `run`, `stream` | callers, one operation or many at a time |
//! | `echo`, `floor` | what the machine does without Keyward |
//! | `machine` | what was measured on |
//! | `report`, `compare` | one run as JSON, and against an earlier one; pure |
//! | `html`, `svg` | one run as a page; pure |
//!
//! It refuses to know the command line and the configuration.
//!
//! Invariants: an error is never a latency; a latency of the open loop counts from the
//! moment that the operation was due, not from when a caller got round to it; a DEK is in a
//! [`crate::secret::Secret`], and what comes back is compared with it, so that a wrong
//! answer is an error too; no DEK, ciphertext or host name is in a report.

mod compare;
mod echo;
mod floor;
mod html;
mod machine;
mod plan;
mod record;
mod report;
mod run;
mod stream;
mod svg;
mod target;
mod timer;
mod zipf;

pub use compare::{Change, Comparison, compare};
pub use echo::{Answering, serve_echo};
pub use floor::{Floor, Floors, device_floor, transport_floors};
pub use html::page;
pub use machine::Machine;
pub use plan::{CALLERS_MAX, DEKS_MAX, Order, Pace, Plan, RATE_MAX, Shape};
pub use record::{INTERVAL, Latency, Outcome};
pub use report::{Ratio, Report, SCHEMA, Scenario, Subject};
pub use run::{Gauge, run_backend, run_sidecar};
pub use target::{Deks, Direct, Sidecar, Target, Trouble};
pub use zipf::SKEW_MAX;
