//! An encrypted page store: pages of 4 KiB in segments, each under a DEK of its own, whose
//! wrapped form stands in the segment's header.
//!
//! A write is acknowledged when its record is in the journal and flushed; it then goes to its
//! slot. Once the journal is long enough the slots are flushed and it begins anew. After a
//! crash it is replayed, which repairs whatever was half written. Headers change the same way.
//!
//! It does not know who unwraps: it is given DEKs, and loses them.
//!
//! Invariants: what was acknowledged is read back, or an error; no page leaves or enters while
//! its DEK is not here; a nonce is random, and a DEK seals far fewer than the 2^32 pages that
//! this allows (16 TiB of writes to one segment).
//!
//! Not protected: somebody who can write the files may put an old page, or an old state of
//! all, back in its place.

pub mod format;
mod journal;
mod keys;

use std::{
    fmt,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    ops::{Deref, DerefMut},
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    rand,
};
use keyward::client::{Secret, WrappedDek};
use zeroize::Zeroize;

use format::{
    Address, Change, HEADER, Header, HeaderBlock, NONCE, PAGE, SLOT, Slot, Superblock, TAG,
};
use journal::Journal;
pub use keys::Keys;

/// A page in the clear, wiped when it is dropped. It never moves, so that it leaves no copy.
pub struct Page(Box<[u8; PAGE]>);

impl Page {
    pub fn zeroed() -> Self {
        Self(Box::new([0; PAGE]))
    }
}

impl Deref for Page {
    type Target = [u8; PAGE];

    fn deref(&self) -> &[u8; PAGE] {
        &self.0
    }
}

impl DerefMut for Page {
    fn deref_mut(&mut self) -> &mut [u8; PAGE] {
        &mut self.0
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Length of a DEK.
pub const DEK: usize = 32;
/// The journal begins anew when it is longer.
const JOURNAL_MAX: u64 = 8 * 1024 * 1024;
/// Pages that may be written, and read, at once without waiting for each other.
const STRIPES: usize = 64;

const PAGES: &str = "pages";
const JOURNAL: &str = "journal";

/// Why something did not work.
#[derive(Debug)]
pub enum Error {
    /// The DEK is not here, and why.
    Dark(String),
    /// What is on the disk is not what was written.
    Damaged(String),
    /// There is no such page.
    NoSuchPage(Address),
    /// Another process has the store open.
    InUse,
    /// The sidecar did not give what is needed.
    Keys(keyward::client::Error),
    /// The disk, or an earlier error of it.
    Disk(io::Error),
}

pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dark(why) => write!(f, "the segment is dark: {why}"),
            Self::Damaged(what) => write!(f, "damaged: {what}"),
            Self::NoSuchPage(at) => {
                write!(f, "there is no page {} of segment {}", at.page, at.segment)
            }
            Self::InUse => f.write_str("another process has the store open"),
            Self::Keys(error) => write!(f, "{error}"),
            Self::Disk(error) => write!(f, "disk: {error}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

/// An open store.
pub struct Store {
    superblock: Superblock,
    pages: File,
    journal: Journal,
    keys: Keys,
    headers: RwLock<Vec<Header>>,
    /// Held while a segment is added.
    adding: Mutex<()>,
    /// Held while a page is written, so that the journal and the slots agree on the order.
    writing: [Mutex<()>; STRIPES],
    /// Held while a slot is written or read, so that none is read half.
    slots: [RwLock<()>; STRIPES],
    /// Held by writers, and alone by who empties the journal.
    journaled: RwLock<()>,
    /// The journal has what a slot does not: it must not be emptied.
    broken: AtomicBool,
}

impl Store {
    /// Opens the store in `dir`, or makes one with so many pages in a segment. All segments
    /// are dark.
    pub fn open(dir: &Path, pages_per_segment: u32) -> Result<Self> {
        fs::create_dir_all(dir)?;
        if !dir.join(PAGES).exists() {
            create(dir, pages_per_segment)?;
        }
        let pages = OpenOptions::new().read(true).write(true).open(dir.join(PAGES))?;
        pages.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => Error::InUse,
            TryLockError::Error(error) => Error::Disk(error),
        })?;
        let mut block = [0; format::SUPERBLOCK];
        pages.read_exact_at(&mut block, 0)?;
        let superblock = Superblock::decode(&block)
            .ok_or_else(|| Error::Damaged("the superblock is none".to_owned()))?;
        let journal = replay(dir, &pages, &superblock)?;
        let headers = RwLock::new(headers(&pages, &superblock)?);
        Ok(Self {
            superblock,
            pages,
            journal,
            keys: Keys::default(),
            headers,
            adding: Mutex::default(),
            writing: [(); STRIPES].map(Mutex::new),
            slots: [(); STRIPES].map(RwLock::new),
            journaled: RwLock::default(),
            broken: AtomicBool::new(false),
        })
    }

    pub fn pages_per_segment(&self) -> u32 {
        self.superblock.pages_per_segment
    }

    pub fn segments(&self) -> u64 {
        read(&self.headers).len() as u64
    }

    /// The DEKs, to be given and taken away.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The segments whose header is one that `chosen` says.
    pub fn chosen(&self, chosen: impl Fn(u64, &Header) -> bool) -> Vec<(u64, Header)> {
        let headers = read(&self.headers);
        let all = (0..).zip(headers.iter());
        all.filter(|(segment, header)| chosen(*segment, header))
            .map(|(segment, header)| (segment, header.clone()))
            .collect()
    }

    /// Adds so many segments. `make` gives each a DEK that is bound to the context that it is
    /// told.
    pub fn add_segments(
        &self,
        count: u64,
        make: impl Fn(&[u8]) -> Result<(Secret, WrappedDek)>,
    ) -> Result<()> {
        let _alone = lock(&self.adding);
        let (first, era) = (self.segments(), self.keys.era());
        let (mut added, mut deks, mut changes) = (Vec::new(), Vec::new(), Vec::new());
        for segment in first..first + count {
            let context = self.superblock.context(segment);
            let (dek, wrapped) = make(&context)?;
            let header = Header { context, wrapped };
            changes.push(to_header(segment, &header)?);
            added.push(header);
            deks.push(dek);
        }
        self.change(&changes, || ())?;
        write(&self.headers).extend(added);
        for (segment, dek) in (first..).zip(deks) {
            self.keys.put(era, segment, Ok(dek));
        }
        Ok(())
    }

    /// Has the header of a segment say that its DEK is wrapped like this.
    pub fn rewrapped(&self, segment: u64, wrapped: WrappedDek) -> Result<()> {
        let header = Header { context: self.superblock.context(segment), wrapped };
        self.change(&[to_header(segment, &header)?], || ())?;
        let mut headers = write(&self.headers);
        let at = usize::try_from(segment).ok().and_then(|at| headers.get_mut(at));
        *at.expect("it has a header") = header;
        Ok(())
    }

    /// Writes a page. When it returns, the page is on the disk.
    pub fn write_page(&self, at: Address, page: &[u8; PAGE]) -> Result<()> {
        self.check(at)?;
        let stripe = stripe(at);
        let _in_order = lock(&self.writing[stripe]);
        let slot = self.keys.with(at.segment, |dek| self.seal(dek, at, page));
        let slot = slot.map_err(Error::Dark)?;
        self.change(&[Change::Slot(at, slot.encode())], || write(&self.slots[stripe]))
    }

    /// Reads a page; `None` if it was never written.
    pub fn read_page(&self, at: Address) -> Result<Option<Page>> {
        self.check(at)?;
        let mut bytes = [0; SLOT];
        {
            let _whole = read(&self.slots[stripe(at)]);
            read_at(&self.pages, &mut bytes, self.superblock.slot_at(at))?;
        }
        let page = self.keys.with(at.segment, |dek| {
            let Some(slot) = Slot::decode(&bytes) else { return Ok(None) };
            self.open_slot(dek, at, &slot).map(Some)
        });
        page.map_err(Error::Dark)?
    }

    fn check(&self, at: Address) -> Result<()> {
        let there = at.segment < self.segments() && at.page < self.superblock.pages_per_segment;
        there.then_some(()).ok_or(Error::NoSuchPage(at))
    }

    fn seal(&self, dek: &Secret, at: Address, page: &[u8; PAGE]) -> Slot {
        let mut nonce = [0; NONCE];
        rand::fill(&mut nonce).expect("the system has random bytes");
        let (mut sealed, mut tag) = (Box::new([0; PAGE]), [0; TAG]);
        let aad = Aad::from(self.superblock.page_aad(at));
        let counted = Nonce::assume_unique_for_key(nonce);
        key(dek)
            .seal_out_of_place_scatter(counted, aad, page, &mut *sealed, &[], &mut tag)
            .expect("a page is not too long");
        Slot { nonce, tag, sealed }
    }

    fn open_slot(&self, dek: &Secret, at: Address, slot: &Slot) -> Result<Page> {
        let mut page = Page::zeroed();
        let nonce = Nonce::assume_unique_for_key(slot.nonce);
        let aad = Aad::from(self.superblock.page_aad(at));
        key(dek)
            .open_separate_gather(nonce, aad, &*slot.sealed, &slot.tag, &mut *page)
            .map_err(|_| Error::Damaged(format!("page {} of segment {}", at.page, at.segment)))?;
        Ok(page)
    }

    /// Makes changes: first in the journal, then, under `guard`, in their places.
    fn change<G>(&self, changes: &[Change], guard: impl FnOnce() -> G) -> Result<()> {
        {
            let _not_emptied = read(&self.journaled);
            if self.broken.load(Ordering::Acquire) {
                let earlier = "an earlier write failed: open the store again";
                return Err(Error::Disk(io::Error::other(earlier)));
            }
            self.journal.append(changes)?;
            let _whole = guard();
            for change in changes {
                let (at, bytes) = change.write(&self.superblock);
                if let Err(error) = self.pages.write_all_at(bytes, at) {
                    self.broken.store(true, Ordering::Release);
                    return Err(error.into());
                }
            }
        }
        if self.journal.len() > JOURNAL_MAX { self.flush() } else { Ok(()) }
    }

    /// Flushes the slots and empties the journal, if that is still to be done.
    fn flush(&self) -> Result<()> {
        let _alone = write(&self.journaled);
        if self.journal.len() <= JOURNAL_MAX || self.broken.load(Ordering::Acquire) {
            return Ok(());
        }
        if let Err(error) = self.pages.sync_data() {
            // What a failed flush has written is not known: the journal still has it.
            self.broken.store(true, Ordering::Release);
            return Err(error.into());
        }
        Ok(self.journal.restart()?)
    }
}

fn to_header(segment: u64, header: &Header) -> Result<Change> {
    let block = header.encode();
    let block = block.ok_or_else(|| Error::Damaged("a wrapped DEK too long to keep".to_owned()))?;
    Ok(Change::Header(segment, block.to_vec()))
}

/// A key schedule for one page; the library wipes it when it is dropped.
fn key(dek: &Secret) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, dek.expose()).expect("a DEK of 32 bytes"))
}

fn stripe(at: Address) -> usize {
    (at.segment as usize).wrapping_mul(31).wrapping_add(at.page as usize) % STRIPES
}

/// A new store appears whole or not at all.
fn create(dir: &Path, pages_per_segment: u32) -> Result<()> {
    let mut store = [0; 16];
    rand::fill(&mut store).expect("the system has random bytes");
    let new = dir.join("pages.new");
    let mut file = File::create(&new)?;
    file.write_all(&Superblock { store, pages_per_segment }.encode())?;
    file.sync_all()?;
    // A journal of an earlier store, whose pages somebody removed, is not this one's.
    match fs::remove_file(dir.join(JOURNAL)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    fs::rename(&new, dir.join(PAGES))?;
    Ok(File::open(dir)?.sync_all()?)
}

/// Makes the changes that the journal has, and begins a new one.
fn replay(dir: &Path, pages: &File, superblock: &Superblock) -> Result<Journal> {
    let mut how = OpenOptions::new();
    let mut file =
        how.read(true).write(true).create(true).truncate(false).open(dir.join(JOURNAL))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    if let Some((_, changes)) = format::read_journal(&bytes) {
        for change in &changes {
            let (at, bytes) = change.write(superblock);
            pages.write_all_at(bytes, at)?;
        }
        pages.sync_data()?;
    }
    File::open(dir)?.sync_all()?;
    Ok(Journal::begin(file)?)
}

/// The headers of all segments: of those up to the first that was never written.
fn headers(pages: &File, superblock: &Superblock) -> Result<Vec<Header>> {
    let mut headers = Vec::new();
    for segment in 0.. {
        let mut block = [0; HEADER];
        read_at(pages, &mut block, superblock.header_at(segment))?;
        let damaged =
            |what: &str| Error::Damaged(format!("the header of segment {segment} {what}"));
        match Header::decode(&block) {
            HeaderBlock::Empty => break,
            HeaderBlock::Damaged => return Err(damaged("is none")),
            HeaderBlock::Header(header) if header.context != superblock.context(segment) => {
                return Err(damaged("belongs elsewhere"));
            }
            HeaderBlock::Header(header) => headers.push(header),
        }
    }
    Ok(headers)
}

/// Reads as many bytes; those behind the end of the file are zero.
fn read_at(file: &File, mut into: &mut [u8], mut at: u64) -> io::Result<()> {
    while !into.is_empty() {
        match file.read_at(into, at) {
            Ok(0) => break,
            Ok(read) => {
                into = &mut std::mem::take(&mut into)[read..];
                at += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
