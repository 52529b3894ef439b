//! A run against an earlier one, both as JSON. Pure.
//!
//! Invariants: runs that were asked for different things are refused, not compared; so are
//! runs without a figure that is judged, because what is missing cannot be worse.

use serde_json::Value;

use super::report::SCHEMA;

/// What must be alike in both, for figures to mean the same. Not the name of the KEK: it
/// says nothing about the key.
const ALIKE: [&str; 13] = [
    "/scenario",
    "/optimised",
    "/subject/kind",
    "/subject/over",
    "/subject/algorithm",
    "/settings/loop",
    "/settings/rate_per_second",
    "/settings/callers",
    "/settings/streams",
    "/settings/deks",
    "/settings/skew",
    "/settings/warm_up_seconds",
    "/settings/seconds",
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
    /// The figures that both have: those that are judged, and others.
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
    let mut changes = Vec::new();
    for (name, place, more_is_better) in COMPARED {
        let judged = JUDGED.contains(&name);
        let (was, is) = match (figure(before, place), figure(now, place)) {
            (Some(was), Some(is)) => (was, is),
            (None, _) if judged => return Err(format!("it has no {name}")),
            (_, None) if judged => return Err(format!("this run has no {name}")),
            // Floors and far percentiles may be left out.
            _ => continue,
        };
        let grown = (is / was - 1.0) * 100.0;
        let worse_by = if more_is_better { -grown } else { grown };
        changes.push(Change { name, before: was, now: is, worse_by, judged });
    }
    Ok(Comparison { changes, failed: (failed(before), failed(now)) })
}

/// A figure that can be compared: a positive number.
fn figure(run: &Value, place: &str) -> Option<f64> {
    run.pointer(place)?.as_f64().filter(|figure| figure.is_finite() && *figure > 0.0)
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
            ("/subject/algorithm", json!("A256KW")),
            ("/settings/deks", json!(7)),
            ("/settings/warm_up_seconds", json!(0.25)),
            ("/settings/seconds", json!(77.0)),
        ] {
            let mut other = run.clone();
            *other.pointer_mut(place).expect("a place") = value;
            assert!(compare(&other, &run).is_err(), "{place}");
        }
        assert!(compare(&json!([1]), &run).is_err());
        assert!(compare(&json!(null), &run).is_err());
    }

    #[test]
    fn runs_without_a_judged_figure_are_not_compared() {
        let run = report(200).to_json();
        for place in ["/throughput_per_second", "/latency_us/p50", "/latency_us/p99", "/latency_us"]
        {
            for value in [json!(null), json!(0.0), json!(-1.0), json!("1"), json!({})] {
                let mut other = run.clone();
                *other.pointer_mut(place).expect("a place") = value.clone();
                assert!(compare(&other, &run).is_err(), "before: {place} {value}");
                assert!(compare(&run, &other).is_err(), "now: {place} {value}");
            }
        }
        let mut bare = run.clone();
        bare["ratios"] = json!({});
        bare["latency_us"]["p90"] = json!(null);
        assert!(compare(&bare, &run).is_ok(), "others may be missing");
    }
}
