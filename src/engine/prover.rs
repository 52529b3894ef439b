//! Keeps every KEK proven: a round (`rounds.rs`) well before its leases lapse, with jitter
//! so that a fleet does not ask in step; sooner where the backend could not be asked, or
//! not for every version in time, and soon when an operation met a key that is not what the
//! catalogue says.
//!
//! Each KEK has a task of its own, so that a backend that hangs keeps no KEK of another
//! waiting. KEKs of one backend share its places for proofs.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    task::JoinSet,
    time::{interval, sleep},
};
use tracing::{debug, info, warn};

use super::{Engine, catalog::Kek, custody::Custody};
use crate::{
    backend::jitter,
    error::{Error, Reason},
    lease::{Terms, renew_in, retry_in},
};

/// Shortest time between two rounds for one KEK, however often operations raise
/// suspicion.
const MIN_GAP: Duration = Duration::from_millis(100);

/// Longest that one round may take.
const ROUND_MAX: Duration = Duration::from_secs(20);

/// How often what has expired is looked for.
const TEND_EVERY: Duration = Duration::from_millis(250);

/// Runs until it is dropped.
pub async fn keep_proven(engine: Arc<Engine>) {
    let mut keepers = JoinSet::new();
    for kek in engine.catalog.iter() {
        keepers.spawn(keep(Arc::clone(kek), Arc::clone(&engine.custody)));
    }
    keepers.spawn(tend(Arc::clone(&engine)));
    while keepers.join_next().await.is_some() {}
}

/// Keeps one KEK proven.
async fn keep(kek: Arc<Kek>, custody: Arc<Custody>) {
    let terms = custody.terms;
    // Zero if it is still to be proven: whoever does that then, this is before it lapses.
    let mut pause = renew_in(kek.proof_age(Instant::now()), terms, jitter());
    let mut told = None;
    loop {
        tokio::select! {
            () = sleep(pause) => {}
            () = kek.suspicion.notified() => {
                debug!(kek = %kek.spec.name, "something is not as it was: asking again");
                sleep(MIN_GAP).await;
            }
        }
        let began = Instant::now();
        let round = kek.verify(&custody, began + round_deadline(terms)).await;
        tell(&kek, &mut told, round.as_ref().err());
        pause = match round {
            // What it takes to ask counts: the proof is as old as the question.
            Ok(()) => renew_in(began.elapsed(), terms, jitter()),
            Err(_) => retry_in(terms, jitter()),
        }
        .max(MIN_GAP);
    }
}

/// A round ends before the leases lapse that it is to renew, so that it is known by then
/// whether the backend can be asked. If that is too short for all versions, the next round
/// begins with the others.
fn round_deadline(terms: Terms) -> Duration {
    (terms.interval / 4).clamp(Duration::from_millis(250), ROUND_MAX)
}

/// One line for each new trouble and for its end, not one for each round.
fn tell(kek: &Kek, told: &mut Option<Reason>, trouble: Option<&Error>) {
    let name = &kek.spec.name;
    match trouble {
        Some(error) if *told != Some(error.reason()) => warn!(
            kek = %name,
            reason = error.reason().as_str(),
            detail = error.detail().unwrap_or("-"),
            "could not prove the KEK: {error}"
        ),
        None if told.is_some() => info!(kek = %name, "the KEK can be proven again"),
        _ => {}
    }
    *told = trouble.map(Error::reason);
}

/// Wipes what expires, at once.
async fn tend(engine: Arc<Engine>) {
    let mut ticks = interval(TEND_EVERY);
    loop {
        ticks.tick().await;
        engine.tend(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_over_before_the_lease_lapses() {
        for secs in [1, 5, 30, 600] {
            let terms = Terms { interval: Duration::from_secs(secs), outage_grace: Duration::ZERO };
            let latest = renew_in(Duration::ZERO, terms, 1.0) + round_deadline(terms);
            assert!(latest <= terms.interval, "{secs}");
        }
    }
}
