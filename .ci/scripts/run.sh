#!/usr/bin/env bash
# `make run` and `make run-cluster`: builds the server and starts members on this machine. Ctrl-C stops
# them. The data stays; remove the folder to start anew.
#
#   .ci/scripts/run.sh [members] [flags for every member…]
#
# One member runs with the defaults of the program: clients on port 2379, data in ./default.metastore.
# Member N of several (from 1) serves clients on port 2379 + 10·(N−1) and the other members on the port
# above it, with its data below target/run.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source .ci/scripts/environment.sh

members=${1:-1}
shift || true
cargo build --release --package metastore-server
program=${CARGO_TARGET_DIR:-target}/release/metastore
if [ "$members" = 1 ]; then
    exec "$program" --log-format console "$@"
fi

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
