//! Sets up logging to standard error: text for people, JSON lines for machines.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt};

/// Azure's SDK writes a line for every request that fails, and for every token. What comes
/// of them is told by who asked. A filter that names these targets goes before this.
const QUIET: &str = "azure_core=warn,azure_identity=warn,typespec_client_core=warn";

/// How lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Text.
    Text,
    /// One JSON object a line.
    Json,
}

/// Whether `filter` is one; `Err` gives the reason why it is not.
pub fn check_filter(filter: &str) -> Result<(), String> {
    EnvFilter::try_new(filter).map(drop).map_err(|error| error.to_string())
}

/// Starts logging. `filter` is a tracing filter such as `info` or
/// `info,keyward::backend=debug`. `Err` gives the reason why it is not one.
/// Starting twice in one process leaves the first in place.
pub fn start(format: Format, filter: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(with_quiet(filter)).map_err(|error| error.to_string())?;
    let builder = fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Otherwise a line that cannot be written (a full disk, a reader that is gone) is
        // reported with `eprintln!`, which panics for the same reason in whatever it is
        // that wanted to log: the accept loop, the prover, a call.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    let _already_started = match format {
        Format::Text => builder.try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}

/// Of two directives for one target the later holds.
fn with_quiet(filter: &str) -> String {
    format!("{QUIET},{filter}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn azures_sdk_is_quiet_unless_the_operator_asks() {
        let filter = |text: &str| EnvFilter::try_new(with_quiet(text)).unwrap().to_string();
        for quiet in ["", "info", "debug,keyward=trace"] {
            assert!(filter(quiet).contains("azure_core=warn"), "{quiet}");
        }
        let asked = filter("info,azure_core=debug");
        assert!(
            asked.contains("azure_core=debug") && !asked.contains("azure_core=warn"),
            "{asked}"
        );
        assert!(asked.contains("azure_identity=warn"), "{asked}");
    }
}
