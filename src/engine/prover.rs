//! Keeps every KEK proven: a round (`rounds.rs`) well before its leases lapse, with jitter
//! so that a fleet does not ask in step; sooner where the backend could not be asked, or
//! not for every version in time, and soon when an operation met a key that is not what the
//! catalogue says.
//!
//! Each KEK has a task of its own, so that a backend that hangs keeps no KEK of another
//! waiting. KEKs of one backend share its places for proofs.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{interval, sleep},
};
use tracing::{debug, info, warn};

use super::{Engine, caretaker, catalog::Kek, census, custody::Custody, rounds::Look};
use crate::{
    backend::jitter,
    clock,
    error::{Error, Reason, Retry},
    lease::{Terms, fleet::Pace, patience, renew_in, retry_in},
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
    for kek in engine.catalog.iter() {
        if let Some(rules) = kek.spec.mode.rules() {
            keepers.spawn(caretaker::look_after(Arc::clone(&engine), Arc::clone(kek), rules));
        }
    }
    keepers.spawn(tend(Arc::clone(&engine)));
    keepers.spawn(census::keep(Arc::clone(&engine)));
    while keepers.join_next().await.is_some() {}
}

/// Keeps one KEK proven.
async fn keep(kek: Arc<Kek>, custody: Arc<Custody>) {
    // Zero if it is still to be proven: whoever does that then, this is before it lapses.
    let mut pause = renew_in(kek.proof_age(clock::now()), kek.terms(&custody), jitter());
    let (mut told, mut told_pace, mut failures) = (None, Pace::of(custody.terms.interval), 0);
    loop {
        let look = tokio::select! {
            () = sleep(pause) => Look::AsDue,
            () = kek.suspicion.notified() => {
                debug!(kek = %kek.spec.name, "something is not as it was: asking again");
                sleep(MIN_GAP).await;
                Look::Thorough
            }
        };
        let began = clock::now();
        let deadline = began + round_deadline(kek.terms(&custody));
        let round = kek.verify(&custody, look, deadline).await;
        tell(&kek, &mut told, round.as_ref().err());
        tell_pace(&kek, &mut told_pace, kek.pace(&custody));
        let terms = kek.terms(&custody);
        pause = match round {
            // What it takes to ask counts: the proof is as old as the question.
            Ok(()) => {
                failures = 0;
                renew_in(clock::now() - began, terms, jitter())
            }
            Err(error) => {
                let pause = pause_after(&error, &kek, terms, failures);
                failures = if error.reason().is_transient() { failures + 1 } else { 0 };
                pause
            }
        }
        .max(MIN_GAP);
    }
}

/// How long to wait after a round that failed. (A denial that is still to be confirmed is
/// no failure of the backend's: it is asked again at once.)
fn pause_after(error: &Error, kek: &Kek, terms: Terms, failures: u32) -> Duration {
    let patience = patience(terms, kek.tolls.are_shared());
    let pause = retry_in(terms, failures, patience, jitter());
    match error.retry() {
        Retry::After(asked) if error.reason() == Reason::Overloaded => {
            pause.max(asked.min(patience))
        }
        _ => pause,
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

/// Says how long leases last if it is not what the configuration says, or is so again.
fn tell_pace(kek: &Kek, told: &mut Pace, pace: Pace) {
    if *told != pace {
        *told = pace;
        info!(
            kek = %kek.spec.name,
            interval_s = pace.interval.as_secs(),
            operation_within_s = pace.operation_within.as_secs(),
            "how often the KEK proves itself follows the quota of the fleet's vault"
        );
    }
}

/// Wipes what expires, at once.
async fn tend(engine: Arc<Engine>) {
    let mut ticks = interval(TEND_EVERY);
    loop {
        ticks.tick().await;
        engine.tend(clock::now());
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
