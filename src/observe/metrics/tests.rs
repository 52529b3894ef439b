//! What the text shows of what happened.

use std::time::Duration;

use super::*;
use crate::{
    auth::Identity,
    error::{Error, Reason},
    op::Op,
};

fn metrics() -> Metrics {
    Metrics::new(["orders", "billing"], ["hsm"])
}

fn record(metrics: &Metrics, op: Op, kek: &str, outcome: Result<(), &Error>) {
    let who = Identity::Unix { uid: 1, gid: 2 };
    let took = Duration::from_millis(3);
    metrics.record(&Record { op, who: &who, kek, version: None, cached: false, took, outcome });
}

/// The value of a series, by its whole name with labels.
fn value(text: &str, series: &str) -> Option<f64> {
    let mut values = text.lines().filter_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    let value = values.next().map(|value| value.parse().expect("a number"));
    assert_eq!(values.next(), None, "{series} is there twice");
    value
}

#[test]
fn operations_are_counted_by_kek_and_outcome_and_timed() {
    let metrics = metrics();
    record(&metrics, Op::Unwrap, "orders", Ok(()));
    record(&metrics, Op::Unwrap, "orders", Ok(()));
    record(&metrics, Op::Unwrap, "orders", Err(&Error::ciphertext_invalid()));
    record(&metrics, Op::Wrap, "billing", Ok(()));
    let text = metrics.render();
    let count = |kek: &str, op: &str, outcome: &str| {
        let labels = format!(r#"{{kek="{kek}",op="{op}",outcome="{outcome}"}}"#);
        value(&text, &format!("keyward_operations_total{labels}"))
    };
    assert_eq!(count("orders", "unwrap", "OK"), Some(2.0));
    assert_eq!(count("orders", "unwrap", "CIPHERTEXT_INVALID"), Some(1.0));
    assert_eq!(count("billing", "wrap", "OK"), Some(1.0));
    assert_eq!(count("billing", "unwrap", "OK"), Some(0.0), "a rate needs a beginning");
    assert_eq!(count("billing", "unwrap", "INTERNAL"), None);
    let seconds = |series: &str| value(&text, &format!("keyward_operation_seconds_{series}"));
    assert_eq!(seconds(r#"count{op="unwrap"}"#), Some(3.0));
    assert_eq!(seconds(r#"sum{op="unwrap"}"#), Some(0.009));
    assert_eq!(seconds(r#"bucket{op="unwrap",le="0.0025"}"#), Some(0.0));
    assert_eq!(seconds(r#"bucket{op="unwrap",le="0.005"}"#), Some(3.0));
    assert_eq!(seconds(r#"bucket{op="unwrap",le="+Inf"}"#), Some(3.0));
}

#[test]
fn strangers_make_no_label() {
    let metrics = metrics();
    let before = metrics.render().lines().count();
    let refused = Error::new(Reason::PermissionDenied, "x");
    for n in 0..1000 {
        record(&metrics, Op::Unwrap, &format!("stranger-{n}"), Err(&refused));
    }
    let text = metrics.render();
    assert!(!text.contains("stranger"), "{text}");
    let series = r#"keyward_operations_total{kek="-",op="unwrap",outcome="PERMISSION_DENIED"}"#;
    assert_eq!(value(&text, series), Some(1000.0));
    assert_eq!(text.lines().count(), before + 1);
    assert!(Arc::ptr_eq(&metrics.kek("stranger-1"), &metrics.kek("stranger-2")));
    assert!(!Arc::ptr_eq(&metrics.kek("orders"), &metrics.kek("billing")));
}

#[test]
fn what_happens_to_a_kek_is_shown() {
    let metrics = metrics();
    let orders = metrics.kek("orders");
    for from in [Answered::Hit, Answered::Hit, Answered::Miss, Answered::Coalesced] {
        orders.answered(from);
    }
    orders.answered(Answered::Invalid);
    orders.refreshed(true);
    orders.refreshed(false);
    orders.purged(Purge::Revoked);
    metrics.connection_closed(Closed::Age);
    let text = metrics.render();
    for (series, expected) in [
        (r#"keyward_unwraps_total{kek="orders",from="cache"}"#, 2.0),
        (r#"keyward_unwraps_total{kek="orders",from="hsm"}"#, 1.0),
        (r#"keyward_unwraps_total{kek="orders",from="shared"}"#, 1.0),
        (r#"keyward_unwraps_total{kek="orders",from="negative"}"#, 1.0),
        (r#"keyward_unwraps_total{kek="billing",from="cache"}"#, 0.0),
        (r#"keyward_refreshes_total{kek="orders",result="ok"}"#, 1.0),
        (r#"keyward_refreshes_total{kek="orders",result="failed"}"#, 1.0),
        (r#"keyward_purges_total{kek="orders",cause="revoked"}"#, 1.0),
        (r#"keyward_purges_total{kek="orders",cause="denied"}"#, 0.0),
        (r#"keyward_connections_closed_total{cause="age"}"#, 1.0),
        (r#"keyward_connections_closed_total{cause="purge"}"#, 0.0),
    ] {
        assert_eq!(value(&text, series), Some(expected), "{series}");
    }
}

#[test]
fn what_a_backend_does_is_shown() {
    let metrics = metrics();
    let hsm = metrics.backend("hsm");
    hsm.start(HsmOp::Unwrap).end(&Ok(()));
    hsm.start(HsmOp::Unwrap).end::<()>(&Err(Error::ciphertext_invalid()));
    let _in_work = hsm.start(HsmOp::Prove);
    let text = metrics.render();
    let labels = r#"{backend="hsm",operation="unwrap",outcome="invalid"}"#;
    for (series, expected) in [
        (format!("keyward_hsm_operations_total{labels}"), Some(1.0)),
        (format!("keyward_hsm_operation_seconds_count{labels}"), Some(1.0)),
        (r#"keyward_hsm_operations_in_flight{backend="hsm"}"#.to_owned(), Some(1.0)),
        (
            r#"keyward_hsm_operations_total{backend="hsm",operation="prove",outcome="ok"}"#.into(),
            Some(0.0),
        ),
        (
            r#"keyward_hsm_operations_total{backend="hsm",operation="wrap",outcome="refused"}"#
                .into(),
            None,
        ),
    ] {
        assert_eq!(value(&text, &series), expected, "{series}");
    }
}

#[test]
fn sources_are_asked_each_time_and_absent_ones_show_nothing() {
    let metrics = metrics();
    let text = metrics.render();
    assert!(!text.contains("keyward_cache") && !text.contains("keyward_lease"), "{text}");
    let entries = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = Arc::clone(&entries);
    metrics.register_source(move |samples| {
        let entries = counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (bytes, capacity) = (entries * 192, 1000);
        samples.cache =
            Some(CacheSample { entries, bytes, capacity, evicted_idle: 7, ..Default::default() });
    });
    metrics.register_source(|samples| {
        samples.flights = Some(3);
        let waiting = vec![("foreground", 4), ("bulk", 0)];
        let (backend, ceiling) = ("hsm".to_owned(), Some(200.0));
        let (units, retries, refused) = (9, 2, 1);
        let breaker = "half-open";
        samples.guards.push(GuardSample {
            backend,
            waiting,
            breaker,
            units,
            ceiling,
            retries,
            refused,
        });
        samples.connections = Some(5);
        samples.sessions = Some(3);
        let lease = |version: &str, age_seconds: Option<f64>, state| {
            let (kek, version) = ("orders".to_owned(), version.to_owned());
            let operation_age_seconds = age_seconds.map(|age| age + 1.0);
            let interval_seconds = 30.0;
            LeaseSample {
                kek,
                version,
                age_seconds,
                operation_age_seconds,
                interval_seconds,
                state,
            }
        };
        samples.leases.extend([lease("0a", Some(1.5), "live"), lease("0b", None, "unproven")]);
    });
    metrics.render();
    let text = metrics.render();
    for (series, expected) in [
        ("keyward_cache_entries", Some(1.0)),
        ("keyward_cache_bytes", Some(192.0)),
        ("keyward_cache_capacity_entries", Some(1000.0)),
        (r#"keyward_cache_evictions_total{cause="idle"}"#, Some(7.0)),
        (r#"keyward_cache_evictions_total{cause="ttl"}"#, Some(0.0)),
        ("keyward_unwraps_in_flight", Some(3.0)),
        (r#"keyward_queue_length{backend="hsm",class="foreground"}"#, Some(4.0)),
        (r#"keyward_queue_length{backend="hsm",class="bulk"}"#, Some(0.0)),
        (r#"keyward_breaker_state{backend="hsm",state="half-open"}"#, Some(1.0)),
        (r#"keyward_backend_units_total{backend="hsm"}"#, Some(9.0)),
        (r#"keyward_backend_ceiling_units_per_second{backend="hsm"}"#, Some(200.0)),
        (r#"keyward_backend_retries_total{backend="hsm"}"#, Some(2.0)),
        (r#"keyward_backend_refused_total{backend="hsm"}"#, Some(1.0)),
        ("keyward_connections", Some(5.0)),
        ("keyward_sessions", Some(3.0)),
        (r#"keyward_lease_age_seconds{kek="orders",version="0a"}"#, Some(1.5)),
        (r#"keyward_lease_age_seconds{kek="orders",version="0b"}"#, None),
        (r#"keyward_lease_operation_age_seconds{kek="orders",version="0a"}"#, Some(2.5)),
        (r#"keyward_lease_operation_age_seconds{kek="orders",version="0b"}"#, None),
        (r#"keyward_lease_interval_seconds{kek="orders",version="0b"}"#, Some(30.0)),
        (r#"keyward_lease_state{kek="orders",version="0a",state="live"}"#, Some(1.0)),
        (r#"keyward_lease_state{kek="orders",version="0b",state="unproven"}"#, Some(1.0)),
    ] {
        assert_eq!(value(&text, series), expected, "{series}");
    }
}

#[test]
fn the_text_is_what_prometheus_reads() {
    let text = Metrics::new(["o\"r\\d\ners"], []).render();
    assert!(text.contains(r#"kek="o\"r\\d\ners","#), "values are escaped:\n{text}");
    let build = format!(r#"keyward_build_info{{version="{}"}}"#, env!("CARGO_PKG_VERSION"));
    assert_eq!(value(&text, &build), Some(1.0));
    assert!(value(&text, "process_start_time_seconds").unwrap() > 1.7e9);
    assert!(value(&text, "process_resident_memory_bytes").unwrap() > 1e6);
    let mut described = "";
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            described = help.split(' ').next().unwrap();
            continue;
        }
        if line.starts_with("# TYPE ") {
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect("a series and a value");
        assert!(series.starts_with(described), "{line} stands below {described}");
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
    assert!(text.ends_with('\n') && !text.contains("\n\n"));
}
