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
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
};

use tokio::{
    sync::watch,
    task::{AbortHandle, spawn},
};

/// Tasks under way, by key.
pub struct Flights<K: Key, T: Send + Sync + 'static> {
    table: Arc<Mutex<Table<K, T>>>,
    max: usize,
}

/// What flights are told apart by.
pub trait Key: Copy + Eq + Hash + Send + 'static {}

impl<K: Copy + Eq + Hash + Send + 'static> Key for K {}

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

struct Table<K, T: Send + Sync + 'static> {
    under_way: HashMap<K, Flight<T>>,
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
}

impl<T: Send + Sync + 'static> Drop for Seats<T> {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

/// A flight's place in the table; the task holds it.
struct Place<K: Key, T: Send + Sync + 'static> {
    table: Arc<Mutex<Table<K, T>>>,
    key: K,
    id: u64,
}

impl<K: Key, T: Send + Sync + 'static> Drop for Place<K, T> {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        // If the last caller gave up and another came, the place is the later flight's.
        if table.under_way.get(&self.key).is_some_and(|flight| flight.id == self.id) {
            table.under_way.remove(&self.key);
        }
    }
}

impl<K: Key, T: Send + Sync + 'static> Flights<K, T> {
    /// No tasks yet, and at most `max`.
    pub fn new(max: usize) -> Self {
        let table = Table { under_way: HashMap::new(), next_id: 0 };
        Self { table: Arc::new(Mutex::new(table)), max }
    }

    /// Joins the task of that key, or spawns what `start` makes as one.
    ///
    /// # Errors
    /// [`Overloaded`] if it would be one task too many.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn join<F>(&self, key: K, start: impl FnOnce() -> F) -> Result<Joined<T>, Overloaded>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let (sender, result) = watch::channel(None);
        let seats = Arc::new(Seats { result, task: OnceLock::new() });
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
        let work = start();
        let task = spawn(async move {
            let result = work.await;
            sender.send_replace(Some(Arc::new(result)));
            // Only now, so that who comes in between finds the result.
            drop(place);
        });
        let _ = seats.task.set(task.abort_handle());
        Ok(Joined { seats, role: Role::Leader })
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
fn lock<K, T: Send + Sync + 'static>(table: &Mutex<Table<K, T>>) -> MutexGuard<'_, Table<K, T>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Key, T: Send + Sync + 'static> fmt::Debug for Flights<K, T> {
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
