//! Two lanes to a backend: who waits in front goes first.
//!
//! A storage node that boots unwraps thousands of DEKs over a stream, and must not hold
//! up the one unwrap that a query waits for. A few operations are with the backend, as
//! many as keep it busy; the rest wait here, where the order can still be chosen.
//!
//! It knows no backend. Invariants: never more than `at_once` places are taken, never
//! more than `waiting` callers wait in each lane; a free place goes to the front lane
//! first, and within a lane to who came first; one who goes away leaves no place taken.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::{sync::oneshot, time::timeout_at};

use crate::error::{Error, Reason};

/// Which lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Somebody waits for this one answer.
    Front,
    /// Streams, rewraps, refreshes.
    Back,
}

/// The lanes to one backend. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Lanes(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    waiting_max: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: usize,
    front: VecDeque<oneshot::Sender<Place>>,
    back: VecDeque<oneshot::Sender<Place>>,
}

/// A place with the backend, until it is dropped.
#[derive(Debug)]
pub struct Place {
    /// `None` once it was passed on.
    shared: Option<Arc<Shared>>,
}

impl Lanes {
    /// Lets `at_once` operations, at least one, be with the backend, and `waiting` wait
    /// in each lane.
    pub fn new(at_once: usize, waiting: usize) -> Self {
        let state = State { free: at_once.max(1), front: VecDeque::new(), back: VecDeque::new() };
        Self(Arc::new(Shared { waiting_max: waiting, state: Mutex::new(state) }))
    }

    /// Waits for a place. `OVERLOADED` if the lane is full, `DEADLINE_EXCEEDED` if none
    /// came free in time.
    pub async fn enter(&self, lane: Lane, deadline: Instant) -> Result<Place, Error> {
        let place = {
            let mut state = self.0.state();
            if state.free > 0 {
                state.free -= 1;
                return Ok(Place { shared: Some(Arc::clone(&self.0)) });
            }
            let queue = state.lane(lane);
            if queue.len() >= self.0.waiting_max {
                // Those who went away are only noticed when their turn comes.
                queue.retain(|waiter| !waiter.is_closed());
            }
            if queue.len() >= self.0.waiting_max {
                return Err(Error::new(Reason::Overloaded, "too many wait for the HSM"));
            }
            let (give, place) = oneshot::channel();
            queue.push_back(give);
            place
        };
        match timeout_at(deadline.into(), place).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) => Err(Error::new(Reason::Internal, "a place in the queue was lost")),
            Err(_) => Err(Error::new(Reason::DeadlineExceeded, "the HSM is busy")),
        }
    }

    /// How many wait in each lane, front and back.
    pub fn waiting(&self) -> (usize, usize) {
        let state = self.0.state();
        (state.front.len(), state.back.len())
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn lane(&mut self, lane: Lane) -> &mut VecDeque<oneshot::Sender<Place>> {
        match lane {
            Lane::Front => &mut self.front,
            Lane::Back => &mut self.back,
        }
    }

    fn next(&mut self) -> Option<oneshot::Sender<Place>> {
        self.front.pop_front().or_else(|| self.back.pop_front())
    }
}

/// Passes the place on to who is next.
impl Drop for Place {
    fn drop(&mut self) {
        let Some(shared) = self.shared.take() else { return };
        loop {
            let next = {
                let mut state = shared.state();
                match state.next() {
                    Some(next) => next,
                    None => {
                        state.free += 1;
                        return;
                    }
                }
            };
            match next.send(Place { shared: Some(Arc::clone(&shared)) }) {
                Ok(()) => return,
                // It went away. Disarmed, or its drop would pass the place on as well.
                Err(mut unwanted) => unwanted.shared = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::task::yield_now;

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    /// Enters, notes its name, leaves.
    fn visit(
        lanes: &Lanes,
        lane: Lane,
        name: &'static str,
        seen: &Arc<Mutex<Vec<&'static str>>>,
    ) -> tokio::task::JoinHandle<()> {
        let (lanes, seen) = (lanes.clone(), Arc::clone(seen));
        tokio::spawn(async move {
            let _place = lanes.enter(lane, later()).await.unwrap();
            seen.lock().unwrap().push(name);
        })
    }

    #[tokio::test]
    async fn the_front_lane_goes_first_and_each_in_order() {
        let lanes = Lanes::new(1, 10);
        let taken = lanes.enter(Lane::Back, later()).await.unwrap();
        let seen = Arc::default();
        let mut visits = Vec::new();
        for (lane, name) in [
            (Lane::Back, "back 1"),
            (Lane::Back, "back 2"),
            (Lane::Front, "front 1"),
            (Lane::Front, "front 2"),
        ] {
            visits.push(visit(&lanes, lane, name, &seen));
            yield_now().await;
        }
        assert_eq!(lanes.waiting(), (2, 2));
        drop(taken);
        for visit in visits {
            visit.await.unwrap();
        }
        assert_eq!(*seen.lock().unwrap(), ["front 1", "front 2", "back 1", "back 2"]);
    }

    #[tokio::test]
    async fn a_full_lane_refuses_and_the_other_does_not() {
        let lanes = Lanes::new(1, 1);
        let _taken = lanes.enter(Lane::Front, later()).await.unwrap();
        let waiting = tokio::spawn({
            let lanes = lanes.clone();
            async move { lanes.enter(Lane::Back, later()).await.map(drop) }
        });
        yield_now().await;
        let refused = lanes.enter(Lane::Back, later()).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::Overloaded);
        let soon = Instant::now() + Duration::from_millis(5);
        let late = lanes.enter(Lane::Front, soon).await.unwrap_err();
        assert_eq!(late.reason(), Reason::DeadlineExceeded);
        waiting.abort();
        let _ended = waiting.await;
        let soon = Instant::now() + Duration::from_millis(5);
        let late = lanes.enter(Lane::Back, soon).await.unwrap_err();
        assert_eq!(late.reason(), Reason::DeadlineExceeded, "who went away holds no place");
    }

    #[tokio::test]
    async fn who_goes_away_costs_nobody_a_place() {
        let lanes = Lanes::new(2, 100);
        let taken = [
            lanes.enter(Lane::Front, later()).await.unwrap(),
            lanes.enter(Lane::Front, later()).await.unwrap(),
        ];
        let gone: Vec<_> = (0..50)
            .map(|_| {
                let lanes = lanes.clone();
                tokio::spawn(async move { lanes.enter(Lane::Front, later()).await.map(drop) })
            })
            .collect();
        yield_now().await;
        gone.iter().for_each(|task| task.abort());
        for task in gone {
            let _aborted = task.await;
        }
        drop(taken);
        let _both = [
            lanes.enter(Lane::Back, later()).await.unwrap(),
            lanes.enter(Lane::Back, later()).await.unwrap(),
        ];
        let soon = Instant::now() + Duration::from_millis(5);
        assert!(lanes.enter(Lane::Front, soon).await.is_err(), "two places, not three");
    }
}
