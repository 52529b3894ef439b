#!/usr/bin/env bash
#
# fuzz.sh [TARGET...]: fuzzes the targets of those names, or every one in
# fuzz/fuzz_targets, for FUZZ_SECONDS (60) each.
#
# Refuses: an unknown target, and to pass if any target found a crash.
# Invariants: what is learnt stays in fuzz/corpus, what crashed in fuzz/artifacts;
# seeds in fuzz/seeds/TARGET are only read; every target gets its turn.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

case ${1-} in -h | --help) usage && exit ;; esac
seconds=${FUZZ_SECONDS:-60}
[[ $seconds =~ ^[1-9][0-9]*$ ]] || usage_error "FUZZ_SECONDS is a number of seconds, not '$seconds'"

known=()
for file in fuzz/fuzz_targets/*.rs; do
    [ -e "$file" ] || continue
    name=${file##*/}
    known+=("${name%.rs}")
done
[ "${#known[@]}" -gt 0 ] || fail "there is nothing to fuzz" "fuzz/fuzz_targets has no .rs file"
for name in "$@"; do
    [[ " ${known[*]} " == *" $name "* ]] || usage_error "no target is called $name; there are: ${known[*]}"
done
[ "$#" -gt 0 ] || set -- "${known[@]}"

need_rust
need_commands c++:g++
need_cargo_tool fuzz '^0.13'

# Sanitizers are unstable flags of rustc; this lets the stable toolchain take them,
# so that fuzzing needs no second one.
export RUSTC_BOOTSTRAP=1
fuzz() {
    mkdir -p "fuzz/corpus/$1"
    local corpus=("fuzz/corpus/$1")
    # New inputs go to the first directory.
    [ ! -d "fuzz/seeds/$1" ] || corpus+=("fuzz/seeds/$1")
    cargo fuzz run "$1" "${corpus[@]}" -- -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048
}
for target in "$@"; do step "$target" fuzz "$target"; done
judge "make fuzz"
