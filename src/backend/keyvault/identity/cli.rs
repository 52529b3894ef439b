//! Runs `az` for the identity of whoever is logged in with it: bounded in time, and gone
//! when nobody waits for it any more.

use std::{ffi::OsStr, io, process::Output, process::Stdio, time::Duration};

use async_trait::async_trait;
use azure_identity::Executor;
use tokio::{process::Command, time::timeout};

/// How long `az` may take: it is slow, and may ask the network.
const TIME_MAX: Duration = Duration::from_secs(15);

/// Runs programs as the SDK asks.
#[derive(Debug)]
pub(super) struct Bounded;

#[async_trait]
impl Executor for Bounded {
    async fn run(&self, program: &OsStr, args: &[&OsStr]) -> io::Result<Output> {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).kill_on_drop(true);
        timeout(TIME_MAX, command.output())
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "az took too long"))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_is_passed_on() {
        let args = ["-c", "echo out; exit 3"].map(OsStr::new);
        let output = Bounded.run(OsStr::new("/bin/sh"), &args).await.unwrap();
        assert_eq!((output.stdout.as_slice(), output.status.code()), (&b"out\n"[..], Some(3)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_that_hangs_is_not_waited_for() {
        let args = ["-c", "exec sleep 600"].map(OsStr::new);
        let hung = Bounded.run(OsStr::new("/bin/sh"), &args).await;
        assert_eq!(hung.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
