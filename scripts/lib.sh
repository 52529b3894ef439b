# shellcheck shell=bash
#
# Words that the scripts share. Sourced, never run: it moves to the repository's
# root and defines functions.
#
# Refuses: nothing by itself; each function says what it refuses.
# Invariants: packages come from Debian, crates from the crate registry, and from
# nowhere else; what is there already is used as it is and never upgraded; tools
# that are built go to target/tools, so that `rm -rf target` removes them.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$root" || exit

# Where cargo builds, for the scripts that run what it built.
# shellcheck disable=SC2034
target_dir=$(realpath -m -- "${CARGO_TARGET_DIR:-target}")
# Where tools are kept. A directory outside the clone makes them outlive it.
tools=$(realpath -m -- "${KEYWARD_TOOLS:-target/tools}")
PATH="$tools/bin:$PATH"
# Scripts read the output of tools: in one language and with one decimal sign.
export LC_ALL=C.UTF-8

# --- what people read -------------------------------------------------------

say() { printf '%s\n' "$*" >&2; }

# fail ERROR [CAUSE [FIX]]: ends the script.
fail() {
    say "error: $1"
    if [ -n "${2-}" ]; then say "cause: $2"; fi
    if [ -n "${3-}" ]; then say "fix: $3"; fi
    exit 1
}

# usage: prints the head comment of the script that was run, as its help.
usage() { sed -n '2{/^#$/d}; /^#!/d; /^#/!q; s/^# \{0,1\}//p' "$0"; }

# usage_error MESSAGE: a wrong command line has exit code 2, as in `keyward`.
usage_error() {
    say "error: $1"
    say "fix: $0 --help tells what it takes"
    exit 2
}

# --- steps that are all run, and judged at the end ---------------------------

failed_steps=()

# step NAME COMMAND...: runs on after a failure, so that one run tells everything.
step() {
    local name=$1 start=$SECONDS
    shift
    say "" && say "==> $name"
    if "$@"; then
        say "    $name: ok ($((SECONDS - start)) s)"
    else
        say "    $name: FAILED ($((SECONDS - start)) s)"
        failed_steps+=("$name")
    fi
}

# judge WHAT: ends the script with an error that names every step that failed.
judge() {
    say ""
    if [ "${#failed_steps[@]}" -gt 0 ]; then
        local list
        list=$(printf ', %s' "${failed_steps[@]}")
        fail "$1 failed" "these steps failed: ${list:2}" "look for 'FAILED' above; each step's output stands before it"
    fi
    say "$1 passed"
}

# --- what must be installed ---------------------------------------------------

have() { command -v "$1" >/dev/null 2>&1; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -- "$@"; fi
}

# need_packages PACKAGE...: installs the Debian packages that are missing.
need_packages() {
    local package missing=()
    have dpkg-query || fail "cannot install: $*" "this is not a Debian-like system" \
        "install what these Debian packages hold, by your system's own means, and run this again"
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ "${#missing[@]}" -gt 0 ] || return 0
    [ "$(id -u)" -eq 0 ] || have sudo || fail "cannot install: ${missing[*]}" "not root, and there is no sudo" \
        "as root: apt-get install ${missing[*]}"
    say "installing Debian packages: ${missing[*]}"
    # Another apt may be at work on a shared machine: wait for its lock.
    local install=(env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qq install --yes --no-install-recommends "${missing[@]}")
    # The package list of a new machine is empty or old, and fetching it is slow:
    # fetch it only if the first try fails.
    as_root "${install[@]}" </dev/null >/dev/null 2>&1 && return 0
    as_root apt-get -o DPkg::Lock::Timeout=300 -qq update </dev/null >&2 || true
    as_root "${install[@]}" </dev/null >&2 || fail "Debian packages could not be installed: ${missing[*]}" \
        "apt-get failed, see above" "mend that, or install them by hand"
}

# need_commands COMMAND:PACKAGE...: as need_packages, but asks for the command, so
# that a system with another package manager passes once it has the command.
need_commands() {
    local pair packages=()
    for pair in "$@"; do
        have "${pair%%:*}" || packages+=("${pair#*:}")
    done
    [ "${#packages[@]}" -eq 0 ] || need_packages "${packages[@]}"
}

# need_rust: cargo, not older than Cargo.toml's rust-version, and a C compiler.
# aws-lc-sys compiles C with cc alone; it asks for cmake only where it has no
# ready bindings or for FIPS, and for no Go or Perl.
need_rust() {
    local wanted version
    wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
    have cargo || PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
    if ! have cargo; then
        # Debian 13 and later package rustup; Debian's own cargo is too old.
        if have apt-cache && [ -n "$(apt-cache search --names-only '^rustup$')" ]; then
            need_packages rustup
            rustup toolchain install stable --profile minimal --component clippy --component rustfmt >&2 || true
        fi
        if ! have cargo || ! cargo --version >/dev/null 2>&1; then
            fail "Rust is missing" "there is no cargo, and Debian's rustup could not provide one" \
                "install Rust $wanted or newer with rustup"
        fi
    fi
    version=$(cargo --version | cut -d ' ' -f 2)
    [ "$(printf '%s\n%s\n' "$wanted" "$version" | sort -V | head -n 1)" = "$wanted" ] ||
        fail "Rust is too old" "cargo is $version, Keyward needs $wanted" "rustup update stable"
    need_commands cc:gcc
    [ -e /usr/include/stdio.h ] || need_packages libc6-dev
}

# need_cargo_tool NAME VERSION: cargo-NAME, from PATH or built into target/tools.
# VERSION is what a build takes; one that is there already is not questioned.
need_cargo_tool() {
    have "cargo-$1" && return 0
    say "building cargo-$1 into $tools (once; takes minutes)"
    env -u CARGO_TARGET_DIR cargo install --locked --quiet --root "$tools" --version "$2" "cargo-$1" </dev/null >&2 ||
        fail "cargo-$1 could not be built" "cargo install failed, see above" "install cargo-$1 by hand, on PATH"
}

# --- PKCS#11 -------------------------------------------------------------------

# softhsm_module: prints the path of SoftHSM's module, which differs by distribution.
softhsm_module() {
    local path
    for path in \
        /usr/lib/softhsm/libsofthsm2.so \
        /usr/lib/*/softhsm/libsofthsm2.so \
        /usr/lib64/softhsm/libsofthsm2.so \
        /usr/lib64/pkcs11/libsofthsm2.so \
        /usr/lib/pkcs11/libsofthsm2.so \
        /usr/local/lib/softhsm/libsofthsm2.so; do
        if [ -r "$path" ]; then
            printf '%s\n' "$path"
            return
        fi
    done
    fail "SoftHSM's module was not found" "no libsofthsm2.so in the usual directories" \
        "install SoftHSM 2 (Debian: softhsm2)"
}
