//! Idle connections, to save the next request the dialling.
//!
//! A connection is used by one exchange at a time, is dropped when it has been idle or open
//! for long, and is looked at before it is used: what the other end has closed meanwhile,
//! or sent without having been asked, is not used.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::link::Link;

/// How long a connection may be idle. Azure's front ends and the firewalls before them
/// forget idle connections without saying so.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// How long a connection is used. Names are looked up anew at least that often.
const AGE_MAX: Duration = Duration::from_secs(600);

/// Connections of one origin.
pub(super) struct Pool {
    idle: Mutex<Vec<Idle>>,
    max: usize,
}

struct Idle {
    link: Link,
    since: Instant,
}

impl Pool {
    /// Keeps at most `max`.
    pub(super) fn new(max: usize) -> Self {
        Self { idle: Mutex::default(), max }
    }

    /// The one that was used last, if there is one that can be used.
    pub(super) async fn take(&self) -> Option<Link> {
        loop {
            let mut link = {
                let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
                let now = Instant::now();
                idle.retain(|idle| is_fresh(idle.since, idle.link.opened, now));
                idle.pop()?.link
            };
            if link.is_quiet().await {
                return Some(link);
            }
        }
    }

    /// Takes a connection back.
    pub(super) fn put(&self, link: Link) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.max {
            idle.push(Idle { link, since: Instant::now() });
        }
    }

    /// Closes what is idle.
    pub(super) fn clear(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

fn is_fresh(idle_since: Instant, opened: Instant, now: Instant) -> bool {
    now.saturating_duration_since(idle_since) < IDLE_MAX
        && now.saturating_duration_since(opened) < AGE_MAX
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).len();
        write!(f, "Pool({idle} of {} idle)", self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_old_or_was_idle_for_long_is_not_used() {
        let opened = Instant::now();
        let after = |secs| opened + Duration::from_secs(secs);
        assert!(is_fresh(after(500), opened, after(559)));
        assert!(!is_fresh(after(500), opened, after(560)), "idle for a minute");
        assert!(!is_fresh(after(599), opened, after(600)), "ten minutes old");
        assert!(is_fresh(after(5), opened, after(1)), "a clock that went back");
    }
}
