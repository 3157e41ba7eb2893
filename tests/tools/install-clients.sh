#!/usr/bin/env bash
# Installs etcd clients of other languages, once, from their public registries into the cache folder:
# three and Patroni for Python, one each for Node, Java and Rust. Prints the folder as its last line; in it are the
# commands `run-python`, `run-node` and `run-java`, each of which runs a program of tests/clients with its
# libraries: `run-python smoke_aetcd.py host:port`, `run-node smoke.js host:port`, `run-java Smoke host:port`,
# and `rust-example`, which is examples/rust.
#
# Where a language itself is missing, its Debian packages are installed, and the script says so.
set -euo pipefail

PROTOC_PACKAGE_VERSION=1.85.1

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
wanted=$(cd "$here" && find clients tools/install-clients.sh ../examples/rust -name target -prune -o -type f -print0 \
  | sort -z | xargs -0 cat | cksum)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/metastore/clients
own=$cache/${wanted// /-}

say() { echo "tests/tools/install-clients.sh: $*" >&2; }

mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
if [[ -f $own/.installed ]]; then
  echo "$own"
  exit 0
fi
rm -rf "$own"
mkdir -p "$own"
cp -r "$here/clients/." "$own/"

# debian PACKAGE…
debian() {
  say "installing the Debian packages $*"
  local as_root=()
  [[ $(id -u) == 0 ]] || as_root=(sudo -n)
  "${as_root[@]}" apt-get update -qq >&2
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "$@" >&2
}

say "Python"
command -v python3 >/dev/null || debian python3 python3-venv
python3 -m venv "$own/venv" >&2 || { debian python3-venv; python3 -m venv --clear "$own/venv" >&2; }
"$own/venv/bin/pip" install --quiet --disable-pip-version-check -r "$own/python/requirements.txt" >&2
printf '#!/bin/sh\ncd "%s/python" && exec "%s/venv/bin/python" "$@"\n' "$own" "$own" >"$own/run-python"

say "Node"
command -v npm >/dev/null || debian nodejs npm
(cd "$own/node" && npm ci --silent --no-audit --no-fund >&2)
printf '#!/bin/sh\ncd "%s/node" && exec node "$@"\n' "$own" >"$own/run-node"

say "Java"
command -v mvn >/dev/null || debian maven default-jdk-headless
(cd "$own/java" && mvn --quiet --batch-mode compile dependency:build-classpath -Dmdep.outputFile=classpath.txt >&2)
printf '#!/bin/sh\nexec java -cp "%s/java/target/classes:%s" "$@"\n' "$own" "$(cat "$own/java/classpath.txt")" >"$own/run-java"

say "Rust"
# The crate compiles the messages with protoc, which a Python package has.
python3 -m venv "$own/protoc-venv" >&2
"$own/protoc-venv/bin/pip" install --quiet --disable-pip-version-check "grpcio-tools==$PROTOC_PACKAGE_VERSION" >&2
printf '#!/bin/sh\nexec "%s/protoc-venv/bin/python" -m grpc_tools.protoc "$@"\n' "$own" >"$own/protoc"
chmod +x "$own/protoc"
cp -r "$here/../examples/rust" "$own/rust"
(cd "$own/rust" && PROTOC="$own/protoc" RUSTFLAGS='' cargo build --quiet --locked --target-dir "$own/rust/target" >&2)
mv "$own/rust/target/debug/metastore-example" "$own/rust-example"
rm -rf "$own/rust" "$own/protoc" "$own/protoc-venv"

chmod +x "$own"/run-*
touch "$own/.installed"
find "$cache" -mindepth 1 -maxdepth 1 -type d ! -path "$own" -mtime +14 -exec rm -rf {} +
echo "$own"
