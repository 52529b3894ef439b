//! Who owns each KEK, as it was when the KEK was first used: a file for each, in
//! `STATE/modes/`, of the KEK's name, with the mode as its first line.
//!
//! A KEK that a customer owns must not come to be rotated or retired because a
//! configuration was changed, nor one of the service's be left without anybody.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{sync, unusable};
use crate::{
    error::Error,
    kek::{KekName, Mode},
};

/// The records. Their methods block for as long as the disk takes.
#[derive(Debug)]
pub struct Modes(PathBuf);

impl Modes {
    /// Keeps them below `state`, which is there.
    pub fn open(state: &Path) -> Result<Self, Error> {
        let dir = state.join("modes");
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(|error| unusable(&dir, &error))?;
        Ok(Self(dir))
    }

    /// Records the mode of a KEK that is used for the first time. `Err` if it was used in
    /// another, or that cannot be told.
    pub fn fix(&self, kek: &KekName, mode: Mode) -> Result<(), Error> {
        let path = self.0.join(kek.as_str());
        match fs::read_to_string(&path) {
            Ok(text) => {
                let recorded = text.lines().next().unwrap_or_default();
                let kept = mode.check_kept(kek, recorded);
                kept.map_err(|error| error.with_detail(path.display().to_string()))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => self.record(&path, mode),
            Err(error) => Err(unusable(&path, &error)),
        }
    }

    /// Whole, or not at all: half a word would keep the sidecar from starting.
    fn record(&self, path: &Path, mode: Mode) -> Result<(), Error> {
        let draft = self.0.join(".new");
        let write = || {
            let mut options = OpenOptions::new();
            let mut file =
                options.write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
            writeln!(file, "{}", mode.as_str())?;
            file.sync_all()?;
            fs::rename(&draft, path)?;
            sync(&self.0)
        };
        write().map_err(|error| unusable(path, &error))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tempfile::TempDir;

    use super::*;
    use crate::kek::ServiceRules;

    #[test]
    fn a_mode_is_what_it_was_at_first() {
        let dir = TempDir::new().unwrap();
        let kek = KekName::parse("orders").unwrap();
        let service = |days: u64| {
            Mode::ServiceManaged(ServiceRules {
                rsa_bits: 3072,
                rotate_every: Duration::from_secs(days * 86_400),
                expire_after: None,
                retire_quiet: None,
            })
        };
        let modes = Modes::open(dir.path()).unwrap();
        modes.fix(&kek, service(90)).unwrap();
        modes.fix(&kek, service(30)).unwrap();
        let refused = Modes::open(dir.path()).unwrap().fix(&kek, Mode::CustomerManaged);
        let refused = refused.unwrap_err();
        assert!(refused.message().contains("has been service-managed"), "{refused}");
        assert!(refused.fix().unwrap().contains("mode = \"service-managed\""));
        modes.fix(&KekName::parse("billing").unwrap(), Mode::CustomerManaged).unwrap();
        // What cannot be understood is nobody's leave to do anything.
        for damage in ["", "service", "\n"] {
            fs::write(dir.path().join("modes/orders"), damage).unwrap();
            assert!(modes.fix(&kek, service(90)).is_err(), "{damage:?}");
        }
        let entries = fs::read_dir(dir.path().join("modes")).unwrap().count();
        assert_eq!(entries, 2, "no draft is left");
    }
}
