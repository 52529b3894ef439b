#!/usr/bin/env bash
#
# docs.sh: builds the documentation of the crate and says where it is.
#
# Refuses: a broken link.
# Invariants: of our crate only; what it depends on is documented by its authors.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

if [ "$#" -gt 0 ]; then
    case $1 in -h | --help) usage && exit ;; *) usage_error "unknown argument: $1" ;; esac
fi

need_rust
RUSTDOCFLAGS="-D warnings" cargo doc --locked --all-features --no-deps
say "open $target_dir/doc/keyward/index.html"
