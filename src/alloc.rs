//! An allocator that wipes what it frees, and the same asked of the C library.
//!
//! HTTP/2, TLS and message buffers hold DEKs and know nothing of it; once freed they
//! would hold them until the memory happens to be used again. It knows nothing of what
//! is in the memory, hence wipes all of it. Measured over mimalloc: 3 ns for 256 bytes,
//! 76 ns for 8 KiB.
//!
//! Invariant: no block goes back to the inner allocator with a byte of its contents.
//!
//! Only a binary installs it: a library that replaced its host's allocator would be rude.

#![allow(unsafe_code)]

use std::{
    alloc::{GlobalAlloc, Layout},
    slice,
};

use mimalloc::MiMalloc;
use zeroize::optimization_barrier;

/// Wipes blocks before it gives them back to the allocator `A`.
pub struct Wiping<A = MiMalloc>(A);

impl Wiping {
    /// Over mimalloc.
    pub const fn new() -> Self {
        Self(MiMalloc)
    }
}

impl Default for Wiping {
    fn default() -> Self {
        Self::new()
    }
}

// SAFETY: every block comes from `A` and goes back to `A` with the layout that it was
// asked for with. `realloc` is left to the trait, which allocates, copies and frees
// through the methods here: `A`'s own would free the old block with its contents.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Wiping<A> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract, which is `A`'s too.
        unsafe { self.0.alloc(layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller gives a block of this layout that nobody uses any more: it
        // may be written to, and then holds bytes that may be read. The barrier reads
        // them as far as the compiler knows, so it cannot leave the writing out.
        unsafe {
            block.write_bytes(0, layout.size());
            optimization_barrier(slice::from_raw_parts(block, layout.size()));
            self.0.dealloc(block, layout);
        }
    }
}

/// Has glibc overwrite blocks that C code frees, which is how PKCS#11 modules allocate.
/// Returns whether it does: other C libraries cannot.
///
/// Measured with glibc 2.36: it leaves out blocks of up to 1,032 bytes that it keeps for
/// the same thread's next requests, and of others up to eight bytes at the end; SECURITY.md
/// tells what narrows that gap. To be called before there are threads.
pub fn overwrite_what_c_frees() -> bool {
    #[cfg(target_env = "gnu")]
    {
        /// Any pattern will do but zero, which turns it off.
        const PATTERN: libc::c_int = 0xAA;
        // SAFETY: the call takes two numbers, and sets a variable of glibc's.
        unsafe { libc::mallopt(libc::M_PERTURB, PATTERN) == 1 }
    }
    #[cfg(not(target_env = "gnu"))]
    false
}

/// Keeps the kernel from giving the allocator 2 MiB where it touches 4 KiB: an idle
/// sidecar then takes 16 MB instead of 27. mimalloc asks for them on its own, before `main`,
/// unless it is built with `no_thp`, as ours is; this is for a kernel that gives them
/// unasked. Best effort; memory that is there already stays as it is.
pub fn use_small_pages() {
    #[cfg(target_os = "linux")]
    // SAFETY: the call takes numbers, and sets a flag of this process.
    unsafe {
        libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        alloc::System,
        sync::{
            Mutex,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use super::*;

    /// Notes what the blocks that it gets back hold.
    #[derive(Default)]
    struct Recorder {
        freed: Mutex<Vec<Vec<u8>>>,
        zeroed: AtomicUsize,
    }

    // SAFETY: every call goes on to the system's allocator as it came.
    unsafe impl GlobalAlloc for Recorder {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            // SAFETY: the caller keeps the contract.
            unsafe { System.alloc(layout) }
        }

        unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
            self.zeroed.fetch_add(1, Ordering::Relaxed);
            // SAFETY: the caller keeps the contract.
            unsafe { System.alloc_zeroed(layout) }
        }

        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            // SAFETY: the block is still there, and the tests wrote to all of it.
            let bytes = unsafe { slice::from_raw_parts(block, layout.size()) };
            self.freed.lock().unwrap().push(bytes.to_vec());
            // SAFETY: the caller keeps the contract.
            unsafe { System.dealloc(block, layout) }
        }
    }

    impl Recorder {
        fn take(&self) -> Vec<Vec<u8>> {
            std::mem::take(&mut self.freed.lock().unwrap())
        }
    }

    /// A block full of 7.
    fn block<A: GlobalAlloc>(allocator: &Wiping<A>, layout: Layout) -> *mut u8 {
        // SAFETY: the tests ask for no empty layout; the block is written within it.
        unsafe {
            let block = allocator.alloc(layout);
            assert!(!block.is_null());
            block.write_bytes(7, layout.size());
            block
        }
    }

    #[test]
    fn a_block_is_zero_when_it_is_given_back() {
        let allocator = Wiping(Recorder::default());
        for size in [1, 7, 32, 255, 4096, 100_000] {
            for align in [1, 16, 4096] {
                let layout = Layout::from_size_align(size, align).unwrap();
                let block = block(&allocator, layout);
                // SAFETY: of this allocator and layout, and not used again.
                unsafe { allocator.dealloc(block, layout) };
                assert_eq!(allocator.0.take(), [vec![0; size]]);
            }
        }
    }

    #[test]
    fn a_block_that_grows_or_shrinks_leaves_no_copy() {
        let allocator = Wiping(Recorder::default());
        let layout = Layout::array::<u8>(100).unwrap();
        for size in [1, 99, 100, 101, 5000] {
            let old = block(&allocator, layout);
            // SAFETY: of this allocator and layout; the old block is not used again, and
            // the new one is used within its size.
            unsafe {
                let new = allocator.realloc(old, layout, size);
                assert_eq!(slice::from_raw_parts(new, size.min(100)), vec![7; size.min(100)]);
                assert_eq!(allocator.0.take(), [[0; 100]], "the old block");
                new.write_bytes(7, size);
                allocator.dealloc(new, Layout::array::<u8>(size).unwrap());
            }
            assert_eq!(allocator.0.take(), [vec![0; size]]);
        }
    }

    #[test]
    fn zeroed_memory_is_the_inner_allocators() {
        let allocator = Wiping(Recorder::default());
        let layout = Layout::array::<u8>(64).unwrap();
        // SAFETY: the layout is not empty; the block is used within it and given back.
        unsafe {
            let block = allocator.alloc_zeroed(layout);
            assert_eq!(slice::from_raw_parts(block, 64), [0; 64]);
            allocator.dealloc(block, layout);
        }
        assert_eq!(allocator.0.zeroed.load(Ordering::Relaxed), 1);
    }

    #[cfg(target_env = "gnu")]
    #[test]
    fn glibc_overwrites_what_c_code_frees() {
        use std::{fs::File, os::unix::fs::FileExt};

        const SIZE: usize = 4000;
        let memory = File::open("/proc/self/mem").unwrap();
        assert!(overwrite_what_c_frees());
        let mut seen = vec![0; SIZE];
        // SAFETY: the block is written within its size before it is freed. What stands
        // behind it keeps it from going back to the kernel; after that only the kernel
        // reads the address.
        let address = unsafe {
            let block = libc::malloc(SIZE).cast::<u8>();
            let behind = libc::malloc(SIZE);
            assert!(!block.is_null() && !behind.is_null());
            block.write_bytes(7, SIZE);
            memory.read_exact_at(&mut seen, block as u64).unwrap();
            assert_eq!(seen, [7; SIZE], "the test cannot see what is there");
            let address = block as u64;
            libc::free(block.cast());
            memory.read_exact_at(&mut seen, address).unwrap();
            libc::free(behind);
            address
        };
        assert_eq!(seen.iter().filter(|byte| **byte == 7).count(), 0, "at {address:#x}");
    }

    #[test]
    fn over_mimalloc_it_serves_all_sizes() {
        let allocator = Wiping::default();
        for size in [1, 32, 1000, 1 << 20] {
            let layout = Layout::from_size_align(size, 64).unwrap();
            let block = block(&allocator, layout);
            assert_eq!(block.align_offset(64), 0);
            // SAFETY: of this allocator and layout, and not used again.
            unsafe { allocator.dealloc(block, layout) };
        }
    }
}
