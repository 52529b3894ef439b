//! The state and its past, so that a read can be answered by a replica that lags.
//!
//! Refuses to know: what the state means. Invariant: a change that fails changes nothing.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{clock::Now, state::State};

/// Snapshots that are kept: a lag reaches back over no more changes than this.
const PAST_MAX: usize = 256;

/// How replicas lag.
#[derive(Clone, Copy, Debug)]
pub struct Lag {
    /// How far behind the lagging replica is.
    pub by: Duration,
    /// Every how many reads it is the one that answers; 1 is always.
    pub every: u32,
}

#[derive(Default)]
pub struct Store(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    current: Arc<State>,
    /// States with the time until which they were current, oldest first.
    past: VecDeque<(Now, Arc<State>)>,
    lag: Option<Lag>,
    reads: u32,
}

impl Store {
    /// The newest state.
    pub fn current(&self) -> Arc<State> {
        Arc::clone(&self.0.lock().unwrap().current)
    }

    /// The state of the replica that answers the next read.
    pub fn read(&self, now: Now) -> Arc<State> {
        let mut inner = self.0.lock().unwrap();
        inner.reads = inner.reads.wrapping_add(1);
        let Some(lag) = inner.lag.filter(|lag| inner.reads.is_multiple_of(lag.every)) else {
            return Arc::clone(&inner.current);
        };
        let seen_at = now.saturating_sub(lag.by);
        let past = inner.past.iter().find(|(until, _)| *until > seen_at);
        Arc::clone(past.map_or(&inner.current, |(_, state)| state))
    }

    pub fn change<T, E>(
        &self,
        now: Now,
        change: impl FnOnce(&mut State) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut inner = self.0.lock().unwrap();
        let mut next = State::clone(&inner.current);
        let outcome = change(&mut next)?;
        let before = std::mem::replace(&mut inner.current, Arc::new(next));
        inner.past.push_back((now, before));
        if inner.past.len() > PAST_MAX {
            inner.past.pop_front();
        }
        Ok(outcome)
    }

    pub fn set_lag(&self, lag: Option<Lag>) {
        self.0.lock().unwrap().lag = lag;
    }
}
