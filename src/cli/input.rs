//! Reads what a command works on: from a file or standard input, bounded, into a
//! [`Secret`], because it may be one.

use std::{
    fs::File,
    io::{self, IsTerminal, Read},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use super::failure::Failure;
use crate::{op::CONTEXT_MAX_BYTES, secret::Secret};

/// Reads at most `max` bytes of `source`, `-` or nothing being standard input. `what`
/// is what should be in it; more of it is refused, unread.
pub(super) fn read(source: Option<&Path>, max: usize, what: &str) -> Result<Secret, Failure> {
    let (mut file, name) = match source {
        Some(path) if path != Path::new("-") => {
            let file = File::open(path).map_err(|error| Failure::file("read", path, &error))?;
            (file, path.to_owned())
        }
        _ => (standard_input(what)?, PathBuf::from("standard input")),
    };
    // One byte more than allowed tells too much from just enough.
    let bytes = read_up_to(&mut file, max + 1).map_err(|e| Failure::file("read", &name, &e))?;
    if bytes.len() > max {
        return Err(Failure::new(format!("{} holds more than {what} can have", name.display()))
            .with_cause(format!("{what} has at most {max} bytes"))
            .with_fix("see whether this is the right file"));
    }
    if bytes.is_empty() {
        return Err(Failure::new(format!("{} is empty", name.display()))
            .with_fix(format!("give it {what}")));
    }
    Ok(bytes)
}

/// Reads the context that a DEK is bound to; empty for none.
pub(super) fn read_context(file: Option<&Path>) -> Result<Vec<u8>, Failure> {
    let Some(file) = file else { return Ok(Vec::new()) };
    // An empty file is refused: it would bind the DEK to nothing without a word.
    let bytes = read(Some(file), CONTEXT_MAX_BYTES, "a context")?;
    Ok(bytes.expose().to_vec())
}

/// Standard input without the standard library's buffer, which nobody wipes.
fn standard_input(what: &str) -> Result<File, Failure> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Err(Failure::usage(
            format!("standard input is a terminal: {what} is bytes, not text"),
            "redirect a file, or name one",
        ));
    }
    let fd = stdin.as_fd().try_clone_to_owned();
    fd.map(File::from).map_err(|e| Failure::new("cannot read standard input").with_cause(e))
}

fn read_up_to(source: &mut impl Read, max: usize) -> io::Result<Secret> {
    let mut bytes = Secret::zeroed(max);
    let mut filled = 0;
    while filled < max {
        match source.read(&mut bytes.expose_mut()[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one byte at a time, as a slow pipe does.
    struct Trickle<'a>(&'a [u8]);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let n = self.0.len().min(1).min(buffer.len());
            buffer[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    #[test]
    fn short_reads_add_up_and_the_bound_holds() {
        assert!(read_up_to(&mut Trickle(b"abc"), 5).unwrap().ct_eq(b"abc"));
        assert!(read_up_to(&mut Trickle(b"abcdefgh"), 5).unwrap().ct_eq(b"abcde"));
    }

    #[test]
    fn an_endless_file_is_refused() {
        let failure = read(Some(Path::new("/dev/zero")), 64, "a DEK").unwrap_err();
        assert!(format!("{failure:?}").contains("at most 64 bytes"), "{failure:?}");
    }

    #[test]
    fn no_context_is_empty_and_an_empty_file_is_not_one() {
        assert_eq!(read_context(None).unwrap(), b"");
        assert!(read_context(Some(Path::new("/dev/null"))).is_err());
    }
}
