//! A run against an earlier one, both as JSON. Pure.
//!
//! Invariant: runs that were asked for different things are refused, not compared.

use serde_json::Value;

use super::report::SCHEMA;

/// What must be alike in both, for figures to mean the same.
const ALIKE: [&str; 9] = [
    "/scenario",
    "/optimised",
    "/subject/kind",
    "/subject/over",
    "/settings/loop",
    "/settings/rate_per_second",
    "/settings/callers",
    "/settings/streams",
    "/settings/skew",
];

/// What is compared: name, place, and whether more is better.
const COMPARED: [(&str, &str, bool); 8] = [
    ("throughput", "/throughput_per_second", true),
    ("p50", "/latency_us/p50", false),
    ("p90", "/latency_us/p90", false),
    ("p99", "/latency_us/p99", false),
    ("p99.9", "/latency_us/p99_9", false),
    ("p50 / echo p50", "/ratios/p50_to_echo_p50", false),
    ("p99 / echo p99", "/ratios/p99_to_echo_p99", false),
    ("throughput / echo throughput", "/ratios/throughput_to_echo", true),
];

/// Those that are judged: further out a percentile is chance, and a ratio to a floor says
/// the same twice.
const JUDGED: [&str; 3] = ["throughput", "p50", "p99"];

/// One figure of both runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Which.
    pub name: &'static str,
    /// In the earlier run.
    pub before: f64,
    /// In this one.
    pub now: f64,
    /// By how much it is worse, in percent of the earlier; negative if it is better.
    pub worse_by: f64,
    /// Whether it counts as a regression.
    pub judged: bool,
}

/// Two runs side by side.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// The figures that both have.
    pub changes: Vec<Change>,
    /// The share of operations that failed, in percent, before and now.
    pub failed: (f64, f64),
}

impl Comparison {
    /// What is worse by more than `percent`, or fails more often by more than that; in words.
    pub fn regressions(&self, percent: f64) -> Vec<String> {
        let mut found: Vec<_> = self
            .changes
            .iter()
            .filter(|change| change.judged && change.worse_by > percent)
            .map(|change| format!("{} is worse by {:.1} %", change.name, change.worse_by))
            .collect();
        let (before, now) = self.failed;
        if now - before > percent || (before == 0.0 && now > 0.0) {
            found.push(format!("{now:.2} % of the operations failed, {before:.2} % before"));
        }
        found
    }
}

/// Compares `now` with `before`. `Err` says why that would mean nothing.
pub fn compare(before: &Value, now: &Value) -> Result<Comparison, String> {
    if before["schema"] != SCHEMA {
        return Err(format!("it is not the JSON of a bench run ({SCHEMA})"));
    }
    for place in ALIKE {
        let (was, is) = (before.pointer(place), now.pointer(place));
        if was != is {
            let text = |value: Option<&Value>| value.map_or("-".into(), Value::to_string);
            let name = place.trim_start_matches('/').replace('/', ".");
            return Err(format!("{name} was {}, and is {} now", text(was), text(is)));
        }
    }
    let changes = COMPARED
        .into_iter()
        .filter_map(|(name, place, more_is_better)| {
            let number = |run: &Value| run.pointer(place).and_then(Value::as_f64);
            let (before, now) = (number(before)?, number(now)?);
            let grown = (now / before - 1.0) * 100.0;
            let worse_by = if more_is_better { -grown } else { grown };
            let judged = JUDGED.contains(&name);
            worse_by.is_finite().then_some(Change { name, before, now, worse_by, judged })
        })
        .collect();
    Ok(Comparison { changes, failed: (failed(before), failed(now)) })
}

/// The share of operations that failed, in percent.
fn failed(run: &Value) -> f64 {
    let number = |place: &str| run.pointer(place).and_then(Value::as_f64).unwrap_or(0.0);
    let (good, bad) = (number("/operations"), number("/errors/total"));
    if bad == 0.0 { 0.0 } else { bad / (good + bad) * 100.0 }
}

#[cfg(test)]
mod tests {
    use super::{super::report::tests::report, *};
    use serde_json::json;

    #[test]
    fn a_run_is_no_worse_than_itself() {
        let run = report(200).to_json();
        let comparison = compare(&run, &run).unwrap();
        assert!(comparison.changes.len() >= 7);
        assert!(comparison.changes.iter().all(|change| change.worse_by == 0.0));
        assert!(comparison.regressions(0.0).is_empty());
    }

    #[test]
    fn slower_is_a_regression_and_faster_is_none() {
        let (fast, slow) = (report(200).to_json(), report(300).to_json());
        let comparison = compare(&fast, &slow).unwrap();
        assert_eq!(comparison.regressions(40.0).len(), 2, "p50 and p99: {comparison:?}");
        assert!(comparison.regressions(60.0).is_empty());
        assert!(compare(&slow, &fast).unwrap().regressions(0.0).is_empty());
    }

    #[test]
    fn less_throughput_is_a_regression() {
        let before = report(200).to_json();
        let mut now = before.clone();
        now["throughput_per_second"] = json!(400.0);
        let found = compare(&before, &now).unwrap().regressions(10.0);
        assert_eq!(found, ["throughput is worse by 20.0 %"]);
    }

    #[test]
    fn errors_where_there_were_none_are_a_regression() {
        let before = report(200).to_json();
        let mut now = before.clone();
        now["errors"]["total"] = json!(1);
        assert_eq!(compare(&before, &now).unwrap().regressions(50.0).len(), 1);
        assert!(compare(&now, &now).unwrap().regressions(50.0).is_empty());
    }

    #[test]
    fn other_runs_are_not_compared() {
        let run = report(200).to_json();
        for (place, value) in [
            ("/schema", json!("x")),
            ("/scenario", json!("cold")),
            ("/settings/callers", json!(9)),
            ("/settings/rate_per_second", json!(1.0)),
        ] {
            let mut other = run.clone();
            *other.pointer_mut(place).expect("a place") = value;
            assert!(compare(&other, &run).is_err(), "{place}");
        }
        assert!(compare(&json!([1]), &run).is_err());
        assert!(compare(&json!(null), &run).is_err());
    }
}
