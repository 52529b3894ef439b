//! Start-up: the first proof of each KEK, while those that have theirs are kept proven.
//!
//! A first proof may take long, and there may be many to come. Nothing that was granted
//! meanwhile waits for the rest: leases are renewed, and what expires or lapses is wiped,
//! from the first moment on.

use std::{future::pending, sync::Arc, time::Duration};

use tokio::time::sleep;
use tracing::error;

use super::{Engine, keep_proven};
use crate::{
    backend::jitter,
    clock,
    error::{Error, Reason},
    kek::KekName,
    lease::{patience, retry_in},
};

/// How long one KEK's first self-test may take.
const FIRST_PROOF: Duration = Duration::from_secs(30);

/// The shortest time between two tries of a start-up that is not ready.
const RETRY: Duration = Duration::from_secs(1);

/// Proves every KEK, calls `ready` once each of them can wrap, and keeps them proven. Runs
/// until it is dropped, or returns what only the operator can mend, and the KEK that it was
/// found with.
pub async fn prove(engine: Arc<Engine>, ready: impl FnOnce()) -> (KekName, Error) {
    let get_ready = async {
        match prove_all(&engine).await {
            Ok(unready) => prove_the_rest(&engine, unready).await,
            Err(fatal) => return fatal,
        }
        ready();
        pending().await
    };
    let keep_on = async {
        keep_proven(Arc::clone(&engine)).await;
        pending().await
    };
    tokio::select! {
        fatal = get_ready => fatal,
        fatal = keep_on => fatal,
    }
}

/// Proves every KEK once, and returns those that are not ready. `Err` if only the
/// operator can help.
async fn prove_all(engine: &Engine) -> Result<Vec<(KekName, Reason)>, (KekName, Error)> {
    let mut unready = Vec::new();
    for name in engine.names() {
        // Nobody waits for it: whoever revoked it will say when it is to be back.
        if engine.is_revoked(name) {
            continue;
        }
        let Err(error) = engine.verify(name, clock::now() + FIRST_PROOF).await else { continue };
        if error.reason() == Reason::BackendMisconfigured {
            return Err((name.clone(), error));
        }
        tell_not_ready(name, &error);
        unready.push((name.clone(), error.reason()));
    }
    Ok(unready)
}

/// Proves what is not ready yet, for as long as it takes.
async fn prove_the_rest(engine: &Engine, mut unready: Vec<(KekName, Reason)>) {
    let mut tries = 0;
    while !unready.is_empty() {
        sleep(pause(engine, &unready, tries)).await;
        tries += 1;
        let mut still = Vec::new();
        for (name, told) in unready {
            if engine.is_revoked(&name) {
                continue;
            }
            if let Err(error) = engine.verify(&name, clock::now() + FIRST_PROOF).await {
                // Once for each new trouble, not once a second.
                if error.reason() != told {
                    tell_not_ready(&name, &error);
                }
                still.push((name, error.reason()));
            }
        }
        unready = still;
    }
}

/// How long until those that are not ready are tried once more: less and less often where
/// that is at the cost of others.
fn pause(engine: &Engine, unready: &[(KekName, Reason)], tries: u32) -> Duration {
    let keks = unready.iter().filter_map(|(name, _)| engine.catalog.get(name));
    let pauses = keks.map(|kek| {
        let terms = kek.terms(&engine.custody);
        retry_in(terms, tries, patience(terms, kek.tolls.are_shared()), jitter())
    });
    pauses.min().unwrap_or_default().max(RETRY)
}

fn tell_not_ready(name: &KekName, error: &Error) {
    let (fix, detail) = (error.fix().unwrap_or("-"), error.detail().unwrap_or("-"));
    error!(kek = %name, reason = %error.reason(), fix, detail, "not ready: {error}");
}
