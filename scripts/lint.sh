#!/usr/bin/env bash
#
# lint.sh: format, clippy, documentation, dependencies and shell scripts; every
# warning is an error.
#
# Refuses: to leave a check out. One exception, which it tells: the advisories
# cannot be checked where their database, a git repository, cannot be fetched.
# Invariants: changes no file of the repository; steps go on after a failure, and
# the run fails at the end.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

if [ "$#" -gt 0 ]; then
    case $1 in -h | --help) usage && exit ;; *) usage_error "unknown argument: $1" ;; esac
fi

need_rust
for component in fmt:rustfmt clippy:clippy; do
    cargo "${component%%:*}" --version >/dev/null 2>&1 ||
        fail "cargo ${component%%:*} is missing" "Rust was installed without it" "rustup component add ${component#*:}"
done
need_commands shellcheck:shellcheck
need_cargo_tool deny '^0.20'

format() {
    cargo fmt --check || return
    [ ! -e fuzz/Cargo.toml ] || cargo fmt --check --manifest-path fuzz/Cargo.toml
}
documentation() { RUSTDOCFLAGS="-D warnings" cargo doc --locked --all-features --no-deps; }
# -D warnings: an exception in deny.toml that no longer applies must go.
deny() { cargo deny --locked check -D warnings --hide-inclusion-graph "$@"; }
advisories() {
    # Quick to say no where there is no way out; never to hang.
    if timeout 120 cargo deny fetch db 2>"$work/fetch"; then
        cargo deny --locked check --hide-inclusion-graph advisories
    else
        tail -n 5 "$work/fetch"
        not_checked="the advisories were NOT checked: their database could not be fetched from here"
    fi
}
shell_scripts() {
    find . \( -name target -o -name .git \) -prune -o \( -name '*.sh' -o -path ./.ci/run \) -print0 |
        xargs -0 shellcheck --external-sources
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
not_checked=""

step "format" format
step "clippy" cargo clippy --locked --all-targets --all-features -- -D warnings
# Tests want the server; what a storage node links is the library.
step "clippy of the client alone" cargo clippy --locked --lib --no-default-features --features client -- -D warnings
step "documentation" documentation
step "dependencies" deny bans licenses sources
step "advisories" advisories
step "shell scripts" shell_scripts
[ -z "$not_checked" ] || { say "" && say "note: $not_checked"; }
judge "make lint"
