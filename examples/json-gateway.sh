#!/usr/bin/env bash
# etcd's API as JSON with curl, against a member on port 2379 (`make run`). Keys and values are base64.
set -euo pipefail

url=${METASTORE_URL:-http://127.0.0.1:2379}
call() { curl --silent --show-error --fail-with-body --max-time 10 "$url/v3/$1" --data "$2"; echo; }
base64_of() { printf '%s' "$1" | base64; }

key=$(base64_of json/colour)

echo "== a key"
call kv/put "{\"key\":\"$key\",\"value\":\"$(base64_of blue)\"}"
call kv/range "{\"key\":\"$key\"}"

echo "== change it only if nobody else did"
call kv/txn "{
  \"compare\": [{\"key\":\"$key\",\"target\":\"VERSION\",\"version\":\"1\"}],
  \"success\": [{\"request_put\":{\"key\":\"$key\",\"value\":\"$(base64_of red)\"}}],
  \"failure\": [{\"request_range\":{\"key\":\"$key\"}}]
}"

echo "== the first two answers of a watch from the beginning"
# head closes the connection; curl calls that an error.
{ curl --silent --no-buffer --max-time 10 "$url/v3/watch" \
    --data "{\"create_request\":{\"key\":\"$key\",\"start_revision\":\"1\"}}" || true; } | head -n 2

echo "== a lock for a minute, and its end"
lock=$(call lock/lock "{\"name\":\"$(base64_of json/lock)\"}")
echo "$lock"
call lock/unlock "{\"key\":$(sed 's/.*"key":\("[^"]*"\).*/\1/' <<<"$lock")}"

echo "== clean up"
call kv/deleterange "{\"key\":\"$(base64_of json/)\",\"range_end\":\"$(base64_of json0)\"}"
