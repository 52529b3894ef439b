#!/usr/bin/env bash
#
# test.sh KEYWARD: tests setup.sh and remove.sh with the keyward program given.
# `make test` runs it.
#
# Refuses: to run without a program; it never falls back to another.
# Invariants: works in a temporary directory and leaves nothing behind.
set -euo pipefail
here=$PWD
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/lib.sh"

case ${1-} in
-h | --help) usage && exit ;;
'') usage_error "which keyward?" ;;
esac
keyward=$(cd "$here" && realpath -e -- "$1") || fail "no keyward at $1"

need_commands pkcs11-tool:opensc softhsm2-util:softhsm2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
dir="$work/a place/softhsm"

check() { # WHAT COMMAND...
    local what=$1
    shift
    "$@" >"$work/output" 2>&1 || { cat "$work/output" >&2; fail "$what" "failed: $*"; }
    say "  ok  $what"
}
refused() { # CODE WHAT COMMAND...: it must fail, with this exit code, and say what mends it
    local code=$1 what=$2 status=0
    shift 2
    "$@" >"$work/output" 2>&1 || status=$?
    if [ "$status" -ne "$code" ] || ! grep -q '^error: ' "$work/output" || ! grep -q '^fix: ' "$work/output"; then
        cat "$work/output" >&2
        fail "$what" "ended with $status instead of $code, or without error and fix: $*"
    fi
    say "  ok  $what"
}
absent() { ! grep -qF -e "$1" "$2"; }
# Every file's name, kind, mode, owner and content.
fingerprint() { (cd "$1" && find . -printf '%p %y %m %U\n' | sort && find . -type f -print0 | sort -z | xargs -0 sha256sum); }
setup() { softhsm/setup.sh --dir "$dir" --keyward "$keyward" "$@"; }

# A pkcs11-tool that notes its arguments and does its work.
mkdir "$work/bin"
printf '#!/usr/bin/env bash\nprintf "%%s\\n" "$@" >>"%s"\nexec "%s" "$@"\n' \
    "$work/arguments" "$(command -v pkcs11-tool)" >"$work/bin/pkcs11-tool"
chmod +x "$work/bin/pkcs11-tool"
PATH="$work/bin:$PATH"

refused 1 "a KEK that cannot be created is an error" softhsm/setup.sh --dir "$dir" --keyward "$(command -v false)"
check "a later run goes on, in a path with a space" setup
check "the directory is private" test "$(stat -c %a "$dir")" = 700
for secret in pin so-pin; do
    check "$secret is private" test "$(stat -c %a "$dir/$secret")" = 600
    check "$secret is on no command line" absent "$(<"$dir/$secret")" "$work/arguments"
done
check "the configuration is sound" env SOFTHSM2_CONF="$dir/softhsm2.conf" "$keyward" config check "$dir/keyward.toml"
witness() {
    PIN=$(<"$dir/pin") SOFTHSM2_CONF="$dir/softhsm2.conf" pkcs11-tool --module "$(softhsm_module)" \
        --token-label keyward --login --pin env:PIN --list-objects --type privkey
}
check "the token holds one private key, that cannot leave it" \
    test "$(witness 2>/dev/null | grep -cE 'Access: .*always sensitive, never extractable, local')" = 1
check "the KEK is usable by name" env SOFTHSM2_CONF="$dir/softhsm2.conf" "$keyward" key show \
    --config "$dir/keyward.toml" --backend hsm orders-db

before=$(fingerprint "$dir")
check "a second run succeeds" setup
check "a second run changes no byte" test "$(fingerprint "$dir")" = "$before"
check "nothing half-made stays beside it" test "$(ls -A "$work/a place")" = softhsm
refused 1 "another KEK is refused" setup --kek another
refused 1 "another token is refused" setup --token another
refused 1 "a program that is not there is refused" softhsm/setup.sh --dir "$work/other" --keyward "$work/nothing"
refused 2 "an unknown argument is refused" setup --size 1
refused 2 "a bad KEK name is refused" softhsm/setup.sh --dir "$work/other" --keyward "$keyward" --kek 'a/b'
refused 1 "a path too long for a socket is refused" \
    softhsm/setup.sh --dir "$work/$(printf 'long%.0s' {1..30})" --keyward "$keyward"
check "what was refused made nothing" test ! -e "$work/other"
check "what was refused changed no byte" test "$(fingerprint "$dir")" = "$before"

mkdir "$work/foreign"
: >"$work/foreign/file"
refused 1 "a directory of somebody else's is not set up" softhsm/setup.sh --dir "$work/foreign" --keyward "$keyward"
refused 1 "a directory of somebody else's is not removed" softhsm/remove.sh --dir "$work/foreign"
check "it is as it was" test "$(ls -A "$work/foreign")" = file
ln -s "$dir" "$work/link"
refused 1 "a symbolic link is not removed" softhsm/remove.sh --dir "$work/link"

mv "$dir" "$work/moved"
refused 1 "a directory that was moved is refused" softhsm/setup.sh --dir "$work/moved" --keyward "$keyward"
mv "$work/moved" "$dir"

check "removes it" softhsm/remove.sh --dir "$dir"
check "nothing of it stays" test -z "$(ls -A "$work/a place")"
check "removing again succeeds" softhsm/remove.sh --dir "$dir"
