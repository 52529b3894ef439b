//! A small, real encrypted page store, whose keys Keyward keeps: what a storage node does with
//! the client library, from its first segment to a crash.
//!
//! ```text
//! storage-node          --socket PATH --kek NAME --keyward BIN --config FILE     its whole life, told
//! storage-node --bench  (the same) [--segments N]                                pages per second
//! storage-node work     --socket PATH --kek NAME --dir DIR                       write until stopped
//!              [--silence SECONDS] [--heap]
//! ```
//!
//! `run.sh` beside this file makes an HSM and a sidecar for the first two. Exit code: 0 done, 1
//! failed, 2 usage.

mod bench;
mod life;
mod node;
mod options;
mod pages;
mod store;
mod work;

use std::process::ExitCode;

use options::{Command, Options};

/// What ends a command.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(wrong) => {
            eprintln!("error: {wrong}\nfix: see the head of examples/storage-node/main.rs");
            return ExitCode::from(2);
        }
    };
    let done = match options.command {
        Command::Life => life::tell(&options),
        Command::Bench => bench::run(&options),
        Command::Work => work::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
