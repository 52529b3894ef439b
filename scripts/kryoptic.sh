#!/usr/bin/env bash
#
# kryoptic.sh: builds the software token kryoptic from the crate registry, for
# tests, and prints the path of its PKCS#11 module. It does what SoftHSM 2.6 cannot:
# RSA-OAEP with SHA-256 and AES key wrap with padding (RFC 5649).
#
# Refuses: to hand out a module that did not make a token and a key.
# Invariants: stdout is one line, the path; a module under its final name is whole
# and has passed; a second run only prints. Nothing of kryoptic is linked into
# Keyward: it is loaded as a module, by tests alone.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

version=1.5.4
home="$tools/kryoptic-$version"
module="$home/libkryoptic_pkcs11.so"

if [ "$#" -gt 0 ]; then
    case $1 in -h | --help) usage && exit ;; *) usage_error "unknown argument: $1" ;; esac
fi

mkdir -p "$home"
# Two runs at once build once.
exec 9<"$home"
flock 9
if [ -e "$module" ]; then
    printf '%s\n' "$module"
    exit
fi

need_rust
need_packages clang libclang-dev libssl-dev libsqlite3-dev pkg-config
need_commands pkcs11-tool:opensc

work=$(mktemp -d "$home/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
say "building kryoptic $version (once; about two minutes)"

# A crate of the cdylib kind cannot be depended on, nor does `cargo install` take
# it. So let cargo fetch and unpack it for a package that names it, and build a copy.
mkdir -p "$work/fetch/src"
: >"$work/fetch/src/lib.rs"
cat >"$work/fetch/Cargo.toml" <<TOML
[package]
name = "fetch"
version = "0.0.0"
edition = "2024"

[dependencies]
kryoptic = "=$version"

[workspace]
TOML
cargo fetch --quiet --manifest-path "$work/fetch/Cargo.toml" >&2
manifest=$(cargo metadata --quiet --format-version 1 --offline --manifest-path "$work/fetch/Cargo.toml" |
    grep -o "\"manifest_path\":\"[^\"]*/kryoptic-$version/Cargo.toml\"" | head -n 1 | cut -d '"' -f 4)
[ -n "$manifest" ] || fail "kryoptic $version was not found" "cargo fetched it and does not say where it is" \
    "look at cargo metadata in a package that depends on kryoptic"
cp -r "$(dirname "$manifest")" "$work/kryoptic"
# It stands below our own Cargo.toml, whose workspace it is no part of.
printf '\n[workspace]\n' >>"$work/kryoptic/Cargo.toml"

# `minimal` and `dynamic`: RSA, AES and SQLite, with the system's OpenSSL 3.0; the
# default set wants 3.2. The lock file is the one that the crate ships.
(
    cd "$work/kryoptic"
    CARGO_TARGET_DIR="$work/target" cargo build --quiet --locked --release \
        --no-default-features --features minimal,kryoptic-lib/dynamic >&2
) || fail "kryoptic could not be built" "cargo build failed, see above"
built="$work/target/release/libkryoptic_pkcs11.so"

# Proof: a token, a key, and the two mechanisms that it is here for.
export KRYOPTIC_CONF="$work/token.conf" SO_PIN=prove-so-pin PIN=prove-pin
printf '[[slots]]\nslot = 42\ndbtype = "sqlite"\ndbargs = "%s"\n' "$work/token.sql" >"$KRYOPTIC_CONF"
prove() {
    local tool=(pkcs11-tool --module "$built" --slot 42)
    "${tool[@]}" --init-token --label prove --so-pin env:SO_PIN &&
        "${tool[@]}" --login --login-type so --so-pin env:SO_PIN --init-pin --new-pin env:PIN &&
        "${tool[@]}" --login --pin env:PIN --keypairgen --key-type rsa:2048 --label prove --id 01 --usage-decrypt &&
        "${tool[@]}" --list-mechanisms
}
prove >"$work/proof" 2>&1 || {
    cat "$work/proof" >&2
    fail "kryoptic was built and does not work" "see pkcs11-tool's words above"
}
# pkcs11-tool knows RFC 5649 key wrap by its number only.
for mechanism in RSA-PKCS-OAEP 'AES-KEY-WRAP-KWP\|mechtype-0x210B'; do
    grep -q "$mechanism" "$work/proof" || {
        cat "$work/proof" >&2
        fail "kryoptic was built without $mechanism" "its list of mechanisms stands above"
    }
done

mv "$built" "$module"
printf '%s\n' "$module"
