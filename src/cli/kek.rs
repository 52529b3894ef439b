//! `keyward kek`: what a running sidecar knows of its KEKs, and what it has cached of them.

use std::{path::PathBuf, time::SystemTime};

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::{
    census::{self, CensusOf},
    failure::Failure,
    output::print,
    show::{self, row, yes_no},
    sidecar::{self, KekState, KekVersion, Purged, Reloaded, Revoked, SidecarArgs, algorithm_name},
    watch::Watch,
};

/// `keyward kek …`
#[derive(Debug, Subcommand)]
pub(super) enum Kek {
    List(List),
    Show(Show),
    Watch(Watch),
    Census(CensusOf),
    Reload(Reload),
    Purge(Purge),
    Revoke(Revoke),
    Restore(Restore),
}

/// List the KEKs that we may describe
#[derive(Args, Debug)]
pub(super) struct List {
    #[command(flatten)]
    sidecar: SidecarArgs,
}

/// Show a KEK: versions, state, validity, assurance, and whether old versions are in use
#[derive(Args, Debug)]
pub(super) struct Show {
    #[command(flatten)]
    sidecar: SidecarArgs,

    /// Write the public key of the current version to this file, PEM
    #[arg(long, value_name = "FILE")]
    public_key_out: Option<PathBuf>,

    /// The KEK
    #[arg(value_name = "NAME")]
    name: String,
}

/// Have a KEK, or all that we may reload, read from the backend at once
///
/// What its owner did to the key takes effect before the command ends, instead of at the
/// sidecar's next look: a new version, a key that was disabled or is back.
#[derive(Args, Debug)]
pub(super) struct Reload {
    #[command(flatten)]
    sidecar: SidecarArgs,

    /// The KEK; without it, every KEK that we may reload
    #[arg(value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    name: Option<String>,
}

/// Wipe the cached DEKs of a KEK, or of all that we may purge
///
/// Closes the connections that carried them, too; clients reconnect by themselves. The KEK
/// stays as it is: what is asked for next comes from the backend again.
#[derive(Args, Debug)]
pub(super) struct Purge {
    #[command(flatten)]
    sidecar: SidecarArgs,

    /// The KEK; without it, every KEK that we may purge
    #[arg(value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    name: Option<String>,
}

/// Take a KEK away on this sidecar until it is restored, also over restarts
///
/// When the command ends, nothing of the KEK is cached, nobody is answered with a DEK of it
/// any more, and the connections that carried such DEKs are closed. The key in the HSM or
/// vault stays as it is, and so do other sidecars.
#[derive(Args, Debug)]
pub(super) struct Revoke {
    #[command(flatten)]
    sidecar: SidecarArgs,

    /// The KEK
    #[arg(value_name = "NAME")]
    name: String,
}

/// Give a KEK back that was taken away with `kek revoke`
///
/// It is served again once it has proven itself.
#[derive(Args, Debug)]
pub(super) struct Restore {
    #[command(flatten)]
    sidecar: SidecarArgs,

    /// The KEK
    #[arg(value_name = "NAME")]
    name: String,
}

impl Kek {
    pub(super) fn run(self, json: bool) -> Result<(), Failure> {
        match self {
            Self::List(command) => command.run(json),
            Self::Show(command) => command.run(json),
            Self::Watch(command) => command.run(json),
            Self::Census(command) => command.run(json),
            Self::Reload(command) => command.run(json),
            Self::Purge(command) => command.run(json),
            Self::Revoke(command) => command.run(json),
            Self::Restore(command) => command.run(json),
        }
    }
}

impl List {
    fn run(self, json: bool) -> Result<(), Failure> {
        let keks = self.sidecar.connect()?.keks()?;
        if json {
            let keks: Vec<_> = keks.iter().map(kek_json).collect();
            return print(&show::json_line(&json!({ "keks": keks })));
        }
        let mut rows = vec![row(["NAME", "BACKEND", "ALGORITHM", "CURRENT", "STATE", "VERSIONS"])];
        for kek in &keks {
            rows.push(row([
                &kek.name,
                &kek.backend,
                &algorithm_name(kek.algorithm),
                or_dash(&kek.current_version),
                summary(kek),
                &kek.versions.len().to_string(),
            ]));
        }
        print(&show::table(&rows))
    }
}

impl Show {
    fn run(self, json: bool) -> Result<(), Failure> {
        let public_key_out = show::public_key_output(self.public_key_out.as_deref())?;
        let kek = self.sidecar.connect()?.kek(&self.name)?;
        if let Some(out) = public_key_out {
            let current = kek.versions.iter().find(|v| v.version == kek.current_version);
            let spki = current.map(|version| version.public_key.as_slice()).unwrap_or_default();
            show::write_public_key(&out, spki, "the current version")?;
        }
        match json {
            true => print(&show::json_line(&kek_json(&kek))),
            false => print(&text(&kek)),
        }
    }
}

impl Reload {
    fn run(self, json: bool) -> Result<(), Failure> {
        let keks = self.sidecar.connect()?.reload(self.name.as_deref())?;
        if json {
            let keks: Vec<_> = keks
                .iter()
                .map(|Reloaded { kek, current }| {
                    json!({
                        "name": kek,
                        "current_version": current.as_ref().ok(),
                        "reason": current.as_ref().err().map(|error| error.reason()),
                    })
                })
                .collect();
            print(&show::json_line(&json!({ "keks": keks })))?;
        } else {
            let mut rows = vec![row(["NAME", "CURRENT", "REASON"])];
            rows.extend(keks.iter().map(|Reloaded { kek, current }| match current {
                Ok(current) => row([kek, current, "-"]),
                Err(error) => row([kek, "-", error.reason()]),
            }));
            print(&show::table(&rows))?;
        }
        match keks.into_iter().find_map(|Reloaded { current, .. }| current.err()) {
            None => Ok(()),
            Some(error) => Err(error.into()),
        }
    }
}

impl Purge {
    fn run(self, json: bool) -> Result<(), Failure> {
        let purged = self.sidecar.connect()?.purge(self.name.as_deref())?;
        match json {
            true => print(&show::json_line(&Value::Object(purged_json(purged))))?,
            false => print(&show::table(&purged_rows(purged)))?,
        }
        check_closed(purged)
    }
}

impl Revoke {
    fn run(self, json: bool) -> Result<(), Failure> {
        let Revoked { purged, kept } = self.sidecar.connect()?.revoke(&self.name)?;
        if json {
            let mut done = purged_json(purged);
            done.insert("kept".into(), json!(kept));
            print(&show::json_line(&Value::Object(done)))?;
        } else {
            let mut rows = vec![row(["revoked", &self.name])];
            rows.extend(purged_rows(purged));
            rows.push(row(["outlasts a restart", yes_no(kept)]));
            print(&show::table(&rows))?;
        }
        check_closed(purged)?;
        match kept {
            true => Ok(()),
            false => Err(Failure::new("the KEK is revoked only until the sidecar is restarted")
                .with_cause("the sidecar has no state directory, or could not write there")
                .with_fix(
                    "set `state` in [server]; its log says what was wrong with the directory",
                )),
        }
    }
}

impl Restore {
    fn run(self, json: bool) -> Result<(), Failure> {
        self.sidecar.connect()?.restore(&self.name)?;
        match json {
            true => print(&show::json_line(&json!({ "restored": self.name }))),
            false => print(&format!("restored {}\n", self.name)),
        }
    }
}

fn purged_rows(purged: Purged) -> [Vec<String>; 4] {
    let Purged { deks, connections, left_open, sessions } = purged;
    [
        row(["wiped DEKs", &deks.to_string()]),
        row(["closed connections", &(connections.saturating_sub(left_open)).to_string()]),
        row(["ended sessions", &sessions.to_string()]),
        row(["still open", &left_open.to_string()]),
    ]
}

fn purged_json(purged: Purged) -> Map<String, Value> {
    let Purged { deks, connections, left_open, sessions } = purged;
    let counts = [
        ("deks", deks),
        ("connections", connections),
        ("left_open", left_open),
        ("sessions", sessions),
    ];
    counts.into_iter().map(|(name, count)| (name.to_owned(), json!(count))).collect()
}

fn check_closed(Purged { left_open, .. }: Purged) -> Result<(), Failure> {
    if left_open == 0 {
        return Ok(());
    }
    Err(Failure::new("some connections that carried DEKs are still open")
        .with_cause(format!("{left_open} did not end in time; their buffers may hold DEKs"))
        .with_fix("purge again; if they stay, restart the sidecar"))
}

/// The state of the current version, or of the newest if none is current.
fn summary(kek: &sidecar::Kek) -> &'static str {
    let current = kek.versions.iter().find(|version| version.version == kek.current_version);
    current.or(kek.versions.first()).map_or("NO VERSION", state)
}

fn state(version: &KekVersion) -> &'static str {
    version.state().as_str_name()
}

/// How a KEK stands, and why it is no better.
fn condition(kek: &sidecar::Kek) -> String {
    let condition = kek.condition().as_str_name();
    match optional(&kek.reason) {
        Some(reason) => format!("{condition} ({reason})"),
        None => condition.to_owned(),
    }
}

fn text(kek: &sidecar::Kek) -> String {
    let assurance = kek.assurance.clone().unwrap_or_default();
    let mut text = show::table(&[
        row(["name", &kek.name]),
        row(["backend", &format!("{} ({})", kek.backend, assurance.backend_kind)]),
        row(["device", or_dash(&assurance.device)]),
        row(["algorithm", &algorithm_name(kek.algorithm)]),
        row(["current", or_dash(&kek.current_version)]),
        row(["condition", &condition(kek)]),
        row(["SENSITIVE", yes_no(assurance.sensitive)]),
        row(["EXTRACTABLE", yes_no(assurance.extractable)]),
        row(["ALWAYS_SENSITIVE", yes_no(assurance.always_sensitive)]),
        row(["NEVER_EXTRACTABLE", yes_no(assurance.never_extractable)]),
        row(["LOCAL", yes_no(assurance.local)]),
    ]);
    let mut rows =
        vec![row(["VERSION", "STATE", "BITS", "NOT BEFORE", "NOT AFTER", "PROVEN", "FINGERPRINT"])];
    for version in &kek.versions {
        let moment = |at| moment(at).unwrap_or_else(|| "-".into());
        rows.push(row([
            &version.version,
            state(version),
            &version.bits.to_string(),
            &moment(version.not_before),
            &moment(version.not_after),
            &moment(version.proven_at),
            &show::hex(&version.fingerprint),
        ]));
    }
    text.push('\n');
    text.push_str(&show::table(&rows));
    let now = SystemTime::now();
    let head = [&["VERSION"][..], &census::HEAD].concat();
    let mut rows = vec![head.into_iter().map(str::to_owned).collect()];
    for version in &kek.versions {
        let mut cells = row([&version.version]);
        cells.extend(census::of_version(kek, version, now).cells());
        rows.push(cells);
    }
    text.push('\n');
    text.push_str(&show::table(&rows));
    text.push_str(&census::counted_since(kek));
    text.push_str(census::LIMITS);
    text
}

fn kek_json(kek: &sidecar::Kek) -> Value {
    let assurance = kek.assurance.clone().unwrap_or_default();
    json!({
        "name": kek.name,
        "backend": kek.backend,
        "algorithm": algorithm_name(kek.algorithm),
        "current_version": optional(&kek.current_version),
        "usable": kek.versions.iter().any(|v| {
            v.version == kek.current_version && v.state() == KekState::Active
        }),
        "condition": kek.condition().as_str_name(),
        "reason": optional(&kek.reason),
        "assurance": {
            "backend_kind": assurance.backend_kind,
            "device": assurance.device,
            "sensitive": assurance.sensitive,
            "extractable": assurance.extractable,
            "always_sensitive": assurance.always_sensitive,
            "never_extractable": assurance.never_extractable,
            "local": assurance.local,
        },
        "versions": kek.versions.iter().map(|one| version_json(kek, one)).collect::<Vec<_>>(),
    })
}

fn version_json(kek: &sidecar::Kek, version: &KekVersion) -> Value {
    let mut object = Map::new();
    object.insert("version".into(), json!(version.version));
    object.insert("state".into(), json!(state(version)));
    object.insert("bits".into(), json!(version.bits));
    object.insert("fingerprint".into(), json!(show::hex(&version.fingerprint)));
    object.insert("not_before".into(), json!(moment(version.not_before)));
    object.insert("not_after".into(), json!(moment(version.not_after)));
    object.insert("proven_at".into(), json!(moment(version.proven_at)));
    let told = census::of_version(kek, version, SystemTime::now());
    object.insert("census".into(), told.to_json());
    if !version.public_key.is_empty() {
        object.insert("public_key".into(), json!(show::pem(&version.public_key)));
    }
    Value::Object(object)
}

fn moment(at: Option<prost_types::Timestamp>) -> Option<String> {
    show::date(SystemTime::try_from(at?).ok()?)
}

fn optional(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

fn or_dash(text: &str) -> &str {
    optional(text).unwrap_or("-")
}
