//! `keyward echo`: the server that `keyward bench` measures its floor against. Not for
//! people; bench starts it.

use clap::Args;

use super::failure::Failure;
use crate::load;

/// Answer every Unwrap at once, for bench
///
/// Serves on the listening socket that is standard input, and ends with its parent.
#[derive(Args, Debug)]
pub(super) struct Echo {}

impl Echo {
    pub(super) fn run() -> Result<(), Failure> {
        load::serve_echo().map_err(|error| {
            Failure::new("cannot answer on standard input")
                .with_cause(error.to_string())
                .with_fix("run keyward bench, which starts this by itself")
        })
    }
}
