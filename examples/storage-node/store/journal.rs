//! The write-ahead journal: what it has acknowledged is on the disk.
//!
//! Writers that come together share one write and one flush: the first does them for all who
//! came while it was at the last.
//!
//! It knows no page and no key. After an error of the disk it takes nothing more: what a failed
//! flush has written is not known, and asking again does not tell.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use aws_lc_rs::rand;

use super::format::{Change, JOURNAL_HEAD, journal_head};

pub struct Journal {
    file: File,
    state: Mutex<State>,
    flushed: Condvar,
}

struct State {
    epoch: u64,
    /// Records that are not written yet.
    pending: Vec<u8>,
    /// Where they go.
    end: u64,
    /// Records that were taken, and those of them that are on the disk.
    taken: u64,
    durable: u64,
    flushing: bool,
    failed: bool,
}

impl Journal {
    /// Begins an empty one in `file`, which nobody else writes. What was in it is gone.
    pub fn begin(file: File) -> io::Result<Self> {
        let epoch = start(&file)?;
        let state = State {
            epoch,
            pending: Vec::new(),
            end: JOURNAL_HEAD as u64,
            taken: 0,
            durable: 0,
            flushing: false,
            failed: false,
        };
        Ok(Self { file, state: Mutex::new(state), flushed: Condvar::new() })
    }

    /// Appends changes. When it returns, they are on the disk.
    pub fn append(&self, changes: &[Change]) -> io::Result<()> {
        let mut state = self.state();
        if state.failed {
            return Err(broken());
        }
        let epoch = state.epoch;
        for change in changes {
            change.record(epoch, &mut state.pending);
        }
        state.taken += 1;
        let ours = state.taken;
        while state.durable < ours {
            if state.failed {
                return Err(broken());
            }
            if state.flushing {
                state = self.flushed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.flushing = true;
            let (records, at, last) = (std::mem::take(&mut state.pending), state.end, state.taken);
            drop(state);
            let written = self.file.write_all_at(&records, at).and_then(|()| self.file.sync_data());
            state = self.state();
            state.flushing = false;
            self.flushed.notify_all();
            if let Err(error) = written {
                state.failed = true;
                return Err(error);
            }
            state.end += records.len() as u64;
            state.durable = last;
        }
        Ok(())
    }

    /// Bytes in it.
    pub fn len(&self) -> u64 {
        self.state().end
    }

    /// Empties it. What it holds must be on the disk elsewhere, and nobody may be appending.
    pub fn restart(&self) -> io::Result<()> {
        let mut state = self.state();
        if state.failed {
            return Err(broken());
        }
        match start(&self.file) {
            Ok(epoch) => (state.epoch, state.end) = (epoch, JOURNAL_HEAD as u64),
            Err(error) => {
                state.failed = true;
                return Err(error);
            }
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Empties the file, and begins an epoch that it never had: records that were there before, and
/// may come back after a crash, are none of it.
fn start(file: &File) -> io::Result<u64> {
    let mut epoch = [0; 8];
    rand::fill(&mut epoch).map_err(|_| io::Error::other("no random bytes"))?;
    let epoch = u64::from_le_bytes(epoch);
    file.set_len(0)?;
    file.write_all_at(&journal_head(epoch), 0)?;
    file.sync_all()?;
    Ok(epoch)
}

fn broken() -> io::Error {
    io::Error::other("the journal could not be written before: open the store again")
}
