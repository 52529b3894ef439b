//! Wipes what a finished piece of work left on its thread: the stack below the caller
//! and the vector registers, which `memcpy` and ciphers carry secrets through.
//!
//! A thread that waits keeps both as they were, for as long as it waits, and a core dump
//! or a debugger shows them. It knows nothing of what ran before.
//!
//! What a caller still has in its own frame stays: call it where the work was done by
//! functions that have returned. General registers are not wiped; the code of any
//! wait overwrites them. On processors other than x86-64 and AArch64 only the stack is
//! wiped.

#![allow(unsafe_code)]

use zeroize::zeroize_stack;

/// How much of the stack below the caller is wiped, in bytes. Deeper than the encoders,
/// ciphers and copies that handle a DEK go.
const STACK_BYTES: usize = 16 * 1024;

/// Wipes 16 KiB of the stack below the caller, and the vector registers.
#[inline(never)]
pub fn scrub() {
    zeroize_stack::<STACK_BYTES>();
    wipe_vector_registers();
}

/// In all of these, every register that is written is declared as such, so the compiler
/// keeps nothing in it across.
#[cfg(target_arch = "x86_64")]
fn wipe_vector_registers() {
    use std::arch::{asm, is_x86_feature_detected};

    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has these instructions. They write vector registers
        // only, all of which a call may change under this ABI (`clobber_abi`).
        unsafe {
            asm!(
                // Zeroes the first sixteen in their full width.
                "vzeroall",
                ".irp n, 16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
                "vpxord zmm\\n, zmm\\n, zmm\\n",
                ".endr",
                clobber_abi("sysv64"),
                options(nomem, nostack, preserves_flags),
            );
        }
    } else if is_x86_feature_detected!("avx") {
        // SAFETY: as above.
        unsafe {
            asm!("vzeroall", clobber_abi("sysv64"), options(nomem, nostack, preserves_flags));
        }
    } else {
        // SAFETY: as above; every x86-64 has these.
        unsafe {
            asm!(
                ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
                "pxor xmm\\n, xmm\\n",
                ".endr",
                clobber_abi("sysv64"),
                options(nomem, nostack, preserves_flags),
            );
        }
    }
}

/// The low halves of v8 to v15 belong to callers: the compiler saves them and gives
/// them back, so what those hold there stays.
#[cfg(target_arch = "aarch64")]
fn wipe_vector_registers() {
    // SAFETY: every AArch64 that Linux runs on has these instructions. They write vector
    // registers only, all of which are declared.
    unsafe {
        std::arch::asm!(
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
            "movi v\\n\\().2d, #0",
            ".endr",
            ".irp n, 16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
            "movi v\\n\\().2d, #0",
            ".endr",
            out("v8") _, out("v9") _, out("v10") _, out("v11") _,
            out("v12") _, out("v13") _, out("v14") _, out("v15") _,
            clobber_abi("C"),
            options(nomem, nostack, preserves_flags),
        );
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn wipe_vector_registers() {}

#[cfg(test)]
mod tests {
    use std::{fs::File, hint::black_box, os::unix::fs::FileExt};

    use super::*;

    const PATTERN: u8 = 0xA5;

    /// Fills a frame of its own and returns where it was.
    #[inline(never)]
    fn leave_a_pattern() -> u64 {
        let frame = [PATTERN; STACK_BYTES / 2];
        black_box(&frame).as_ptr() as u64
    }

    /// How many words of the pattern stand there. It asks the kernel, because no
    /// reference may point to a frame that is gone. The reading itself overwrites a few
    /// with addresses, any byte of which may happen to be the pattern's: a whole word of
    /// it is none.
    #[inline(never)]
    fn count(memory: &File, address: u64) -> usize {
        let mut seen = vec![0; STACK_BYTES / 2];
        memory.read_exact_at(&mut seen, address).unwrap();
        let words = seen.as_chunks::<8>().0;
        words.iter().filter(|word| **word == [PATTERN; 8]).count()
    }

    #[test]
    fn the_stack_below_the_caller_is_wiped() {
        let memory = File::open("/proc/self/mem").unwrap();
        let address = leave_a_pattern();
        assert!(count(&memory, address) > STACK_BYTES / 32, "the test cannot see what is left");
        let address = leave_a_pattern();
        scrub();
        assert_eq!(count(&memory, address), 0);
    }

    #[cfg(target_arch = "x86_64")]
    mod registers {
        use std::arch::{asm, is_x86_feature_detected};

        use super::{super::scrub, PATTERN};

        extern "C" fn nothing() {}
        extern "C" fn scrub_from_c() {
            scrub();
        }

        /// Fills the vector registers in their full width, calls `between`, and returns
        /// how many bytes of the pattern they hold then. In one block, so that the
        /// compiler does nothing in between.
        macro_rules! pattern_after {
            ($between:expr, $move:literal, $register:literal, $numbers:literal) => {{
                let pattern = [PATTERN; 64];
                let mut seen = [0_u8; 32 * 64];
                // SAFETY: the caller knows that the processor has the instruction. It
                // reads at most 64 bytes of `pattern` and writes at most 64 bytes for
                // each of at most 32 registers into `seen`. The pointers stand in
                // registers that the called function preserves; what it and the block
                // change is declared.
                unsafe {
                    asm!(
                        concat!(".irp n, ", $numbers),
                        concat!($move, " ", $register, "\\n, [r12]"),
                        ".endr",
                        "call r14",
                        concat!(".irp n, ", $numbers),
                        concat!($move, " [r13 + 64 * \\n], ", $register, "\\n"),
                        ".endr",
                        in("r12") pattern.as_ptr(),
                        in("r13") seen.as_mut_ptr(),
                        in("r14") $between as extern "C" fn(),
                        clobber_abi("sysv64"),
                    );
                }
                seen.iter().filter(|byte| **byte == PATTERN).count()
            }};
        }

        #[test]
        fn no_vector_register_keeps_anything() {
            macro_rules! check {
                ($width:literal, $($how:literal),*) => {{
                    let left = pattern_after!(nothing, $($how),*);
                    assert_eq!(left, $width * 16, "the test cannot see what is left");
                    assert_eq!(pattern_after!(scrub_from_c, $($how),*), 0);
                }};
            }
            check!(16, "movdqu", "xmm", "0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15");
            if is_x86_feature_detected!("avx") {
                check!(32, "vmovdqu", "ymm", "0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15");
            }
            if is_x86_feature_detected!("avx512f") {
                check!(64, "vmovdqu64", "zmm", "0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15");
                check!(64, "vmovdqu64", "zmm", "16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31");
            }
        }
    }
}
