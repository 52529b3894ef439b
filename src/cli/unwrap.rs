//! `keyward unwrap`: a wrapped DEK in, the DEK out.

use std::path::{Path, PathBuf};

use clap::{Args, builder::PossibleValuesParser, builder::TypedValueParser};
use serde_json::Map;

use super::{
    failure::Failure,
    input,
    output::{Output, What},
    show,
    sidecar::{Sidecar, SidecarArgs, WrappedDek, algorithm_number},
};
use crate::{kek::Algorithm, op::CIPHERTEXT_MAX_BYTES};

/// Longest serialized WrappedDek that is worth reading: the ciphertext and names.
const WRAPPED_MAX_BYTES: usize = 4096;

/// Unwrap a DEK
///
/// Reads a serialized WrappedDek, as wrap and generate write it, and writes the DEK. A
/// terminal is refused.
#[derive(Args, Debug)]
pub(super) struct Unwrap {
    #[command(flatten)]
    sidecar: SidecarArgs,

    /// The file with the context that the DEK was bound to
    #[arg(long, value_name = "FILE")]
    context_file: Option<PathBuf>,

    /// Read a bare ciphertext that another tool made with the same key
    #[arg(long, requires = "kek")]
    raw: bool,

    /// With --raw: the KEK
    #[arg(long, value_name = "NAME", requires = "raw")]
    kek: Option<String>,

    /// With --raw: the version of the KEK [default: the current one]
    #[arg(long = "version", value_name = "VERSION", requires = "raw")]
    kek_version: Option<String>,

    /// With --raw: how the DEK was wrapped [default: the KEK's algorithm]
    #[arg(long, value_name = "NAME", requires = "raw", value_parser = algorithms())]
    algorithm: Option<Algorithm>,

    /// Write to this file rather than to standard output
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,

    /// The file with the wrapped DEK; - or nothing for standard input
    #[arg(value_name = "WRAPPED")]
    input: Option<PathBuf>,
}

pub(super) fn algorithms() -> impl TypedValueParser<Value = Algorithm> {
    PossibleValuesParser::new(Algorithm::ALL.map(Algorithm::name)).map(|name| {
        Algorithm::from_name(&name).expect("only names of algorithms are possible values")
    })
}

impl Unwrap {
    pub(super) fn run(self, json: bool) -> Result<(), Failure> {
        let output = Output::choose(self.out.as_deref(), What::Dek)?;
        let context = input::read_context(self.context_file.as_deref())?;
        let (wrapped, sidecar) = match &self.kek {
            Some(kek) if self.raw => {
                let what = "a wrapped DEK's ciphertext";
                let ciphertext = input::read(self.input.as_deref(), CIPHERTEXT_MAX_BYTES, what)?;
                let sidecar = self.sidecar.connect()?;
                (self.raw_dek(&sidecar, kek, ciphertext.expose())?, sidecar)
            }
            _ => (read_wrapped(self.input.as_deref())?, self.sidecar.connect()?),
        };
        let dek = sidecar.unwrap(&wrapped, &context)?;
        match json {
            true => output.write(show::dek_json(&dek, Map::new()).expose()),
            false => output.write(dek.expose()),
        }
    }

    /// What stands around a bare ciphertext, asked of the sidecar where it was not said.
    fn raw_dek(
        &self,
        sidecar: &Sidecar,
        name: &str,
        ciphertext: &[u8],
    ) -> Result<WrappedDek, Failure> {
        let (version, algorithm) = match (&self.kek_version, self.algorithm) {
            (Some(version), Some(algorithm)) => (version.clone(), algorithm_number(algorithm)),
            (version, algorithm) => {
                let kek = sidecar.kek(name)?;
                (
                    version.clone().unwrap_or(kek.current_version),
                    algorithm.map_or(kek.algorithm, algorithm_number),
                )
            }
        };
        if version.is_empty() {
            return Err(Failure::new(format!("KEK {name} has no current version"))
                .with_fix("say which with --version; `keyward kek show` lists them"));
        }
        Ok(WrappedDek {
            kek: name.to_owned(),
            version,
            algorithm,
            ciphertext: ciphertext.to_vec(),
            kek_fingerprint: Vec::new(),
        })
    }
}

/// Reads a serialized WrappedDek.
pub(super) fn read_wrapped(input: Option<&Path>) -> Result<WrappedDek, Failure> {
    let bytes = input::read(input, WRAPPED_MAX_BYTES, "a wrapped DEK")?;
    let wrapped = WrappedDek::from_bytes(bytes.expose());
    wrapped.filter(|wrapped| !wrapped.kek.is_empty()).ok_or_else(|| {
        Failure::new("the input is not a serialized WrappedDek").with_fix(
            "give what wrap or generate wrote; a bare ciphertext needs unwrap --raw --kek",
        )
    })
}
