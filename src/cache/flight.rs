//! Single flight: callers who want the same thing at the same time share one task.
//!
//! It knows nothing of what is fetched. Invariants:
//! - At any time there is at most one task for a key that anyone waits for.
//! - A caller who gives up takes nobody along; when the last one gives up, the task is
//!   aborted, so that nobody's request keeps the HSM busy.
//! - At most `max` tasks; beyond that a new key is refused.
//! - A task that ends, by whatever way, leaves no entry behind, and each of its callers
//!   gets an answer: the result, or [`Gone`] if it panicked.

use std::{
    collections::HashMap,
    error, fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
};

use tokio::{
    sync::{Notify, watch},
    task::{AbortHandle, spawn},
};

use super::CacheKey;

/// Tasks under way, by key.
pub struct Flights<T: Send + Sync + 'static> {
    table: Arc<Mutex<Table<T>>>,
    max: usize,
}

/// A caller's seat in a flight. To drop it is to give up.
pub struct Joined<T: Send + Sync + 'static> {
    seats: Arc<Seats<T>>,
    role: Role,
}

/// What a caller's joining did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It started the task.
    Leader,
    /// It found the task under way.
    Follower,
}

/// The task ended without a result: it panicked, or the runtime is shutting down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// There are as many tasks as there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overloaded;

struct Table<T: Send + Sync + 'static> {
    under_way: HashMap<CacheKey, Flight<T>>,
    /// Tells a flight from a later one of the same key.
    next_id: u64,
}

struct Flight<T: Send + Sync + 'static> {
    id: u64,
    /// Dead once the last caller has given up, though the task may not know yet.
    seats: Weak<Seats<T>>,
}

/// What the callers of one flight share. Dropped with the last of them.
struct Seats<T: Send + Sync + 'static> {
    result: watch::Receiver<Option<Arc<T>>>,
    task: OnceLock<AbortHandle>,
    hurry: Arc<Notify>,
}

impl<T: Send + Sync + 'static> Drop for Seats<T> {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

/// A flight's place in the table; the task holds it.
struct Place<T: Send + Sync + 'static> {
    table: Arc<Mutex<Table<T>>>,
    key: CacheKey,
    id: u64,
}

impl<T: Send + Sync + 'static> Drop for Place<T> {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        // If the last caller gave up and another came, the place is the later flight's.
        if table.under_way.get(&self.key).is_some_and(|flight| flight.id == self.id) {
            table.under_way.remove(&self.key);
        }
    }
}

impl<T: Send + Sync + 'static> Flights<T> {
    /// No tasks yet, and at most `max`.
    pub fn new(max: usize) -> Self {
        let table = Table { under_way: HashMap::new(), next_id: 0 };
        Self { table: Arc::new(Mutex::new(table)), max }
    }

    /// Joins the task of that key, or spawns what `start` makes as one. `start` is given
    /// the bell that [`Joined::hurry`] rings.
    ///
    /// # Errors
    /// [`Overloaded`] if it would be one task too many.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn join<F>(
        &self,
        key: CacheKey,
        start: impl FnOnce(Arc<Notify>) -> F,
    ) -> Result<Joined<T>, Overloaded>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let (sender, result) = watch::channel(None);
        let hurry = Arc::default();
        let seats = Arc::new(Seats { result, task: OnceLock::new(), hurry: Arc::clone(&hurry) });
        let place = {
            let mut table = lock(&self.table);
            let found = table.under_way.get(&key).map(|flight| flight.seats.upgrade());
            match found {
                Some(Some(seats)) => return Ok(Joined { seats, role: Role::Follower }),
                // The last caller has just gone: the flight is lost, its place is ours.
                Some(None) => {}
                None if table.under_way.len() >= self.max => return Err(Overloaded),
                None => {}
            }
            let id = table.next_id;
            table.next_id += 1;
            table.under_way.insert(key, Flight { id, seats: Arc::downgrade(&seats) });
            Place { table: Arc::clone(&self.table), key, id }
        };
        // Not under the lock: a runtime that shuts down drops the task, and the place in
        // it, right here.
        let work = start(hurry);
        let task = spawn(async move {
            let result = work.await;
            sender.send_replace(Some(Arc::new(result)));
            // Only now, so that who comes in between finds the result.
            drop(place);
        });
        let _ = seats.task.set(task.abort_handle());
        Ok(Joined { seats, role: Role::Leader })
    }

    /// Whether somebody waits for the task of that key now.
    pub fn is_under_way(&self, key: &CacheKey) -> bool {
        lock(&self.table).under_way.get(key).is_some_and(|flight| flight.seats.strong_count() > 0)
    }

    /// Tasks under way.
    pub fn len(&self) -> usize {
        lock(&self.table).under_way.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T: Send + Sync + 'static> Joined<T> {
    /// Whether this caller started the task.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether the result is there. Who joins such a flight is too late for another.
    pub fn has_landed(&self) -> bool {
        self.seats.result.borrow().is_some()
    }

    /// Tells the task that somebody waits who is in a hurry.
    pub fn hurry(&self) {
        self.seats.hurry.notify_one();
    }

    /// The task's result.
    ///
    /// # Errors
    /// [`Gone`] if there will be none.
    pub async fn wait(self) -> Result<Arc<T>, Gone> {
        let mut result = self.seats.result.clone();
        let found = result.wait_for(Option::is_some).await.map_err(|_| Gone)?;
        found.as_ref().map(Arc::clone).ok_or(Gone)
    }
}

/// The table is whole whenever the lock is free: nothing foreign runs under it.
fn lock<T: Send + Sync + 'static>(table: &Mutex<Table<T>>) -> MutexGuard<'_, Table<T>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T: Send + Sync + 'static> fmt::Debug for Flights<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Flights({} of at most {})", self.len(), self.max)
    }
}

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the shared work ended without a result")
    }
}

impl error::Error for Gone {}

impl fmt::Display for Overloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("too much shared work is under way")
    }
}

impl error::Error for Overloaded {}

#[cfg(test)]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        sync::atomic::{AtomicUsize, Ordering::SeqCst},
        time::Duration,
    };

    use tokio::{runtime, sync::oneshot, task::yield_now, time::sleep};

    use super::*;

    fn key(n: u8) -> CacheKey {
        CacheKey::of([n; 32])
    }

    /// Counts up when it is dropped.
    struct Dropped(Arc<AtomicUsize>);

    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    async fn until(condition: impl Fn() -> bool) {
        for _ in 0..10_000 {
            if condition() {
                return;
            }
            sleep(Duration::from_millis(1)).await;
        }
        panic!("it never came true");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_thousand_callers_cause_one_run() {
        let flights = Arc::new(Flights::new(8));
        let runs = Arc::new(AtomicUsize::new(0));
        let (open, gate) = oneshot::channel::<()>();
        let gate = Arc::new(Mutex::new(Some(gate)));
        let joined = Arc::new(AtomicUsize::new(0));
        let callers: Vec<_> = (0..1000)
            .map(|_| {
                let (flights, runs) = (Arc::clone(&flights), Arc::clone(&runs));
                let (gate, joined) = (Arc::clone(&gate), Arc::clone(&joined));
                spawn(async move {
                    let seat = flights.join(key(1), |_| async move {
                        let gate = gate.lock().unwrap().take().expect("one run takes it");
                        gate.await.unwrap();
                        runs.fetch_add(1, SeqCst) + 41
                    });
                    joined.fetch_add(1, SeqCst);
                    let seat = seat.unwrap();
                    (seat.role(), *seat.wait().await.unwrap())
                })
            })
            .collect();
        until(|| joined.load(SeqCst) == 1000).await;
        open.send(()).unwrap();
        let mut leaders = 0;
        for caller in callers {
            let (role, value) = caller.await.unwrap();
            leaders += usize::from(role == Role::Leader);
            assert_eq!(value, 41);
        }
        assert_eq!((leaders, runs.load(SeqCst)), (1, 1));
        until(|| flights.is_empty()).await;
    }

    #[tokio::test]
    async fn different_keys_do_not_share() {
        let flights = Flights::new(8);
        let one = flights.join(key(1), |_| async { 1 }).unwrap();
        let two = flights.join(key(2), |_| async { 2 }).unwrap();
        assert_eq!((*one.wait().await.unwrap(), *two.wait().await.unwrap()), (1, 2));
    }

    #[tokio::test]
    async fn a_leader_who_gives_up_takes_nobody_along() {
        let flights = Flights::new(8);
        let (open, gate) = oneshot::channel::<()>();
        let leader = flights.join(key(1), |_| async { gate.await.is_ok() }).unwrap();
        let follower = flights.join(key(1), |_| async { unreachable!() }).unwrap();
        assert_eq!((leader.role(), follower.role()), (Role::Leader, Role::Follower));
        yield_now().await;
        drop(leader);
        yield_now().await;
        open.send(()).unwrap();
        assert!(*follower.wait().await.unwrap());
    }

    #[tokio::test]
    async fn when_all_have_given_up_the_task_is_aborted() {
        let flights = Flights::<()>::new(8);
        let drops = Arc::new(AtomicUsize::new(0));
        let dropped = Dropped(Arc::clone(&drops));
        let work = |_| async move {
            let _dropped = dropped;
            std::future::pending().await
        };
        let leader = flights.join(key(1), work).unwrap();
        // One gives up while it waits, as a call that is cancelled does.
        let mut waiting = Box::pin(flights.join(key(1), |_| async {}).unwrap().wait());
        tokio::select! {
            biased;
            _ = &mut waiting => panic!("it cannot be done"),
            () = std::future::ready(()) => {}
        }
        yield_now().await;
        drop(waiting);
        yield_now().await;
        assert_eq!((drops.load(SeqCst), flights.len()), (0, 1));
        drop(leader);
        until(|| drops.load(SeqCst) == 1 && flights.is_empty()).await;
    }

    #[tokio::test]
    async fn who_comes_after_the_last_has_gone_starts_anew() {
        let flights = Flights::new(1);
        drop(flights.join(key(1), |_| std::future::pending()).unwrap());
        // The runtime has not had a chance yet to drop the first task.
        let (open, gate) = oneshot::channel::<u8>();
        let second = flights.join(key(1), |_| async { gate.await.unwrap() }).unwrap();
        assert_eq!(second.role(), Role::Leader);
        for _ in 0..10 {
            yield_now().await;
        }
        // The end of the first task has not taken the second one's place away.
        let third = flights.join(key(1), |_| async { unreachable!() }).unwrap();
        assert_eq!(third.role(), Role::Follower);
        open.send(5).unwrap();
        assert_eq!((*second.wait().await.unwrap(), *third.wait().await.unwrap()), (5, 5));
        assert!(flights.is_empty());
    }

    #[tokio::test]
    async fn a_panic_is_an_answer_to_everyone_and_the_next_starts_anew() {
        let flights = Flights::new(8);
        let leader = flights.join(key(1), |_| async { panic!("on purpose") }).unwrap();
        let follower = flights.join(key(1), |_| async { 1 }).unwrap();
        assert_eq!((leader.wait().await, follower.wait().await), (Err(Gone), Err(Gone)));
        assert!(flights.is_empty());
        let next = flights.join(key(1), |_| async { 2 }).unwrap();
        assert_eq!(*next.wait().await.unwrap(), 2);
    }

    #[tokio::test]
    async fn a_panic_before_there_is_a_task_leaves_no_entry() {
        let flights = Flights::<u8>::new(8);
        let start = |_| -> std::future::Ready<u8> { panic!("on purpose") };
        assert!(catch_unwind(AssertUnwindSafe(|| flights.join(key(1), start))).is_err());
        assert!(flights.is_empty());
    }

    #[tokio::test]
    async fn beyond_the_bound_only_new_keys_are_refused() {
        let flights = Flights::<u8>::new(2);
        let (open, gate) = oneshot::channel();
        let one = flights.join(key(1), |_| async { gate.await.unwrap() }).unwrap();
        let two = flights.join(key(2), |_| std::future::pending()).unwrap();
        assert!(matches!(flights.join(key(3), |_| async { 3 }), Err(Overloaded)));
        assert_eq!(flights.join(key(2), |_| async { 3 }).unwrap().role(), Role::Follower);
        open.send(1).unwrap();
        assert_eq!(*one.wait().await.unwrap(), 1);
        assert_eq!(flights.len(), 1);
        let three = flights.join(key(3), |_| async { 3 }).unwrap();
        assert_eq!(*three.wait().await.unwrap(), 3);
        drop(two);
    }

    #[tokio::test]
    async fn a_task_that_has_ended_is_not_joined_though_its_callers_linger() {
        let flights = Flights::new(8);
        let slow = flights.join(key(1), |_| async { 1 }).unwrap();
        until(|| flights.is_empty()).await;
        let next = flights.join(key(1), |_| async { 2 }).unwrap();
        assert_eq!(next.role(), Role::Leader);
        assert_eq!((*slow.wait().await.unwrap(), *next.wait().await.unwrap()), (1, 2));
    }

    #[test]
    fn a_runtime_that_shuts_down_is_an_answer_too() {
        let new = || runtime::Builder::new_current_thread().build().unwrap();
        let (ending, other) = (new(), new());
        let handle = ending.handle().clone();
        let inside = handle.enter();
        let flights = Flights::<u8>::new(8);
        let before = flights.join(key(1), |_| std::future::pending()).unwrap();
        drop(ending);
        let after = flights.join(key(2), |_| std::future::pending()).unwrap();
        drop(inside);
        assert_eq!(other.block_on(before.wait()), Err(Gone));
        assert_eq!(other.block_on(after.wait()), Err(Gone));
        assert!(flights.is_empty());
    }
}
