//! `keyward man`: the manual pages.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::{Args, CommandFactory};
use clap_mangen::Man as Page;
use serde_json::json;

use super::{Cli, failure::Failure, output::print, show};

/// Print the manual page, or write those of every command
#[derive(Args, Debug)]
pub(super) struct Man {
    /// Write the pages of every command into this directory
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Man {
    pub(super) fn run(self, json: bool) -> Result<(), Failure> {
        let Some(dir) = &self.dir else {
            let mut page = Vec::new();
            Page::new(Cli::command())
                .render(&mut page)
                .map_err(|error| Failure::new("cannot write the page").with_cause(error))?;
            return print(&String::from_utf8_lossy(&page));
        };
        write_pages(dir).map_err(|error| Failure::file("write pages to", dir, &error))?;
        match json {
            true => print(&show::json_line(&json!({ "dir": dir.display().to_string() }))),
            false => Ok(()),
        }
    }
}

fn write_pages(dir: &Path) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    clap_mangen::generate_to(Cli::command(), dir)
}
