//! Reads the user PIN, each time it is needed, from a file or the environment.
//!
//! Whoever calls when a login fails is told why, so where the PIN is kept stands in
//! `detail`, which is for the operator, and nowhere else.

use std::path::Path;

use super::PinSource;
use crate::{
    backend::secret_file::{self, Trouble},
    error::{Error, Reason},
    secret::Secret,
};

/// Longest PIN, in bytes.
const PIN_MAX: usize = 256;

/// The PIN. It is kept nowhere: the caller drops it after the login.
pub(super) fn read(source: &PinSource) -> Result<Secret, Error> {
    match source {
        PinSource::File(path) => read_file(path),
        PinSource::Env(name) => match std::env::var(name) {
            Ok(text) => check(Secret::new(text.into_bytes())),
            Err(_) => Err(refuse("the environment variable of the PIN is not set")
                .with_fix("set the variable that `pin_env` names, or use `pin_file`")),
        }
        .map_err(|error| error.with_detail(format!("pin_env is {name}"))),
    }
}

fn read_file(path: &Path) -> Result<Secret, Error> {
    let shown = path.display();
    // One more for a line that ends in two characters.
    let text = secret_file::read(path, PIN_MAX + 1).map_err(|trouble| match trouble {
        Trouble::Unreadable(error) => {
            refuse("the PIN file cannot be read").with_detail(format!("{shown}: {error}"))
        }
        Trouble::Open(mode) => refuse("the PIN file is open to others")
            .with_detail(format!("{shown} has mode {mode:04o}"))
            .with_fix("give it the mode 0600"),
    })?;
    check(secret_file::first_line(text)).map_err(|error| error.with_detail(shown.to_string()))
}

fn check(pin: Secret) -> Result<Secret, Error> {
    match pin.len() {
        0 => Err(refuse("where the PIN should be is nothing")),
        1..=PIN_MAX => Ok(pin),
        _ => Err(refuse("the PIN is longer than any token takes")),
    }
}

fn refuse(message: &'static str) -> Error {
    Error::new(Reason::BackendMisconfigured, message)
        .with_fix("put the user PIN alone on the first line of a file of mode 0600")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, PinSource) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pin");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (dir, PinSource::File(path))
    }

    #[test]
    fn the_first_line_is_the_pin() {
        for content in [&b"1234"[..], b"1234\n", b"1234\r\n", b"1234\nsecond line\n"] {
            let (_dir, source) = file(content, 0o600);
            assert!(read(&source).unwrap().ct_eq(b"1234"));
        }
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        for mode in [0o644, 0o604, 0o660, 0o666] {
            let (_dir, source) = file(b"1234", mode);
            let error = read(&source).unwrap_err();
            assert!(error.message().contains("open to others"), "{error}");
            // An operator is told which file; a caller is not.
            let told = [error.message(), error.fix().unwrap_or_default()].concat();
            assert!(error.detail().is_some_and(|detail| detail.contains("/pin")), "{error:?}");
            assert!(!told.contains('/'), "{told}");
        }
        let (_dir, source) = file(b"1234", 0o440);
        assert!(read(&source).is_ok());
    }

    #[test]
    fn no_pin_and_too_long_a_pin() {
        for content in [vec![], b"\n1234".to_vec(), vec![b'1'; 257], vec![b'1'; 5000]] {
            let (_dir, source) = file(&content, 0o600);
            assert!(read(&source).is_err());
        }
        assert!(read(&PinSource::File("/nonexistent/pin".into())).is_err());
        assert!(read(&PinSource::Env("KEYWARD_TEST_UNSET_VARIABLE".into())).is_err());
    }
}
