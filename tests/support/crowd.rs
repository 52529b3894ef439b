//! Sixty-four callers that ask in every way there is, while something is done to their
//! sidecar: what they are told must be the right DEK, and never an error.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use keyward::{
    client::{Client, Error, Item, WrappedDek},
    secret::Secret,
};
use tokio::{task::JoinSet, time::sleep};

pub const CALLERS: usize = 64;
/// DEKs of each caller.
const DEKS: u8 = 8;

pub struct Crowd {
    told: Arc<Told>,
    callers: JoinSet<()>,
}

#[derive(Default)]
struct Told {
    stop: AtomicBool,
    answers: AtomicU64,
    errors: Mutex<Vec<String>>,
    slowest: Mutex<Duration>,
}

impl Told {
    fn took(&self, time: Duration) {
        let mut slowest = self.slowest.lock().expect("nobody panicked");
        *slowest = slowest.max(time);
    }
}

/// What a crowd met.
#[derive(Debug)]
pub struct Met {
    pub answers: u64,
    pub errors: Vec<String>,
    pub slowest: Duration,
}

impl Crowd {
    /// Callers by turns of each of `clients`, which should be patient.
    pub async fn start(clients: &[Client], kek: &'static str) -> Self {
        let (told, mut callers) = (Arc::new(Told::default()), JoinSet::new());
        for number in 0..CALLERS {
            let client = clients[(number / 8) % clients.len()].clone();
            let caller = Caller::new(number as u8, client, kek).await;
            let told = Arc::clone(&told);
            callers.spawn(async move { caller.run(&told).await });
        }
        Self { told, callers }
    }

    /// How many answers there were.
    pub fn answers(&self) -> u64 {
        self.told.answers.load(Ordering::Relaxed)
    }

    /// Has them stop. Panics if one of them was told a wrong DEK.
    pub async fn end(mut self) -> Met {
        self.told.stop.store(true, Ordering::Relaxed);
        while let Some(caller) = self.callers.join_next().await {
            caller.expect("no caller was told a wrong DEK");
        }
        let errors = std::mem::take(&mut *self.told.errors.lock().expect("nobody panicked"));
        let slowest = *self.told.slowest.lock().expect("nobody panicked");
        Met { answers: self.answers(), errors, slowest }
    }
}

struct Caller {
    number: u8,
    client: Client,
    kek: &'static str,
    wrapped: Vec<WrappedDek>,
}

impl Caller {
    async fn new(number: u8, client: Client, kek: &'static str) -> Self {
        let client = if number % 8 == 3 { client.with_calls_apart() } else { client };
        let mut caller = Self { number, client, kek, wrapped: Vec::new() };
        for dek in 0..DEKS {
            let wrapped = caller.client.wrap(kek, &caller.dek(dek), &caller.context()).await;
            caller.wrapped.push(wrapped.expect("it can be wrapped before anything happens"));
        }
        caller
    }

    /// This caller's alone.
    fn dek(&self, dek: u8) -> Secret {
        Secret::new([[self.number; 16], [dek; 16]].concat())
    }

    fn context(&self) -> Vec<u8> {
        format!("caller {}", self.number).into_bytes()
    }

    async fn run(self, told: &Told) {
        for dek in (0..DEKS).cycle() {
            if told.stop.load(Ordering::Relaxed) {
                return;
            }
            let began = Instant::now();
            match self.ask(dek).await {
                Ok(answers) => told.answers.fetch_add(answers, Ordering::Relaxed),
                Err(error) => {
                    let what = format!(
                        "caller {} after {:?}: {}: {error}",
                        self.number,
                        began.elapsed(),
                        error.reason()
                    );
                    told.errors.lock().expect("nobody panicked").push(what);
                    0
                }
            };
            told.took(began.elapsed());
            // Callers that never rest would leave the sidecar no core to restart on.
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// How many answers it took.
    async fn ask(&self, dek: u8) -> Result<u64, Error> {
        let (client, context) = (&self.client, self.context());
        let wrapped = &self.wrapped[usize::from(dek)];
        let unwraps = async |wrapped: &WrappedDek, expected: &Secret| {
            let dek = client.unwrap(wrapped, &context).await?;
            assert!(dek.ct_eq(expected.expose()), "caller {}: another's DEK", self.number);
            Ok(())
        };
        match self.number % 8 {
            4 => {
                let (dek, wrapped) = client.generate(self.kek, 32, &context).await?;
                unwraps(&wrapped, &dek).await?;
                Ok(2)
            }
            5 => {
                let wrapped = client.wrap(self.kek, &self.dek(dek), &context).await?;
                unwraps(&wrapped, &self.dek(dek)).await?;
                Ok(2)
            }
            6 => self.stream().await,
            7 => {
                let rewrapped = client.rewrap(wrapped, &context).await?;
                unwraps(&rewrapped.wrapped, &self.dek(dek)).await?;
                Ok(2)
            }
            _ => {
                unwraps(wrapped, &self.dek(dek)).await?;
                Ok(1)
            }
        }
    }

    async fn stream(&self) -> Result<u64, Error> {
        let item = |id: u64| Item {
            id,
            wrapped: self.wrapped[id as usize % self.wrapped.len()].clone(),
            context: self.context(),
        };
        const ITEMS: u64 = 64;
        let items: Vec<_> = (0..ITEMS).map(item).collect();
        let mut seen = [false; ITEMS as usize];
        let within = Duration::from_secs(20);
        let mut answers = self.client.unwrap_stream(stream::iter(items), within).await?;
        while let Some(answer) = answers.next().await {
            let answer = answer?;
            let expected = self.dek((answer.id % u64::from(DEKS)) as u8);
            assert!(answer.outcome?.ct_eq(expected.expose()), "another's DEK");
            let seen = &mut seen[answer.id as usize];
            assert!(!*seen, "answered twice");
            *seen = true;
        }
        assert!(seen.iter().all(|seen| *seen), "an item was not answered");
        Ok(ITEMS)
    }
}

/// No error, and work enough to have met what happened.
#[track_caller]
pub fn assert_unharmed(met: &Met, at_least: u64) {
    println!("{} answers, the slowest after {:?}", met.answers, met.slowest);
    let some: Vec<_> = met.errors.iter().take(10).collect();
    assert!(met.errors.is_empty(), "{} errors, such as {some:#?}", met.errors.len());
    assert!(met.answers > at_least, "there was no load: {met:?}");
}
