//! What the kernel does with a region, seen from outside: by forked children that end
//! as they must, and in `/proc/self/smaps`.

use std::fs;

use rustix::{
    process::{Pid, Rlimit, Signal, WaitOptions, WaitStatus, setrlimit, waitpid},
    thread::{CapabilitySet, capabilities, set_capabilities},
};

use super::*;
use crate::secret::harden;

const KIB: usize = 1024;

/// A region of each kind that this kernel has; ordinary memory, locked, is always there.
fn each_kind(room: usize) -> Vec<Region> {
    let anonymous = Region::anonymous(room).unwrap();
    anonymous.lock().unwrap();
    match Region::secret(room) {
        Ok(secret) => vec![anonymous, secret],
        // A kernel without it, one that was told not to have it, or too low a limit.
        Err(SlabError::Refused { call: "memfd_secret" | "mmap", .. }) => vec![anonymous],
        Err(error) => panic!("{error}"),
    }
}

/// Forks a child that runs `work` and ends with the code that it returns.
fn in_a_child(work: impl FnOnce() -> i32) -> WaitStatus {
    // SAFETY: the child runs `work`, which takes no lock that another thread may hold
    // (glibc's allocator is made ready for a fork), and ends without unwinding.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // One that dies as it must needs no core dump.
        let code = harden().map_or(101, |()| work());
        // SAFETY: it ends the child at once.
        unsafe { libc::_exit(code) }
    }
    let child = Pid::from_raw(child).expect("fork failed");
    waitpid(Some(child), WaitOptions::empty()).unwrap().expect("it was waited for").1
}

fn read(address: *const u8) -> i32 {
    // SAFETY: none for the address: the child that reads it may die of it.
    unsafe { address.read_volatile() }.into()
}

/// The lines of `/proc/self/smaps` about the mapping that has `address`.
fn smaps(address: *const u8) -> String {
    let all = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut found = String::new();
    let mut inside = false;
    for line in all.lines() {
        let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
        if let Some((from, to)) = range {
            let bound = |hex| usize::from_str_radix(hex, 16).unwrap();
            inside = (bound(from)..bound(to)).contains(&(address as usize));
        }
        if inside {
            found = found + line + "\n";
        }
    }
    found
}

fn flags(region: &Region) -> Vec<String> {
    let smaps = smaps(region.base());
    let flags = smaps.lines().find_map(|line| line.strip_prefix("VmFlags:"));
    flags.expect("the kernel tells flags").split_whitespace().map(str::to_owned).collect()
}

#[test]
fn faults_before_the_first_byte_and_behind_the_last() {
    for region in each_kind(3 * KIB) {
        assert_eq!(region.room % region.page, 0);
        let first = region.base();
        let last = first.wrapping_add(region.room - 1);
        // What a child of ordinary memory reads; secret memory it does not have at all.
        if flags(&region).contains(&"wf".to_owned()) {
            for inside in [first, last] {
                assert_eq!(in_a_child(|| read(inside)).exit_status(), Some(0));
            }
        }
        for outside in [first.wrapping_sub(1), last.wrapping_add(1)] {
            let status = in_a_child(|| read(outside));
            assert_eq!(status.terminating_signal(), Some(Signal::SEGV.as_raw()));
            // Not for want of a mapping: a guard that were not there could be anything's.
            assert!(smaps(outside).contains("---"), "no guard page");
        }
    }
}

#[test]
fn the_kernel_was_told_of_dumps_forks_and_swap() {
    for region in each_kind(KIB) {
        let flags = flags(&region);
        let has = |flag: &str| flags.iter().any(|has| has == flag);
        assert!(has("dd"), "{flags:?} lacks dontdump");
        assert!(has("wf") || has("dc"), "{flags:?} lacks wipeonfork, and dontcopy");
        assert!(has("lo"), "{flags:?} lacks locked");
    }
}

#[test]
fn a_forked_child_sees_no_secret() {
    for region in each_kind(KIB) {
        let wiped = flags(&region).contains(&"wf".to_owned());
        let mut part = cut(region, 1, 1).remove(0);
        part.bytes_mut(0..1)[0] = 42;
        let address = part.bytes().as_ptr();
        let status = in_a_child(|| read(address));
        match wiped {
            true => assert_eq!(status.exit_status(), Some(0)),
            false => assert_eq!(status.terminating_signal(), Some(Signal::SEGV.as_raw())),
        }
        assert_eq!(part.bytes(), [42]);
    }
}

#[test]
fn memory_that_nobody_wrote_costs_nothing() {
    for region in each_kind(32 * KIB) {
        let resident = |region: &Region| {
            let smaps = smaps(region.base());
            let line = smaps.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * KIB
        };
        assert_eq!(resident(&region), 0);
        let mut part = cut(region, 1, 1).remove(0);
        part.bytes_mut(0..1)[0] = 42;
        assert_eq!(resident(&part.region), part.region.page);
    }
}

#[test]
fn parts_share_no_byte() {
    let (mut parts, _) = parts(5, 100, true).unwrap();
    for (number, part) in parts.iter_mut().enumerate() {
        part.bytes_mut(0..100).fill(number as u8 + 1);
    }
    for (number, part) in parts.iter().enumerate() {
        assert_eq!(part.bytes(), [number as u8 + 1; 100]);
    }
}

#[test]
fn a_part_is_wiped_when_it_is_dropped_and_its_neighbours_are_not() {
    for region in each_kind(KIB) {
        let mut parts = cut(region, 3, 64);
        for part in &mut parts {
            part.bytes_mut(0..64).fill(42);
        }
        let gone = parts.remove(1);
        let region = Arc::clone(&gone.region);
        drop(gone);
        // SAFETY: within the region, which is still there; no reference to it is.
        let bytes = unsafe { slice::from_raw_parts(region.base().add(64), 64) };
        assert_eq!(bytes, [0; 64]);
        assert!(parts.iter().all(|part| part.bytes() == [42; 64]));
    }
}

#[test]
fn faults_after_the_last_part_is_gone() {
    let (first, second) = {
        let mut parts = cut(Region::anonymous(KIB).unwrap(), 2, 64);
        (parts.remove(0), parts.remove(0))
    };
    let address = second.bytes().as_ptr();
    drop(first);
    assert_eq!(in_a_child(|| read(address)).exit_status(), Some(0));
    let status = in_a_child(move || {
        drop(second);
        read(address)
    });
    assert_eq!(status.terminating_signal(), Some(Signal::SEGV.as_raw()));
}

/// Runs `work` in a process that may lock `limit` bytes; root is as bound as others.
fn limited(limit: usize, work: impl FnOnce() -> i32) -> Option<i32> {
    let status = in_a_child(|| {
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::IPC_LOCK);
        set_capabilities(None, sets).unwrap();
        let limit = Some(limit as u64);
        setrlimit(Resource::Memlock, Rlimit { current: limit, maximum: limit }).unwrap();
        work()
    });
    status.exit_status()
}

#[test]
fn a_limit_that_is_too_low_is_an_error_that_says_how_much_is_needed() {
    let room = 256 * KIB;
    let mapped = room + 2 * page_size();
    for limit in [0, 64 * KIB] {
        let outcome = limited(limit, || match protected(room, false) {
            Err(SlabError::NotLocked { needed_kib, limit_kib: Some(limit_kib), .. }) => {
                let right = (mapped / KIB, limit / KIB);
                i32::from((needed_kib as usize, limit_kib as usize) != right)
            }
            _ => 2,
        });
        assert_eq!(outcome, Some(0));
    }
}

#[test]
fn a_limit_that_is_high_enough_is_enough() {
    let room = 256 * KIB;
    let outcome = limited(room + 2 * page_size(), || match protected(room, false) {
        Ok((_, Protection::SecretMemory | Protection::Locked)) => 0,
        _ => 1,
    });
    assert_eq!(outcome, Some(0));
}

#[test]
fn only_who_allows_it_gets_memory_that_is_not_locked() {
    let outcome = limited(0, || match protected(KIB, true) {
        Ok((region, Protection::Unlocked)) => {
            let mut part = cut(region, 1, KIB).remove(0);
            part.bytes_mut(0..KIB).fill(42);
            i32::from(part.bytes() != [42; KIB])
        }
        _ => 2,
    });
    assert_eq!(outcome, Some(0));
}

#[test]
fn the_error_names_the_limit_and_how_to_raise_it() {
    let error = SlabError::NotLocked { needed_kib: 1032, limit_kib: Some(64), errno: Errno::NOMEM };
    let cause = error.cause();
    assert!(cause.contains("1032 KiB") && cause.contains("64 KiB (RLIMIT_MEMLOCK)"), "{cause}");
    let fix = error.fix().unwrap();
    for part in ["LimitMEMLOCK=1032K", "ulimit -l 1032"] {
        assert!(fix.contains(part), "{fix}");
    }
}

#[test]
fn sizes_are_whole_pages_and_never_overflow() {
    let page = page_size();
    let mapped = |room| size_of(room).map(|(_, mapped)| mapped);
    assert_eq!(mapped(0), Ok(3 * page));
    assert_eq!(mapped(1), Ok(3 * page));
    assert_eq!(mapped(page), Ok(3 * page));
    assert_eq!(mapped(page + 1), Ok(4 * page));
    for room in [usize::MAX, usize::MAX - page, isize::MAX as usize] {
        assert_eq!(mapped(room), Err(SlabError::TooLarge));
    }
    assert_eq!(parts(usize::MAX, 2, true).err(), Some(SlabError::TooLarge));
}
