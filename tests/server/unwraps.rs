//! Unwraps that something overtakes on their way, against the engine alone.

use std::sync::Arc;

use keyward::engine::Source;

use super::support::{bench::Bench, sidecar::eventually};

#[tokio::test(flavor = "multi_thread")]
async fn what_a_purge_overtakes_is_answered_and_not_kept() {
    let bench = Bench::new().await;
    let wrapped = bench.wrap(1).await.unwrap();
    bench.fake.hold.send_replace(true);
    let call = tokio::spawn({
        let (bench, wrapped) = (Arc::clone(&bench), wrapped.clone());
        async move { bench.unwrap(&wrapped).await }
    });
    eventually("it is at the backend", || bench.fake.running() == 1).await;
    bench.purge().await;
    bench.fake.hold.send_replace(false);
    assert_eq!(call.await.unwrap().unwrap().source, Source::Backend);
    assert_eq!(bench.entries(), "keyward_cache_entries 0.0", "it is back after the purge");
    // The purge is over: what is asked for by now is kept.
    for source in [Source::Backend, Source::Cache] {
        assert_eq!(bench.unwrap(&wrapped).await.unwrap().source, source);
    }
}
