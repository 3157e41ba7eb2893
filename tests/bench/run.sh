#!/usr/bin/env bash
# The benchmark of `make bench`: builds what it needs, then measures our server and a real etcd in
# turn on the same disk, and prints a table of ratios. A full run takes about an hour and rewrites the
# generated part of docs/performance.md; do nothing else on the machine meanwhile.
#
#   tests/bench/run.sh                      everything
#   tests/bench/run.sh --short              everything in less than 25 minutes
#   tests/bench/run.sh --quick              a subset in three to four minutes; does not touch the page
#   tests/bench/run.sh --only put-256,get   these rows and families of rows; does not touch the page
#   tests/bench/run.sh --help               all options
#
#   METASTORE_BENCH_DATA    folder for the servers' data, on the disk to be measured
#                           (default: in the cache folder)
#   METASTORE_BENCH_SERVER  the server to measure (default: built from this tree). Another etcd here
#                           shows how far two equal servers differ.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/metastore
target=${CARGO_TARGET_DIR:-$root/target}/release
cd "$root"

etcd_bin=$(tests/tools/install.sh | tail -n 1)
cargo build --release --package metastore-bench
server=${METASTORE_BENCH_SERVER:-}
if [[ -z $server ]]; then
  export ROCKSDB_LIB_DIR=${ROCKSDB_LIB_DIR:-$cache/rocksdb/lib} ROCKSDB_STATIC=1
  if [[ ! -f $ROCKSDB_LIB_DIR/librocksdb.a ]]; then
    server/crates/store-rocksdb/build-rocksdb.sh
  fi
  cargo build --release --package metastore-server
  server=$target/metastore
fi

page=(--page "$root/docs/performance.md" --second-opinion "$etcd_bin/benchmark")
for argument in "$@"; do
  case $argument in
    # Part of the table must not replace the whole one.
    --quick | --only* | --groups* | --help | -h) page=() ;;
  esac
done

exec "$target/bench" --etcd "$etcd_bin/etcd" --metastore "$server" \
  --data "${METASTORE_BENCH_DATA:-$cache/bench-data}" "${page[@]}" "$@"
