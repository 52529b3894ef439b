//! `keyward serve`: run the sidecar.

use std::path::PathBuf;

use clap::Args;

use super::failure::Failure;
use crate::{app, config};

/// Run the sidecar
///
/// Runs in the foreground until SIGTERM or SIGINT, then lets calls in work finish.
#[derive(Args, Debug)]
pub(super) struct Serve {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "KEYWARD_CONFIG")]
    config: PathBuf,
}

impl Serve {
    pub(super) fn run(self) -> Result<(), Failure> {
        Ok(app::serve(config::load(&self.config)?)?)
    }
}
