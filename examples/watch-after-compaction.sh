#!/usr/bin/env bash
# A watch that survives a compaction, with etcdctl, against a member on port 2379 (`make run`). Who comes back with a
# revision whose history is gone takes the keys as they are now, and follows from there: nothing is missed in between.
set -euo pipefail

export ETCDCTL_ENDPOINTS=${ETCDCTL_ENDPOINTS:-http://127.0.0.1:2379}
prefix=examples/compaction/
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$folder"' EXIT

revision() { etcdctl get --prefix "$prefix" -w fields | sed -n 's/^"Revision" : //p'; }

# follow REVISION FILE: prints events from a revision on; where that is compacted, the keys first.
follow() {
    etcdctl watch --prefix "$prefix" --rev="$1" >"$2" 2>"$2.errors" && return
    grep -q "required revision has been compacted" "$2.errors" || return 1
    echo "compacted; taking the keys as they are"
    etcdctl get --prefix "$prefix" -w fields >"$2.list"
    sed -n 's/^"Value" : /now /p' "$2.list"
    local seen
    seen=$(sed -n 's/^"Revision" : //p' "$2.list")
    exec etcdctl watch --prefix "$prefix" --rev="$((seen + 1))" >"$2"
}

echo "== somebody knows the keys up to a revision, and goes away"
etcdctl put "${prefix}colour" blue
known=$(revision)

echo "== meanwhile keys change, and the history is compacted"
etcdctl put "${prefix}colour" green
etcdctl put "${prefix}colour" red
etcdctl compaction "$(revision)"

echo "== who comes back finds out and goes on"
follow "$known" "$folder/events" &
until grep -qs Revision "$folder/events.list"; do sleep 0.1; done
etcdctl put "${prefix}colour" white
for _ in $(seq 100); do
    ! grep -q white "$folder/events" || { echo "the change after it was seen"; exit 0; }
    sleep 0.1
done
echo "the change was not seen" >&2
exit 1
