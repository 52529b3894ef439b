//! Which KEKs operators took away: a file for each, in `STATE/revoked/`, of the KEK's name.
//!
//! That the file is there is all that counts; what it says is for people. So there is no
//! moment at which half a record could be read, and whatever is there is believed: a name
//! that is none, a file that cannot be looked at, is an error and not a KEK that is allowed.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{misconfigured, sync, unusable};
use crate::{error::Error, kek::KekName};

/// Most records that are read; a bound that no configuration reaches.
const RECORDS_MAX: usize = 4096;

/// The records. Their methods block for as long as the disk takes.
#[derive(Debug)]
pub struct Revocations {
    /// `None` if there is no state directory.
    dir: Option<PathBuf>,
}

impl Revocations {
    /// Keeps nothing.
    pub fn unkept() -> Self {
        Self { dir: None }
    }

    /// Keeps them below `state`, which is made if need be. `Err` if others may write there,
    /// or it cannot be read: then nobody knows which KEKs are taken away.
    pub fn open(state: &Path) -> Result<Self, Error> {
        let dir = state.join("revoked");
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(|error| unusable(&dir, &error))?;
        for path in [state, &dir] {
            let found = fs::metadata(path).map_err(|error| unusable(path, &error))?;
            let own = rustix::process::geteuid().as_raw();
            if found.mode() & 0o022 != 0 || ![0, own].contains(&found.uid()) {
                return Err(misconfigured(path, "others may write there").with_fix(
                    "give it to the sidecar's user, mode 0700: whoever may delete a record gives its KEK back",
                ));
            }
        }
        Ok(Self { dir: Some(dir) })
    }

    /// The KEKs that are taken away. `Err` if that cannot be told.
    pub fn all(&self) -> Result<Vec<KekName>, Error> {
        let Some(dir) = &self.dir else { return Ok(Vec::new()) };
        let mut names = Vec::new();
        for entry in fs::read_dir(dir).map_err(|error| unusable(dir, &error))? {
            let entry = entry.map_err(|error| unusable(dir, &error))?;
            let name = entry.file_name().to_str().and_then(KekName::parse);
            names.push(name.ok_or_else(|| {
                misconfigured(&entry.path(), "no KEK can be called so")
                    .with_fix("remove it if it is not the sidecar's")
            })?);
            if names.len() > RECORDS_MAX {
                return Err(misconfigured(dir, "there are more records than KEKs can be")
                    .with_fix("remove what is not the sidecar's"));
            }
        }
        names.sort();
        Ok(names)
    }

    /// Records that `kek` was taken away. False if nothing is kept; `Err` if it may be lost.
    pub fn add(&self, kek: &KekName, by: &str) -> Result<bool, Error> {
        let Some(dir) = &self.dir else { return Ok(false) };
        let path = dir.join(kek.as_str());
        let write = || -> io::Result<()> {
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create(true).mode(0o600).open(&path)?;
            // The file that is there says it already; a full disk takes nothing from that.
            sync(dir)?;
            file.set_len(0)?;
            writeln!(
                file,
                "KEK {kek} was revoked by {by}; `keyward kek restore {kek}` gives it back"
            )?;
            file.sync_all()
        };
        match write() {
            Ok(()) => Ok(true),
            // It is there, if without its words.
            Err(_) if path.exists() && sync(dir).is_ok() => Ok(true),
            Err(error) => Err(unusable(&path, &error)),
        }
    }

    /// Takes the record of `kek` back, if there is one. `Err` if it may still be there.
    pub fn remove(&self, kek: &KekName) -> Result<(), Error> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let path = dir.join(kek.as_str());
        match fs::remove_file(&path).and_then(|()| sync(dir)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(unusable(&path, &error)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;

    use super::*;

    fn name(text: &str) -> KekName {
        KekName::parse(text).unwrap()
    }

    #[test]
    fn what_was_recorded_is_found_again_until_it_is_taken_back() {
        let dir = TempDir::new().unwrap();
        let state = dir.path().join("keyward");
        let kept = Revocations::open(&state).unwrap();
        assert_eq!(kept.all().unwrap(), []);
        for _ in 0..2 {
            assert!(kept.add(&name("orders"), "uid:0").unwrap());
            assert!(kept.add(&name("billing.eu-1"), "uid:0").unwrap());
        }
        drop(kept);
        let kept = Revocations::open(&state).unwrap();
        assert_eq!(kept.all().unwrap(), [name("billing.eu-1"), name("orders")]);
        kept.remove(&name("orders")).unwrap();
        kept.remove(&name("orders")).unwrap();
        assert_eq!(kept.all().unwrap(), [name("billing.eu-1")]);
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&state), mode(&state.join("revoked"))), (0o700, 0o700));
    }

    #[test]
    fn without_a_directory_nothing_is_kept_and_that_is_told() {
        let kept = Revocations::unkept();
        assert!(!kept.add(&name("orders"), "uid:0").unwrap());
        assert_eq!(kept.all().unwrap(), []);
        kept.remove(&name("orders")).unwrap();
    }

    #[test]
    fn whoever_may_write_there_could_give_a_kek_back() {
        let dir = TempDir::new().unwrap();
        let state = dir.path().join("keyward");
        Revocations::open(&state).unwrap();
        for path in [state.join("revoked"), state.clone()] {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o770)).unwrap();
            let refused = Revocations::open(&state).unwrap_err();
            assert!(refused.message().contains("others may write"), "{refused}");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        }
    }

    #[test]
    fn what_cannot_be_understood_is_no_kek_that_is_allowed() {
        let dir = TempDir::new().unwrap();
        let kept = Revocations::open(dir.path()).unwrap();
        let stray = dir.path().join("revoked/.orders.swp");
        fs::write(&stray, "").unwrap();
        assert!(kept.all().is_err());
        fs::remove_file(stray).unwrap();
        // An empty record, as a crash may leave it, is one.
        fs::write(dir.path().join("revoked/orders"), "").unwrap();
        assert_eq!(kept.all().unwrap(), [name("orders")]);
        fs::remove_dir_all(dir.path().join("revoked")).unwrap();
        assert!(kept.all().is_err());
        assert!(kept.add(&name("orders"), "uid:0").is_err());
    }
}
