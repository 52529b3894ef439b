//! `keyward config`: write an example, check a file.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{failure::Failure, output::print, show};
use crate::config;

/// `keyward config …`
#[derive(Debug, Subcommand)]
pub(super) enum Config {
    /// Print an annotated example with every setting
    Example,
    Check(Check),
}

/// Tell every mistake in a configuration file
///
/// Looks at the file alone: whether the token is there is not tried.
#[derive(Args, Debug)]
pub(super) struct Check {
    /// The configuration file
    #[arg(value_name = "FILE", env = "KEYWARD_CONFIG")]
    file: PathBuf,
}

impl Config {
    pub(super) fn run(self, json: bool) -> Result<(), Failure> {
        match self {
            Self::Example if json => {
                print(&show::json_line(&json!({ "example": config::example() })))
            }
            Self::Example => print(&config::example()),
            Self::Check(command) => command.run(json),
        }
    }
}

impl Check {
    fn run(self, json: bool) -> Result<(), Failure> {
        let config = config::load(&self.file)?;
        let keks: Vec<_> = config.keks.iter().map(|kek| kek.name.as_str()).collect();
        let backends: Vec<_> = config.backends.iter().map(config::BackendConfig::name).collect();
        if json {
            return print(&show::json_line(&json!({
                "file": self.file.display().to_string(),
                "backends": backends,
                "keks": keks,
            })));
        }
        print(&format!(
            "{}: no mistakes; backends: {}; KEKs: {}\n",
            self.file.display(),
            backends.join(", "),
            keks.join(", ")
        ))
    }
}
