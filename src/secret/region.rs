//! One region of memory for secrets, and the parts that it is cut into.
//!
//! The kernel keeps the region from swap, from core dumps and from forked children;
//! where it has `memfd_secret`, also from itself and from root's debuggers. A page that
//! cannot be touched stands on either side, so that an overrun is a crash and not a
//! leak. What the bytes mean is for others to know.
//!
//! Invariants: parts do not overlap, so the owner of one shares bytes with nobody; the
//! region lives as long as any part does; what was ever lent out for writing is wiped
//! when its part is dropped, before the last part unmaps the region.
//!
//! The process must not fork without an exec while a region lives: a child sees zeros
//! where it expects its DEKs, or has no memory there at all.

#![allow(unsafe_code)]

use std::{
    ffi::{c_int, c_void},
    fmt,
    ops::Range,
    os::fd::{FromRawFd, OwnedFd},
    ptr, slice,
    sync::Arc,
};

use rustix::{
    fs::ftruncate,
    io::Errno,
    mm::{
        Advice, MapFlags, MlockFlags, MprotectFlags, ProtFlags, madvise, mlock, mlock_with, mmap,
        mmap_anonymous, mprotect, munmap,
    },
    process::{Resource, getrlimit},
};
use zeroize::Zeroize;

/// How well the kernel protects a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// `memfd_secret`: in no swap, no core dump, and not even in the kernel's own map.
    SecretMemory,
    /// `mlock`: in no swap and no core dump; root can read it.
    Locked,
    /// In no core dump, but it may be written to swap.
    Unlocked,
}

impl Protection {
    /// As it stands in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SecretMemory => "memfd_secret",
            Self::Locked => "locked",
            Self::Unlocked => "unlocked",
        }
    }
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why there is no memory for secrets. For the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlabError {
    /// More was asked for than can be addressed.
    TooLarge,
    /// The kernel does not lock so much.
    NotLocked {
        /// What must be locked, in KiB.
        needed_kib: u64,
        /// `RLIMIT_MEMLOCK` of this process, in KiB; `None` for unlimited.
        limit_kib: Option<u64>,
        /// What `mlock` answered.
        errno: Errno,
    },
    /// The kernel refused something that no limit explains.
    Refused {
        /// What was asked of it.
        call: &'static str,
        /// What it answered.
        errno: Errno,
    },
}

impl SlabError {
    /// What could not be done.
    pub fn what(&self) -> &'static str {
        match self {
            Self::NotLocked { .. } => "cannot lock memory for secrets",
            Self::TooLarge | Self::Refused { .. } => "cannot get memory for secrets",
        }
    }

    /// Why.
    pub fn cause(&self) -> String {
        match self {
            Self::TooLarge => "it would be more than can be addressed".into(),
            Self::NotLocked { needed_kib, limit_kib: Some(limit), errno } => format!(
                "{needed_kib} KiB are needed, and this process may lock {limit} KiB \
                 (RLIMIT_MEMLOCK): {errno}"
            ),
            Self::NotLocked { needed_kib, limit_kib: None, errno } => {
                format!("{needed_kib} KiB are needed, and RLIMIT_MEMLOCK sets no limit: {errno}")
            }
            Self::Refused { call, errno } => format!("{call}: {errno}"),
        }
    }

    /// How to mend it, where asking for `less` would do too.
    pub fn fix_or(&self, less: &str) -> String {
        self.fix().map_or_else(|| less.to_owned(), |fix| format!("{fix}, or {less}"))
    }

    /// How to mend it, if known. Whoever asked for the memory knows how to ask for less.
    pub fn fix(&self) -> Option<String> {
        match self {
            Self::TooLarge | Self::Refused { .. } => None,
            Self::NotLocked { needed_kib, .. } => Some(format!(
                "raise the limit to at least {needed_kib} KiB (LimitMEMLOCK={needed_kib}K in a \
                 systemd unit, `ulimit -l {needed_kib}` in a shell)"
            )),
        }
    }
}

impl fmt::Display for SlabError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what(), self.cause())
    }
}

impl std::error::Error for SlabError {}

/// A mapping: a guard page, whole pages of room, a guard page.
struct Region {
    /// Of the first guard page.
    start: *mut c_void,
    /// Of one guard page, in bytes.
    page: usize,
    /// Between the guard pages, in bytes.
    room: usize,
}

// SAFETY: the pointer is to a mapping that belongs to no thread. Its bytes are reached
// through `Part`s only, each of which has bytes of its own.
unsafe impl Send for Region {}
// SAFETY: as above; a shared region gives nothing away but addresses.
unsafe impl Sync for Region {}

/// A part of a region: bytes that belong to its owner alone.
pub(super) struct Part {
    region: Arc<Region>,
    /// Where it begins, in bytes behind the first guard page.
    at: usize,
    /// In bytes.
    len: usize,
    /// How far into it something may have been written, in bytes.
    written: usize,
}

/// Makes a region and cuts it into `count` parts of `len` zero bytes each.
///
/// The kernel gives pages as they are touched; the limits are charged for all of them
/// at once.
pub(super) fn parts(
    count: usize,
    len: usize,
    allow_unlocked: bool,
) -> Result<(Vec<Part>, Protection), SlabError> {
    let room = count.checked_mul(len).ok_or(SlabError::TooLarge)?;
    let (region, protection) = protected(room, allow_unlocked)?;
    Ok((cut(region, count, len), protection))
}

/// The best protected region that the kernel gives.
fn protected(room: usize, allow_unlocked: bool) -> Result<(Region, Protection), SlabError> {
    // Where the kernel has no secret memory, or not so much of it, locked memory is next.
    if let Ok(region) = Region::secret(room) {
        return Ok((region, Protection::SecretMemory));
    }
    let region = Region::anonymous(room)?;
    match region.lock() {
        Ok(()) => Ok((region, Protection::Locked)),
        Err(_) if allow_unlocked => Ok((region, Protection::Unlocked)),
        Err(errno) => Err(SlabError::NotLocked {
            // Secret memory is charged with its guard pages: ask for enough to have it.
            needed_kib: region.mapped().div_ceil(1024) as u64,
            limit_kib: getrlimit(Resource::Memlock).current.map(|bytes| bytes / 1024),
            errno,
        }),
    }
}

fn cut(region: Region, count: usize, len: usize) -> Vec<Part> {
    assert!(count.checked_mul(len).is_some_and(|needed| needed <= region.room));
    let region = Arc::new(region);
    let part = |index| Part { region: Arc::clone(&region), at: index * len, len, written: 0 };
    (0..count).map(part).collect()
}

impl Region {
    /// Memory that the kernel takes out of its own map. `Err` where there is none.
    fn secret(room: usize) -> Result<Self, SlabError> {
        let (page, mapped) = size_of(room)?;
        let file = memfd_secret().map_err(refused("memfd_secret"))?;
        ftruncate(&file, mapped as u64).map_err(refused("ftruncate"))?;
        // SAFETY: a new mapping, where the kernel likes.
        let start = unsafe {
            mmap(ptr::null_mut(), mapped, ProtFlags::empty(), MapFlags::SHARED, &file, 0)
        };
        let region = Self { start: start.map_err(refused("mmap"))?, page, room: mapped - 2 * page };
        region.open()?;
        region.advise("MADV_DONTDUMP", Advice::LinuxDontDump)?;
        // Shared memory cannot be wiped in a child: the child gets none.
        region.advise("MADV_DONTFORK", Advice::LinuxDontFork)?;
        Ok(region)
    }

    /// Ordinary memory, not locked yet.
    fn anonymous(room: usize) -> Result<Self, SlabError> {
        let (page, mapped) = size_of(room)?;
        // SAFETY: a new mapping, where the kernel likes.
        let start = unsafe {
            mmap_anonymous(ptr::null_mut(), mapped, ProtFlags::empty(), MapFlags::PRIVATE)
        };
        let region = Self { start: start.map_err(refused("mmap"))?, page, room: mapped - 2 * page };
        region.open()?;
        region.advise("MADV_DONTDUMP", Advice::LinuxDontDump)?;
        region.advise("MADV_WIPEONFORK", Advice::LinuxWipeOnFork)?;
        Ok(region)
    }

    /// Of the whole mapping, in bytes.
    fn mapped(&self) -> usize {
        self.room + 2 * self.page
    }

    /// The first byte behind the first guard page.
    fn base(&self) -> *mut u8 {
        self.start.cast::<u8>().wrapping_add(self.page)
    }

    /// Makes everything but the guard pages readable and writable.
    fn open(&self) -> Result<(), SlabError> {
        let access = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: pages of our own mapping, to which no reference exists yet.
        unsafe { mprotect(self.base().cast(), self.room, access) }.map_err(refused("mprotect"))
    }

    fn advise(&self, call: &'static str, advice: Advice) -> Result<(), SlabError> {
        // SAFETY: our own mapping; none of the advice given changes its bytes here.
        unsafe { madvise(self.start, self.mapped(), advice) }.map_err(refused(call))
    }

    /// Keeps its pages from swap, from the moment each is first touched.
    fn lock(&self) -> Result<(), Errno> {
        // SAFETY: pages of our own mapping.
        match unsafe { mlock_with(self.base().cast(), self.room, MlockFlags::ONFAULT) } {
            // Some that only act as Linux (gVisor, valgrind) have but the older call, which
            // touches every page at once.
            // SAFETY: as above.
            Err(Errno::NOSYS) => unsafe { mlock(self.base().cast(), self.room) },
            outcome => outcome,
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: our own mapping. The last part is gone, and with it every reference.
        let unmapped = unsafe { munmap(self.start, self.mapped()) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}

impl Part {
    /// In bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// All of its bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: `cut` saw to it that the range lies between the guard pages, where
        // memory is readable and was zeroed by the kernel; the region outlives `self`;
        // only `bytes_mut`, which takes `&mut self`, writes there.
        unsafe { slice::from_raw_parts(self.region.base().add(self.at), self.len) }
    }

    /// Some of its bytes, to write them. From now on they are wiped at the end.
    ///
    /// # Panics
    /// If the range is not within the part.
    pub(super) fn bytes_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        assert!(range.start <= range.end && range.end <= self.len);
        self.written = self.written.max(range.end);
        // SAFETY: as in `bytes`; and no other part has these bytes, so `&mut self` makes
        // this the only reference to them.
        unsafe {
            let start = self.region.base().add(self.at + range.start);
            slice::from_raw_parts_mut(start, range.end - range.start)
        }
    }

    /// Wipes what was ever written.
    pub(super) fn wipe(&mut self) {
        // Not all of it: that would have the kernel make pages only to hold zeros.
        self.bytes_mut(0..self.written).zeroize();
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.wipe();
    }
}

/// The sizes of a page and of a mapping with that much room, at least a page of it.
fn size_of(room: usize) -> Result<(usize, usize), SlabError> {
    let page = page_size();
    let room = room.max(1).checked_next_multiple_of(page);
    let mapped = room.and_then(|room| room.checked_add(2 * page));
    match mapped {
        Some(mapped) if isize::try_from(mapped).is_ok() => Ok((page, mapped)),
        _ => Err(SlabError::TooLarge),
    }
}

/// In bytes.
fn page_size() -> usize {
    // SAFETY: the call takes a number and returns one.
    let answer = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(answer).expect("the size of a page is known")
}

fn refused(call: &'static str) -> impl Fn(Errno) -> SlabError {
    move |errno| SlabError::Refused { call, errno }
}

/// A file of secret memory, which has no name and closes at exec. rustix lacks the call.
fn memfd_secret() -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes flags and no pointers.
    let answer = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    match c_int::try_from(answer) {
        // SAFETY: the kernel has just opened it, and nobody else knows it.
        Ok(file) if file >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(file) }),
        _ => Err(last_errno()),
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::NOSYS)
}

#[cfg(test)]
mod tests;
