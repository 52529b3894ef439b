//! What is refused before it costs the sidecar anything: a caller can cause that as fast as
//! it can send. Every refusal is counted; lines are bounded, for each connection by itself,
//! so that a flood of one caller hides nothing of another's.
//!
//! Invariant: what is left out is told: by the next line, or when the connection ends.

use std::{sync::Arc, time::Instant};

use super::{
    Metrics,
    operation::{Record, write_left_out, write_line},
    throttle::Throttle,
};
use crate::auth::Identity;

/// Lines that the refusals of one connection may write in a second.
const LINES_A_SECOND: u32 = 10;

/// The refusals of one connection.
#[derive(Debug)]
pub struct Refusals {
    who: Arc<Identity>,
    lines: Throttle,
}

impl Refusals {
    /// Of a connection whose other end is `who`.
    pub fn new(who: Arc<Identity>) -> Self {
        Self { who, lines: Throttle::of(LINES_A_SECOND) }
    }

    /// Counts a refusal, and writes its line unless there were too many.
    pub fn record(&self, metrics: &Metrics, refusal: &Record<'_>) {
        metrics.count(refusal);
        if let Some(left_out) = self.lines.allow(Instant::now()) {
            self.tell(left_out);
            write_line(refusal);
        }
    }

    fn tell(&self, left_out: u64) {
        if left_out > 0 {
            write_left_out(&self.who, left_out);
        }
    }
}

impl Drop for Refusals {
    fn drop(&mut self) {
        self.tell(self.lines.left_out());
    }
}
