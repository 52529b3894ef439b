//! What is asked for and how: the arguments that say it, and what they come to. Whatever
//! makes no sense together is refused here, before anything is done.

use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::{
    cli::failure::Failure,
    config::duration,
    load::{CALLERS_MAX, DEKS_MAX, Order, Pace, Plan, RATE_MAX, SKEW_MAX, Scenario, Shape},
};

/// Longest run, in seconds.
const SECONDS_MAX: u64 = 3600;
/// Longest warm-up.
const WARM_UP_MAX: Duration = Duration::from_secs(600);
const CALLERS_DEFAULT: usize = 64;
const SECONDS_DEFAULT: u64 = 10;
const WARM_UP_DEFAULT: Duration = Duration::from_secs(1);
const SKEW_DEFAULT: f64 = 1.0;

/// What to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Name {
    /// One DEK, or a few, again and again
    Hot,
    /// Every DEK once, until the set runs out
    Cold,
    /// Many DEKs, some far more often than others (Zipf)
    Mixed,
    /// Every DEK once, as fast as it goes: a node that starts
    Boot,
}

/// The load.
#[derive(Args, Debug)]
pub(super) struct LoadArgs {
    /// What to ask for
    #[arg(value_name = "SCENARIO")]
    name: Name,

    /// Operations that wait for an answer at once: callers, or items of a stream [default: 64]
    #[arg(long, value_name = "NUMBER", value_parser = counts(CALLERS_MAX))]
    callers: Option<usize>,

    /// How long to measure, 1 to 3600 [default: 10; boot: until every DEK is there]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=SECONDS_MAX))]
    seconds: Option<u64>,

    /// What comes before and is not counted, such as 500ms [default: 1s]
    #[arg(long, value_name = "DURATION", value_parser = warm_up)]
    warm_up: Option<Duration>,

    /// Send so many operations per second, whatever the answers do (open loop)
    #[arg(long, value_name = "PER_SECOND", value_parser = rate)]
    rate: Option<f64>,

    /// Unwrap through UnwrapStream rather than by single calls; boot does so by itself
    #[arg(long)]
    stream: bool,

    /// With boot: single calls rather than UnwrapStream
    #[arg(long, conflicts_with = "stream")]
    unary: bool,

    /// With streams: how many, each with its own outstanding items [default: 1]
    #[arg(long, value_name = "NUMBER", conflicts_with = "unary", value_parser = counts(CALLERS_MAX))]
    streams: Option<usize>,

    /// With streams: items of each that wait for an answer at once [default: 64]
    #[arg(long, value_name = "NUMBER", conflicts_with_all = ["callers", "unary"],
          value_parser = counts(CALLERS_MAX))]
    outstanding: Option<usize>,

    /// How many DEKs to wrap first [default: hot 1, cold 20000, mixed and boot 10000]
    #[arg(long, value_name = "NUMBER", value_parser = counts(DEKS_MAX))]
    deks: Option<usize>,

    /// With mixed: the exponent of Zipf's law, 0 to 10 [default: 1]
    #[arg(long, value_name = "NUMBER", value_parser = skew)]
    skew: Option<f64>,
}

/// What the arguments come to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Task {
    pub(super) scenario: Scenario,
    pub(super) plan: Plan,
    /// How many DEKs to wrap.
    pub(super) deks: usize,
}

impl LoadArgs {
    /// `backend`: it is measured alone, without a sidecar.
    pub(super) fn task(&self, backend: bool) -> Result<Task, Failure> {
        let scenario = match self.name {
            Name::Hot => Scenario::Hot,
            Name::Cold => Scenario::Cold,
            Name::Mixed => Scenario::Mixed,
            Name::Boot => Scenario::Boot,
        };
        self.check(scenario, backend)?;
        let (order, deks) = match scenario {
            Scenario::Hot => (Order::Cycle, 1),
            Scenario::Cold => (Order::Once, 20_000),
            Scenario::Mixed => (Order::Skewed(self.skew.unwrap_or(SKEW_DEFAULT)), 10_000),
            Scenario::Boot => (Order::Once, 10_000),
        };
        let (seconds, warm_up) = match scenario {
            Scenario::Boot => (SECONDS_MAX, Duration::ZERO),
            _ => (SECONDS_DEFAULT, WARM_UP_DEFAULT),
        };
        let callers = self.callers.unwrap_or(CALLERS_DEFAULT);
        let streamed = self.stream || (scenario == Scenario::Boot && !self.unary && !backend);
        let shape = match streamed {
            false => Shape::Unary { callers },
            true => Shape::Stream {
                streams: self.streams.unwrap_or(1),
                outstanding: self.outstanding.unwrap_or(callers),
            },
        };
        if shape.at_once() > CALLERS_MAX {
            return Err(Failure::usage(
                format!("{} operations at once are too many", shape.at_once()),
                format!("choose --streams and --outstanding for {CALLERS_MAX} at most"),
            ));
        }
        let plan = Plan {
            order,
            pace: self.rate.map_or(Pace::Closed, Pace::Open),
            shape,
            warm_up: self.warm_up.unwrap_or(warm_up),
            length: Duration::from_secs(self.seconds.unwrap_or(seconds)),
        };
        Ok(Task { scenario, plan, deks: self.deks.unwrap_or(deks) })
    }

    /// Refuses what would have to be ignored.
    fn check(&self, scenario: Scenario, backend: bool) -> Result<(), Failure> {
        let boot = scenario == Scenario::Boot;
        let streamed = self.stream || (boot && !self.unary && !backend);
        let refuse = |what: &str, fix: &str| Err(Failure::usage(what, fix));
        if self.skew.is_some() && scenario != Scenario::Mixed {
            return refuse("--skew is for mixed", "drop it, or measure mixed");
        }
        if self.unary && !boot {
            return refuse("--unary is for boot", "drop it: the others call singly by themselves");
        }
        if boot && self.rate.is_some() {
            return refuse("boot is as fast as it goes", "drop --rate, or measure cold");
        }
        if boot && self.warm_up.is_some() {
            return refuse("boot asks for every DEK once", "drop --warm-up, or measure cold");
        }
        if backend && self.stream {
            return refuse("a backend has no streams", "drop --stream, or measure a sidecar");
        }
        if !streamed && (self.outstanding.is_some() || self.streams.is_some()) {
            return refuse("single calls have no outstanding items", "add --stream");
        }
        Ok(())
    }
}

/// A parser of numbers from 1 to `most`.
fn counts(most: usize) -> impl Fn(&str) -> Result<usize, String> + Clone + Send + Sync + 'static {
    move |text: &str| {
        let number = text.parse().ok().filter(|number| (1..=most).contains(number));
        number.ok_or_else(|| format!("write a whole number from 1 to {most}"))
    }
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.1..=RATE_MAX).contains(rate));
    rate.ok_or_else(|| format!("write a number from 0.1 to {RATE_MAX}"))
}

fn skew(text: &str) -> Result<f64, String> {
    let skew = text.parse().ok().filter(|skew| (0.0..=SKEW_MAX).contains(skew));
    skew.ok_or_else(|| format!("write a number from 0 to {SKEW_MAX}"))
}

fn warm_up(text: &str) -> Result<Duration, String> {
    let parsed = duration::parse(text).filter(|warm_up| *warm_up <= WARM_UP_MAX);
    parsed.ok_or_else(|| "write a whole number and ms, s or m, such as 1s; at most 10m".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        load: LoadArgs,
    }

    fn task(line: &str, backend: bool) -> Result<Task, String> {
        let words = std::iter::once("bench").chain(line.split(' '));
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        line.load.task(backend).map_err(|failure| format!("{failure:?}"))
    }

    #[test]
    fn each_scenario_has_its_own_defaults() {
        let hot = task("hot", false).unwrap();
        assert_eq!((hot.deks, hot.plan.order, hot.plan.pace), (1, Order::Cycle, Pace::Closed));
        assert_eq!(hot.plan.shape, Shape::Unary { callers: 64 });
        assert_eq!(hot.plan.length, Duration::from_secs(10));
        assert_eq!(hot.plan.warm_up, Duration::from_secs(1));
        let mixed = task("mixed --skew 1.5 --deks 7", false).unwrap();
        assert_eq!((mixed.deks, mixed.plan.order), (7, Order::Skewed(1.5)));
        assert_eq!(task("cold", false).unwrap().plan.order, Order::Once);
    }

    #[test]
    fn boot_is_one_stream_with_as_many_items_as_callers() {
        let boot = task("boot --callers 32 --seconds 10", false).unwrap();
        assert_eq!(boot.plan.shape, Shape::Stream { streams: 1, outstanding: 32 });
        assert_eq!(boot.plan.warm_up, Duration::ZERO);
        let unary = task("boot --unary", false).unwrap();
        assert_eq!(unary.plan.shape, Shape::Unary { callers: 64 });
        let backend = task("boot", true).unwrap();
        assert_eq!(backend.plan.shape, Shape::Unary { callers: 64 });
    }

    #[test]
    fn streams_and_rates_are_taken() {
        let hot = task("hot --stream --streams 2 --outstanding 8 --rate 100.5", false).unwrap();
        assert_eq!(hot.plan.shape, Shape::Stream { streams: 2, outstanding: 8 });
        assert_eq!(hot.plan.pace, Pace::Open(100.5));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (line, backend) in [
            ("warm", false),
            ("hot --skew 1", false),
            ("hot --unary", false),
            ("hot --outstanding 8", false),
            ("hot --streams 2", false),
            ("hot --stream", true),
            ("boot --rate 5", false),
            ("boot --warm-up 1s", false),
            ("boot --unary --outstanding 3", false),
            ("boot --outstanding 3", true),
            ("hot --stream --callers 3 --outstanding 3", false),
            ("hot --stream --streams 4096 --outstanding 4096", false),
            ("hot --callers 0", false),
            ("hot --callers 4097", false),
            ("hot --seconds 0", false),
            ("hot --seconds 3601", false),
            ("hot --rate 0", false),
            ("hot --rate NaN", false),
            ("hot --rate 1e7", false),
            ("mixed --skew -1", false),
            ("mixed --skew nan", false),
            ("cold --deks 0", false),
            ("cold --deks 1000001", false),
            ("hot --warm-up 1", false),
            ("hot --warm-up 11m", false),
        ] {
            assert!(task(line, backend).is_err(), "{line}");
        }
    }
}
