#!/usr/bin/env bash
#
# remove.sh [--dir DIR]: removes the token directory (target/softhsm) that setup.sh
# made, with every key in it.
#
# Refuses: a directory without setup.sh's marker file, and a symbolic link.
# Invariants: nothing else is touched; a second run has nothing to do and succeeds;
# DIR is gone at once, never half there.
set -euo pipefail
here=$PWD
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/lib.sh"

dir="$root/target/softhsm"
while [ "$#" -gt 0 ]; do
    case $1 in
    -h | --help) usage && exit ;;
    --dir)
        [ -n "${2-}" ] || usage_error "$1 needs a value"
        # -s: a link is judged as what it is, below.
        dir=$(cd "$here" && realpath -m -s -- "$2")
        shift 2
        ;;
    *) usage_error "unknown argument: $1" ;;
    esac
done

if [ ! -e "$dir" ] && [ ! -L "$dir" ]; then
    say "$dir is not there: nothing to do"
    exit
fi
[ ! -L "$dir" ] || fail "will not remove $dir" "it is a symbolic link" "name the directory itself"
[ -f "$dir/.keyward-softhsm" ] || fail "will not remove $dir" \
    "softhsm/setup.sh did not make it: it has no file .keyward-softhsm" "check --dir"

# Under another name first: an interrupted removal leaves no half token in its place.
gone=$(mktemp -d "$dir.gone.XXXXXX")
mv --no-target-directory "$dir" "$gone"
rm -rf --one-file-system -- "$gone"
say "removed $dir"
