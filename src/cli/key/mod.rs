//! `keyward key`: keys on the backend itself, without a sidecar. The backend is asked
//! as its configuration says; only its section of the file is read.

mod life;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::{
    failure::Failure,
    output::{print, tell},
    show::{self, row, yes_no},
};
use crate::{
    app,
    backend::{Backend, KeyDescription, KeyKind, NewKey, Officer},
    config::{self, BackendConfig},
    kek::{Assurance, KeyRef, PublicKey},
};

/// How long an officer's work may take: RSA-4096 on a smart card takes a minute.
const DEADLINE: Duration = Duration::from_secs(300);

/// `keyward key …`
#[derive(Debug, Subcommand)]
pub(super) enum Key {
    Create(Create),
    Rotate(life::Rotate),
    List(List),
    Show(Show),
    Enable(life::Enable),
    Disable(life::Disable),
    Destroy(life::Destroy),
    Recover(life::Recover),
}

/// Which backend.
#[derive(Args, Debug)]
struct BackendArgs {
    /// The configuration file; only its [backend.NAME] sections are read
    #[arg(long, value_name = "FILE", env = "KEYWARD_CONFIG")]
    config: PathBuf,

    /// The backend, if the file has more than one
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
}

/// Create a key that cannot leave the backend
#[derive(Args, Debug)]
pub(super) struct Create {
    #[command(flatten)]
    backend: BackendArgs,

    /// Kind of key
    #[arg(long = "type", value_name = "KIND", default_value = "rsa", value_parser = ["rsa", "aes"])]
    kind: String,

    /// Bits: 2048, 3072 or 4096 for rsa, 256 for aes [default: 3072 or 256]
    #[arg(long, value_name = "BITS")]
    size: Option<u32>,

    /// Write the public key to this file, PEM
    #[arg(long, value_name = "FILE")]
    public_key_out: Option<PathBuf>,

    /// Label of the key; no key of that label may exist
    #[arg(value_name = "NAME")]
    label: String,
}

/// List the keys that could be KEKs
#[derive(Args, Debug)]
pub(super) struct List {
    #[command(flatten)]
    backend: BackendArgs,
}

/// Show the keys of one label: attributes, fingerprint, validity
#[derive(Args, Debug)]
pub(super) struct Show {
    #[command(flatten)]
    backend: BackendArgs,

    /// Write the public key of the newest to this file, PEM
    #[arg(long, value_name = "FILE")]
    public_key_out: Option<PathBuf>,

    /// Label of the keys
    #[arg(value_name = "NAME")]
    label: String,
}

impl Key {
    pub(super) fn run(self, json: bool) -> Result<(), Failure> {
        match self {
            Self::Create(command) => command.run(json),
            Self::Rotate(command) => command.run(json),
            Self::List(command) => command.run(json),
            Self::Show(command) => command.run(json),
            Self::Enable(command) => command.run(json),
            Self::Disable(command) => command.run(json),
            Self::Destroy(command) => command.run(json),
            Self::Recover(command) => command.run(json),
        }
    }
}

impl Create {
    fn run(self, json: bool) -> Result<(), Failure> {
        let bits = self.size.unwrap_or(if self.kind == "aes" { 256 } else { 3072 });
        let kind = KeyKind::parse(&self.kind, bits).map_err(|why| {
            Failure::usage(format!("no KEK can be {} with {bits} bits", self.kind), why)
        })?;
        check_label(&self.label)?;
        // Before there is a key: what would fail after it would fail too late.
        if kind == KeyKind::Aes256 && self.public_key_out.is_some() {
            return Err(Failure::usage("an AES key has no public key", "drop --public-key-out"));
        }
        let public_key_out = show::public_key_output(self.public_key_out.as_deref())?;
        let new = NewKey { label: self.label.clone(), kind };
        let key = self.backend.with_officer(async |officer| {
            tell(&format!("creating {} {bits} key {} …", self.kind, self.label));
            Ok(officer.create(&new, Instant::now() + DEADLINE).await?)
        })?;
        if let Some(out) = public_key_out {
            show::write_public_key(&out, spki(&key), "the key")?;
        }
        match json {
            true => print(&show::json_line(&key_json(&key))),
            false => print(&text(&key)),
        }
    }
}

impl List {
    fn run(self, json: bool) -> Result<(), Failure> {
        let keys = self.backend.with_officer(async |officer| {
            Ok(officer.list(None, Instant::now() + DEADLINE).await?)
        })?;
        if json {
            let keys: Vec<_> = keys.iter().map(key_json).collect();
            return print(&show::json_line(&json!({ "keys": keys })));
        }
        let mut rows = vec![row([
            "NAME",
            "TYPE",
            "BITS",
            "VERSION",
            "STATE",
            "NOT BEFORE",
            "NOT AFTER",
            "USAGE",
            "FINGERPRINT",
        ])];
        for key in &keys {
            let KeyDescription { kind, info, usage, .. } = key;
            rows.push(row([
                &info.key.label,
                kind,
                &info.bits.to_string(),
                info.id.as_str(),
                &state(key),
                &date(info.validity.not_before),
                &date(info.validity.not_after),
                &usage.join(","),
                &info.fingerprint.to_string(),
            ]));
        }
        print(&show::table(&rows))
    }
}

impl Show {
    fn run(self, json: bool) -> Result<(), Failure> {
        check_label(&self.label)?;
        let public_key_out = show::public_key_output(self.public_key_out.as_deref())?;
        let keys = self.backend.with_officer(async |officer| {
            Ok(officer.list(Some(&self.label), Instant::now() + DEADLINE).await?)
        })?;
        let newest = keys.first().ok_or_else(|| no_such_key(&self.label))?;
        if let Some(out) = public_key_out {
            show::write_public_key(&out, spki(newest), "the key")?;
        }
        show_keys(&self.label, &keys, json)
    }
}

/// Shows keys of one label.
fn show_keys(label: &str, keys: &[KeyDescription], json: bool) -> Result<(), Failure> {
    if json {
        let keys: Vec<_> = keys.iter().map(key_json).collect();
        return print(&show::json_line(&json!({ "name": label, "keys": keys })));
    }
    let texts: Vec<_> = keys.iter().map(text).collect();
    print(&texts.join("\n"))
}

fn no_such_key(label: &str) -> Failure {
    Failure::new(format!("the backend has no key {label}"))
        .with_reason("KEK_NOT_FOUND")
        .with_fix("`keyward key list` shows its keys; `keyward key create` makes one")
}

impl BackendArgs {
    /// Opens the backend, lets an officer work on it, and closes it.
    fn with_officer<T>(
        &self,
        work: impl AsyncFnOnce(&dyn Officer) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let backends = config::load_backends(&self.config)?;
        let settings = choose_backend(&backends, self.backend.as_deref())?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::new("cannot start a runtime").with_cause(error))?;
        let backend: Arc<dyn Backend> = app::build_backend(settings)?;
        runtime.block_on(async {
            let result = match backend.officer() {
                Some(officer) => work(officer).await,
                None => Err(Failure::new(format!(
                    "backend {} does not let keys be managed from here",
                    backend.name()
                ))),
            };
            backend.close().await;
            result
        })
    }
}

/// The backend of that name, or the only one.
pub(super) fn choose_backend<'a>(
    backends: &'a [BackendConfig],
    name: Option<&str>,
) -> Result<&'a BackendConfig, Failure> {
    let names: Vec<_> = backends.iter().map(BackendConfig::name).collect();
    match (name, backends) {
        (None, [only]) => Ok(only),
        (None, _) => Err(Failure::usage(
            "the configuration has more than one backend",
            format!("choose one with --backend: {}", names.join(", ")),
        )),
        (Some(name), _) => {
            backends.iter().find(|backend| backend.name() == name).ok_or_else(|| {
                Failure::new(format!("the configuration has no backend {name}"))
                    .with_fix(format!("choose one of: {}", names.join(", ")))
            })
        }
    }
}

fn check_label(label: &str) -> Result<(), Failure> {
    match KeyRef::parse(label) {
        Some(KeyRef { pinned: None, .. }) => Ok(()),
        _ => Err(Failure::usage(
            "that is no label for a key",
            format!("choose 1 to {} bytes without / and control characters", KeyRef::LABEL_MAX),
        )),
    }
}

/// Whether a version may unwrap, in words.
fn state(key: &KeyDescription) -> String {
    match (key.info.enabled, key.destroy_after) {
        (true, _) => "enabled".to_owned(),
        (false, None) => "disabled".to_owned(),
        (false, after) => format!("destroyed after {}", date(after)),
    }
}

fn date(at: Option<SystemTime>) -> String {
    at.and_then(show::date).unwrap_or_else(|| "-".into())
}

fn spki(key: &KeyDescription) -> &[u8] {
    key.info.public_key.as_ref().map(PublicKey::spki).unwrap_or_default()
}

/// Attributes by their PKCS#11 names.
fn attributes(assurance: &Assurance) -> [(&'static str, bool); 5] {
    let Assurance { sensitive, extractable, always_sensitive, never_extractable, local, .. } =
        *assurance;
    [
        ("SENSITIVE", sensitive),
        ("EXTRACTABLE", extractable),
        ("ALWAYS_SENSITIVE", always_sensitive),
        ("NEVER_EXTRACTABLE", never_extractable),
        ("LOCAL", local),
    ]
}

fn text(key: &KeyDescription) -> String {
    let KeyDescription { kind, info, usage, .. } = key;
    let mut rows = vec![
        row(["name", &info.key.label]),
        row(["type", &format!("{kind} {}", info.bits)]),
        row(["version", info.id.as_str()]),
        row(["fingerprint", &info.fingerprint.to_string()]),
        row(["device", &info.assurance.device]),
        row(["created", &date(info.created)]),
        row(["not before", &date(info.validity.not_before)]),
        row(["not after", &date(info.validity.not_after)]),
        row(["state", &state(key)]),
        row(["usage", &usage.join(" ")]),
    ];
    rows.extend(attributes(&info.assurance).map(|(name, set)| row([name, yes_no(set)])));
    show::table(&rows)
}

fn key_json(key: &KeyDescription) -> Value {
    let KeyDescription { kind, info, usage, destroy_after } = key;
    let attributes: Map<_, _> = attributes(&info.assurance)
        .into_iter()
        .map(|(name, set)| (name.to_owned(), json!(set)))
        .collect();
    let mut object = Map::new();
    object.insert("name".into(), json!(&*info.key.label));
    object.insert("type".into(), json!(kind));
    object.insert("bits".into(), json!(info.bits));
    object.insert("version".into(), json!(info.id.as_str()));
    object.insert("fingerprint".into(), json!(info.fingerprint.to_string()));
    object.insert("device".into(), json!(info.assurance.device));
    object.insert("not_before".into(), json!(info.validity.not_before.and_then(show::date)));
    object.insert("not_after".into(), json!(info.validity.not_after.and_then(show::date)));
    object.insert("created".into(), json!(info.created.and_then(show::date)));
    object.insert("enabled".into(), json!(info.enabled));
    object.insert("destroy_after".into(), json!(destroy_after.and_then(show::date)));
    object.insert("usage".into(), json!(usage));
    object.insert("attributes".into(), Value::Object(attributes));
    if let Some(public_key) = &info.public_key {
        object.insert("public_key".into(), json!(show::pem(public_key.spki())));
    }
    Value::Object(object)
}
