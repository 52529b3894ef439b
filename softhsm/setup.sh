#!/usr/bin/env bash
#
# setup.sh [--dir DIR] [--token LABEL] [--kek NAME] [--keyward BIN]
#
# A SoftHSM token for development and tests, with its first KEK and the keyward.toml
# that serves it. Installs softhsm2 if it is missing, makes DIR (target/softhsm)
# with a token (keyward) of random PINs, and has `keyward key create` make the KEK
# (orders-db), an RSA-3072 key. BIN is the newest keyward under target/ or on PATH.
#
# Refuses: a DIR that it did not make and that is not empty; a DIR made for another
# token, KEK or place; a socket path longer than the kernel takes.
# Invariants: DIR appears whole or not at all; a second run changes no byte of it;
# DIR is 0700 and its secrets 0600; no PIN is ever on a command line.
set -euo pipefail
umask 077
here=$PWD
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/lib.sh"

dir="" token="" kek="" keyward=""
while [ "$#" -gt 0 ]; do
    case $1 in
    -h | --help) usage && exit ;;
    --dir | --token | --kek | --keyward)
        [ -n "${2-}" ] || usage_error "$1 needs a value"
        printf -v "${1#--}" '%s' "$2"
        shift 2
        ;;
    *) usage_error "unknown argument: $1" ;;
    esac
done

# Paths that were given are meant from where the caller stands.
absolute() { (cd "$here" && realpath -m -- "$1"); }
if [ -n "$dir" ]; then dir=$(absolute "$dir"); else dir="$root/target/softhsm"; fi

# --- judge everything before anything is made ---------------------------------

# softhsm2.conf has no quoting: it splits at '=' and ends at '#'. TOML's strings
# would want escapes for the others.
case $dir in
*[=#\"\'\\[:cntrl:]]*) fail "cannot use $dir" "its path has a character that softhsm2.conf or keyward.toml cannot hold" \
    "choose another with --dir" ;;
esac
socket="$dir/keyward.sock"
# sockaddr_un has 108 bytes, the last of them zero; counted in bytes, not letters.
socket_length=$(printf '%s' "$socket" | wc -c)
[ "$socket_length" -le 107 ] || fail "cannot use $dir" \
    "a socket's path has at most 107 bytes, $socket would have $socket_length" "choose a shorter place with --dir"

marker="$dir/.keyward-softhsm"
remembered() { sed -n "s/^$1 = //p" "$marker"; }
made=no
if [ -e "$marker" ]; then
    made=yes
    for name in token kek; do
        given=${!name} was=$(remembered "$name")
        [ -z "$given" ] || [ "$given" = "$was" ] || fail "$dir is for another $name" "it was made with --$name $was" \
            "use another --dir, or remove it first: softhsm/remove.sh --dir '$dir'"
        printf -v "$name" '%s' "$was"
    done
    for file in softhsm2.conf so-pin pin keyward.toml tokens; do
        [ -e "$dir/$file" ] || fail "$dir is damaged" "$file is missing" "softhsm/remove.sh --dir '$dir', then run this again"
    done
    # SoftHSM reads absolute paths only.
    grep -qxF "directories.tokendir = $dir/tokens" "$dir/softhsm2.conf" || fail "$dir was made in another place" \
        "softhsm2.conf names another token directory" "softhsm/remove.sh --dir '$dir', then run this again"
elif [ -e "$dir" ] && { [ ! -d "$dir" ] || [ -n "$(ls -A "$dir")" ]; }; then
    fail "will not touch $dir" "this script did not make it, and it is not empty" "choose another with --dir"
fi
token=${token:-keyward}
kek=${kek:-orders-db}
[[ $token =~ ^[A-Za-z0-9._-]{1,32}$ ]] || usage_error "--token takes 1 to 32 of a-z, A-Z, 0-9, '.', '_' and '-'"
[[ $kek =~ ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$ ]] ||
    usage_error "--kek takes 1 to 64 of a-z, A-Z, 0-9, '.', '_' and '-', starting with a letter or a digit"

if [ -n "$keyward" ]; then
    keyward=$(absolute "$keyward")
    [ -x "$keyward" ] || fail "no keyward at $keyward" "--keyward names no program" "cargo build, or another --keyward"
else
    for candidate in "$target_dir"/{release,debug}/keyward; do
        if [ -x "$candidate" ] && { [ -z "$keyward" ] || [ "$candidate" -nt "$keyward" ]; }; then keyward=$candidate; fi
    done
    keyward=${keyward:-$(command -v keyward || true)}
    [ -n "$keyward" ] || fail "no keyward to create the KEK with" "it is neither built in $target_dir nor on PATH" \
        "cargo build, or say where it is with --keyward BIN"
fi

need_commands softhsm2-util:softhsm2 pkcs11-tool:opensc
module=$(softhsm_module)

# --- the token -------------------------------------------------------------------

# One run at a time for a place: lock the directory above, which leaves no file.
mkdir -p "$(dirname "$dir")"
exec 9<"$(dirname "$dir")"
flock 9

random_pin() { od -An -v -tx1 -N 12 /dev/urandom | tr -d ' '; }

write_softhsm_conf() {
    # reset_on_fork off: a forked child must not find the parent's sessions closed.
    cat >"$2" <<CONF
directories.tokendir = $1/tokens
objectstore.backend = file
log.level = ERROR
slots.removable = false
library.reset_on_fork = false
CONF
}

write_keyward_toml() {
    cat >"$1" <<TOML
# Written by softhsm/setup.sh, to try and to test Keyward. SoftHSM keeps keys in
# files: it is no HSM, and this file is no model for production.
#
# SOFTHSM2_CONF='$dir/softhsm2.conf' keyward serve --config '$dir/keyward.toml'

[server]
socket = "$socket"

[backend.hsm]
type = "pkcs11"
module = "$module"
token = "$token"
pin_file = "$dir/pin"
sessions = 4

[[kek]]
name = "$kek"
backend = "hsm"
key = "$kek"
# SoftHSM 2.6 does OAEP with SHA-1 only. Any real HSM does RSA-OAEP-256: use that.
algorithm = "RSA-OAEP"

[[policy]]
who = ["uid:$(id -u)"]
may = ["wrap", "unwrap", "generate", "rewrap", "describe"]
kek = ["*"]
TOML
}

if [ "$made" = no ] && [ ! -e "$marker" ]; then
    new=$(mktemp -d "$dir.new.XXXXXX")
    trap 'rm -rf "$new"' EXIT
    mkdir "$new/tokens"
    random_pin >"$new/so-pin"
    random_pin >"$new/pin"

    # softhsm2-util takes PINs from its command line, which every user can read in
    # `ps`, or from a terminal, never from a pipe. pkcs11-tool reads them from its
    # environment, which only the same user and root can read.
    write_softhsm_conf "$new" "$new/softhsm2.conf"
    SO_PIN=$(<"$new/so-pin") PIN=$(<"$new/pin")
    export SO_PIN PIN
    initialise() {
        local tool=(env SOFTHSM2_CONF="$new/softhsm2.conf" pkcs11-tool --module "$module")
        # In an empty token directory the one slot is free.
        "${tool[@]}" --slot-index 0 --init-token --label "$token" --so-pin env:SO_PIN &&
            "${tool[@]}" --token-label "$token" --login --login-type so --so-pin env:SO_PIN --init-pin --new-pin env:PIN
    }
    output=$(initialise 2>&1) || {
        say "$output"
        fail "the token could not be initialised" "see pkcs11-tool's words above"
    }
    unset SO_PIN PIN

    # Everything names the final place before it gets there in one step.
    write_softhsm_conf "$dir" "$new/softhsm2.conf"
    write_keyward_toml "$new/keyward.toml"
    printf '%s\n' "Made by softhsm/setup.sh; softhsm/remove.sh removes only a directory with this file." \
        "token = $token" "kek = $kek" >"$new/.keyward-softhsm"
    mv --no-target-directory "$new" "$dir"
    say "made token '$token' in $dir"
fi

# --- the first KEK ----------------------------------------------------------------

export SOFTHSM2_CONF="$dir/softhsm2.conf"
key() { "$keyward" key "$1" --config "$dir/keyward.toml" --backend hsm "${@:2}"; }
# SoftHSM rewrites the token's own object at each login, and `keyward key show` logs
# in. So look for the public half first, which shows without: a second run that
# finds it leaves every byte as it is.
public_half() {
    pkcs11-tool --module "$module" --token-label "$token" --list-objects --type pubkey --label "$kek" 2>/dev/null |
        grep -q '^Public Key Object'
}

if public_half; then
    say "KEK '$kek' is there: nothing to do"
    exit
fi
status=0
output=$(key show "$kek" 2>&1) || status=$?
case $status in
0) say "KEK '$kek' is there: nothing to do" ;;
1)
    # There is no such key, or the token does not answer: then this fails too, and says why.
    key create --type rsa --size 3072 "$kek" >&2 || fail "KEK '$kek' could not be created" "see keyward's words above" \
        "mend that and run this again; it goes on where it stopped"
    say "made KEK '$kek', RSA-3072"
    ;;
*)
    say "$output"
    fail "keyward cannot be asked for KEK '$kek'" "'keyward key show' ended with $status; its words stand above" \
        "cargo build, if that keyward is old"
    ;;
esac
