//! The command line.

use std::{path::PathBuf, time::Duration};

use keyward::client::{Client, Endpoint, Locker, blocking};

use crate::{Failure, node::Settings};

/// Segments that a node has room for: a slot of locked memory each, 1 MiB.
const SEGMENTS_MAX: usize = 16 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Life,
    Bench,
    Work,
}

#[derive(Debug)]
pub struct Options {
    pub command: Command,
    pub socket: PathBuf,
    pub kek: String,
    /// The `keyward` binary, for what an officer and an operator do.
    pub keyward: Option<PathBuf>,
    pub config: Option<PathBuf>,
    pub dir: Option<PathBuf>,
    pub segments: u64,
    /// How long the node goes on without news of its KEK.
    pub silence: Duration,
    /// Keep DEKs on the heap, so that a test sees them.
    pub heap: bool,
}

impl Options {
    pub fn parse(args: impl Iterator<Item = String>) -> Result<Self, String> {
        let (mut socket, mut kek) = (None, None);
        let mut options = Self {
            command: Command::Life,
            socket: PathBuf::new(),
            kek: String::new(),
            keyward: None,
            config: None,
            dir: None,
            segments: 10_000,
            silence: Settings::default().silence,
            heap: false,
        };
        let mut args = args;
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "life" => options.command = Command::Life,
                "bench" | "--bench" => options.command = Command::Bench,
                "work" => options.command = Command::Work,
                "--socket" => socket = Some(value()?.into()),
                "--kek" => kek = Some(value()?),
                "--keyward" => options.keyward = Some(value()?.into()),
                "--config" => options.config = Some(value()?.into()),
                "--dir" => options.dir = Some(value()?.into()),
                "--segments" => {
                    let number = value()?.parse().ok().filter(|n| (1..=10_000).contains(n));
                    options.segments = number.ok_or("--segments is a number from 1 to 10000")?;
                }
                "--silence" => {
                    let seconds =
                        value()?.parse().map_err(|_| "--silence is a number of seconds")?;
                    options.silence = Duration::from_secs(seconds);
                }
                "--heap" => options.heap = true,
                other => return Err(format!("unknown argument: {other}")),
            }
        }
        options.socket = socket.ok_or("--socket is missing")?;
        options.kek = kek.ok_or("--kek is missing")?;
        let missing = match options.command {
            Command::Work => options.dir.is_none().then_some("--dir"),
            _ if options.keyward.is_none() => Some("--keyward"),
            _ => options.config.is_none().then_some("--config"),
        };
        missing.map_or(Ok(options), |missing| Err(format!("{missing} is missing")))
    }

    /// A client whose DEKs are in locked memory, unless they are to be on the heap.
    pub fn client(&self) -> Result<blocking::Client, Failure> {
        let client = Client::new(&Endpoint::unix(&self.socket))?;
        let client = match self.heap {
            true => client,
            false => client.with_locker(Locker::new(SEGMENTS_MAX, false)?),
        };
        Ok(client.blocking()?)
    }

    pub fn keyward(&self) -> std::process::Command {
        let keyward = self.keyward.as_deref().unwrap_or_else(|| "keyward".as_ref());
        let mut command = std::process::Command::new(keyward);
        command.env("KEYWARD_SOCKET", &self.socket);
        command
    }
}
