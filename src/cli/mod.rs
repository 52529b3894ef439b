//! The command line: one file per command, one way to fail, one way to read and one
//! to write.
//!
//! | file | what it knows |
//! |---|---|
//! | `failure` | error, cause, fix; exit codes; the same as JSON |
//! | `input`, `output` | bounded reads; DEKs and terminals; files whole or not at all |
//! | `show` | tables, dates, PEM, JSON of what is shown in several commands |
//! | `sidecar` | the client library, which no other file here names |
//! | `bench` | the arguments and the words of the load generator |
//!
//! Invariants: a secret is never on the command line, and never on a terminal; a DEK
//! is in a [`crate::secret::Secret`] from the first byte read to the last written;
//! standard output carries what was asked for and nothing else.

mod bench;
mod census;
mod check;
mod completions;
mod config;
mod echo;
mod failure;
mod generate;
mod input;
mod kek;
mod key;
mod man;
mod output;
mod rewrap;
mod serve;
mod show;
mod sidecar;
mod tls;
mod unwrap;
mod watch;
mod wrap;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use failure::Failure;

/// HSM-backed key-wrapping sidecar: wraps and unwraps data encryption keys (DEKs)
/// under key-encryption keys (KEKs) that never leave an HSM.
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage. Errors go to standard error as lines
/// `error:`, `cause:` and `fix:`; with --json as one JSON object.
#[derive(Debug, Parser)]
#[command(name = "keyward", version, subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    /// Print JSON, and errors as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
    Check(check::Check),
    Wrap(wrap::Wrap),
    Unwrap(unwrap::Unwrap),
    Generate(generate::Generate),
    Rewrap(rewrap::Rewrap),
    /// KEKs, as a running sidecar knows them
    #[command(subcommand)]
    Kek(kek::Kek),
    /// Keys on the backend itself, for security officers
    #[command(subcommand)]
    Key(key::Key),
    Bench(bench::Bench),
    #[command(hide = true)]
    Echo(echo::Echo),
    /// The configuration file
    #[command(subcommand)]
    Config(config::Config),
    /// Certificates
    #[command(subcommand)]
    Tls(tls::Tls),
    Completions(completions::Completions),
    Man(man::Man),
}

impl Command {
    fn run(self, json: bool) -> Result<(), Failure> {
        match self {
            Self::Serve(command) => command.run(),
            Self::Check(command) => command.run(json),
            Self::Wrap(command) => command.run(json),
            Self::Unwrap(command) => command.run(json),
            Self::Generate(command) => command.run(json),
            Self::Rewrap(command) => command.run(json),
            Self::Kek(command) => command.run(json),
            Self::Key(command) => command.run(json),
            Self::Bench(command) => command.run(json),
            Self::Echo(_) => echo::Echo::run(),
            Self::Config(command) => command.run(json),
            Self::Tls(command) => command.run(json),
            Self::Completions(command) => command.run(),
            Self::Man(command) => command.run(json),
        }
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    match cli.command.run(cli.json) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(cli.json),
    }
}

/// Prints what clap has to say: help, the version, or what is wrong with the command
/// line.
fn refuse(error: &clap::Error) -> ExitCode {
    // The command line was not understood, so its --json was not either.
    let json = std::env::args_os().any(|arg| arg == "--json");
    if error.use_stderr() && json {
        return Failure::of_usage(error).report(json);
    }
    // A reader that went away needs no help.
    let _reader_gone = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(failure::USAGE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_and_argument_is_documented() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{} {}",
                    command.get_name(),
                    argument.get_id()
                );
            }
            command.get_subcommands().for_each(check);
        }
        let mut command = Cli::command();
        command.build();
        command.get_subcommands().filter(|command| command.get_name() != "help").for_each(check);
    }

    #[test]
    fn the_forms_that_scripts_rely_on_are_understood() {
        for line in [
            "serve --config f",
            "key create --config f --backend hsm --type rsa --size 3072 orders",
            "key create --config f --backend hsm --type aes --size 256 orders",
            "key list --config f",
            "key show --config f orders --json",
            "wrap --socket p --kek n",
            "wrap --socket p --kek n --context-file c -",
            "wrap --address https://h:1 --tls-ca a --tls-certificate b --tls-key c --kek n dek",
            "unwrap --socket p --context-file c",
            "unwrap --socket p --raw --kek n --version 0a --algorithm RSA-OAEP in --out o",
            "generate --socket p --kek n --length 32 --wrapped-out f",
            "generate --socket p --kek n --length 32 --no-plaintext",
            "rewrap --socket p",
            "kek show --socket p --json n",
            "kek list",
            "kek purge --socket p",
            "kek purge --socket p --json n",
            "bench hot --socket p --kek n --callers 64 --seconds 10 --json",
            "bench cold --socket p --kek n --callers 64 --seconds 10 --json",
            "bench mixed --socket p --kek n --callers 64 --seconds 10 --json --skew 1.2 --deks 100",
            "bench boot --socket p --kek n --callers 64 --seconds 10 --json",
            "bench hot --config f --backend b --key k",
            "config example",
            "config check f",
            "tls dev d",
            "completions bash",
            "man",
            "--json man d",
        ] {
            let words = std::iter::once("keyward").chain(line.split(' '));
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn no_argument_takes_a_secret() {
        for line in ["wrap --kek n --dek x", "key list --config f --pin 1", "serve --pin 1"] {
            let words = std::iter::once("keyward").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }
}
