#!/usr/bin/env bash
#
# test-interop.sh: runs Azure's own SDKs for Python and JavaScript against the fake vault
# of the tests, and against a sidecar whose KEKs are in it: what they wrap the vault and
# Keyward unwrap, and back. Fetches them from their registries.
#
# Refuses: to skip. What cannot be had is an error, and so is a check that does not run.
# Invariants: the SDKs go to target/tools; the fake ends with this script, whatever
# happens, because it ends with its standard input, and each sidecar with its step.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

if [ "$#" -gt 0 ]; then
    case $1 in -h | --help) usage && exit ;; *) usage_error "unknown argument: $1" ;; esac
fi

need_rust
need_commands node:nodejs npm:npm
node_version=$(node --version)
[ "$(printf '%s\nv20\n' "$node_version" | sort -V | head -n 1)" = v20 ] ||
    fail "Node is too old" "node is $node_version, Azure's SDK needs v20" "install a newer one, on PATH"
python3 -c 'import ensurepip, venv' 2>/dev/null || need_packages python3 python3-venv

here=tests/interop/azure
venv="$tools/azure-python"
modules="$tools/azure-js"

# The stamps are written last: what is there without its stamp is made anew.
python_sdk() {
    local wanted=$here/requirements.txt
    cmp -s "$wanted" "$venv/requirements.txt" && return 0
    say "fetching Azure's SDK for Python"
    rm -rf "$venv"
    python3 -m venv "$venv" >&2
    "$venv/bin/python" -m pip install --quiet --no-input --disable-pip-version-check --only-binary :all: \
        --requirement "$wanted" >&2 ||
        fail "Azure's SDK for Python could not be installed" "pip failed, see above" "mend that; $wanted names it"
    cp "$wanted" "$venv/requirements.txt"
}

js_sdk() {
    local wanted=$here/package.json
    cmp -s "$wanted" "$modules/stamp.json" && return 0
    say "fetching Azure's SDK for JavaScript"
    rm -rf "$modules"
    mkdir -p "$modules"
    cp "$wanted" "$modules/package.json"
    npm install --prefix "$modules" --silent --no-audit --no-fund --no-package-lock --ignore-scripts >&2 ||
        fail "Azure's SDK for JavaScript could not be installed" "npm failed, see above" "mend that; $wanted names it"
    cp "$wanted" "$modules/stamp.json"
}

# against KIND: starts a fake and runs both SDKs against it, and both together with
# Keyward, as four steps.
against() {
    local kind=$1 line options=(--kind "$1" --unthrottled)
    [ "$kind" = managed-hsm ] || options+=(--access-policies)
    local -A told=()
    coproc FAKE { exec "$target_dir/debug/examples/keyward-fake-vault" "${options[@]}"; }
    while IFS= read -r line <&"${FAKE[0]}"; do
        case $line in
            FAKE_*=*) told[${line%%=*}]=${line#*=} ;;
            '# ready'*) break ;;
        esac
    done
    [ -n "${told[FAKE_URL]-}" ] || fail "the fake $kind did not start" "see above" \
        "run: cargo run --example keyward-fake-vault -- ${options[*]}"
    local variables=("KIND=$kind" "KEYWARD=$target_dir/debug/keyward" PYTHONDONTWRITEBYTECODE=1) name
    for name in "${!told[@]}"; do variables+=("$name=${told[$name]}"); done
    variables+=("NODE_EXTRA_CA_CERTS=${told[FAKE_CA]}" "NODE_PATH=$modules/node_modules")
    local python="$venv/bin/python" beside="$here/sidecar.py"
    step "the Python SDK and the fake $kind" env "${variables[@]}" "$python" $here/check.py
    step "the JavaScript SDK and the fake $kind" env "${variables[@]}" node $here/check.js
    step "the Python SDK and Keyward on the fake $kind" env "${variables[@]}" \
        "$python" $beside "$python" $here/keyward.py
    step "the JavaScript SDK and Keyward on the fake $kind" env "${variables[@]}" \
        "$python" $beside node $here/keyward.js
    local input=${FAKE[1]} process=$FAKE_PID
    exec {input}>&-
    wait "$process"
}

python_sdk
js_sdk
cargo build --locked --bin keyward --example keyward-fake-vault
against premium
against managed-hsm
judge "make test-interop"
