//! `keyward wrap`: a DEK in, its wrapped form out.

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
use crate::op::DEK_MAX_BYTES;

/// Wrap a DEK under a KEK
///
/// Reads the DEK, 16 to 64 bytes, and writes a serialized WrappedDek, which unwrap
/// takes.
#[derive(Args, Debug)]
pub(super) struct Wrap {
    #[command(flatten)]
    sidecar: SidecarArgs,

    /// The KEK
    #[arg(long, value_name = "NAME")]
    kek: String,

    /// Bind the DEK to the bytes of this file: unwrap must be given them again
    #[arg(long, value_name = "FILE")]
    context_file: Option<PathBuf>,

    /// Write only the ciphertext, for other tools: raw RSA-OAEP or AES key wrap output
    #[arg(long)]
    raw: bool,

    /// Write to this file rather than to standard output
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,

    /// The file with the DEK; - or nothing for standard input
    #[arg(value_name = "DEK")]
    input: Option<PathBuf>,
}

impl Wrap {
    pub(super) fn run(self, json: bool) -> Result<(), Failure> {
        if self.raw && json {
            return Err(Failure::usage(
                "--raw and --json exclude each other",
                "drop --raw: the JSON has the ciphertext too",
            ));
        }
        let what = if json { What::Text } else { What::Bytes("a wrapped DEK") };
        let output = Output::choose(self.out.as_deref(), what)?;
        let context = input::read_context(self.context_file.as_deref())?;
        let dek = input::read(self.input.as_deref(), DEK_MAX_BYTES, "a DEK")?;
        let wrapped = self.sidecar.connect()?.wrap(&self.kek, &dek, &context)?;
        if json {
            let object = Value::Object(show::wrapped_json(&wrapped));
            return output.write(show::json_line(&object).as_bytes());
        }
        match self.raw {
            true => output.write(&wrapped.ciphertext),
            false => output.write(&wrapped.to_bytes()),
        }
    }
}
