//! `keyward bench`: load and latency, of a running sidecar or of a backend alone. Reads the
//! arguments, has [`crate::load`] measure, and prints.

mod plan;
mod progress;
mod text;

use std::{
    fs, os::unix::fs::MetadataExt, path::PathBuf, sync::Arc, time::Duration, time::SystemTime,
};

use clap::{ArgGroup, Args};
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;

use super::{
    failure::Failure,
    input,
    key::choose_backend,
    output::{Output, What, print},
    show,
    sidecar::{SidecarArgs, algorithm_name},
    unwrap::algorithms,
};
use crate::{
    app,
    client::{Client, Delivery},
    config,
    kek::{Algorithm, KeyRef},
    load::{
        self, Comparison, Deks, Direct, Floors, Gauge, Machine, Outcome, Plan, Report, Sidecar,
        Subject, Trouble,
    },
};
use plan::{LoadArgs, Task};
use progress::Progress;

/// The client runs on one thread: see `docs/benchmarking.md`.
const RUNTIME: &str = "current_thread";

/// Longest baseline that is read: an hour's intervals and more.
const BASELINE_MAX_BYTES: usize = 4 * 1024 * 1024;

/// Measure load and latency
///
/// Against a running sidecar (--kek), or straight against a backend (--key without --kek).
/// First and last, the floors are measured: bytes over a Unix socket, a bare gRPC echo and,
/// with --key, the device's own decryption. What counts are the ratios to them. DEKs are
/// made for the purpose and wrapped through what is measured.
#[derive(Args, Debug)]
#[command(group(ArgGroup::new("subject").args(["kek", "key"]).required(true).multiple(true)))]
pub(super) struct Bench {
    #[command(flatten)]
    load: LoadArgs,

    #[command(flatten)]
    sidecar: SidecarArgs,

    /// The KEK of the sidecar
    #[arg(long, value_name = "NAME")]
    kek: Option<String>,

    /// The configuration with the backend; only its [backend.NAME] sections are read
    #[arg(long, value_name = "FILE", env = "KEYWARD_CONFIG")]
    config: Option<PathBuf>,

    /// The backend, if the file has more than one
    #[arg(long, value_name = "NAME", requires = "key")]
    backend: Option<String>,

    /// The key in the backend: alone it is what is measured, beside --kek a floor
    #[arg(long, value_name = "LABEL", requires = "config")]
    key: Option<String>,

    /// How DEKs are wrapped with --key [default: the first that the key works with]
    #[arg(long, value_name = "NAME", requires = "key", conflicts_with = "kek",
          value_parser = algorithms())]
    algorithm: Option<Algorithm>,

    /// Have DEKs delivered in the clear; without it they are sealed, as by our client
    #[arg(long, requires = "kek")]
    plain: bool,

    /// Have the callers share streams, as those of our client do; without it each unwrap is a
    /// call of its own
    #[arg(long, requires = "kek")]
    shared: bool,

    /// Leave the floors out, and with them the ratios
    #[arg(long)]
    no_floors: bool,

    /// Write a page with plots to this file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Show ratios to an earlier run, the output of --json
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,

    /// Fail if throughput, p50 or p99 are worse than in that run by more than this
    #[arg(long, value_name = "PERCENT", requires = "compare", value_parser = percent)]
    max_regression: Option<f64>,
}

fn percent(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|percent| (0.0..=10_000.0).contains(percent));
    number.ok_or_else(|| "write a number from 0 to 10000".to_owned())
}

/// What is measured.
#[derive(Clone, Copy)]
enum Measured<'a> {
    Sidecar(&'a Sidecar),
    Backend(&'a Direct),
}

/// The key of a backend, and the way past the backend to its device.
struct Device {
    open: app::Measurable,
    key: Direct,
}

impl Bench {
    pub(super) fn run(self, json: bool) -> Result<(), Failure> {
        let alone = self.kek.is_none();
        if alone && self.sidecar.is_given() {
            return Err(Failure::usage(
                "a sidecar is given, but no KEK of it",
                "name the KEK with --kek, or leave --socket and --address out",
            ));
        }
        let task = self.load.task(alone)?;
        let html = self.html.as_deref().map(|path| Output::choose(Some(path), What::Text));
        let html = html.transpose()?;
        self.keep_baseline()?;
        let baseline = self.baseline()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::new("cannot start a runtime").with_cause(error))?;
        let report = self.measure(&runtime, task)?;
        let mut value = report.to_json();
        let comparison = match &baseline {
            Some((path, before)) => Some(compare(path, before, &value)?),
            None => None,
        };
        if let Some(out) = &html {
            out.write(load::page(&report).as_bytes())?;
        }
        if let (Some(comparison), Value::Object(object)) = (&comparison, &mut value) {
            object.insert("compared".into(), comparison_json(comparison));
        }
        match json {
            true => print(&show::json_line(&value))?,
            false => print(&text::report(&report, comparison.as_ref()))?,
        }
        self.judge(comparison.as_ref())
    }

    /// Refuses to have the page replace the baseline, whatever both are called.
    fn keep_baseline(&self) -> Result<(), Failure> {
        let (Some(html), Some(compare)) = (&self.html, &self.compare) else { return Ok(()) };
        let file = |path: &PathBuf| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
        match file(html).is_some_and(|page| Some(page) == file(compare)) {
            true => Err(Failure::usage(
                "--html would replace the file that --compare names",
                "name another file with --html",
            )),
            false => Ok(()),
        }
    }

    fn baseline(&self) -> Result<Option<(PathBuf, Value)>, Failure> {
        let Some(path) = &self.compare else { return Ok(None) };
        let bytes = input::read(Some(path), BASELINE_MAX_BYTES, "a baseline")?;
        let value = serde_json::from_slice(bytes.expose()).map_err(|error| {
            Failure::new(format!("{} is not JSON", path.display()))
                .with_cause(error)
                .with_fix("give what an earlier run wrote with --json")
        })?;
        Ok(Some((path.clone(), value)))
    }

    fn judge(&self, comparison: Option<&Comparison>) -> Result<(), Failure> {
        let (Some(percent), Some(comparison)) = (self.max_regression, comparison) else {
            return Ok(());
        };
        let found = comparison.regressions(percent);
        if found.is_empty() {
            return Ok(());
        }
        let failure = Failure::new(format!("worse than the baseline by more than {percent} %"))
            .with_reason("REGRESSION");
        Err(found.into_iter().fold(failure, Failure::with_cause))
    }

    fn client(&self) -> Result<Client, Failure> {
        let delivery = if self.plain { Delivery::Plain } else { Delivery::Sealed };
        let client = if self.shared { self.sidecar.shared_client() } else { self.sidecar.client() };
        Ok(client?.with_delivery(delivery))
    }

    fn measure(&self, runtime: &Runtime, task: Task) -> Result<Report, Failure> {
        let progress = Progress::start();
        runtime.block_on(async {
            let sidecar = match &self.kek {
                Some(kek) => Some(Sidecar::new(self.client()?, kek)),
                None => None,
            };
            match sidecar {
                Some(sidecar) => {
                    let gauge = progress.count("wrapping DEKs", task.deks);
                    let deks = Arc::new(Deks::wrap(&sidecar, task.deks, &gauge).await?);
                    let device = self.device(Some(deks.fingerprint())).await?;
                    let measured = Measured::Sidecar(&sidecar);
                    let outcome =
                        self.with_floors(&task, measured, &deks, device.as_ref(), &progress).await;
                    close(device).await;
                    let subject = Subject {
                        kind: "sidecar",
                        over: if self.sidecar.is_tls() { "tls" } else { "unix" },
                        kek: self.kek.clone().unwrap_or_default(),
                        algorithm: algorithm_name(deks.algorithm()),
                    };
                    self.report(&task, subject, outcome?)
                }
                None => {
                    let device = self.device(None).await?.expect("clap asks for --kek or --key");
                    let gauge = progress.count("wrapping DEKs", task.deks);
                    let outcome = async {
                        let deks = Arc::new(Deks::wrap(&device.key, task.deks, &gauge).await?);
                        let measured = Measured::Backend(&device.key);
                        self.with_floors(&task, measured, &deks, Some(&device), &progress).await
                    }
                    .await;
                    let subject = Subject {
                        kind: "backend",
                        over: "in-process",
                        kek: self.key.clone().unwrap_or_default(),
                        algorithm: device.key.algorithm().name().to_owned(),
                    };
                    close(Some(device)).await;
                    self.report(&task, subject, outcome?)
                }
            }
        })
    }

    /// The key of a backend, if one was named. `fingerprint`: what it must be.
    async fn device(&self, fingerprint: Option<&[u8]>) -> Result<Option<Device>, Failure> {
        let (Some(label), Some(file)) = (&self.key, &self.config) else { return Ok(None) };
        let key = KeyRef::parse(label).ok_or_else(|| {
            Failure::usage("that is no key", "write LABEL, or LABEL/VERSION for one version of it")
        })?;
        let backends = config::load_backends(file)?;
        let settings = choose_backend(&backends, self.backend.as_deref())?;
        let open = app::build_measurable(settings)?;
        let found = Direct::open(Arc::clone(&open.0), &key, self.algorithm, fingerprint).await;
        match found {
            Ok(key) => Ok(Some(Device { open, key })),
            Err(error) => {
                open.0.close().await;
                Err(error.into())
            }
        }
    }

    /// The run, with the floors before and after it.
    async fn with_floors(
        &self,
        task: &Task,
        measured: Measured<'_>,
        deks: &Arc<Deks>,
        device: Option<&Device>,
        progress: &Progress,
    ) -> Result<(Outcome, Option<(Floors, Floors)>), Failure> {
        let floors = async |what| -> Result<Option<Floors>, Failure> {
            if self.no_floors {
                return Ok(None);
            }
            progress.wait(what);
            Ok(Some(floors(measured, &task.plan, deks, device).await?))
        };
        let before = floors("measuring the floors").await?;
        let gauge = progress.run(task, Arc::new(Gauge::default()));
        let outcome = match measured {
            Measured::Sidecar(sidecar) => {
                load::run_sidecar(sidecar, deks, &task.plan, &gauge).await?
            }
            Measured::Backend(key) => load::run_backend(key, deks, &task.plan, &gauge).await?,
        };
        let after = floors("measuring the floors again").await?;
        Ok((outcome, before.zip(after)))
    }

    fn report(
        &self,
        task: &Task,
        subject: Subject,
        (outcome, floors): (Outcome, Option<(Floors, Floors)>),
    ) -> Result<Report, Failure> {
        if outcome.latency.is_none() {
            return Err(nothing_succeeded(&outcome));
        }
        let mut report = Report {
            scenario: task.scenario,
            subject,
            plan: task.plan,
            deks: task.deks,
            runtime: RUNTIME,
            at: show::date(SystemTime::now()).unwrap_or_default(),
            outcome,
            floors,
            machine: Machine::here(),
            notes: Vec::new(),
        };
        report.notes = text::notes(&report);
        Ok(report)
    }
}

async fn floors(
    measured: Measured<'_>,
    plan: &Plan,
    deks: &Arc<Deks>,
    device: Option<&Device>,
) -> Result<Floors, Trouble> {
    let mut floors = match measured {
        Measured::Sidecar(_) => load::transport_floors(deks, plan).await?,
        Measured::Backend(_) => Floors::default(),
    };
    if let Some(Device { open: (_, bare), key }) = device {
        floors.decrypt = Some(load::device_floor(&**bare, key, plan.length).await?);
    }
    Ok(floors)
}

async fn close(device: Option<Device>) {
    if let Some(Device { open: (backend, _), .. }) = device {
        backend.close().await;
    }
}

fn nothing_succeeded(outcome: &Outcome) -> Failure {
    let failure = Failure::new("no operation succeeded");
    if outcome.ran_out && outcome.errors.is_empty() {
        let failure = failure.with_cause("the DEKs ran out in the warm-up");
        return failure.with_fix("raise --deks, or shorten --warm-up");
    }
    let failure = match outcome.errors.iter().max_by_key(|(_, count)| **count) {
        Some((reason, _)) => failure.with_reason(reason),
        None => failure.with_fix("raise --seconds: one operation takes longer than the run"),
    };
    let causes = outcome.errors.iter().map(|(reason, count)| format!("{reason}: {count} times"));
    causes.fold(failure, Failure::with_cause)
}

fn compare(path: &std::path::Path, before: &Value, now: &Value) -> Result<Comparison, Failure> {
    load::compare(before, now).map_err(|why| {
        Failure::new(format!("this run cannot be compared with {}", path.display()))
            .with_cause(why)
            .with_fix("measure both in the same way, with the same build")
    })
}

fn comparison_json(comparison: &Comparison) -> Value {
    let changes: Map<_, _> = comparison
        .changes
        .iter()
        .map(|change| {
            let ratio = change.now / change.before;
            let value = json!({
                "before": change.before,
                "now": change.now,
                "ratio": ratio.is_finite().then_some(ratio),
                "worse_by_percent": change.worse_by,
            });
            (change.name.to_owned(), value)
        })
        .collect();
    json!({
        "changes": changes,
        "failed_percent": { "before": comparison.failed.0, "now": comparison.failed.1 },
    })
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Sidecar(error) => error.into(),
            Trouble::Backend(error) => error.into(),
            Trouble::Machine(what, error) => Self::new(what).with_cause(error),
        }
    }
}

/// Shown where a number of seconds is meant.
fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
