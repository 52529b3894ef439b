//! A run in words and tables, for people.

use super::seconds;
use crate::{
    cli::show::{row, table},
    load::{Comparison, Floor, Latency, Pace, Ratio, Report, Scenario},
};

/// Floors that differ by more than this between before and after tell of a machine that
/// had other things to do.
const DRIFT_MAX: f64 = 1.2;

/// The whole of it.
pub(super) fn report(report: &Report, comparison: Option<&Comparison>) -> String {
    let mut text = format!("{}\n\n{}", report.summary(), latencies(report));
    let mut part = |title: &str, body: &str| {
        text.push_str(&format!("\n{title}\n{body}"));
    };
    let ratios = report.ratios();
    if !ratios.is_empty() {
        let rows: Vec<_> = ratios
            .iter()
            .map(|Ratio { what, value, .. }| row([what, &format!("{value:.3}")]))
            .collect();
        part("ratios to the floors of this run", &table(&rows));
    }
    if !report.outcome.errors.is_empty() {
        let errors = report.outcome.errors.iter();
        let rows: Vec<_> =
            errors.map(|(reason, count)| row([reason, &count.to_string()])).collect();
        part("errors", &table(&rows));
    }
    if let Some(comparison) = comparison {
        part("against the baseline", &changes(comparison));
    }
    if !report.notes.is_empty() {
        part("notes", &report.notes.iter().map(|note| format!("{note}\n")).collect::<String>());
    }
    text
}

fn latencies(report: &Report) -> String {
    let mut rows = vec![row([
        "µs",
        "MEAN",
        "MIN",
        "P50",
        "P90",
        "P99",
        "P99.9",
        "P99.99",
        "MAX",
        "PER SECOND",
        "COUNT",
    ])];
    let mut put = |name: &str, latency: &Latency, throughput: f64| {
        let mut cells = vec![name.to_owned()];
        cells.extend(latency.named().map(|(_, value)| format!("{value:.1}")));
        cells.extend([format!("{throughput:.0}"), latency.count.to_string()]);
        rows.push(cells);
    };
    if let Some(latency) = &report.outcome.latency {
        put("measured", latency, report.outcome.throughput());
    }
    for (name, Floor { latency, throughput, .. }) in report.named_floors() {
        put(&name, latency, *throughput);
    }
    table(&rows)
}

fn changes(comparison: &Comparison) -> String {
    let mut rows = vec![row(["", "BEFORE", "NOW", "RATIO", "WORSE BY"])];
    for change in &comparison.changes {
        rows.push(row([
            change.name,
            &format!("{:.1}", change.before),
            &format!("{:.1}", change.now),
            &format!("{:.3}", change.now / change.before),
            &format!("{:+.1} %", change.worse_by),
        ]));
    }
    let (before, now) = comparison.failed;
    rows.push(row(["failed", &format!("{before:.2} %"), &format!("{now:.2} %")]));
    table(&rows)
}

/// What a reader must know to read the figures right.
pub(super) fn notes(report: &Report) -> Vec<String> {
    let mut notes = Vec::new();
    let outcome = &report.outcome;
    if cfg!(debug_assertions) {
        notes.push("this build is not optimised: only ratios to the floors say anything".into());
    }
    if outcome.ran_out && report.scenario == Scenario::Cold {
        notes.push(format!(
            "the {} DEKs ran out after {:.1} s of {}; none was asked for twice; --deks makes more",
            report.deks,
            outcome.seconds,
            seconds(report.plan.length)
        ));
    }
    if report.scenario == Scenario::Boot && !outcome.ran_out {
        notes.push(format!("{} were over before every DEK was there", seconds(report.plan.length)));
    }
    if report.floors.is_none() {
        notes.push("the floors were left out (--no-floors)".into());
    } else if report.subject.over == "tls" {
        notes.push("the floors are those of a Unix socket, not of TCP and TLS".into());
    }
    if let (Pace::Open(_), Some(lag)) = (report.plan.pace, &outcome.lag) {
        notes.push(format!(
            "of each latency, the generator's own lateness is {:.0} µs at the median, {:.0} µs at p99",
            lag.p50, lag.p99
        ));
    }
    if let Some((before, after)) = &report.floors {
        let p50 = |floor: &Option<Floor>| floor.as_ref().map(|floor| floor.latency.p50);
        for (name, before, after) in [
            ("socket ping-pong", p50(&before.ping_pong), p50(&after.ping_pong)),
            ("tonic echo", p50(&before.echo), p50(&after.echo)),
            ("device", p50(&before.decrypt), p50(&after.decrypt)),
        ] {
            let (Some(before), Some(after)) = (before, after) else { continue };
            if before.max(after) > before.min(after) * DRIFT_MAX {
                notes.push(format!(
                    "the machine was not steady: the {name}'s p50 was {before:.1} µs before and {after:.1} µs after"
                ));
            }
        }
    }
    notes
}
