//! `keyward kek census`: what sidecars counted, of one or of several, and what that says
//! about versions that may be disabled.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use clap::Args;
use serde_json::{Value, json};

use super::{
    failure::Failure,
    input,
    output::print,
    show::{self, row},
    sidecar::{self, KekVersion, SidecarArgs},
};
use crate::kek::{Callers, Census, KekName, QUIET_FOR, Report, Usage, Usages, Verdict, VersionId};

/// What the census does not see; told with every verdict.
pub(super) const LIMITS: &str = "\
What lies in storage unread is not counted, nor what other tools unwrap. To be sure, rewrap
every DEK first; then disable the version, which can be undone, long before it is destroyed.
";

/// Tell how the versions of KEKs were used, here or over several sidecars
///
/// Without --merge it prints what one sidecar counted, as JSON, to be kept in a file. With
/// --merge it reads such files, one or more of each sidecar, and says for each version how
/// often it unwrapped, when last, and for about how many callers.
#[derive(Args, Debug)]
pub(super) struct CensusOf {
    #[command(flatten)]
    sidecar: SidecarArgs,

    /// Files that this command has written; `-` is standard input
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["names", "socket", "address"])]
    merge: Vec<PathBuf>,

    /// The KEKs; without any, all that we may describe
    #[arg(value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    names: Vec<String>,
}

impl CensusOf {
    pub(super) fn run(self, json: bool) -> Result<(), Failure> {
        if self.merge.is_empty() {
            let report = self.ask()?;
            return print(&show::json_line(&report.to_json()));
        }
        let mut census = Census::default();
        for path in &self.merge {
            let text = input::read(Some(path), Report::TEXT_MAX, "a census")?;
            let report = Report::parse(text.expose()).ok_or_else(|| {
                Failure::new(format!("{} is no census", path.display()))
                    .with_cause("it is not what `keyward kek census` writes, or not all of it")
                    .with_fix("write it again: `keyward kek census >FILE`")
            })?;
            census.add(report);
        }
        let now = SystemTime::now();
        print(&match json {
            true => show::json_line(&census_json(&census, now)),
            false => census_text(&census, now),
        })
    }

    /// What one sidecar counted.
    fn ask(&self) -> Result<Report, Failure> {
        let sidecar = self.sidecar.connect()?;
        let names = match self.names.is_empty() {
            true => sidecar.keks()?.into_iter().map(|kek| kek.name).collect(),
            false => self.names.clone(),
        };
        let mut report = None;
        for name in names {
            let kek = sidecar.kek(&name)?;
            let report = report.get_or_insert_with(|| Report {
                node: kek.census_node.clone(),
                since: since(&kek),
                at: SystemTime::now(),
                usages: Usages::new(),
            });
            if let Some(name) = KekName::parse(&kek.name) {
                report.usages.insert(name, usages(&kek));
            }
        }
        report.ok_or_else(|| {
            Failure::new("there is no KEK that we may describe")
                .with_fix("ask the operator for a [[policy]] entry with may = [\"describe\"]")
        })
    }
}

fn since(kek: &sidecar::Kek) -> SystemTime {
    let since = kek.census_since.and_then(|since| SystemTime::try_from(since).ok());
    // What a sidecar does not say it has counted, it has not.
    since.unwrap_or_else(SystemTime::now)
}

fn usages(kek: &sidecar::Kek) -> BTreeMap<VersionId, Usage> {
    let versions = kek.versions.iter();
    versions.filter_map(|one| Some((VersionId::parse(&one.version)?, usage(one)))).collect()
}

fn usage(version: &KekVersion) -> Usage {
    let told = version.usage.clone().unwrap_or_default();
    Usage {
        unwraps: told.unwraps,
        last: told.last.and_then(|last| SystemTime::try_from(last).ok()),
        callers: Callers::from_bytes(&told.caller_bits).unwrap_or_default(),
    }
}

/// What is said of the versions of a KEK that a sidecar describes: unwraps, when last, by how
/// many callers, and the verdict.
pub(super) fn of_version(kek: &sidecar::Kek, version: &KekVersion, now: SystemTime) -> Told {
    let callers = version.usage.as_ref().map_or(0, |usage| usage.callers);
    Told { callers, ..Told::of(&usage(version), since(kek), now) }
}

/// Since when a sidecar counts, in words.
pub(super) fn counted_since(kek: &sidecar::Kek) -> String {
    let since = show::date(since(kek)).unwrap_or_default();
    format!(
        "Counted on this sidecar alone, since {since}; `keyward kek census --merge` joins others.\n"
    )
}

/// What the census says of a version.
pub(super) struct Told {
    pub(super) unwraps: u64,
    pub(super) last: Option<SystemTime>,
    pub(super) callers: u64,
    pub(super) verdict: Verdict,
}

impl Told {
    fn of(usage: &Usage, since: SystemTime, now: SystemTime) -> Self {
        let Usage { unwraps, last, callers } = *usage;
        let verdict = Verdict::of(usage, since, now);
        Self { unwraps, last, callers: callers.count(), verdict }
    }

    fn last(&self) -> String {
        self.last.and_then(show::date).unwrap_or_else(|| "-".to_owned())
    }

    /// The columns of [`HEAD`].
    pub(super) fn cells(&self) -> [String; 4] {
        let verdict = match self.verdict {
            Verdict::InUse { .. } => "in use".to_owned(),
            Verdict::Quiet { quiet, .. } => format!("quiet for {} days", days(quiet)),
            Verdict::TooEarly { counted } => {
                format!("not used, but counted for {} days only", days(counted))
            }
        };
        [self.unwraps.to_string(), self.last(), self.callers.to_string(), verdict]
    }

    pub(super) fn to_json(&self) -> Value {
        let (verdict, for_days) = match self.verdict {
            Verdict::InUse { .. } => ("in-use", None),
            Verdict::Quiet { quiet, .. } => ("quiet", Some(days(quiet))),
            Verdict::TooEarly { counted } => ("too-early", Some(days(counted))),
        };
        json!({
            "unwraps": self.unwraps,
            "last": self.last.and_then(show::date),
            "callers": self.callers,
            "verdict": verdict,
            "days": for_days,
        })
    }
}

/// The columns of [`Told::cells`].
pub(super) const HEAD: [&str; 4] = ["UNWRAPS", "LAST", "CALLERS", "CENSUS"];

fn days(time: Duration) -> u64 {
    time.as_secs() / (24 * 3600)
}

fn census_text(census: &Census, now: SystemTime) -> String {
    let since = census.since().unwrap_or(now);
    let mut text = String::new();
    for (kek, versions) in census.usages() {
        let mut rows = vec![
            [&["KEK", "VERSION"][..], &HEAD].concat().into_iter().map(str::to_owned).collect(),
        ];
        for (id, usage) in &versions {
            let mut cells = row([kek.as_str(), id.as_str()]);
            cells.extend(Told::of(usage, since, now).cells());
            rows.push(cells);
        }
        text.push_str(&show::table(&rows));
        text.push('\n');
    }
    let mut rows = vec![row(["SIDECAR", "COUNTS SINCE", "WRITTEN"])];
    for Report { node, since, at, .. } in census.reports() {
        let date = |at| show::date(at).unwrap_or_default();
        rows.push(row([node, &date(*since), &date(*at)]));
    }
    text.push_str(&show::table(&rows));
    if let Some(old) = census.oldest(now).filter(|old| days(*old) > 0) {
        text.push_str(&format!("The oldest was written {} days ago.\n", days(old)));
    }
    text.push_str(&format!(
        "A version counts as quiet after {} days; what a sidecar that is not listed unwrapped is\nnot known. {LIMITS}",
        days(QUIET_FOR)
    ));
    text
}

fn census_json(census: &Census, now: SystemTime) -> Value {
    let since = census.since().unwrap_or(now);
    let keks: Vec<_> = census
        .usages()
        .iter()
        .map(|(kek, versions)| {
            let versions: Vec<_> = versions
                .iter()
                .map(|(id, usage)| {
                    let mut told = Told::of(usage, since, now).to_json();
                    told["version"] = json!(id.as_str());
                    told
                })
                .collect();
            json!({ "name": kek.as_str(), "versions": versions })
        })
        .collect();
    let sidecars: Vec<_> = census
        .reports()
        .map(|Report { node, since, at, .. }| {
            json!({ "node": node, "since": show::date(*since), "written": show::date(*at) })
        })
        .collect();
    json!({ "keks": keks, "sidecars": sidecars, "since": show::date(since) })
}
