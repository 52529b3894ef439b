//! Worker threads: each owns one session, takes operations from one bounded queue and
//! climbs the ladder of recovery when one fails.
//!
//! Operations are closures over a [`Seat`] (session, library, found keys); a closure
//! may run more than once, so it must not care how often. They run on threads of their
//! own because a call into a module blocks for as long as the device likes and cannot
//! be cancelled: its caller is answered when its patience ends, and the thread counts
//! as hung until the call returns.
//!
//! Invariants: a session is used by one thread only (two in one session crash
//! SoftHSM); after any fault the session is given up, because some tokens leave it
//! unusable; a session of an earlier era is forgotten, not closed.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use cryptoki_sys::CK_SESSION_HANDLE;
use tokio::{sync::oneshot, time::timeout_at};
use tracing::{debug, error, warn};

use super::{
    ckr::{self, Class},
    fault::Fault,
    ffi::Library,
    keys::KeyCache,
    recover::{Advice, Rung, advise},
    token::{Live, Token},
};
use crate::{
    error::{Error, Reason},
    secret::scrub,
};

/// Sessions and logins are not torn down for everyone more often than this.
const ERA_MIN: Duration = Duration::from_millis(250);

/// How long a key that was confirmed to be gone is believed to be: until then its
/// absence is no reason to initialise the module again. If it comes back it is found.
const GONE_BELIEVED: Duration = Duration::from_secs(60);

/// Where an operation works.
pub(super) struct Seat<'a> {
    pub(super) library: &'a Library,
    pub(super) session: CK_SESSION_HANDLE,
    pub(super) live: &'a Live,
    pub(super) keys: &'a mut KeyCache,
}

/// How an operation is to be treated.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// It works on bytes that a caller sent: ambiguous faults go to the judge.
    pub(super) of_caller: bool,
    /// Not started after this.
    pub(super) deadline: Instant,
    /// How long its caller waits for the device.
    pub(super) patience: Duration,
}

/// How long whoever drops a pool that was not stopped waits for its workers.
const DROP_PATIENCE: Duration = Duration::from_secs(1);

type Task = Box<dyn FnOnce(&mut Worker) + Send>;

/// The threads and their queue.
pub(super) struct Pool {
    queue: Mutex<Option<Sender<Task>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    shared: Arc<Shared>,
}

struct Shared {
    token: Token,
    born: Instant,
    /// For each worker, when its operation in work becomes overdue, in ms since `born`;
    /// 0 if it has none.
    overdue_at: Vec<AtomicU64>,
    /// When a worker last climbed to a rung that ends an era, for each of the two.
    era_ended: Mutex<HashMap<Rung, Instant>>,
    /// Keys that were not found even after the module was initialised again.
    gone: Mutex<HashMap<String, Instant>>,
}

impl Pool {
    /// Starts `workers` threads for `token`.
    pub(super) fn start(
        token: Token,
        name: &str,
        workers: usize,
        queue: usize,
    ) -> Result<Self, Error> {
        let shared = Arc::new(Shared {
            token,
            born: Instant::now(),
            overdue_at: (0..workers).map(|_| AtomicU64::new(0)).collect(),
            era_ended: Mutex::default(),
            gone: Mutex::default(),
        });
        let (sender, receiver) = bounded(queue);
        let threads = (0..workers)
            .map(|index| {
                let worker = Worker {
                    index,
                    shared: Arc::clone(&shared),
                    session: None,
                    keys: KeyCache::default(),
                };
                let receiver = receiver.clone();
                thread::Builder::new()
                    .name(format!("hsm-{name}-{index}"))
                    .spawn(move || worker.work(&receiver))
            })
            .collect::<Result<_, _>>()
            .map_err(|error| {
                Error::new(Reason::Internal, "no thread could be started for the HSM")
                    .with_detail(error.to_string())
            })?;
        Ok(Self { queue: Mutex::new(Some(sender)), threads: Mutex::new(threads), shared })
    }

    /// Has a worker do `operation`, and waits for the answer as long as the terms allow.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        terms: Terms,
        mut operation: impl FnMut(&mut Seat<'_>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let hung = self.hung();
        if hung == self.workers() {
            return Err(Fault::Hung(hung));
        }
        let (reply, answer) = oneshot::channel();
        let task: Task = Box::new(move |worker| {
            if reply.is_closed() {
                return;
            }
            let result = match Instant::now() < terms.deadline {
                true => worker.climb(terms, &mut operation),
                false => Err(Fault::TooLate),
            };
            // If nobody waits any more, the answer is dropped, which wipes it.
            let _unwanted = reply.send(result);
        });
        self.submit(task)?;
        let until = terms.deadline.min(Instant::now() + terms.patience);
        match timeout_at(until.into(), answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::new(Reason::Internal, "an HSM worker ended early").into()),
            Err(_) => match self.hung() {
                0 => Err(Fault::TooLate),
                hung => {
                    warn!(hung, "calls into the PKCS#11 module do not return");
                    Err(Fault::Hung(hung))
                }
            },
        }
    }

    fn submit(&self, task: Task) -> Result<(), Fault> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = match queue.as_ref().map(|queue| queue.try_send(task)) {
            Some(Ok(())) => return Ok(()),
            Some(Err(TrySendError::Full(_))) => {
                Error::new(Reason::Overloaded, "the queue to the HSM is full")
            }
            Some(Err(TrySendError::Disconnected(_))) | None => {
                Error::new(Reason::ShuttingDown, "the connection to the HSM is closed")
            }
        };
        Err(refused.into())
    }

    /// How many workers there are.
    pub(super) fn workers(&self) -> usize {
        self.shared.overdue_at.len()
    }

    /// How many workers have been in one operation for longer than their caller waits.
    pub(super) fn hung(&self) -> usize {
        self.shared.hung(None)
    }

    /// Lets the workers finish what is in the queue and waits for those that do not
    /// hang, at most for `patience`. Blocks.
    pub(super) fn stop(&self, patience: Duration) {
        drop(self.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let until = Instant::now() + patience;
        for thread in threads {
            while !thread.is_finished() && Instant::now() < until {
                thread::sleep(Duration::from_millis(2));
            }
            match thread.is_finished() {
                true => drop(thread.join()),
                false => warn!("an HSM worker hangs in the module and is left behind"),
            }
        }
    }
}

/// A worker that outlives its pool ends when it likes, and the last one finalizes and
/// unloads the module: if the process exits meanwhile, the module's destructors run in
/// two threads at once, which was seen to hang in SoftHSM for ever.
impl Drop for Pool {
    fn drop(&mut self) {
        self.stop(DROP_PATIENCE);
    }
}

impl Shared {
    /// How many workers, but for one, are overdue.
    fn hung(&self, but: Option<usize>) -> usize {
        let now = self.now_ms();
        let overdue = |at: &AtomicU64| match at.load(Ordering::Relaxed) {
            0 => false,
            at => at < now,
        };
        let others = self.overdue_at.iter().enumerate().filter(|(index, _)| Some(*index) != but);
        others.filter(|(_, at)| overdue(at)).count()
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether an era may be ended now by climbing to `rung`, and notes that it is.
    fn may_end_era(&self, rung: Rung) -> bool {
        let mut ended = self.era_ended.lock().unwrap_or_else(PoisonError::into_inner);
        let may = ended.get(&rung).is_none_or(|at| at.elapsed() >= ERA_MIN);
        if may {
            ended.insert(rung, Instant::now());
        }
        may
    }

    /// Whether a key was confirmed to be gone a moment ago.
    fn is_gone(&self, what: &str) -> bool {
        let gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        gone.get(what).is_some_and(|at| at.elapsed() < GONE_BELIEVED)
    }

    fn note_gone(&self, what: &str) {
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        gone.retain(|_, at| at.elapsed() < GONE_BELIEVED);
        gone.insert(what.to_owned(), Instant::now());
    }
}

/// An attempt that failed.
struct Failure {
    fault: Fault,
    /// The era that it was in; 0 if it did not get in.
    era: u64,
    /// Whether the operation itself began.
    begun: bool,
}

/// One thread.
pub(super) struct Worker {
    index: usize,
    shared: Arc<Shared>,
    /// The session and the era that it belongs to.
    session: Option<(u64, CK_SESSION_HANDLE)>,
    /// Keys found in that session.
    keys: KeyCache,
}

impl Worker {
    fn work(mut self, queue: &Receiver<Task>) {
        while let Ok(task) = queue.recv() {
            if catch_unwind(AssertUnwindSafe(|| task(&mut self))).is_err() {
                error!("an HSM operation panicked; its session is given up");
                self.give_up_session();
            }
            self.shared.overdue_at[self.index].store(0, Ordering::Relaxed);
            // The next task may be long in coming.
            scrub();
        }
        self.close();
    }

    /// Does `operation`, recovering as the ladder advises.
    fn climb<T>(
        &mut self,
        terms: Terms,
        operation: &mut dyn FnMut(&mut Seat<'_>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let patience = u64::try_from(terms.patience.as_millis()).unwrap_or(u64::MAX);
        let overdue_at = self.shared.now_ms().saturating_add(patience).max(1);
        self.shared.overdue_at[self.index].store(overdue_at, Ordering::Relaxed);
        let mut climbed = None;
        loop {
            let Failure { fault, era, begun } = match self.attempt(terms.deadline, operation) {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            // What failed before the operation began has nothing to do with its bytes.
            let rung = match advise(&fault, climbed, terms.of_caller && begun) {
                Advice::Climb(rung) => rung,
                Advice::Judge => return Err(suspect(fault)),
                Advice::GiveUp => {
                    if let (Fault::KeyGone(what), Some(_)) = (&fault, climbed) {
                        self.shared.note_gone(what);
                    }
                    return Err(fault);
                }
            };
            debug!(?fault, ?rung, "recovering");
            if let Err(trouble) = self.recover(rung, &fault, era) {
                return Err(trouble.unwrap_or(fault));
            }
            if Instant::now() >= terms.deadline {
                return Err(Fault::TooLate);
            }
            climbed = Some(rung);
        }
    }

    /// One attempt.
    fn attempt<T>(
        &mut self,
        deadline: Instant,
        operation: &mut dyn FnMut(&mut Seat<'_>) -> Result<T, Fault>,
    ) -> Result<T, Failure> {
        let shared = Arc::clone(&self.shared);
        let module = &shared.token.module;
        // Without a pass there is no era to end, and `enter` has done its best.
        let pass =
            module.enter(deadline).map_err(|fault| Failure { fault, era: 0, begun: false })?;
        let era = pass.era();
        let mut begun = false;
        let result = (|| {
            let live = shared.token.live(&pass)?;
            let library = module.library(&pass);
            let session = match self.session {
                Some((of, session)) if of == era => session,
                _ => {
                    self.keys.clear();
                    let session = library.open_session(live.slot, false)?;
                    self.session = Some((era, session));
                    session
                }
            };
            begun = true;
            let mut seat = Seat { library, session, live: &live, keys: &mut self.keys };
            operation(&mut seat)
        })();
        result.map_err(|fault| {
            if let Some((of, session)) = self.session.take()
                && of == era
                && !session_is_gone(&fault)
            {
                let _best_effort = module.library(&pass).close_session(session);
            }
            self.keys.clear();
            Failure { fault, era, begun }
        })
    }

    /// Climbs to a rung. `Err` if it cannot be climbed now, with the reason if that says
    /// more than the fault itself.
    fn recover(&self, rung: Rung, fault: &Fault, era: u64) -> Result<(), Option<Fault>> {
        let token = &self.shared.token;
        let hung = self.shared.hung(Some(self.index));
        let ended = match rung {
            // The session was given up with the fault: the next attempt opens another.
            Rung::FindAgain => return Ok(()),
            _ if era == 0 => return Err(None),
            // Many threads meet the same trouble; the first to end the era does it for all.
            _ if token.module.era_is_over(era) => return Ok(()),
            // A module that was initialised just now shows what there is.
            _ if matches!(fault, Fault::KeyGone(what) if self.shared.is_gone(what)
                || token.module.initialized_within(ERA_MIN * 4)) =>
            {
                return Err(None);
            }
            // One that hangs stays inside. To wait until it has left would be in vain, and
            // would keep those out who can still work: 2 s each time a caller asks for it.
            _ if hung > 0 => return Err(Some(Fault::Hung(hung))),
            // A key that may only look gone must not be called so.
            _ if !self.shared.may_end_era(rung) => return Err(fault.unconfirmed()),
            Rung::LogIn => token.end_sessions(era),
            Rung::Initialize => token.module.reinitialize(era),
        };
        ended.map_err(|trouble| {
            warn!(?fault, ?rung, ?trouble, "recovery failed");
            Some(trouble)
        })
    }

    fn give_up_session(&mut self) {
        self.session = None;
        self.keys.clear();
    }

    /// Closes the session, if the module still knows it.
    fn close(&mut self) {
        let module = &self.shared.token.module;
        let Some((of, session)) = self.session.take() else { return };
        if let Ok(pass) = module.enter(Instant::now())
            && pass.era() == of
        {
            let _best_effort = module.library(&pass).close_session(session);
        }
    }
}

fn suspect(fault: Fault) -> Fault {
    match fault {
        Fault::Ckr(error) => Fault::Suspect(error),
        other => other,
    }
}

fn session_is_gone(fault: &Fault) -> bool {
    matches!(fault, Fault::Ckr(error) if ckr::class(error.code) == Class::Session)
}
