#!/usr/bin/env bash
# Two processes and one lock, with etcdctl, against a member on port 2379 (`make run`). A process that dies loses the
# lock when its session's lease ends.
set -euo pipefail

export ETCDCTL_ENDPOINTS=${ETCDCTL_ENDPOINTS:-http://127.0.0.1:2379}
lock=examples/lock
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$folder"' EXIT

echo "== the first one gets the lock and runs a command while it holds it"
mkfifo "$folder/done"
etcdctl lock "$lock" -- sh -c "echo first >>'$folder/order'; cat '$folder/done' >/dev/null; echo first done >>'$folder/order'" &
first=$!
until grep -qs first "$folder/order"; do sleep 0.1; done

echo "== the second one waits"
etcdctl lock "$lock" -- sh -c "echo second >>'$folder/order'" &
second=$!
until [ "$(etcdctl get --prefix --keys-only "$lock/" | grep -c .)" -eq 2 ]; do sleep 0.1; done

echo "== and gets it when the first one is done"
echo go >"$folder/done"
wait "$first" "$second"
cat "$folder/order"
[ "$(paste -sd, "$folder/order")" = "first,first done,second" ]
