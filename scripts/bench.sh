#!/usr/bin/env bash
#
# bench.sh [NAME...] [-- CRITERION ARGUMENT...]: runs the benches of those names, or
# every bench in benches/.
#
# Refuses: an unknown name; nothing is measured then.
# Invariants: only criterion's benches run, so that its arguments reach nothing else;
# results stay in target/criterion, where the next run compares with them.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

names=()
while [ "$#" -gt 0 ]; do
    case $1 in
    -h | --help) usage && exit ;;
    --) shift && break ;;
    *) names+=("$1") && shift ;;
    esac
done

# Cargo's own rule for what a bench is called.
known=()
for file in benches/*.rs benches/*/main.rs; do
    [ -e "$file" ] || continue
    name=${file#benches/}
    name=${name%/main.rs}
    known+=("${name%.rs}")
done
[ "${#known[@]}" -gt 0 ] || fail "there is no bench" "benches/ has no .rs file"
for name in "${names[@]}"; do
    [[ " ${known[*]} " == *" $name "* ]] || usage_error "no bench is called $name; there are: ${known[*]}"
done
[ "${#names[@]}" -gt 0 ] || names=("${known[@]}")

need_rust
need_packages softhsm2 opensc
KEYWARD_TEST_SOFTHSM=$(softhsm_module)
export KEYWARD_TEST_SOFTHSM

cargo bench --locked --all-features "${names[@]/#/--bench=}" -- "$@"
