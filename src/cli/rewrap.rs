//! `keyward rewrap`: a wrapped DEK in, the same under the current version out.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::{
    failure::Failure,
    input,
    output::{self, Output, What},
    show,
    sidecar::{self, SidecarArgs},
    unwrap::read_wrapped,
};

/// Wrap a DEK anew under the current version of its KEK
///
/// Reads and writes a serialized WrappedDek. The DEK does not leave the sidecar. If it
/// is under the current version already, it comes out as it went in, unverified.
#[derive(Args, Debug)]
pub(super) struct Rewrap {
    #[command(flatten)]
    sidecar: SidecarArgs,

    /// The file with the context that the DEK was bound to
    #[arg(long, value_name = "FILE")]
    context_file: Option<PathBuf>,

    /// Write to this file rather than to standard output
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,

    /// The file with the wrapped DEK; - or nothing for standard input
    #[arg(value_name = "WRAPPED")]
    input: Option<PathBuf>,
}

impl Rewrap {
    pub(super) fn run(self, json: bool) -> Result<(), Failure> {
        let what = if json { What::Text } else { What::Bytes("a wrapped DEK") };
        let output = Output::choose(self.out.as_deref(), what)?;
        let context = input::read_context(self.context_file.as_deref())?;
        let wrapped = read_wrapped(self.input.as_deref())?;
        let sidecar = self.sidecar.connect()?;
        let sidecar::Rewrapped { wrapped, changed } = sidecar.rewrap(&wrapped, &context)?;
        if json {
            let mut object = show::wrapped_json(&wrapped);
            object.insert("changed".into(), json!(changed));
            return output.write(show::json_line(&Value::Object(object)).as_bytes());
        }
        output.write(&wrapped.to_bytes())?;
        if !changed {
            output::tell("already under the current version");
        }
        Ok(())
    }
}
