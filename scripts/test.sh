#!/usr/bin/env bash
#
# test.sh [NEXTEST ARGUMENT...]: installs what the tests need and runs every one of
# them; with arguments, only those that `cargo nextest run` picks by them.
#
# Refuses: to skip. A dependency that is missing or does not work fails the run.
# Invariants: steps go on after a failure, and the run fails at the end; nextest
# comes last, so that its summary stands last.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

case ${1-} in -h | --help) usage && exit ;; esac

scripts/install-test-deps.sh
# What tests find their tools by. Each must be set: a test that misses one panics.
KEYWARD_TEST_SOFTHSM=$(softhsm_module)
KEYWARD_TEST_KRYOPTIC=$(scripts/kryoptic.sh)
KEYWARD_TEST_PYTHON="$tools/venv/bin/python"
export KEYWARD_TEST_SOFTHSM KEYWARD_TEST_KRYOPTIC KEYWARD_TEST_PYTHON

# Some tests run examples, which are no dependencies of theirs for cargo.
examples() { cargo build --locked --all-features --examples; }
nextest() { cargo nextest run --locked --all-features "$@"; }
if [ "$#" -gt 0 ]; then
    examples
    nextest "$@"
    exit
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Go is compiled where it is, or Debian has it; elsewhere that is told.
not_compiled=""
go_example() {
    local status=0
    examples/go/build.sh "$work/keyward-go" || status=$?
    [ "$status" -ne 3 ] || not_compiled="the example in Go was NOT compiled: there is no Go for this system"
    [ "$status" -eq 0 ] || [ "$status" -eq 3 ]
}

step "the client builds alone" cargo build --locked --no-default-features --features client
step "keyward builds" cargo build --locked --bin keyward
step "the SoftHSM scripts" softhsm/test.sh "$target_dir/debug/keyward"
step "the demo" scripts/demo.sh --dir "$work/softhsm"
step "the examples" examples
step "the storage node's life" examples/storage-node/run.sh
step "the example in Go" go_example
step "the examples in the documentation" cargo test --doc --locked --all-features
step "secret memory under valgrind" scripts/memcheck.sh
step "the tests" nextest
[ -z "$not_compiled" ] || { say "" && say "note: $not_compiled"; }
judge "make test"
