#!/usr/bin/env bash
#
# memcheck.sh: runs the unit tests of the secret memory and of the wiping allocator
# under valgrind, which fails them for a byte read or written outside its block, after
# it was freed, or before it was set.
#
# Refuses: to pass if valgrind found anything, or if no test ran.
# Invariants: valgrind knows no memfd_secret, so it is the locked memory that is tested
# here; the kernel has its own tests of the other.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

if [ "$#" -gt 0 ]; then
    case $1 in -h | --help) usage && exit ;; *) usage_error "unknown argument: $1" ;; esac
fi

need_rust
# libc6-dbg: valgrind must know the C library's functions by name to replace them.
need_packages valgrind libc6-dbg

# Left out: children that die of a fault by design, which valgrind counts as an error;
# what relies on mlock2, which it lacks, so that all memory is touched at once; what looks
# at the stack and the registers, where valgrind keeps things of its own; and what glibc
# does with freed memory, because valgrind puts its own malloc in the place of glibc's.
left_out=(
    secret::region::tests::faults_
    secret::region::tests::memory_that_nobody_wrote
    secret::scrub::
    alloc::tests::glibc_overwrites_
)
skips=()
for name in "${left_out[@]}"; do skips+=(--skip "$name"); done

# The test binary, as cargo names it.
binary=$(cargo test --locked --all-features --lib --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
[ -x "$binary" ] || fail "there is no test binary" "cargo named none" "run cargo test --no-run and look"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
# One thread: valgrind runs one at a time anyway, and its errors then stand in order.
valgrind --quiet --suppressions=scripts/memcheck.supp --error-exitcode=99 --leak-check=no --trace-children=no \
    "$binary" secret:: alloc:: "${skips[@]}" --test-threads=1 2>&1 | tee "$log" >&2 ||
    fail "valgrind found errors, or a test failed under it" "see above" "mend that; the same binary runs without valgrind, too"
grep -q '^test result: ok\. [1-9]' "$log" || fail "no test ran under valgrind" "none matches secret:: or alloc::" "name them anew in $0"
