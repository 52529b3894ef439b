//! Reads files that hold secrets: only those that others cannot read, and no more of them
//! than a secret is long. The bytes are kept nowhere else.

use std::{
    fs::File,
    io::{self, ErrorKind, Read},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use crate::secret::Secret;

/// Why a file was not read.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It cannot be.
    Unreadable(io::Error),
    /// Others than its owner can change it, or others than its group can read it. This is
    /// its mode.
    Open(u32),
}

/// At most `max` bytes of a file, and one more if it is longer.
pub(super) fn read(path: &Path, max: usize) -> Result<Secret, Trouble> {
    let mut file = File::open(path).map_err(Trouble::Unreadable)?;
    let metadata = file.metadata().map_err(Trouble::Unreadable)?;
    // A pipe or a socket may be how a secret is handed over; its mode says nothing.
    let is_file = !metadata.file_type().is_fifo() && !metadata.file_type().is_socket();
    if is_file && metadata.mode() & 0o037 != 0 {
        return Err(Trouble::Open(metadata.mode() & 0o7777));
    }
    let mut text = Secret::zeroed(max + 1);
    let mut len = 0;
    loop {
        match file.read(&mut text.expose_mut()[len..]) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(Trouble::Unreadable(error)),
        }
    }
    text.truncate(len);
    Ok(text)
}

/// The first line of a text.
pub(super) fn first_line(mut text: Secret) -> Secret {
    let end = text.expose().iter().position(|byte| matches!(byte, b'\n' | b'\r'));
    text.truncate(end.unwrap_or(text.len()));
    text
}
