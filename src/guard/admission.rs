//! Admission: a bounded queue in front of a backend, and who is let in when.
//!
//! A few operations are with the backend, as many as keep it busy; the rest wait here,
//! where the order can still be chosen (`queue`), and below its ceiling
//! (`rate`). What could not be answered in time anyway is refused at once,
//! with the time after which it is worth asking again.
//!
//! Decisions are [`State`]'s, which takes `now`; around it are a lock, a channel for each
//! who waits, and an alarm for when the ceiling allows the next.
//!
//! Invariants: never more than `at_once` places are taken; one who goes away leaves no
//! place taken; a place that comes free is given on at once, if the ceiling allows.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::oneshot,
    time::{sleep_until, timeout_at},
};

use super::{
    Ask,
    queue::{Class, Pushed, Queue},
    rate::Rate,
};
use crate::{
    backend::{Room, jitter},
    clock::now,
    error::{Error, Reason, Retry},
};

/// Longest that one operation counts for when the wait is estimated.
const SERVICE_MAX: Duration = Duration::from_secs(10);

/// A hint to come back is between these.
const HINT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));

/// The way in to one backend. Clones are the same way in.
#[derive(Clone, Debug)]
pub(super) struct Admission(Arc<Shared>);

#[derive(Debug)]
struct Shared(Mutex<State>);

#[derive(Debug)]
struct State {
    at_once: u32,
    free: u32,
    queue: Queue<Waiter>,
    rate: Option<Rate>,
    /// How long one operation takes, on the average of the last ones; zero: not known.
    service: Duration,
    /// When somebody looks again whether the ceiling allows the next.
    alarm: Option<Instant>,
    /// Units let through so far.
    units: u64,
}

#[derive(Debug)]
struct Waiter {
    give: oneshot::Sender<Place>,
    units: u32,
}

/// A place with the backend, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    /// `None` if it never got to whom it was for.
    shared: Option<Arc<Shared>>,
    since: Instant,
}

enum Next {
    Serve(Waiter),
    At(Instant),
    Nobody,
}

impl Admission {
    pub(super) fn new(room: Room) -> Self {
        let at_once = u32::try_from(room.at_once.max(1)).unwrap_or(u32::MAX);
        Self(Arc::new(Shared(Mutex::new(State {
            at_once,
            free: at_once,
            queue: Queue::new(room.waiting),
            rate: room.ceiling.map(Rate::new),
            service: Duration::ZERO,
            alarm: None,
            units: 0,
        }))))
    }

    /// Waits for a place, for an operation of so many units. `OVERLOADED` if there is no
    /// room to wait or it would take too long, `DEADLINE_EXCEEDED` if it did.
    pub(super) async fn enter(&self, ask: Ask, units: u32) -> Result<Place, Error> {
        let (give, place) = oneshot::channel();
        self.0.state().take_in(ask, Waiter { give, units }, now())?;
        self.0.serve();
        match timeout_at(ask.deadline.into(), place).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) => {
                Err(overloaded("the queue is full, most of it with this caller's", Duration::ZERO))
            }
            Err(_) => Err(Error::new(Reason::DeadlineExceeded, "the HSM or vault is busy")),
        }
    }

    /// Refuses what could not be answered in time.
    pub(super) fn foresee(&self, ask: Ask, units: u32) -> Result<(), Error> {
        self.0.state().foresee(ask, units, now()).map(|_| ())
    }

    /// Counts units that were let through without waiting.
    pub(super) fn charge(&self, units: u32) {
        self.0.state().charge(units, now());
    }

    /// The backend answered work of so many units.
    pub(super) fn answered(&self, units: u32) {
        if let Some(rate) = &mut self.0.state().rate {
            rate.answered(units, now());
        }
    }

    /// The backend was asked too much, at `sent`, and wants to be spared for a time.
    pub(super) fn refused(&self, sent: Instant, asked: Duration) {
        if let Some(rate) = &mut self.0.state().rate {
            rate.refused(sent, asked, now(), jitter());
        }
    }

    /// Whether there is a ceiling.
    pub(super) fn is_paced(&self) -> bool {
        self.0.state().rate.is_some()
    }

    /// Waits until the ceiling allows `units` once more, for who has a place and was refused
    /// by the backend. False if that would be too late.
    pub(super) async fn once_more(&self, units: u32, deadline: Instant) -> bool {
        loop {
            let at = {
                let (now, mut state) = (now(), self.0.state());
                let at = state.rate.as_ref().map_or(now, |rate| rate.ready_at(units, now));
                if at <= now {
                    state.charge(units, now);
                    return true;
                }
                if at + state.service >= deadline {
                    return false;
                }
                at
            };
            sleep_until(at.into()).await;
        }
    }

    /// How many of a class wait.
    pub(super) fn waiting(&self, class: Class) -> usize {
        self.0.state().queue.len(class)
    }

    /// Units let through so far.
    pub(super) fn units(&self) -> u64 {
        self.0.state().units
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives places to those who are next, as many as there are.
    fn serve(self: &Arc<Self>) {
        loop {
            let now = now();
            // Sent without the lock: whoever has gone meanwhile hands the place back.
            let next = self.state().next(now);
            match next {
                Next::Serve(waiter) => {
                    let place = Place { shared: Some(Arc::clone(self)), since: now };
                    if let Err(mut unwanted) = waiter.give.send(place) {
                        unwanted.shared = None;
                        self.state().free += 1;
                    }
                }
                Next::At(at) => return self.look_again(at),
                Next::Nobody => return,
            }
        }
    }

    fn look_again(self: &Arc<Self>, at: Instant) {
        if !self.state().set_alarm(at) {
            return;
        }
        let shared = Arc::downgrade(self);
        tokio::spawn(async move {
            sleep_until(at.into()).await;
            if let Some(shared) = shared.upgrade() {
                shared.state().alarm = None;
                shared.serve();
            }
        });
    }
}

impl State {
    fn take_in(&mut self, ask: Ask, waiter: Waiter, now: Instant) -> Result<(), Error> {
        let wait = self.foresee(ask, waiter.units, now)?;
        match self.queue.push(ask.class, ask.sender, waiter) {
            Pushed::In | Pushed::Instead(_) => return Ok(()),
            Pushed::Full(waiter) => {
                // Those who went away are only noticed when their turn comes.
                self.queue.retain(ask.class, |waiter| !waiter.give.is_closed());
                match self.queue.push(ask.class, ask.sender, waiter) {
                    Pushed::In | Pushed::Instead(_) => return Ok(()),
                    Pushed::Full(_) => {}
                }
            }
        }
        Err(overloaded("too many wait for the HSM or vault", wait))
    }

    /// How long one that comes now would wait, if it could be answered in time then.
    fn foresee(&self, ask: Ask, units: u32, now: Instant) -> Result<Duration, Error> {
        let wait = self.wait(ask, units, now);
        if !wait.is_zero() && now + wait + self.service > ask.deadline {
            return Err(overloaded("it could not be answered in time", wait));
        }
        Ok(wait)
    }

    /// How long one that comes now would wait, as far as can be told.
    fn wait(&self, ask: Ask, units: u32, now: Instant) -> Duration {
        let ahead = u32::try_from(self.queue.ahead(ask.class, ask.sender)).unwrap_or(u32::MAX);
        let for_a_place = match ahead.checked_sub(self.free) {
            Some(more) => self.service.saturating_mul(more.saturating_add(1)) / self.at_once,
            None => Duration::ZERO,
        };
        let for_the_ceiling = self.rate.as_ref().map_or(Duration::ZERO, |rate| {
            // Taking those before it for operations of the same kind.
            let before = rate.work(units.saturating_mul(ahead.min(1 << 16)));
            let ready = rate.ready_at(units, now).saturating_duration_since(now);
            if ahead == 0 { ready } else { ready + before }
        });
        for_a_place.max(for_the_ceiling)
    }

    fn next(&mut self, now: Instant) -> Next {
        while self.free > 0 {
            let Some(waiter) = self.queue.peek() else { return Next::Nobody };
            if waiter.give.is_closed() {
                self.queue.pop();
                continue;
            }
            let units = waiter.units;
            let at = self.rate.as_ref().map_or(now, |rate| rate.ready_at(units, now));
            if at > now {
                return Next::At(at);
            }
            if let Some(waiter) = self.queue.pop() {
                self.free -= 1;
                self.charge(units, now);
                return Next::Serve(waiter);
            }
        }
        Next::Nobody
    }

    fn charge(&mut self, units: u32, now: Instant) {
        self.units += u64::from(units);
        if let Some(rate) = &mut self.rate {
            rate.charge(units, now);
        }
    }

    /// Whether an alarm has to be set that was not.
    fn set_alarm(&mut self, at: Instant) -> bool {
        let set = self.alarm.is_none_or(|alarm| at < alarm);
        if set {
            self.alarm = Some(at);
        }
        set
    }

    fn left(&mut self, took: Duration) {
        self.free += 1;
        let took = took.min(SERVICE_MAX);
        self.service = if self.service.is_zero() { took } else { (self.service * 7 + took) / 8 };
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.take() {
            shared.state().left(now().saturating_duration_since(self.since));
            shared.serve();
        }
    }
}

fn overloaded(why: &'static str, wait: Duration) -> Error {
    Error::new(Reason::Overloaded, why).with_retry(Retry::After(wait.clamp(HINT.0, HINT.1)))
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, sleep};

    use super::*;
    use crate::{backend::Ceiling, guard::Sender};

    const SECOND: Duration = Duration::from_secs(1);

    fn room(at_once: usize, waiting: usize) -> Room {
        Room { at_once, waiting, attempts: 1, ceiling: None, shared: None, denials: 1 }
    }

    fn ask(class: Class, within: Duration) -> Ask {
        Ask { class, sender: Sender(1), deadline: now() + within }
    }

    /// Does operations of a second each, and says in which order.
    async fn order(admission: &Admission, asks: &[(Class, u64)]) -> Vec<(Class, u64)> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let tasks: Vec<_> = asks
            .iter()
            .map(|&(class, sender)| {
                let (admission, seen) = (admission.clone(), Arc::clone(&seen));
                let ask = Ask { sender: Sender(sender), ..ask(class, 1000 * SECOND) };
                tokio::spawn(async move {
                    let _place = admission.enter(ask, 1).await.unwrap();
                    seen.lock().unwrap().push((class, sender));
                    sleep(SECOND).await;
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let seen = seen.lock().unwrap();
        seen.clone()
    }

    #[tokio::test(start_paused = true)]
    async fn classes_go_in_order_and_callers_in_turn() {
        use Class::{Bulk, Foreground, Prefetch};
        let admission = Admission::new(room(1, 10));
        let asks = [(Prefetch, 1), (Prefetch, 2), (Bulk, 1), (Bulk, 1), (Bulk, 2), (Foreground, 1)];
        let wanted = [
            // It was there before the others.
            (Prefetch, 1),
            (Foreground, 1),
            (Bulk, 1),
            (Bulk, 2),
            (Bulk, 1),
            (Prefetch, 2),
        ];
        assert_eq!(order(&admission, &asks).await, wanted);
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_answered_in_time_is_refused_at_once() {
        let admission = Admission::new(room(1, 100));
        order(&admission, &[(Class::Bulk, 1); 3]).await;
        let _taken = admission.enter(ask(Class::Bulk, SECOND), 1).await.unwrap();
        let began = now();
        let late = admission.enter(ask(Class::Bulk, SECOND), 1).await.unwrap_err();
        assert_eq!((late.reason(), now()), (Reason::Overloaded, began));
        assert_eq!(late.retry(), Retry::After(SECOND));
        let in_time = ask(Class::Bulk, 3 * SECOND);
        let patient = tokio::spawn({
            let admission = admission.clone();
            async move { admission.enter(in_time, 1).await.map(drop) }
        });
        sleep(SECOND / 2).await;
        assert_eq!(admission.waiting(Class::Bulk), 1);
        drop(_taken);
        patient.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_that_was_slow_once_is_asked_again() {
        let admission = Admission::new(room(1, 100));
        let place = admission.enter(ask(Class::Foreground, SECOND), 1).await.unwrap();
        advance(SERVICE_MAX).await;
        drop(place);
        let soon = ask(Class::Foreground, Duration::from_millis(10));
        assert!(admission.enter(soon, 1).await.is_ok(), "nobody is before it");
    }

    #[tokio::test(start_paused = true)]
    async fn who_goes_away_costs_nobody_a_place() {
        let admission = Admission::new(room(2, 100));
        let taken = [
            admission.enter(ask(Class::Bulk, SECOND), 1).await.unwrap(),
            admission.enter(ask(Class::Bulk, SECOND), 1).await.unwrap(),
        ];
        let gone: Vec<_> = (0..50)
            .map(|_| {
                let admission = admission.clone();
                let ask = ask(Class::Foreground, 60 * SECOND);
                tokio::spawn(async move { admission.enter(ask, 1).await.map(drop) })
            })
            .collect();
        sleep(SECOND / 10).await;
        gone.iter().for_each(|task| task.abort());
        for task in gone {
            let _aborted = task.await;
        }
        drop(taken);
        let _both = [
            admission.enter(ask(Class::Bulk, SECOND), 1).await.unwrap(),
            admission.enter(ask(Class::Bulk, SECOND), 1).await.unwrap(),
        ];
        assert!(admission.enter(ask(Class::Foreground, SECOND), 1).await.is_err(), "not three");
    }

    #[tokio::test(start_paused = true)]
    async fn the_ceiling_is_kept_and_those_in_front_go_first_all_the_same() {
        let ceiling = Some(Ceiling { per_second: 10.0, burst: 1.0, window: 10 * SECOND });
        let admission = Admission::new(Room { ceiling, ..room(100, 100) });
        // Past its gentle beginning.
        admission.charge(0);
        sleep(600 * SECOND).await;
        let began = now();
        let enter = |class, n: u64| {
            let admission = admission.clone();
            let ask = Ask { sender: Sender(n), ..ask(class, 60 * SECOND) };
            tokio::spawn(async move {
                let _place = admission.enter(ask, 1).await.unwrap();
                (class, now() - began)
            })
        };
        let bulk: Vec<_> = (0..20).map(|n| enter(Class::Bulk, n)).collect();
        sleep(Duration::from_millis(50)).await;
        let (_, foreground) = enter(Class::Foreground, 7).await.unwrap();
        assert!(foreground < Duration::from_millis(110), "{foreground:?}");
        let mut last = Duration::ZERO;
        for task in bulk {
            last = last.max(task.await.unwrap().1);
        }
        assert!((2.0..2.05).contains(&last.as_secs_f64()), "{last:?}");
        assert_eq!(admission.units(), 21);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_refuses_and_another_class_has_room() {
        let admission = Admission::new(room(1, 1));
        let _taken = admission.enter(ask(Class::Bulk, SECOND), 1).await.unwrap();
        let waiting = tokio::spawn({
            let (admission, ask) = (admission.clone(), ask(Class::Bulk, SECOND));
            async move { admission.enter(ask, 1).await.map(drop) }
        });
        sleep(SECOND / 10).await;
        let refused = admission.enter(ask(Class::Bulk, SECOND), 1).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::Overloaded);
        let late = admission.enter(ask(Class::Rewrap, SECOND), 1).await.unwrap_err();
        assert_eq!(late.reason(), Reason::DeadlineExceeded);
        waiting.abort();
        let _ended = waiting.await;
        let late = admission.enter(ask(Class::Bulk, SECOND), 1).await.unwrap_err();
        assert_eq!(late.reason(), Reason::DeadlineExceeded, "who went away takes no room");
    }
}
