//! `keyward generate`: a fresh DEK, and its wrapped form to keep.

use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

use super::{
    failure::Failure,
    input,
    output::{Output, What},
    show,
    sidecar::SidecarArgs,
};
use crate::op::{DEK_MAX_BYTES, DEK_MIN_BYTES};

/// Make a DEK and wrap it under a KEK
///
/// Writes the wrapped form to --wrapped-out, then the DEK to standard output; with
/// --no-plaintext only the wrapped form, to --wrapped-out or standard output.
#[derive(Args, Debug)]
pub(super) struct Generate {
    #[command(flatten)]
    sidecar: SidecarArgs,

    /// The KEK
    #[arg(long, value_name = "NAME")]
    kek: String,

    /// Length of the DEK in bytes, 16 to 64
    #[arg(long, value_name = "BYTES", default_value = "32", value_parser = parse_length)]
    length: usize,

    /// Bind the DEK to the bytes of this file: unwrap must be given them again
    #[arg(long, value_name = "FILE")]
    context_file: Option<PathBuf>,

    /// Where the wrapped form goes
    #[arg(long, value_name = "FILE")]
    wrapped_out: Option<PathBuf>,

    /// Do not let the DEK leave the sidecar: only its wrapped form
    #[arg(long, conflicts_with = "out")]
    no_plaintext: bool,

    /// Write the DEK to this file rather than to standard output
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
}

fn parse_length(text: &str) -> Result<usize, String> {
    let within = |length: &usize| (DEK_MIN_BYTES..=DEK_MAX_BYTES).contains(length);
    text.parse()
        .ok()
        .filter(within)
        .ok_or_else(|| format!("a DEK has {DEK_MIN_BYTES} to {DEK_MAX_BYTES} bytes"))
}

impl Generate {
    pub(super) fn run(self, json: bool) -> Result<(), Failure> {
        if self.no_plaintext { self.wrapped_only(json) } else { self.both(json) }
    }

    fn both(&self, json: bool) -> Result<(), Failure> {
        let wrapped_out = self.wrapped_output()?;
        if wrapped_out.is_none() && !json {
            return Err(Failure::usage(
                "without its wrapped form the DEK is lost",
                "name a file for it with --wrapped-out, or use --json or --no-plaintext",
            ));
        }
        let output = Output::choose(self.out.as_deref(), What::Dek)?;
        let context = input::read_context(self.context_file.as_deref())?;
        let sidecar = self.sidecar.connect()?;
        let (dek, wrapped) = sidecar.generate(&self.kek, self.length, &context)?;
        // First what makes the DEK recoverable, then the DEK: nobody encrypts with a
        // key whose wrapped form was not kept.
        if let Some(wrapped_out) = wrapped_out {
            wrapped_out.write(&wrapped.to_bytes())?;
        }
        match json {
            true => output.write(show::dek_json(&dek, show::wrapped_json(&wrapped)).expose()),
            false => output.write(dek.expose()),
        }
    }

    fn wrapped_only(&self, json: bool) -> Result<(), Failure> {
        let wrapped_out = self.wrapped_output()?;
        let stdout = match (json, &wrapped_out) {
            (true, _) => Some(Output::choose(None, What::Text)?),
            (false, None) => Some(Output::choose(None, What::Bytes("a wrapped DEK"))?),
            (false, Some(_)) => None,
        };
        let context = input::read_context(self.context_file.as_deref())?;
        let sidecar = self.sidecar.connect()?;
        let wrapped = sidecar.generate_wrapped(&self.kek, self.length, &context)?;
        if let Some(wrapped_out) = wrapped_out {
            wrapped_out.write(&wrapped.to_bytes())?;
        }
        match stdout {
            Some(stdout) if json => {
                let object = Value::Object(show::wrapped_json(&wrapped));
                stdout.write(show::json_line(&object).as_bytes())
            }
            Some(stdout) => stdout.write(&wrapped.to_bytes()),
            None => Ok(()),
        }
    }

    fn wrapped_output(&self) -> Result<Option<Output>, Failure> {
        let out = self.wrapped_out.as_deref();
        out.map(|out| Output::choose(Some(out), What::Bytes("a wrapped DEK"))).transpose()
    }
}
