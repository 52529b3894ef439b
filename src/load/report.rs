//! One run, whole: what was asked for, what was measured, its floors, the ratios to them.
//! As JSON it is a contract (`docs/benchmarking.md`): fields are added, and none changes its
//! meaning while [`SCHEMA`] stays.

use serde_json::{Map, Value, json};

use super::{
    floor::{Floor, Floors},
    machine::Machine,
    plan::{Order, Pace, Plan, Shape},
    record::{INTERVAL, Latency, Outcome},
};

/// Names the form of the JSON.
pub const SCHEMA: &str = "keyward-bench/1";

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// The same few DEKs again and again.
    Hot,
    /// Every DEK once.
    Cold,
    /// Many DEKs, some far more often than others.
    Mixed,
    /// Every DEK once, as fast as it goes.
    Boot,
}

impl Scenario {
    /// The name on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hot => "hot",
            Self::Cold => "cold",
            Self::Mixed => "mixed",
            Self::Boot => "boot",
        }
    }
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// `sidecar` or `backend`.
    pub kind: &'static str,
    /// How it was reached: `unix`, `tls` or `in-process`.
    pub over: &'static str,
    /// The KEK, or the key of the backend.
    pub kek: String,
    /// How the DEKs were wrapped.
    pub algorithm: String,
}

/// One run.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// What was asked for.
    pub scenario: Scenario,
    /// Of whom.
    pub subject: Subject,
    /// In which order, when, how.
    pub plan: Plan,
    /// How many DEKs there were.
    pub deks: usize,
    /// The client's runtime.
    pub runtime: &'static str,
    /// When it ended, as in RFC 3339.
    pub at: String,
    /// What was measured.
    pub outcome: Outcome,
    /// The floors before the run and after it; `None` if they were left out.
    pub floors: Option<(Floors, Floors)>,
    /// On what.
    pub machine: Machine,
    /// What a reader must know.
    pub notes: Vec<String>,
}

/// A measured value against a floor: the mean of before and after.
#[derive(Clone, Debug, PartialEq)]
pub struct Ratio {
    /// Its name in JSON.
    pub name: &'static str,
    /// What it says, for people.
    pub what: &'static str,
    /// The ratio.
    pub value: f64,
}

impl Report {
    /// Every ratio that can be made.
    pub fn ratios(&self) -> Vec<Ratio> {
        let (Some(latency), Some((before, after))) = (&self.outcome.latency, &self.floors) else {
            return Vec::new();
        };
        let throughput = self.outcome.throughput();
        let mean = |pick: fn(&Floors) -> Option<&Floor>, of: fn(&Floor) -> f64| {
            Some((of(pick(before)?) + of(pick(after)?)) / 2.0)
        };
        let ping_pong = |of| mean(|floors| floors.ping_pong.as_ref(), of);
        let echo = |of| mean(|floors| floors.echo.as_ref(), of);
        let decrypt = |of| mean(|floors| floors.decrypt.as_ref(), of);
        let p50: fn(&Floor) -> f64 = |floor| floor.latency.p50;
        let p99: fn(&Floor) -> f64 = |floor| floor.latency.p99;
        let rate: fn(&Floor) -> f64 = |floor| floor.throughput;
        let beyond_echo = echo(p50).map(|echo| latency.p50 - echo);
        let candidates = [
            (
                "p50_to_ping_pong_p50",
                "p50 / socket ping-pong p50",
                Some(latency.p50),
                ping_pong(p50),
            ),
            ("p50_to_echo_p50", "p50 / echo p50", Some(latency.p50), echo(p50)),
            ("p99_to_echo_p99", "p99 / echo p99", Some(latency.p99), echo(p99)),
            ("throughput_to_echo", "throughput / echo throughput", Some(throughput), echo(rate)),
            ("p50_to_decrypt_p50", "p50 / device p50", Some(latency.p50), decrypt(p50)),
            (
                "p50_less_echo_to_decrypt_p50",
                "(p50 - echo p50) / device p50",
                beyond_echo,
                decrypt(p50),
            ),
            (
                "throughput_to_decrypt",
                "throughput / device throughput",
                Some(throughput),
                decrypt(rate),
            ),
        ];
        candidates
            .into_iter()
            .filter_map(|(name, what, value, floor)| {
                let value = value? / floor?;
                value.is_finite().then_some(Ratio { name, what, value })
            })
            .collect()
    }

    /// What was asked for, of whom and on what, and how it went, in sentences.
    pub fn summary(&self) -> String {
        let Self { scenario, subject, plan, outcome, machine, .. } = self;
        let how = match plan.shape {
            Shape::Unary { callers } => format!("callers: {callers}"),
            Shape::Stream { streams, outstanding } => {
                format!("streams: {streams}, with {outstanding} items outstanding in each")
            }
        };
        let pace = match plan.pace {
            Pace::Closed => "closed loop".to_owned(),
            Pace::Open(rate) => format!("open loop at {rate} per second"),
        };
        let skew = match plan.order {
            Order::Skewed(skew) => format!(" (Zipf, skew {skew})"),
            Order::Cycle | Order::Once => String::new(),
        };
        format!(
            "{}: {} {} ({}), over {}; {pace}; {how}; DEKs: {}{skew}. {:.0} operations per second \
             for {:.1} s, {} errors. {}, {} cores, Linux {}; client runtime {}; {}.",
            scenario.name(),
            subject.kind,
            subject.kek,
            subject.algorithm,
            subject.over,
            self.deks,
            outcome.throughput(),
            outcome.seconds,
            outcome.failures(),
            machine.cpu,
            machine.cores,
            machine.kernel,
            self.runtime,
            self.at,
        )
    }

    /// Every floor that was measured, with a name for people.
    pub fn named_floors(&self) -> Vec<(String, &Floor)> {
        let Some((before, after)) = &self.floors else { return Vec::new() };
        type Pick = fn(&Floors) -> Option<&Floor>;
        let kinds: [(&str, Pick); 3] = [
            ("socket ping-pong", |floors| floors.ping_pong.as_ref()),
            ("tonic echo", |floors| floors.echo.as_ref()),
            ("device", |floors| floors.decrypt.as_ref()),
        ];
        let mut found = Vec::new();
        for (name, pick) in kinds {
            for (when, floors) in [("before", before), ("after", after)] {
                found.extend(pick(floors).map(|floor| (format!("{name}, {when}"), floor)));
            }
        }
        found
    }

    /// The run as a JSON object.
    pub fn to_json(&self) -> Value {
        let Self { scenario, subject, outcome, machine, .. } = self;
        let ratios: Map<_, _> = self
            .ratios()
            .into_iter()
            .map(|Ratio { name, value, .. }| (name.to_owned(), json!(round(value))))
            .collect();
        json!({
            "schema": SCHEMA,
            "keyward": env!("CARGO_PKG_VERSION"),
            "optimised": !cfg!(debug_assertions),
            "at": self.at,
            "scenario": scenario.name(),
            "subject": {
                "kind": subject.kind,
                "over": subject.over,
                "kek": subject.kek,
                "algorithm": subject.algorithm,
            },
            "settings": self.settings(),
            "operations": outcome.latency.as_ref().map_or(0, |latency| latency.count),
            "seconds": outcome.seconds,
            "ran_out": outcome.ran_out,
            "throughput_per_second": round(outcome.throughput()),
            "latency_us": latency_json(outcome.latency.as_ref()),
            "send_lag_us": latency_json(outcome.lag.as_ref()),
            "errors": { "total": outcome.failures(), "by_reason": outcome.errors },
            "intervals": { "milliseconds": INTERVAL.as_millis() as u64, "operations": outcome.intervals },
            "floors": self.floors.as_ref().map(|(before, after)| floors_json(before, after)),
            "ratios": ratios,
            "machine": { "cpu": machine.cpu, "cores": machine.cores, "kernel": machine.kernel },
            "notes": self.notes,
        })
    }

    fn settings(&self) -> Value {
        let Plan { order, pace, shape, warm_up, length } = self.plan;
        let rate = match pace {
            Pace::Closed => None,
            Pace::Open(rate) => Some(rate),
        };
        let skew = match order {
            Order::Skewed(skew) => Some(skew),
            Order::Cycle | Order::Once => None,
        };
        let streams = match shape {
            Shape::Unary { .. } => None,
            Shape::Stream { streams, .. } => Some(streams),
        };
        json!({
            "loop": if rate.is_some() { "open" } else { "closed" },
            "rate_per_second": rate,
            "callers": shape.at_once(),
            "streams": streams,
            "deks": self.deks,
            "skew": skew,
            "warm_up_seconds": warm_up.as_secs_f64(),
            "seconds": length.as_secs_f64(),
            "runtime": self.runtime,
        })
    }
}

fn latency_json(latency: Option<&Latency>) -> Value {
    let Some(latency) = latency else { return Value::Null };
    let mut object = Map::new();
    object.insert("count".into(), json!(latency.count));
    for (name, value) in latency.named() {
        object.insert(name.into(), json!(round(value)));
    }
    Value::Object(object)
}

fn floors_json(before: &Floors, after: &Floors) -> Value {
    let one = |floor: Option<&Floor>| match floor {
        None => Value::Null,
        Some(Floor { latency, throughput, callers }) => json!({
            "latency_us": latency_json(Some(latency)),
            "throughput_per_second": round(*throughput),
            "callers": callers,
        }),
    };
    let both = |pick: fn(&Floors) -> Option<&Floor>| match (pick(before), pick(after)) {
        (None, None) => Value::Null,
        (before, after) => json!({ "before": one(before), "after": one(after) }),
    };
    json!({
        "ping_pong": both(|floors| floors.ping_pong.as_ref()),
        "echo": both(|floors| floors.echo.as_ref()),
        "decrypt": both(|floors| floors.decrypt.as_ref()),
    })
}

/// Three decimals: nanoseconds, where the unit is a microsecond.
fn round(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

#[cfg(test)]
pub(super) mod tests {
    use super::{super::record::latency_of, *};
    use std::{collections::BTreeMap, time::Duration};

    pub(crate) fn latency(micros: u64) -> Latency {
        let times: Vec<_> = (1..=100).map(|n| Duration::from_micros(micros * n / 50)).collect();
        latency_of(&times).expect("there are some")
    }

    fn floors(micros: u64) -> Floors {
        let floor = || Some(Floor { latency: latency(micros), throughput: 1000.0, callers: 1 });
        Floors { ping_pong: floor(), echo: floor(), decrypt: None }
    }

    /// A run whose median is `micros`, beside floors of 100 µs.
    pub(crate) fn report(micros: u64) -> Report {
        Report {
            scenario: Scenario::Hot,
            subject: Subject {
                kind: "sidecar",
                over: "unix",
                kek: "orders".into(),
                algorithm: "RSA-OAEP".into(),
            },
            plan: Plan {
                order: Order::Cycle,
                pace: Pace::Closed,
                shape: Shape::Unary { callers: 8 },
                warm_up: Duration::from_secs(1),
                length: Duration::from_secs(1),
            },
            deks: 1,
            runtime: "current_thread",
            at: "1970-01-01T00:00:00Z".into(),
            outcome: Outcome {
                latency: Some(latency(micros)),
                lag: None,
                seconds: 1.0,
                intervals: vec![50; 10],
                errors: BTreeMap::new(),
                ran_out: false,
            },
            floors: Some((floors(90), floors(110))),
            machine: Machine { cpu: "a <fast> one".into(), cores: 2, kernel: "6".into() },
            notes: vec!["a note".into()],
        }
    }

    #[test]
    fn ratios_are_to_the_mean_of_both_floors() {
        let ratios = report(200).ratios();
        let value = |name: &str| ratios.iter().find(|ratio| ratio.name == name).map(|r| r.value);
        let p50 = value("p50_to_echo_p50").expect("a ratio");
        assert!((1.95..2.05).contains(&p50), "{p50}");
        assert_eq!(value("throughput_to_echo"), Some(0.5));
        assert_eq!(value("p50_to_decrypt_p50"), None, "there is no such floor");
    }

    #[test]
    fn the_json_has_every_part() {
        let json = report(200).to_json();
        assert_eq!(json["schema"], SCHEMA);
        assert_eq!(json["operations"], 100);
        assert_eq!(json["throughput_per_second"], 500.0);
        assert_eq!(json["settings"]["loop"], "closed");
        assert_eq!(json["errors"]["total"], 0);
        assert_eq!(json["floors"]["decrypt"], Value::Null);
        assert!(json["floors"]["echo"]["after"]["latency_us"]["p99_99"].is_number());
        let bare = Report { floors: None, ..report(200) };
        assert_eq!(bare.to_json()["floors"], Value::Null);
        assert_eq!(bare.to_json()["ratios"], json!({}));
    }
}
