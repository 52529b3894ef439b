//! The line of one operation.

use std::time::Duration;

use tracing::{debug, info, warn};

use crate::{
    auth::Identity,
    error::Error,
    op::{Audit, Op},
};

/// The target of operations' lines, for filters.
const TARGET: &str = "keyward::operation";

/// What is known of an operation when it ends.
#[derive(Debug)]
pub struct Record<'a> {
    /// Which.
    pub op: Op,
    /// Who asked.
    pub who: &'a Identity,
    /// The KEK that the request named, as far as it was a name; otherwise `-`.
    pub kek: &'a str,
    /// The version that was used, if it came that far.
    pub version: Option<&'a str>,
    /// Whether the answer came from memory alone.
    pub cached: bool,
    /// How long it took in the sidecar.
    pub took: Duration,
    /// How it ended.
    pub outcome: Result<(), &'a Error>,
}

/// How loud the line of an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Volume {
    Warn,
    Info,
    Debug,
    Silent,
}

fn volume(record: &Record<'_>) -> Volume {
    match record.outcome {
        Err(_) => Volume::Warn,
        Ok(()) => match record.op.spec().audit {
            Audit::Always => Volume::Info,
            // A line for each of a hundred thousand hits a second would cost more than
            // the hits; metrics count every one.
            Audit::UnlessCached if record.cached => Volume::Debug,
            Audit::UnlessCached => Volume::Info,
            Audit::Failures => Volume::Silent,
        },
    }
}

/// Writes the line. Failures are warnings; `detail`, which callers never see, is
/// written here and nowhere else.
pub(super) fn write_line(record: &Record<'_>) {
    let Record { op, who, kek, cached, took, outcome, .. } = record;
    let version = record.version.unwrap_or("-");
    let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    let op = op.name();
    match (volume(record), outcome) {
        (_, Err(error)) => warn!(
            target: TARGET,
            op, %who, kek, version, took_us,
            outcome = error.reason().as_str(),
            message = error.message(),
            detail = error.detail().unwrap_or("-"),
        ),
        (Volume::Info, Ok(())) => {
            info!(target: TARGET, op, %who, kek, version, cached, took_us, outcome = "OK");
        }
        (Volume::Debug, Ok(())) => {
            debug!(target: TARGET, op, %who, kek, version, cached, took_us, outcome = "OK");
        }
        (_, Ok(())) => {}
    }
}

/// Says that lines of refusals of one caller were left out.
pub(super) fn write_left_out(who: &Identity, left_out: u64) {
    warn!(target: TARGET, %who, left_out, "too many refusals: lines were left out, all are counted");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Reason;

    #[test]
    fn only_successes_from_memory_are_quiet() {
        let who = Identity::Unix { uid: 0, gid: 0 };
        let failure = Error::new(Reason::Internal, "x");
        let volume_of = |op, cached, outcome| {
            let (kek, took) = ("orders", Duration::ZERO);
            volume(&Record { op, who: &who, kek, version: None, cached, took, outcome })
        };
        assert_eq!(volume_of(Op::Unwrap, true, Ok(())), Volume::Debug);
        assert_eq!(volume_of(Op::Unwrap, false, Ok(())), Volume::Info);
        assert_eq!(volume_of(Op::Unwrap, true, Err(&failure)), Volume::Warn);
        assert_eq!(volume_of(Op::Wrap, false, Ok(())), Volume::Info);
        assert_eq!(volume_of(Op::Describe, false, Ok(())), Volume::Silent);
        assert_eq!(volume_of(Op::Describe, false, Err(&failure)), Volume::Warn);
    }
}
