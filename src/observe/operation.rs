//! The line of one operation.

use std::time::Duration;

use tracing::{info, warn};

use crate::{
    auth::Identity,
    error::Error,
    op::{Audit, Op},
};

/// What is known of an operation when it ends.
#[derive(Debug)]
pub struct Record<'a> {
    /// Which.
    pub op: Op,
    /// Who asked.
    pub who: &'a Identity,
    /// The KEK that the request named, as far as it was a name.
    pub kek: &'a str,
    /// The version that was used, if it came that far.
    pub version: Option<&'a str>,
    /// How long it took in the sidecar.
    pub took: Duration,
    /// How it ended.
    pub outcome: Result<(), &'a Error>,
}

/// Writes the line. Failures are warnings; `detail`, which callers never see, is
/// written here and nowhere else.
pub fn record(record: &Record<'_>) {
    let Record { op, who, kek, version, took, outcome } = record;
    let version = version.unwrap_or("-");
    let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    match outcome {
        Ok(()) if op.spec().audit == Audit::Always => {
            info!(target: "keyward::operation", op = op.name(), %who, kek, version, took_us, outcome = "OK");
        }
        Ok(()) => {}
        Err(error) => warn!(
            target: "keyward::operation",
            op = op.name(), %who, kek, version, took_us,
            outcome = error.reason().as_str(),
            message = error.message(),
            detail = error.detail().unwrap_or("-"),
        ),
    }
}
