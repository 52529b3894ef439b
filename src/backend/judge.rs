//! Whose fault was it? When an operation on a caller's ciphertext fails with a code
//! that may mean anything, the judge has the key prove itself with a canary: if it can,
//! the ciphertext is bad; if not, the backend is in trouble.
//!
//! Invariants: a verdict rests on a canary that began *after* the failure, so an older
//! success never condemns a good ciphertext; canaries of one key are at least
//! [`CANARY_GAP`] apart and shared by all who wait, so garbage cannot load the device
//! with them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::time::{sleep_until, timeout_at};

use crate::{
    clock,
    error::{Error, Reason},
    kek::Fingerprint,
};

/// Least time between two canaries of one key.
const CANARY_GAP: Duration = Duration::from_millis(100);

/// Most keys that are remembered; a bound that no configuration reaches.
const KEYS_MAX: usize = 4096;

#[derive(Default)]
pub(super) struct Judge {
    keys: Mutex<HashMap<Fingerprint, Arc<tokio::sync::Mutex<Trial>>>>,
}

/// What is known of one key's canaries.
#[derive(Default)]
struct Trial {
    last_began: Option<Instant>,
    /// When the last canary that came back began.
    last_alive: Option<Instant>,
}

impl Judge {
    /// Returns once the key has proven itself after `failed_at`; `Err` if it cannot.
    pub(super) async fn alive_since(
        &self,
        key: Fingerprint,
        failed_at: Instant,
        deadline: Instant,
        canary: impl AsyncFnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let too_late = |_| {
            Error::new(Reason::DeadlineExceeded, "the key could not be checked before the deadline")
        };
        let trial = self.trial(key);
        // Whoever comes first runs the canary; the others find its result.
        let mut trial = timeout_at(deadline.into(), trial.lock()).await.map_err(too_late)?;
        if trial.last_alive.is_some_and(|began| began > failed_at) {
            return Ok(());
        }
        if let Some(began) = trial.last_began {
            let next = began + CANARY_GAP;
            timeout_at(deadline.into(), sleep_until(next.into())).await.map_err(too_late)?;
        }
        let began = clock::now();
        trial.last_began = Some(began);
        canary().await?;
        trial.last_alive = Some(began);
        Ok(())
    }

    fn trial(&self, key: Fingerprint) -> Arc<tokio::sync::Mutex<Trial>> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.len() >= KEYS_MAX {
            keys.retain(|_, trial| Arc::strong_count(trial) > 1);
        }
        Arc::clone(keys.entry(key).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const KEY: Fingerprint = Fingerprint::new([7; 32]);

    fn later() -> Instant {
        clock::now() + Duration::from_secs(10)
    }

    #[tokio::test]
    async fn one_canary_settles_every_failure_before_it() {
        let judge = Arc::new(Judge::default());
        let canaries = Arc::new(AtomicUsize::new(0));
        let failed_at = clock::now();
        let waiting: Vec<_> = (0..100)
            .map(|_| {
                let (judge, canaries) = (Arc::clone(&judge), Arc::clone(&canaries));
                tokio::spawn(async move {
                    let canary = async || {
                        canaries.fetch_add(1, Ordering::Relaxed);
                        Ok(())
                    };
                    judge.alive_since(KEY, failed_at, later(), canary).await
                })
            })
            .collect();
        for task in waiting {
            task.await.unwrap().unwrap();
        }
        assert_eq!(canaries.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn an_older_success_does_not_condemn() {
        let judge = Judge::default();
        judge.alive_since(KEY, clock::now(), later(), async || Ok(())).await.unwrap();
        let dead = async || Err(Error::new(Reason::BackendUnreachable, "dead"));
        let verdict = judge.alive_since(KEY, clock::now(), later(), dead).await;
        assert_eq!(verdict.unwrap_err().reason(), Reason::BackendUnreachable);
    }

    #[tokio::test]
    async fn canaries_keep_their_distance() {
        let judge = Judge::default();
        let began = clock::now();
        for _ in 0..3 {
            judge.alive_since(KEY, clock::now(), later(), async || Ok(())).await.unwrap();
        }
        assert!(began.elapsed() >= 2 * CANARY_GAP);
    }

    #[tokio::test]
    async fn who_cannot_wait_for_the_canary_is_told_so() {
        let judge = Judge::default();
        judge.alive_since(KEY, clock::now(), later(), async || Ok(())).await.unwrap();
        let now = clock::now();
        let verdict = judge.alive_since(KEY, now, now, async || Ok(())).await;
        assert_eq!(verdict.unwrap_err().reason(), Reason::DeadlineExceeded);
    }
}
