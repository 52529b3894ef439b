#!/usr/bin/env bash
#
# build.sh [OUT]: compiles the client in Go beside this file, to OUT (target/go/keyward-go), from
# the proto alone. Takes Go, protoc and gRPC for Go as Debian packages them, so that it needs no
# other registry.
#
# Refuses: to pass for compiled where there is no Go: it says so, and its exit code is 3.
# Invariants: stubs are made in a directory that it removes again.
set -euo pipefail
here=$PWD
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib.sh"

case ${1-} in -h | --help) usage && exit ;; esac
out=$(cd "$here" && realpath -m -- "${1:-$target_dir/go/keyward-go}")

packages=(golang-go golang-google-grpc-dev golang-google-genproto-dev golang-google-protobuf-dev protobuf-compiler protoc-gen-go-1-5 protoc-gen-go-grpc)
if ! have go; then
    for package in "${packages[@]}"; do
        if ! have apt-cache || [ -z "$(apt-cache search --names-only "^$package\$")" ]; then
            say "not compiled: there is no Go here, and no package $package to get it from"
            exit 3
        fi
    done
fi
need_packages "${packages[@]}"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
stubs="$work/src/keyward.example/keywardv1"
mkdir -p "$stubs" "$work/src/keyward.example/client"
proto=keyward/v1/keywrap.proto
package="M$proto=keyward.example/keywardv1"
protoc -Iproto --go_out="$work/src" --go_opt="$package" --go-grpc_out="$work/src" --go-grpc_opt="$package" "$proto"
cp examples/go/main.go "$work/src/keyward.example/client/"
mkdir -p "$(dirname "$out")"
# Debian's gRPC for Go comes with a protobuf that is too old for these stubs, and the newer one
# cannot be installed beside it: it is unpacked.
newer=golang-github-golang-protobuf-1-5-dev
(cd "$work" && apt-get -qq download "$newer" && dpkg -x "$newer"_*.deb newer) ||
    fail "$newer could not be fetched" "apt-get failed, see above"
# Debian's libraries lie in a path of the old kind.
cd "$work/src/keyward.example/client"
GO111MODULE=off GOPATH="$work:$work/newer/usr/share/gocode:/usr/share/gocode" GOCACHE="$work/cache" GOFLAGS=-trimpath go build -o "$out" .
say "compiled: $out, with $(go version)"
