#!/usr/bin/env bash
#
# install-test-deps.sh: everything that `make test` needs and the machine lacks:
# Debian packages, cargo-nextest, the software token kryoptic, and a Python with
# grpcio for the example client.
#
# Refuses: to leave anything out; what cannot be had is an error, so that no test
# ever has a reason to skip itself.
# Invariants: a second run changes nothing; whatever is not a Debian package goes to
# target/tools, and appears there whole.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

if [ "$#" -gt 0 ]; then
    case $1 in -h | --help) usage && exit ;; *) usage_error "unknown argument: $1" ;; esac
fi

need_rust
# Tokens and their tools; OpenSSL as the interop witness; procps for pgrep; gdb for its
# gcore; what kryoptic builds with.
need_packages softhsm2 opensc p11-kit p11-kit-modules openssl procps gdb \
    clang libclang-dev libssl-dev libsqlite3-dev pkg-config
need_cargo_tool nextest '^0.9.100'
scripts/kryoptic.sh >/dev/null

# python3 may come from anywhere; Debian's lacks venv unless python3-venv is there.
python3 -c 'import ensurepip, venv' 2>/dev/null || need_packages python3 python3-venv
requirements=examples/python/requirements.txt
venv="$tools/venv"
# The stamp is written last: a venv without it, or for other requirements, is made anew.
if ! cmp -s "$requirements" "$venv/requirements.txt"; then
    say "making a Python environment in $venv"
    rm -rf "$venv"
    python3 -m venv "$venv" >&2
    # No source packages: grpcio would compile for an hour, or fail in the middle.
    "$venv/bin/python" -m pip install --quiet --no-input --disable-pip-version-check --only-binary :all: \
        --requirement "$requirements" >&2 ||
        fail "Python packages could not be installed" "pip failed, see above" "mend that; $requirements lists them"
    cp "$requirements" "$venv/requirements.txt.new"
    mv "$venv/requirements.txt.new" "$venv/requirements.txt"
fi
