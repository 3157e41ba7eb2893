#!/usr/bin/env bash
# The plain HTTP API with curl, against a member on port 2379 (`make run`).
set -euo pipefail

url=${METASTORE_URL:-http://127.0.0.1:2379}
http() { curl --silent --show-error --fail-with-body --max-time 20 "$@"; }
etag() { curl --silent --head --max-time 10 "$1" | tr -d '\r' | awk 'tolower($1) == "etag:" {print $2}'; }

echo "== write and read raw bytes"
http -X PUT "$url/kv/http/colour" --data-binary blue
http "$url/kv/http/colour"; echo

echo "== change it only if it is still what we saw"
seen=$(etag "$url/kv/http/colour")
http -X PUT "$url/kv/http/colour" -H "If-Match: $seen" --data-binary red
if http -X PUT "$url/kv/http/colour" -H "If-Match: $seen" --data-binary green; then
  echo "a change with an old tag must not work" >&2
  exit 1
fi
echo

echo "== wait for a change, at most 10 seconds"
seen=$(etag "$url/kv/http/colour")
(sleep 1; http -X PUT "$url/kv/http/colour" --data-binary yellow) &
http "$url/kv/http/colour?wait=10" -H "If-None-Match: $seen"; echo
wait

echo "== a key that ends by itself"
http -X PUT "$url/kv/http/session?ttl=60" --data-binary here
http "$url/kv?prefix=http/&values=true"; echo

echo "== the changes since revision 1, as server-sent events"
# head closes the connection; curl calls that an error.
{ curl --silent --no-buffer --max-time 10 "$url/kv?prefix=http/&since=1" \
    -H "Accept: text/event-stream" || true; } | head -n 7

echo "== clean up"
http -X DELETE "$url/kv?prefix=http/"; echo
