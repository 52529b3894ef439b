#!/usr/bin/env bash
#
# demo.sh [--dir DIR]: Keyward from nothing, told step by step. Installs what is
# missing, builds, makes a SoftHSM token in DIR (target/softhsm) with an RSA key that
# cannot leave it, starts the sidecar, and wraps and unwraps a key through it.
#
# Refuses: to go on after any step that did not do what its line says.
# Invariants: the plaintext key lives only in a private directory, in memory where
# the system has /dev/shm, and is gone at the end however the demo ends; so is the
# sidecar. The token stays, for the next run: `make clean-softhsm` removes it.
set -euo pipefail
umask 077
here=$PWD
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

dir=target/softhsm
while [ "$#" -gt 0 ]; do
    case $1 in
    -h | --help) usage && exit ;;
    --dir)
        [ -n "${2-}" ] || usage_error "$1 needs a value"
        dir=$(cd "$here" && realpath -m -- "$2")
        shift 2
        ;;
    *) usage_error "unknown argument: $1" ;;
    esac
done
kek=orders-db

# --- clean up, whatever happens -------------------------------------------------

memory=/dev/shm
[ -d "$memory" ] && [ -w "$memory" ] || memory=${TMPDIR:-/tmp}
work=$(mktemp -d -p "$memory" keyward-demo.XXXXXX)
sidecar=""

running() { [ -n "$sidecar" ] && kill -0 "$sidecar" 2>/dev/null; }
clean_up() {
    if running; then
        kill -TERM "$sidecar" || true
        for _ in {1..50}; do
            running || break
            sleep 0.1
        done
        kill -KILL "$sidecar" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# --- how the story is told ---------------------------------------------------------

started=$EPOCHREALTIME
now=$started
# seconds FROM: since then, as 0.012.
seconds() {
    local to=$EPOCHREALTIME
    local micro=$((${to/./} - ${1/./}))
    printf '%d.%03d' $((micro / 1000000)) $((micro / 1000 % 1000))
}
begin() { now=$EPOCHREALTIME; }
# told NAME TEXT: one step's line, with the time since `begin`.
told() { printf '%9s s  %-8s %s\n' "$(seconds "$now")" "$1" "$2"; }
more() { sed 's/^/                      /'; }
hex() { od -An -v -tx1 -w24 "$1"; }
sidecar_failed() {
    say "--- the sidecar's last words"
    tail -n 20 "$work/sidecar.log" >&2 || true
    say "---"
    fail "$@"
}

printf 'Keyward: wrap and unwrap a key with an RSA key that never leaves its HSM.\n\n'

# --- the story -------------------------------------------------------------------

begin
need_rust
need_commands softhsm2-util:softhsm2 pkcs11-tool:opensc
told needs "$(cargo --version | cut -d ' ' -f 1,2), $(cc --version | head -n 1), SoftHSM $(softhsm2-util --version), OpenSC"

# The dev profile: a release build is optimised as a whole and takes several times
# as long. The cryptography is optimised in both.
begin
cargo build --locked --bin keyward || fail "Keyward could not be built" "cargo build failed, see above"
keyward="$target_dir/debug/keyward"
told build "$("$keyward" --version) (dev profile: the shorter wait)"

begin
softhsm/setup.sh --dir "$dir" --kek "$kek" --keyward "$keyward" 2>"$work/setup.log" || {
    cat "$work/setup.log" >&2
    exit 1
}
told hsm "SoftHSM token in $dir, with KEK $kek"
more <"$work/setup.log"
dir=$(realpath -- "$dir")
socket="$dir/keyward.sock"
export SOFTHSM2_CONF="$dir/softhsm2.conf"

begin
"$keyward" serve --config "$dir/keyward.toml" >"$work/sidecar.log" 2>&1 </dev/null &
sidecar=$!
ready=no
for _ in {1..300}; do
    if "$keyward" kek show --json --socket "$socket" "$kek" >"$work/kek" 2>"$work/kek.error" &&
        grep -q '"usable":true' "$work/kek"; then
        ready=yes
        break
    fi
    running || break
    sleep 0.1
done
if ! running; then sidecar_failed "the sidecar ended at once" "its words stand above"; fi
if [ "$ready" = no ]; then
    cat "$work/kek.error" >&2
    sidecar_failed "the sidecar did not get ready in 30 s" "its words stand above"
fi
told serve "the sidecar listens on a Unix socket; the HSM proved $kek"

head -c 32 /dev/urandom >"$work/dek"

begin
"$keyward" wrap --socket "$socket" --kek "$kek" <"$work/dek" >"$work/wrapped"
told wrap "a data key of $(wc -c <"$work/dek") bytes became $(wc -c <"$work/wrapped") bytes that are no secret:"
hex "$work/wrapped" | sed '4,$d' | more
printf '...\n' | more

begin
"$keyward" unwrap --socket "$socket" <"$work/wrapped" >"$work/dek2"
cmp -s "$work/dek" "$work/dek2" || fail "the unwrapped key is not the original" "wrap or unwrap is broken" "please report this"
told unwrap "the HSM's private key gave it back: equal to the original, byte for byte"

begin
"$keyward" key show --config "$dir/keyward.toml" --backend hsm "$kek" >"$work/key"
told key "what Keyward says of the KEK:"
more <"$work/key"

begin
PIN=$(<"$dir/pin") pkcs11-tool --module "$(softhsm_module)" --token-label keyward --login --pin env:PIN \
    --list-objects --type privkey --label "$kek" >"$work/witness" 2>"$work/witness.error" || {
    cat "$work/witness.error" >&2
    fail "pkcs11-tool could not read the token" "its words stand above"
}
told witness "what pkcs11-tool, of OpenSC, says of it:"
grep -vE '^ +(URI|uri):' "$work/witness" | sed 's/ *$//' | more
grep -qE 'Access: +sensitive, always sensitive, never extractable, local' "$work/witness" ||
    fail "the private key is not kept as it should be" "it must be sensitive, never extractable and made in the token"

begin
kill -TERM "$sidecar"
status=0
wait "$sidecar" || status=$?
[ "$status" -eq 0 ] || sidecar_failed "the sidecar did not stop cleanly" "SIGTERM ended it with exit code $status instead of 0"
sidecar=""
told stop "SIGTERM: drained, exit code 0"

printf '%9s s  in all\n\n' "$(seconds "$started")"
# %q: what is printed can be pasted, whatever the path.
printf 'Go on:   SOFTHSM2_CONF=%q %q serve --config %q\n' "$SOFTHSM2_CONF" "$keyward" "$dir/keyward.toml"
printf 'Tidy up: softhsm/remove.sh --dir %q\n' "$dir"
