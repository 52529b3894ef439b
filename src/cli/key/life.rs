//! `keyward key rotate`, `enable`, `disable`, `destroy`, `recover`: what becomes of a key.
//!
//! Invariants: nothing is destroyed that its officer has not named twice; what a backend
//! cannot do is said by name, with what to do instead.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    time::{Duration, Instant, SystemTime},
};

use clap::Args;
use serde_json::{Value, json};

use super::{BackendArgs, DEADLINE, key_json, no_such_key, show_keys, text};
use crate::{
    backend::{ByVersion, Deleted, KeyDescription, Officer, Remover, Whole},
    cli::{
        failure::Failure,
        output::{print, tell},
        show::{self, row},
    },
    config::duration,
    kek::KeyRef,
};

/// How long a version stays that is to be destroyed, unless an officer says otherwise.
const GRACE: &str = "168h";

/// Make another version of a key: of the same kind and size, and current from now on
///
/// Older versions stay and unwrap what they wrapped. In a vault this is the vault's own
/// rotation, by the key's rotation policy.
#[derive(Args, Debug)]
pub(in crate::cli) struct Rotate {
    #[command(flatten)]
    backend: BackendArgs,

    /// Label of the key
    #[arg(value_name = "NAME", value_parser = parse_label)]
    label: String,
}

/// Let a version of a key unwrap again
///
/// On a token this also calls off what `key destroy` has planned.
#[derive(Args, Debug)]
pub(in crate::cli) struct Enable {
    #[command(flatten)]
    change: Change,
}

/// Do not let a version of a key unwrap
///
/// Where that is the newest, sidecars take it as the revocation of the whole KEK. On a token
/// it means that neither CKA_DECRYPT nor CKA_UNWRAP is set, which every tool can read.
#[derive(Args, Debug)]
pub(in crate::cli) struct Disable {
    #[command(flatten)]
    change: Change,
}

#[derive(Args, Debug)]
struct Change {
    #[command(flatten)]
    backend: BackendArgs,

    /// Label of the key, or label/version; without a version, the newest
    #[arg(value_name = "NAME[/VERSION]", value_parser = parse_ref)]
    key: KeyRef,
}

/// Destroy a version of a key on a token, or a whole key in a vault
///
/// On a token it takes two calls: the first disables the version and notes beside it when its
/// grace ends, the second, after that, destroys it for good; `key enable` calls it off. In a
/// vault the key is deleted with all its versions, and `key recover` brings it back until the
/// vault purges it.
#[derive(Args, Debug)]
pub(in crate::cli) struct Destroy {
    #[command(flatten)]
    backend: BackendArgs,

    /// How long the version of a token's key stays before it can be destroyed for good
    #[arg(long, value_name = "DURATION", default_value = GRACE, value_parser = parse_grace)]
    grace: Duration,

    /// The same name once more, instead of being asked for it
    #[arg(long, value_name = "NAME[/VERSION]")]
    confirm: Option<String>,

    /// Label of the key; on a token label/version, unless there is but one
    #[arg(value_name = "NAME[/VERSION]", value_parser = parse_ref)]
    key: KeyRef,
}

/// Bring a key back that was deleted in a vault
#[derive(Args, Debug)]
pub(in crate::cli) struct Recover {
    #[command(flatten)]
    backend: BackendArgs,

    /// Name of the key
    #[arg(value_name = "NAME", value_parser = parse_label)]
    label: String,
}

impl Rotate {
    pub(super) fn run(self, json: bool) -> Result<(), Failure> {
        let key = self.backend.with_officer(async |officer| {
            tell(&format!("making another version of {} …", self.label));
            Ok(officer.rotate(&self.label, soon()).await?)
        })?;
        match json {
            true => print(&show::json_line(&key_json(&key))),
            false => print(&text(&key)),
        }
    }
}

impl Enable {
    pub(super) fn run(self, json: bool) -> Result<(), Failure> {
        self.change.make(true, json)
    }
}

impl Disable {
    pub(super) fn run(self, json: bool) -> Result<(), Failure> {
        self.change.make(false, json)
    }
}

impl Change {
    fn make(self, enabled: bool, json: bool) -> Result<(), Failure> {
        let keys = self.backend.with_officer(async |officer| {
            let version = match self.key.pinned {
                Some(_) => self.key.clone(),
                None => pinned(&versions(officer, &self.key.label).await?[0]),
            };
            tell(&format!("{version} …"));
            officer.set_enabled(&version, enabled, soon()).await?;
            let mut keys = officer.list(Some(&self.key.label), soon()).await?;
            keys.retain(|key| Some(&key.info.id) == version.pinned.as_ref());
            Ok(keys)
        })?;
        show_keys(&self.key.label, &keys, json)
    }
}

impl Destroy {
    pub(super) fn run(self, json: bool) -> Result<(), Failure> {
        let done = self.backend.with_officer(async |officer| match officer.remover() {
            Remover::ByVersion(remover) => self.version(officer, remover).await,
            Remover::Whole(remover) => self.whole(remover).await,
        })?;
        done.print(json)
    }

    async fn version(
        &self,
        officer: &dyn Officer,
        remover: &dyn ByVersion,
    ) -> Result<Done, Failure> {
        let there = officer.list(Some(&self.key.label), soon()).await?;
        let version = match (&self.key.pinned, &*there) {
            (Some(_), _) => self.key.clone(),
            (None, [only]) => pinned(only),
            (None, []) => return Err(no_such_key(&self.key.label)),
            (None, _) => {
                let names: Vec<_> = there.iter().map(|key| pinned(key).to_string()).collect();
                return Err(Failure::usage(
                    format!("the key {} has more than one version", self.key.label),
                    format!("name one: {}", names.join(", ")),
                ));
            }
        };
        let is_it = |key: &&KeyDescription| Some(&key.info.id) == version.pinned.as_ref();
        let planned = there.iter().find(is_it).map(|key| key.destroy_after);
        match planned {
            Some(None) => {
                self.check_confirmed(&version.to_string(), "disables it, for a grace")?;
                let after = SystemTime::now() + self.grace;
                remover.schedule(&version, after, soon()).await?;
                Ok(Done::Scheduled { key: version, after })
            }
            Some(Some(after)) if SystemTime::now() < after => {
                let after = show::date(after).unwrap_or_default();
                Err(Failure::new(format!("{version} is not to be destroyed before {after}"))
                    .with_cause("its grace is not over")
                    .with_fix(format!("wait until then, or `keyward key enable {version}`")))
            }
            // Also what an earlier call left behind of one that is not listed any more.
            Some(Some(_)) | None => {
                self.check_confirmed(&version.to_string(), "destroys it for good")?;
                remover.destroy(&version, SystemTime::now(), soon()).await?;
                Ok(Done::Destroyed { key: version })
            }
        }
    }

    async fn whole(&self, remover: &dyn Whole) -> Result<Done, Failure> {
        let label = &self.key.label;
        if self.key.pinned.is_some() {
            return Err(Failure::new("a vault does not destroy a single version of a key")
                .with_fix(format!(
                    "`keyward key disable {}`; or destroy the key {label}",
                    self.key
                )));
        }
        self.check_confirmed(
            label,
            "deletes all its versions, until they are recovered or purged",
        )?;
        let deleted = remover.delete(label, soon()).await?;
        Ok(Done::Deleted { label: label.to_string(), deleted })
    }

    /// Makes sure that the officer means `name`.
    fn check_confirmed(&self, name: &str, what: &str) -> Result<(), Failure> {
        let fix = format!("to go on, add --confirm {name}");
        let given = match &self.confirm {
            Some(given) => given.clone(),
            None if io::stdin().is_terminal() => ask(name, what)?,
            None => {
                return Err(Failure::usage(
                    format!("destroying {name} was not confirmed: it {what}"),
                    fix,
                ));
            }
        };
        match given == name {
            true => Ok(()),
            false => Err(Failure::usage(format!("what was confirmed is not {name}"), fix)),
        }
    }
}

impl Recover {
    pub(super) fn run(self, json: bool) -> Result<(), Failure> {
        let keys = self.backend.with_officer(async |officer| match officer.remover() {
            Remover::Whole(remover) => Ok(remover.recover(&self.label, soon()).await?),
            Remover::ByVersion(_) => {
                Err(Failure::new("a token does not bring back what it destroyed")
                    .with_fix("as long as the grace lasts, `keyward key enable` calls it off"))
            }
        })?;
        show_keys(&self.label, &keys, json)
    }
}

/// What became of a key that was to be destroyed.
enum Done {
    Scheduled { key: KeyRef, after: SystemTime },
    Destroyed { key: KeyRef },
    Deleted { label: String, deleted: Deleted },
}

impl Done {
    fn print(&self, json: bool) -> Result<(), Failure> {
        if json {
            return print(&show::json_line(&self.to_json()));
        }
        let date = |at: &SystemTime| show::date(*at).unwrap_or_default();
        print(&match self {
            Self::Scheduled { key, after } => format!(
                "{}the same command destroys it from then on; `keyward key enable {key}` calls it off\n",
                show::table(&[
                    row(["disabled", &key.to_string()]),
                    row(["destroyed after", &date(after)])
                ]),
            ),
            Self::Destroyed { key } => format!("destroyed {key}\n"),
            Self::Deleted { label, deleted: Deleted { purged_at, protected } } => {
                let purged_at = purged_at.as_ref().map_or("-".to_owned(), date);
                let protected = protected.map_or("-", show::yes_no);
                let rows = [
                    row(["deleted", label]),
                    row(["purged by the vault at", &purged_at]),
                    row(["protected from being purged before", protected]),
                ];
                format!("{}`keyward key recover {label}` brings it back\n", show::table(&rows))
            }
        })
    }

    fn to_json(&self) -> Value {
        match self {
            Self::Scheduled { key, after } => {
                json!({ "disabled": key.to_string(), "destroy_after": show::date(*after) })
            }
            Self::Destroyed { key } => json!({ "destroyed": key.to_string() }),
            Self::Deleted { label, deleted: Deleted { purged_at, protected } } => json!({
                "deleted": label,
                "purged_at": purged_at.and_then(show::date),
                "purge_protected": protected,
            }),
        }
    }
}

/// The versions of a key, newest first; at least one.
async fn versions(officer: &dyn Officer, label: &str) -> Result<Vec<KeyDescription>, Failure> {
    let keys = officer.list(Some(label), soon()).await?;
    match keys.is_empty() {
        true => Err(no_such_key(label)),
        false => Ok(keys),
    }
}

fn pinned(key: &KeyDescription) -> KeyRef {
    KeyRef { label: key.info.key.label.clone(), pinned: Some(key.info.id.clone()) }
}

fn soon() -> Instant {
    Instant::now() + DEADLINE
}

fn ask(name: &str, what: &str) -> Result<String, Failure> {
    let asked = || -> io::Result<String> {
        write!(io::stderr(), "This {what}. Type {name} to go on: ")?;
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line)?;
        Ok(line.trim().to_owned())
    };
    asked().map_err(|error| Failure::new("cannot ask for a confirmation").with_cause(error))
}

fn parse_ref(text: &str) -> Result<KeyRef, String> {
    KeyRef::parse(text).ok_or_else(|| "write the key's label, or label/version".to_owned())
}

fn parse_label(text: &str) -> Result<String, String> {
    match KeyRef::parse(text) {
        Some(KeyRef { pinned: None, .. }) => Ok(text.to_owned()),
        _ => Err("write the key's label, without a version".to_owned()),
    }
}

fn parse_grace(text: &str) -> Result<Duration, String> {
    let longest = Duration::from_secs(10 * 366 * 24 * 3600);
    duration::parse(text)
        .filter(|grace| *grace <= longest)
        .ok_or_else(|| "write a whole number and s, m or h, such as 168h".to_owned())
}
