//! Versions that come and go, against the engine alone: what is current, what a disabled
//! one takes along, and DEKs that move from one to the next.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use keyward::{
    envelope::WrappedDek,
    error::{Error, Reason},
    kek::NewestDisabled,
    lease::Terms,
};

use super::support::{
    bench::{Bench, HOUR},
    fake::Fake,
};

const TERMS: Terms = Terms { interval: HOUR, outage_grace: HOUR };

/// Looks at the backend once more.
async fn look(bench: &Bench) -> Result<(), Error> {
    bench.engine.verify(&bench.kek, Instant::now() + HOUR).await
}

/// A bench with two versions, and a DEK that each of them wrapped.
async fn rotated(rule: NewestDisabled) -> (Arc<Bench>, [WrappedDek; 2]) {
    let bench = Bench::with_rule(Fake::new(), TERMS, rule);
    bench.prove().await;
    let old = bench.wrap(1).await.unwrap();
    bench.backend.rotate(2);
    look(&bench).await.unwrap();
    let new = bench.wrap(2).await.unwrap();
    assert_eq!((old.version.as_str(), new.version.as_str()), ("01", "02"));
    for wrapped in [&old, &new] {
        bench.unwrap(wrapped).await.unwrap();
    }
    (bench, [old, new])
}

async fn refusal(bench: &Bench, wrapped: &WrappedDek) -> Reason {
    bench.unwrap(wrapped).await.expect_err("it is refused").reason()
}

#[tokio::test]
async fn the_newest_version_disabled_takes_the_kek_away_and_enabled_gives_it_back() {
    let (bench, [old, new]) = rotated(NewestDisabled::Revokes).await;
    bench.backend.disable(2);
    assert_eq!(look(&bench).await.unwrap_err().reason(), Reason::KekDisabled);
    assert_eq!(bench.entries(), "keyward_cache_entries 0.0");
    for wrapped in [&old, &new] {
        assert_eq!(refusal(&bench, wrapped).await, Reason::KekDisabled);
    }
    assert_eq!(bench.wrap(3).await.unwrap_err().reason(), Reason::KekDisabled);
    bench.backend.enable(2);
    look(&bench).await.unwrap();
    for wrapped in [&old, &new] {
        bench.unwrap(wrapped).await.unwrap();
    }
    assert_eq!(bench.wrap(3).await.unwrap().version.as_str(), "02");
}

#[tokio::test]
async fn the_newest_version_disabled_only_stops_wraps_where_that_is_the_rule() {
    let (bench, [old, new]) = rotated(NewestDisabled::StopsWraps).await;
    bench.backend.disable(2);
    assert_eq!(look(&bench).await.unwrap_err().reason(), Reason::KekDisabled);
    bench.unwrap(&old).await.unwrap();
    assert_eq!(refusal(&bench, &new).await, Reason::KekDisabled);
    assert_eq!(bench.wrap(3).await.unwrap_err().reason(), Reason::KekDisabled);
}

#[tokio::test]
async fn an_older_version_disabled_concerns_itself_alone() {
    let (bench, [old, new]) = rotated(NewestDisabled::Revokes).await;
    bench.backend.disable(1);
    look(&bench).await.unwrap();
    assert_eq!(refusal(&bench, &old).await, Reason::KekDisabled);
    bench.unwrap(&new).await.unwrap();
    bench.wrap(3).await.unwrap();
}

#[tokio::test]
async fn a_rewrapped_dek_is_handed_out_only_if_it_unwraps() {
    let (bench, [old, _]) = rotated(NewestDisabled::Revokes).await;
    bench.backend.garbles.store(true, Ordering::Relaxed);
    let refused = bench.rewrap(old.clone()).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::BackendMisconfigured, "not the caller's: {refused}");
    bench.backend.garbles.store(false, Ordering::Relaxed);
    let unwraps = bench.backend.unwraps();
    let moved = bench.rewrap(old.clone()).await.unwrap();
    assert!(moved.changed);
    assert_eq!(bench.backend.unwraps(), unwraps + 2, "once under the old, once under the new");
    let dek = bench.unwrap(&old).await.unwrap().dek;
    let again = bench.unwrap(&moved.wrapped).await.unwrap().dek;
    assert!(again.secret().ct_eq(dek.secret().expose()));
    // Once more does no harm.
    let moved = bench.rewrap(moved.wrapped).await.unwrap();
    assert!(!moved.changed);
    assert_eq!(moved.wrapped.version.as_str(), "02");
}
