//! When a connection has to end although its peer would go on, and how long its calls in
//! work may still take then.
//!
//! | why | calls in work get |
//! |---|---|
//! | the sidecar drains | as long as the drain |
//! | it has carried DEKs that are to leave no trace | [`WIPE_WITHIN`] |
//! | it is as old as a connection gets | [`FAREWELL`] |
//!
//! Invariant: whatever the peer does, a connection that has to end does so in that time.

use std::{pin::Pin, time::Duration};

use tokio::{
    sync::watch,
    time::{Sleep, sleep},
};

use super::drain::ConnectionDrain;
use crate::{
    carriers::{Carrier, Urgency},
    observe::Closed,
};

/// How long calls in work get when the connection's buffers are to be wiped.
const WIPE_WITHIN: Duration = Duration::from_secs(2);
/// How long calls in work get on a connection that is old: longer than any takes.
const FAREWELL: Duration = Duration::from_secs(61);

/// A connection's ends.
pub(super) struct Ends {
    carrier: Carrier,
    closing: watch::Receiver<Urgency>,
    age: Pin<Box<Sleep>>,
    drain: ConnectionDrain,
}

impl Ends {
    /// Of a new connection that may live for about `age`.
    pub(super) fn new(carrier: &Carrier, age: Duration, drain: ConnectionDrain) -> Self {
        let age = Box::pin(sleep(jittered(age)));
        Self { carrier: carrier.clone(), closing: carrier.closing(), age, drain }
    }

    /// Resolves when the connection has to end, with the cause. Its streams are told to.
    pub(super) async fn due(&mut self) -> Closed {
        let cause = tokio::select! {
            () = self.drain.started() => Closed::Drain,
            () = wipe(&mut self.closing) => Closed::Purge,
            () = &mut self.age => Closed::Age,
        };
        // Streams could go on for hours.
        self.carrier.close(Urgency::End);
        cause
    }

    /// Resolves when the connection is to be cut.
    pub(super) async fn cut(&mut self, cause: Closed) {
        let within = async {
            match cause {
                Closed::Drain => std::future::pending().await,
                Closed::Purge => sleep(WIPE_WITHIN).await,
                Closed::Age => sleep(FAREWELL).await,
            }
        };
        // It may become urgent meanwhile.
        let wipe = async {
            wipe(&mut self.closing).await;
            sleep(WIPE_WITHIN).await;
        };
        tokio::select! {
            () = self.drain.cut() => {}
            () = within => {}
            () = wipe => {}
        }
    }
}

/// Resolves when the connection's buffers are to be wiped.
async fn wipe(closing: &mut watch::Receiver<Urgency>) {
    // The carrier lives as long as the connection; without it nothing is urgent.
    if closing.wait_for(|urgency| *urgency == Urgency::Wipe).await.is_err() {
        std::future::pending().await
    }
}

/// `age`, or up to a tenth less.
fn jittered(age: Duration) -> Duration {
    let mut byte = [0];
    // Without randomness there is no jitter, which costs nothing but politeness.
    let _ = aws_lc_rs::rand::fill(&mut byte);
    age.mul_f64(1.0 - f64::from(byte[0]) / 2550.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::drain::Drain;
    use tokio::time::Instant;

    const AGE: Duration = Duration::from_secs(600);

    #[tokio::test(start_paused = true)]
    async fn an_old_connection_is_told_to_end_and_then_cut() {
        let drain = Drain::new();
        let carrier = Carrier::new();
        let mut ends = Ends::new(&carrier, AGE, drain.connection());
        let began = Instant::now();
        let cause = ends.due().await;
        assert_eq!(cause, Closed::Age);
        let age = began.elapsed();
        assert!(age <= AGE + Duration::from_millis(1) && age >= AGE.mul_f64(0.9), "{age:?}");
        assert_eq!(*carrier.closing().borrow(), Urgency::End, "its streams are told too");
        ends.cut(cause).await;
        assert!(began.elapsed() >= age + FAREWELL);
    }

    #[tokio::test(start_paused = true)]
    async fn one_whose_buffers_are_to_be_wiped_ends_soon() {
        let drain = Drain::new();
        let carrier = Carrier::new();
        let mut ends = Ends::new(&carrier, AGE, drain.connection());
        carrier.close(Urgency::Wipe);
        let began = Instant::now();
        let cause = ends.due().await;
        ends.cut(cause).await;
        assert_eq!(began.elapsed().as_secs(), WIPE_WITHIN.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_connection_does_not_hold_a_purge_up() {
        let drain = Drain::new();
        let carrier = Carrier::new();
        let mut ends = Ends::new(&carrier, Duration::ZERO, drain.connection());
        let cause = ends.due().await;
        carrier.close(Urgency::Wipe);
        let began = Instant::now();
        ends.cut(cause).await;
        assert_eq!(began.elapsed().as_secs(), WIPE_WITHIN.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_gives_the_time_that_a_drain_gives() {
        let drain = Drain::new();
        let mut ends = Ends::new(&Carrier::new(), AGE, drain.connection());
        drain.start();
        assert_eq!(ends.due().await, Closed::Drain);
    }
}
