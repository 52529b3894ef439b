//! Writes what a command has to give: to standard output or a file.
//!
//! Invariants: no DEK and no bytes go to a terminal, and this is found out before any
//! work is done; a file appears whole, mode 0600, or not at all; bytes are written
//! without the standard library's buffer, which nobody wipes.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IsTerminal, Write},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::failure::Failure;

/// Where something will be written.
#[derive(Debug)]
pub(super) enum Output {
    Stdout,
    /// A regular file, or none yet.
    File(PathBuf),
    /// A pipe or a device, which must not be replaced.
    Device(PathBuf),
}

/// What will be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// For anyone to read.
    Text,
    /// Not secret, but not for a terminal.
    Bytes(&'static str),
    /// Never for a terminal, in whatever form.
    Dek,
}

impl Output {
    /// Chooses and checks the place; `-` or nothing is standard output.
    pub(super) fn choose(out: Option<&Path>, what: What) -> Result<Self, Failure> {
        let output = match out {
            Some(path) if path != Path::new("-") => Self::at(path)?,
            _ => Self::Stdout,
        };
        let terminal = match &output {
            Self::Stdout => io::stdout().is_terminal(),
            Self::Device(path) => File::open(path).is_ok_and(|file| file.is_terminal()),
            Self::File(_) => false,
        };
        match (terminal, what) {
            (false, _) | (true, What::Text) => Ok(output),
            (true, What::Dek) => Err(Failure::usage(
                "a DEK is not shown on a terminal",
                "redirect standard output, or name a file with --out",
            )),
            (true, What::Bytes(name)) => Err(Failure::usage(
                format!("{name} is bytes, which a terminal does not show"),
                "redirect standard output, name a file with --out, or use --json",
            )),
        }
    }

    fn at(path: &Path) -> Result<Self, Failure> {
        match fs::metadata(path) {
            // A link keeps pointing where it points; what it points to is replaced.
            Ok(found) if found.is_file() => match fs::canonicalize(path) {
                Ok(path) => Ok(Self::File(path)),
                Err(error) => Err(Failure::file("write", path, &error)),
            },
            Ok(found) if found.is_dir() => {
                let error = io::Error::from(io::ErrorKind::IsADirectory);
                Err(Failure::file("write", path, &error))
            }
            Ok(_) => Ok(Self::Device(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let parent = directory(path);
                match fs::metadata(parent) {
                    Ok(found) if found.is_dir() => Ok(Self::File(path.to_owned())),
                    Ok(_) => {
                        Err(Failure::file("write", path, &io::ErrorKind::NotADirectory.into()))
                    }
                    Err(error) => Err(Failure::file("write", path, &error)),
                }
            }
            Err(error) => Err(Failure::file("write", path, &error)),
        }
    }

    /// Writes `bytes`. A reader that went away is a failure: nobody has the bytes.
    pub(super) fn write(&self, bytes: &[u8]) -> Result<(), Failure> {
        match self {
            Self::Stdout => standard_output()
                .and_then(|mut out| out.write_all(bytes))
                .map_err(|e| Failure::new("cannot write to standard output").with_cause(e)),
            Self::File(path) => {
                write_file(path, bytes).map_err(|error| Failure::file("write", path, &error))
            }
            Self::Device(path) => OpenOptions::new()
                .write(true)
                .open(path)
                .and_then(|mut device| device.write_all(bytes))
                .map_err(|error| Failure::file("write", path, &error)),
        }
    }
}

/// Prints text for people or programs. A reader that has read enough is no failure.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    print_on(text).map(|_| ())
}

/// As [`print`], and says whether somebody reads on.
pub(super) fn print_on(text: &str) -> Result<bool, Failure> {
    match standard_output().and_then(|mut out| out.write_all(text.as_bytes())) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::new("cannot write to standard output").with_cause(error)),
    }
}

/// Says on standard error what is going on, if somebody is there to read it.
pub(super) fn tell(text: &str) {
    if io::stderr().is_terminal() {
        let _nobody = writeln!(io::stderr(), "{text}");
    }
}

fn standard_output() -> io::Result<File> {
    io::stdout().as_fd().try_clone_to_owned().map(File::from)
}

/// Writes a file beside `path` and moves it there.
fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (draft, mut file) = Draft::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    draft.move_to(path)?;
    // The name is in the directory, which is a file of its own. Some file systems
    // cannot sync one; the bytes are safe all the same.
    let _not_everywhere = File::open(directory(path)).and_then(|dir| dir.sync_all());
    Ok(())
}

/// A file that is removed unless it was moved to its place.
struct Draft(Option<PathBuf>);

impl Draft {
    fn create(path: &Path) -> io::Result<(Self, File)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let mut attempt = 0;
        loop {
            let mut draft = std::ffi::OsString::from(".");
            draft.push(name);
            draft.push(format!(".{}-{attempt}.new", std::process::id()));
            let draft = path.with_file_name(draft);
            match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft) {
                Ok(file) => return Ok((Self(Some(draft)), file)),
                // Left behind by a process that had our number and was killed.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < 100 => {
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn move_to(mut self, path: &Path) -> io::Result<()> {
        if let Some(draft) = &self.0 {
            fs::rename(draft, path)?;
        }
        self.0 = None;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(draft) = &self.0 {
            let _the_first_error_counts = fs::remove_file(draft);
        }
    }
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_file_is_replaced_whole_and_is_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dek");
        fs::write(&path, "something longer that was there before").unwrap();
        Output::choose(Some(&path), What::Dek).unwrap().write(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn a_link_stays_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        fs::write(&target, "old").unwrap();
        symlink(&target, &link).unwrap();
        Output::choose(Some(&link), What::Dek).unwrap().write(b"new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&target).unwrap(), b"new");
    }

    #[test]
    fn a_device_is_written_to_and_not_replaced() {
        let null = Path::new("/dev/null");
        let output = Output::choose(Some(null), What::Dek).unwrap();
        assert!(matches!(output, Output::Device(_)));
        output.write(b"x").unwrap();
        assert!(!fs::metadata(null).unwrap().is_file());
    }

    #[test]
    fn what_cannot_be_written_is_found_out_before_the_work() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Output::choose(Some(dir.path()), What::Dek).is_err());
        assert!(Output::choose(Some(&dir.path().join("no/such/dek")), What::Dek).is_err());
    }
}
