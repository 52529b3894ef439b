//! Keeps every KEK proven: reads its versions and proves each, again and again, with
//! jitter so that a fleet does not ask in step, and at once when an operation met a
//! key that is not what the catalogue says.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::sleep;
use tracing::{debug, warn};

use super::Engine;

/// Shortest time between two rounds, however often operations raise suspicion.
const MIN_GAP: Duration = Duration::from_secs(1);

/// How long one round may take for one KEK.
const ROUND_DEADLINE: Duration = Duration::from_secs(20);

/// Runs until it is dropped. `interval` is the mean time between two rounds.
pub async fn keep_proven(engine: Arc<Engine>, interval: Duration) {
    loop {
        sleep(MIN_GAP).await;
        tokio::select! {
            () = sleep(jittered(interval).saturating_sub(MIN_GAP)) => {}
            () = engine.catalog.suspicion.notified() => debug!("a key is not what it was: reading again"),
        }
        for kek in engine.catalog.iter() {
            if let Err(error) = kek.verify(Instant::now() + ROUND_DEADLINE).await {
                warn!(
                    kek = %kek.spec.name,
                    reason = error.reason().as_str(),
                    detail = error.detail().unwrap_or("-"),
                    "could not prove the KEK: {error}"
                );
            }
        }
    }
}

/// `mean` give or take a tenth.
fn jittered(mean: Duration) -> Duration {
    let mut byte = [128];
    // Without randomness there is no jitter, which costs nothing but politeness.
    let _ = aws_lc_rs::rand::fill(&mut byte);
    mean.mul_f64(0.9 + 0.2 * f64::from(byte[0]) / 255.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_within_a_tenth() {
        let mean = Duration::from_secs(100);
        for _ in 0..1000 {
            let drawn = jittered(mean).as_secs_f64();
            assert!((89.9..=110.1).contains(&drawn), "{drawn}");
        }
    }
}
