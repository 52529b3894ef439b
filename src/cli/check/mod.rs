//! `keyward check`: whether a sidecar with this configuration would serve, before it is
//! started; one page, with a fix for everything that is not as it should be.
//!
//! | file | what it looks at |
//! |---|---|
//! | `report` | nothing: what was found, and how it is shown |
//! | `host` | open files, core dumps, directories, locked memory, the clock |
//! | `keys` | backends, KEKs by the requirements, rights |
//! | `callers` | the policy, TLS |
//!
//! It changes nothing, and needs no sidecar. Invariants: everything has its line, also what
//! could not be looked at; nothing takes for ever; what hangs is a line that failed.

mod callers;
mod host;
mod keys;
mod report;

use std::path::PathBuf;

use clap::Args;

use self::report::{Group, Report};
use super::{failure::Failure, output::print, show};
use crate::config::{self, Config, Mistakes};

/// Check everything that a sidecar needs, and say how to mend what is amiss
///
/// Looks at the host, the backends, each KEK and the rights to it, the policy, TLS and the
/// clock. Exit code 0 if nothing failed, 1 otherwise; warnings do not count.
#[derive(Args, Debug)]
pub(super) struct Check {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "KEYWARD_CONFIG")]
    config: PathBuf,
}

impl Check {
    pub(super) fn run(self, json: bool) -> Result<(), Failure> {
        let mut report = Report::default();
        match config::load(&self.config) {
            Ok(config) => {
                report.pass(
                    Group::Config,
                    "file",
                    format!("{} has no mistakes", self.config.display()),
                );
                look_at(&config, &mut report)?;
            }
            Err(mistakes) => misread(&mistakes, &mut report),
        }
        print(&match json {
            true => show::json_line(&report.to_json()),
            false => report.to_text(),
        })?;
        match report.failed() {
            0 => Ok(()),
            n => Err(Failure::new(format!("{n} of the checks failed"))
                .with_fix("each says above how to mend it")),
        }
    }
}

fn look_at(config: &Config, report: &mut Report) -> Result<(), Failure> {
    host::look(config, report);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| Failure::new("cannot start a runtime").with_cause(error))?;
    runtime.block_on(keys::look(config, report));
    // A thread that hangs in a module must not keep the process from ending.
    runtime.shutdown_background();
    callers::look(config, report);
    Ok(())
}

/// A configuration with mistakes leaves nothing else to look at.
fn misread(mistakes: &Mistakes, report: &mut Report) {
    for mistake in mistakes.iter() {
        report.fail(Group::Config, "file", mistake.to_string(), &mistake.fix);
    }
    for group in Group::ALL.into_iter().filter(|group| *group != Group::Config) {
        report.skip(group, "everything", "the configuration has mistakes");
    }
}
