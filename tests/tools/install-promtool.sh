#!/usr/bin/env bash
# Finds promtool, which reads rules of Prometheus as Prometheus does: the machine's own, or the one of Debian's
# package `prometheus`, unpacked once into the cache folder. Prints its folder as its last line.
set -euo pipefail

cache=${XDG_CACHE_HOME:-$HOME/.cache}/metastore/promtool

say() { echo "tests/tools/install-promtool.sh: $*" >&2; }

if found=$(command -v promtool); then
  dirname "$found"
  exit 0
fi
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
if [[ ! -x $cache/usr/bin/promtool ]]; then
  say "getting Debian's package prometheus for its promtool"
  as_root=()
  [[ $(id -u) == 0 ]] || as_root=(sudo -n)
  "${as_root[@]}" apt-get update -qq >&2
  # Only unpacked: no server is to run here.
  (cd "$cache" && rm -f prometheus_*.deb && apt-get download -qq prometheus >&2)
  dpkg-deb --fsys-tarfile "$cache"/prometheus_*.deb | tar -x -C "$cache" ./usr/bin/promtool
  rm -f "$cache"/prometheus_*.deb
fi
echo "$cache/usr/bin"
