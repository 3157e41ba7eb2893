#!/usr/bin/env bash
# Keys, a transaction, a watch and a lease with etcdctl, against a member on port 2379 (`make run`).
set -euo pipefail

export ETCDCTL_ENDPOINTS=${ETCDCTL_ENDPOINTS:-http://127.0.0.1:2379}

echo "== a key and its history"
etcdctl put first-steps/colour blue
etcdctl put first-steps/colour green
etcdctl get first-steps/colour --write-out=json

echo "== everything below a prefix"
etcdctl put first-steps/shape round
etcdctl get --prefix first-steps/

echo "== a transaction: change the colour only if it is green"
etcdctl txn <<'TXN'
value("first-steps/colour") = "green"

put first-steps/colour red

get first-steps/colour

TXN

echo "== a key that lives as long as its lease"
lease=$(etcdctl lease grant 60 | awk '{print $2}')
etcdctl put --lease="$lease" first-steps/session here
etcdctl lease revoke "$lease"
etcdctl get first-steps/session

echo "== clean up"
etcdctl del --prefix first-steps/
