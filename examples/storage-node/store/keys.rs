//! The DEKs of the segments while the store is light, and none of them while it is dark.
//!
//! It knows neither the sidecar nor the disk. A DEK is borrowed for one page; taking DEKs away
//! waits for who has borrowed one, so that afterwards no page is opened or sealed under it. A
//! DEK that was asked for before they were taken away is not put here after it.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use keyward::client::Secret;

/// DEKs by segment.
#[derive(Default)]
pub struct Keys(RwLock<Inside>);

#[derive(Default)]
struct Inside {
    /// Counts the times that DEKs were taken away.
    era: Era,
    keys: Vec<Key>,
}

/// When a DEK was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Era(u64);

/// What is known of one segment's DEK.
enum Key {
    Here(Secret),
    /// Why it is not.
    Dark(String),
}

impl Keys {
    /// To be taken before a DEK is asked for.
    pub fn era(&self) -> Era {
        self.read().era
    }

    /// Does something with the DEK of a segment. `Err` says why it is dark.
    pub fn with<T>(&self, segment: u64, work: impl FnOnce(&Secret) -> T) -> Result<T, String> {
        let inside = self.read();
        match usize::try_from(segment).ok().and_then(|at| inside.keys.get(at)) {
            Some(Key::Here(dek)) => Ok(work(dek)),
            Some(Key::Dark(why)) => Err(why.clone()),
            None => Err(NEVER.to_owned()),
        }
    }

    /// Sets what came of asking for a segment's DEK in `era`: it, or why it is dark.
    pub fn put(&self, era: Era, segment: u64, dek: Result<Secret, String>) {
        let mut inside = self.write();
        let at = usize::try_from(segment).expect("a segment that is in memory");
        while inside.keys.len() <= at {
            inside.keys.push(Key::Dark(NEVER.to_owned()));
        }
        if inside.era == era {
            inside.keys[at] = dek.map_or_else(Key::Dark, Key::Here);
        }
    }

    /// Drops, and thereby wipes, the DEKs of the segments that `chosen` says.
    pub fn darken(&self, why: &str, chosen: impl Fn(u64) -> bool) {
        let mut inside = self.write();
        inside.era.0 += 1;
        for (segment, key) in (0..).zip(inside.keys.iter_mut()) {
            if chosen(segment) {
                *key = Key::Dark(why.to_owned());
            }
        }
    }

    /// Whether a segment's DEK is here.
    pub fn has(&self, segment: u64) -> bool {
        self.with(segment, |_| ()).is_ok()
    }

    fn read(&self) -> RwLockReadGuard<'_, Inside> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inside> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

const NEVER: &str = "its DEK was not asked for yet";
