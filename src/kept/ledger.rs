//! The census of this node: a file, `STATE/census.json`, replaced whole.
//!
//! It is evidence and gives no right, so one that cannot be read keeps nobody from
//! starting: it is set aside, and the counting begins anew, which the report says.

use std::{
    fs::{self, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{sync, unusable};
use crate::{
    error::Error,
    kek::{Report, Usages},
};

/// The file. Its methods block for as long as the disk takes.
#[derive(Debug)]
pub struct Ledger {
    /// `None` if there is no state directory.
    path: Option<PathBuf>,
}

/// What was found when the counting went on, or began.
#[derive(Debug)]
pub struct Opened {
    /// What was counted so far.
    pub report: Report,
    /// Where a file was put that could not be read.
    pub set_aside: Option<PathBuf>,
}

impl Ledger {
    /// Keeps nothing.
    pub fn unkept() -> Self {
        Self { path: None }
    }

    /// Keeps it below `state`, which is there.
    pub fn of(state: &Path) -> Self {
        Self { path: Some(state.join("census.json")) }
    }

    /// What was counted so far; a new node, which begins at `now`, if nothing was or it
    /// cannot be read. `name` is what that is called.
    pub fn open(&self, name: String, now: SystemTime) -> Opened {
        let fresh = || Report { node: name, since: now, at: now, usages: Usages::new() };
        let Some(path) = &self.path else { return Opened { report: fresh(), set_aside: None } };
        match read(path) {
            Ok(Some(report)) => Opened { report, set_aside: None },
            Ok(None) => Opened { report: fresh(), set_aside: None },
            Err(_) => {
                let aside = path.with_extension("json.unreadable");
                // If it cannot be moved it is overwritten: it is of no use to anybody.
                let moved = fs::rename(path, &aside).is_ok();
                Opened { report: fresh(), set_aside: moved.then_some(aside) }
            }
        }
    }

    /// Replaces what is kept. False if nothing is; `Err` if the old is kept still.
    pub fn write(&self, report: &Report) -> Result<bool, Error> {
        let Some(path) = &self.path else { return Ok(false) };
        let draft = path.with_extension("json.new");
        let write = || -> io::Result<()> {
            let mut options = OpenOptions::new();
            let mut file =
                options.write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
            file.write_all(report.to_json().to_string().as_bytes())?;
            file.sync_all()?;
            fs::rename(&draft, path)?;
            path.parent().map_or(Ok(()), sync)
        };
        write().map(|()| true).map_err(|error| {
            let _half_written = fs::remove_file(&draft);
            unusable(path, &error)
        })
    }
}

/// `Ok(None)` if there is none.
fn read(path: &Path) -> io::Result<Option<Report>> {
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut text = Vec::new();
    file.take(Report::TEXT_MAX as u64 + 1).read_to_end(&mut text)?;
    Report::parse(&text).map(Some).ok_or_else(|| ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, os::unix::fs::PermissionsExt, time::Duration};

    use tempfile::TempDir;

    use super::*;
    use crate::kek::{KekName, Usage, VersionId};

    fn at(secs: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(secs)
    }

    fn counted(mut report: Report, unwraps: u64) -> Report {
        let usage = Usage { unwraps, last: Some(at(7)), ..Usage::default() };
        let versions = BTreeMap::from([(VersionId::parse("a1").unwrap(), usage)]);
        report.usages = BTreeMap::from([(KekName::parse("orders").unwrap(), versions)]);
        report
    }

    #[test]
    fn what_was_counted_is_found_again_and_by_whom() {
        let dir = TempDir::new().unwrap();
        let ledger = Ledger::of(dir.path());
        let began = ledger.open("one".into(), at(5)).report;
        assert_eq!((began.node.as_str(), began.since), ("one", at(5)));
        for unwraps in [1, 2] {
            assert!(ledger.write(&counted(began.clone(), unwraps)).unwrap());
        }
        let again = ledger.open("another".into(), at(9)).report;
        assert_eq!(again, counted(began, 2));
        let mode = fs::metadata(dir.path().join("census.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn what_cannot_be_read_is_set_aside_and_not_trusted() {
        let dir = TempDir::new().unwrap();
        let ledger = Ledger::of(dir.path());
        for damage in [&b"{\"format\":\"keyward-census-1\""[..], b"", &[0xff; 10]] {
            fs::write(dir.path().join("census.json"), damage).unwrap();
            let Opened { report, set_aside } = ledger.open("new".into(), at(9));
            assert_eq!((report.node.as_str(), report.since), ("new", at(9)));
            assert_eq!(fs::read(set_aside.unwrap()).unwrap(), damage);
        }
    }

    #[test]
    fn a_directory_that_is_gone_is_an_error_and_not_a_loss() {
        let dir = TempDir::new().unwrap();
        let ledger = Ledger::of(&dir.path().join("gone"));
        let report = ledger.open("one".into(), at(5)).report;
        assert!(ledger.write(&report).is_err());
        assert!(!Ledger::unkept().write(&report).unwrap());
    }
}
