#!/usr/bin/env bash
# `make run` and `make run-cluster`: builds the server and starts members on this machine, with their
# data below target/run. Ctrl-C stops them. The data stays; remove the folder to start anew.
#
#   .ci/scripts/run.sh [members] [flags for every member…]
#
# Member N (from 1) serves clients on port 2379 + 10·(N−1) and the other members on the port above it.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source .ci/scripts/environment.sh

members=${1:-1}
shift || true
cargo build --release --package metastore-server
program=${CARGO_TARGET_DIR:-target}/release/metastore
data=${CARGO_TARGET_DIR:-target}/run
mkdir -p "$data"

client_port() { echo $((2379 + 10 * ($1 - 1))); }
peer_port() { echo $((2380 + 10 * ($1 - 1))); }

cluster=
for ((number = 1; number <= members; number++)); do
    cluster+=${cluster:+,}member-$number=http://127.0.0.1:$(peer_port "$number")
done

start() {
    local number=$1
    shift
    local client peer
    client=http://127.0.0.1:$(client_port "$number")
    peer=http://127.0.0.1:$(peer_port "$number")
    "$program" --name "member-$number" --data-dir "$data/member-$number" \
        --listen-client-urls "$client" --advertise-client-urls "$client" \
        --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" \
        --initial-cluster "$cluster" --initial-cluster-token metastore-run \
        --log-format console "$@"
}

if [ "$members" = 1 ]; then
    start 1 "$@"
    exit
fi

processes=()
stop() {
    trap - INT TERM EXIT
    kill -TERM "${processes[@]}" 2>/dev/null || true
    wait || true
}
trap stop INT TERM EXIT
for ((number = 1; number <= members; number++)); do
    start "$number" "$@" &
    processes+=($!)
done
echo "run: clients: $(for ((number = 1; number <= members; number++)); do echo -n "http://127.0.0.1:$(client_port "$number") "; done)" >&2
wait
