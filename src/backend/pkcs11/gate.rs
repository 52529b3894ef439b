//! Who may be inside the module. Any number of threads work in it at once; one may
//! have it alone, to end all sessions or to finalize and initialize it.
//!
//! Every pass carries the *era*: a number that grows whenever sessions ended for
//! everyone. Handles of an earlier era are dead, and may by now be numbers of someone
//! else's sessions or objects: they are forgotten, never closed.
//!
//! A thread that hangs in the module keeps its pass, so having it alone is a matter of
//! waiting for a bounded time, and may fail.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    inside: usize,
    /// Someone has, or waits to have, the module alone.
    alone: bool,
    era: u64,
}

/// Leave to call the module, while it lives.
pub(super) struct Pass<'a> {
    gate: &'a Gate,
    era: u64,
}

/// The module to oneself, while it lives.
pub(super) struct Alone<'a> {
    gate: &'a Gate,
}

/// Why the module could not be had alone.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotAlone {
    /// Somebody else ended that era already: there is nothing left to do.
    EraIsOver,
    /// Threads stayed inside; most likely they hang.
    Occupied(usize),
}

impl Gate {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State { inside: 0, alone: false, era: 1 }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is three numbers that are changed together; a panic elsewhere
        // cannot leave them half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The era now.
    pub(super) fn era(&self) -> u64 {
        self.lock().era
    }

    /// Waits until nobody has the module alone, at most until `deadline`.
    pub(super) fn enter(&self, deadline: Instant) -> Option<Pass<'_>> {
        let mut state = self.lock();
        while state.alone {
            state = self.wait(state, deadline)?;
        }
        state.inside += 1;
        Some(Pass { gate: self, era: state.era })
    }

    /// Waits to have the module alone, to end the era `seen`. The caller must not hold
    /// a pass. Dropping the result begins the next era.
    pub(super) fn alone(&self, seen: u64, patience: Duration) -> Result<Alone<'_>, NotAlone> {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        while state.alone {
            if state.era != seen {
                return Err(NotAlone::EraIsOver);
            }
            let inside = state.inside;
            state = self.wait(state, deadline).ok_or(NotAlone::Occupied(inside))?;
        }
        if state.era != seen {
            return Err(NotAlone::EraIsOver);
        }
        state.alone = true;
        while state.inside > 0 {
            let inside = state.inside;
            match self.wait(state, deadline) {
                Some(locked) => state = locked,
                None => {
                    self.lock().alone = false;
                    self.changed.notify_all();
                    return Err(NotAlone::Occupied(inside));
                }
            }
        }
        Ok(Alone { gate: self })
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        deadline: Instant,
    ) -> Option<MutexGuard<'a, State>> {
        let left = deadline.checked_duration_since(Instant::now()).filter(|d| !d.is_zero())?;
        let (state, _) =
            self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        Some(state)
    }
}

impl Pass<'_> {
    pub(super) fn era(&self) -> u64 {
        self.era
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.gate.lock().inside -= 1;
        self.gate.changed.notify_all();
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        state.alone = false;
        state.era += 1;
        drop(state);
        self.gate.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::Arc, thread};

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(50)
    }

    #[test]
    fn an_era_ends_once_however_many_ask() {
        let gate = Gate::new();
        let seen = gate.enter(soon()).unwrap().era();
        drop(gate.alone(seen, Duration::from_secs(1)).unwrap());
        assert_eq!(gate.alone(seen, Duration::from_secs(1)).err(), Some(NotAlone::EraIsOver));
        assert_eq!(gate.enter(soon()).unwrap().era(), seen + 1);
    }

    #[test]
    fn a_hung_thread_keeps_others_from_having_it_alone_but_not_from_working() {
        let gate = Gate::new();
        let hung = gate.enter(soon()).unwrap();
        let refused = gate.alone(hung.era(), Duration::from_millis(20)).err();
        assert_eq!(refused, Some(NotAlone::Occupied(1)));
        assert!(gate.enter(soon()).is_some());
    }

    #[test]
    fn nobody_enters_while_someone_has_it_alone() {
        let gate = Arc::new(Gate::new());
        let alone = gate.alone(1, Duration::from_secs(1)).unwrap();
        assert!(gate.enter(soon()).is_none());
        let waiting = thread::spawn({
            let gate = Arc::clone(&gate);
            move || gate.enter(Instant::now() + Duration::from_secs(10)).map(|pass| pass.era())
        });
        drop(alone);
        assert_eq!(waiting.join().unwrap(), Some(2));
    }
}
