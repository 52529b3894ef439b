//! Reads the user PIN, each time it is needed, from a file or the environment.

use std::{
    fs::File,
    io::Read,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use super::PinSource;
use crate::{
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
            Ok(text) => check(Secret::new(text.into_bytes()), &format!("the variable {name}")),
            Err(_) => Err(refuse(format!("the environment variable {name} is not set"))
                .with_fix("set it, or use `pin_file`")),
        },
    }
}

fn read_file(path: &Path) -> Result<Secret, Error> {
    let shown = path.display();
    let trouble = |error: std::io::Error| {
        refuse(format!("the PIN file {shown} cannot be read")).with_detail(error.to_string())
    };
    let mut file = File::open(path).map_err(trouble)?;
    let metadata = file.metadata().map_err(trouble)?;
    // A pipe or a socket may be how a secret is handed over; its mode says nothing.
    let is_file = !metadata.file_type().is_fifo() && !metadata.file_type().is_socket();
    if is_file && metadata.mode() & 0o037 != 0 {
        return Err(refuse(format!(
            "the PIN file {shown} is open to others (mode {:04o})",
            metadata.mode() & 0o7777
        ))
        .with_fix(format!("chmod 0600 {shown}")));
    }
    let mut text = Secret::zeroed(PIN_MAX + 2);
    let mut len = 0;
    loop {
        match file.read(&mut text.expose_mut()[len..]).map_err(trouble)? {
            0 => break,
            more => len += more,
        }
    }
    text.truncate(len);
    let line_end = text.expose().iter().position(|byte| matches!(byte, b'\n' | b'\r'));
    text.truncate(line_end.unwrap_or(len));
    check(text, &format!("the PIN file {shown}"))
}

fn check(pin: Secret, whence: &str) -> Result<Secret, Error> {
    match pin.len() {
        0 => Err(refuse(format!("{whence} holds no PIN"))),
        1..=PIN_MAX => Ok(pin),
        _ => Err(refuse(format!("the PIN in {whence} is longer than {PIN_MAX} bytes"))),
    }
}

fn refuse(message: String) -> Error {
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
