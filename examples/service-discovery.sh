#!/usr/bin/env bash
# Instances of a service that register themselves, and a client that finds them, with etcdctl, against a member on
# port 2379 (`make run`). An instance that dies without a word is forgotten when its lease ends.
set -euo pipefail

export ETCDCTL_ENDPOINTS=${ETCDCTL_ENDPOINTS:-http://127.0.0.1:2379}
service=examples/services/web
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

# register INSTANCE ADDRESS: prints the lease. Whoever registers renews the lease as long as it works.
register() {
    local lease
    lease=$(etcdctl lease grant 10 | awk '{print $2}')
    etcdctl put --lease="$lease" "$service/$1" "$2" >/dev/null
    echo "$lease"
}

echo "== two instances register"
first=$(register first 10.0.0.1:8080)
second=$(register second 10.0.0.2:8080)
etcdctl lease keep-alive "$first" >/dev/null &
etcdctl lease keep-alive "$second" >/dev/null &
renewing_second=$!

echo "== a client lists them, and watches from the revision behind the list"
etcdctl get --prefix "$service/"
revision=$(etcdctl get --prefix "$service/" --write-out=json | sed 's/.*"revision":\([0-9]*\).*/\1/')
etcdctl watch --prefix "$service/" --rev="$((revision + 1))" >"$folder/changes" &

echo "== the first instance leaves, the second one dies"
etcdctl lease revoke "$first"
kill -KILL "$renewing_second"

echo "== the client sees both go"
within 20 grep -q "$service/first" "$folder/changes"
within 60 grep -q "$service/second" "$folder/changes"
cat "$folder/changes"
