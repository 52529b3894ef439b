//! The fake's clock: token expiry, key validity, throttling, replication and purging all
//! read it, and a test can hold it and move it.
//!
//! Refuses to know: who asks. Invariant: it never goes back but by `release`.

use std::{
    sync::Mutex,
    time::{Duration, SystemTime},
};

/// Time since the Unix epoch.
pub type Now = Duration;

/// Whole seconds, which is how the service writes times.
pub fn seconds(now: Now) -> i64 {
    i64::try_from(now.as_secs()).expect("a time within the era of i64")
}

#[derive(Default)]
pub struct Clock(Mutex<Hands>);

#[derive(Default)]
struct Hands {
    held_at: Option<Now>,
    ahead: Duration,
}

fn real() -> Now {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock after 1970")
}

impl Clock {
    pub fn now(&self) -> Now {
        let hands = self.0.lock().unwrap();
        hands.held_at.unwrap_or_else(real) + hands.ahead
    }

    /// Stops the clock.
    pub fn hold(&self) {
        let mut hands = self.0.lock().unwrap();
        hands.held_at.get_or_insert_with(real);
    }

    /// Moves the clock forward, held or running.
    pub fn advance(&self, by: Duration) {
        self.0.lock().unwrap().ahead += by;
    }

    /// Back to the real time.
    pub fn release(&self) {
        *self.0.lock().unwrap() = Hands::default();
    }
}
