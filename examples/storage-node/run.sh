#!/usr/bin/env bash
#
# run.sh [--bench [--segments N]]: the life of the storage node beside this file, from nothing.
# Builds it and Keyward, makes a SoftHSM token with a key in a directory that it removes again,
# starts a sidecar, and lets the node tell its life; or measures it.
#
# Refuses: to go on after any step that failed.
# Invariants: nothing is left behind, however it ends. A bench is built for speed.
set -euo pipefail
umask 077
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib.sh"

profile=dev
folder=debug
size=3072
node=()
while [ "$#" -gt 0 ]; do
    case $1 in
    -h | --help) usage && exit ;;
    --bench)
        profile=release
        folder=release
        size=2048
        node+=("$1")
        ;;
    --segments)
        [ -n "${2-}" ] || usage_error "$1 needs a value"
        node+=("$1" "$2")
        shift
        ;;
    *) usage_error "unknown argument: $1" ;;
    esac
    shift
done

work=$(mktemp -d)
sidecar=""
clean_up() {
    [ -z "$sidecar" ] || kill -TERM "$sidecar" 2>/dev/null || true
    wait
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

need_rust
need_commands softhsm2-util:softhsm2
cargo build --locked --profile "$profile" --bin keyward --example storage-node ||
    fail "the storage node could not be built" "cargo build failed, see above"
keyward="$target_dir/$folder/keyward"
softhsm/setup.sh --dir "$work/hsm" --kek first --keyward "$keyward" 2>"$work/setup.log" || {
    cat "$work/setup.log" >&2
    exit 1
}
export SOFTHSM2_CONF="$work/hsm/softhsm2.conf"
config="$work/hsm/keyward.toml"
kek=customer
"$keyward" key create --config "$config" --backend hsm --type rsa --size "$size" "$kek" >"$work/key"
# What is revoked stays so over a restart; and we are the operator.
mkdir "$work/state"
sed -i "s|^\[server\]|[server]\nstate = \"$work/state\"|" "$config"
cat >>"$config" <<TOML

[[kek]]
name = "$kek"
backend = "hsm"
algorithm = "RSA-OAEP"

[[policy]]
who = ["uid:$(id -u)"]
may = ["purge", "revoke", "restore", "reload"]
kek = ["*"]
TOML

"$keyward" serve --config "$config" >"$work/sidecar.log" 2>&1 </dev/null &
sidecar=$!
socket="$work/hsm/keyward.sock"
for _ in {1..300}; do
    "$keyward" kek show --json --socket "$socket" "$kek" 2>/dev/null | grep -q '"usable":true' && break
    kill -0 "$sidecar" 2>/dev/null || {
        cat "$work/sidecar.log" >&2
        fail "the sidecar ended" "its words stand above"
    }
    sleep 0.1
done

"$target_dir/$folder/examples/storage-node" "${node[@]}" \
    --socket "$socket" --kek "$kek" --keyward "$keyward" --config "$config" || {
    tail -n 20 "$work/sidecar.log" >&2
    fail "the storage node failed" "its words stand above, and the sidecar's last ones"
}
