#!/usr/bin/env bash
# Two candidates for one leadership, with etcdctl, against a member on port 2379 (`make run`). The leadership ends
# with the session of the leader, also when its process or machine dies: then after the session's lease, 60 s here.
set -euo pipefail

export ETCDCTL_ENDPOINTS=${ETCDCTL_ENDPOINTS:-http://127.0.0.1:2379}
election=examples/election
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$folder"' EXIT

# within SECONDS COMMAND…: runs a command again and again until it succeeds.
within() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < end)) || { echo "not in time: $*" >&2; exit 1; }
        sleep 0.1
    done
}

echo "== the first candidate is elected at once"
etcdctl elect "$election" first >"$folder/first" &
first=$!
within 20 grep -q first "$folder/first"

echo "== the second one waits"
etcdctl elect "$election" second >"$folder/second" &
second=$!

echo "== who is interested sees who leads"
etcdctl elect --listen "$election" >"$folder/observer" &
within 20 grep -q first "$folder/observer"

echo "== the first one resigns when it is told to stop, and the second one is elected"
kill -INT "$first" 2>/dev/null || kill "$first"
within 90 grep -q second "$folder/second"
within 20 grep -q second "$folder/observer"
kill "$second"
echo "the second candidate was elected"
