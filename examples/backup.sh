#!/usr/bin/env bash
# A backup of a running member on port 2379 (`make run`), a check of it, and a data directory made from it.
# Leaves backup.db and restored.metastore in the current folder.
set -euo pipefail

export ETCDCTL_ENDPOINTS=${ETCDCTL_ENDPOINTS:-http://127.0.0.1:2379}

echo "== save: one file, from one member, at one moment"
etcdctl snapshot save backup.db

echo "== check: digest, pages, history"
metastoreutl snapshot status backup.db --write-out=table
metastoreutl verify backup.db

echo "== restore: a new cluster of one member"
metastoreutl snapshot restore backup.db --data-dir restored.metastore \
  --name one --initial-cluster one=http://127.0.0.1:2380 \
  --initial-advertise-peer-urls http://127.0.0.1:2380

echo "== who the new member is, and where it stands"
metastoreutl inspect restored.metastore
echo "start it with: metastore --name one --data-dir restored.metastore"
