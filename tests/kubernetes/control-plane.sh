#!/usr/bin/env bash
# A real Kubernetes control plane on one member of MetaStore: kube-apiserver with its own consistency checks
# and kube-controller-manager, without nodes. Creates, lists in pages, watches, scales and deletes, and fails
# when anything of it does not come to its end. Takes about a minute; `make e2e-control-plane`.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bin=$("$here/install.sh" | tail -n 1)
server=${METASTORE_BIN:-${CARGO_TARGET_DIR:-$here/../../target}/debug/metastore}
work=$(mktemp -d)
client=http://127.0.0.1:23791
peer=http://127.0.0.1:23801
api=https://127.0.0.1:23811
processes=()

finish() {
    local status=$?
    # Nothing of theirs is kept, and an API server takes a minute to end gently.
    kill -KILL "${processes[@]}" 2>/dev/null || true
    wait 2>/dev/null || true
    if [ "$status" != 0 ]; then tail -n 15 "$work"/*.log | cut -c1-400 >&2; fi
    rm -rf "$work"
}
trap finish EXIT

say() { echo "control-plane: $*" >&2; }

# eventually WHAT COMMAND…: within a minute.
eventually() {
    local what=$1
    shift
    for _ in $(seq 120); do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.5
    done
    say "waited a minute in vain until $what"
    return 1
}

start() {
    local name=$1
    shift
    "$@" >"$work/$name.log" 2>&1 &
    processes+=($!)
}

start metastore "$server" --data-dir "$work/data" --listen-client-urls $client --advertise-client-urls $client \
    --listen-peer-urls $peer --initial-advertise-peer-urls $peer --initial-cluster default=$peer
openssl genrsa -out "$work/account.key" 2048 2>/dev/null
echo 'token,admin,admin,"system:masters"' >"$work/tokens.csv"
cat >"$work/kubeconfig" <<CONFIG
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "$api", insecure-skip-tls-verify: true}}]
users: [{name: u, user: {token: token}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
CONFIG
kubectl() { "$bin/kubectl" --kubeconfig="$work/kubeconfig" "$@"; }
is() { [ "$1" = "$("${@:2}" 2>/dev/null)" ]; }

KUBE_WATCHCACHE_CONSISTENCY_CHECKER=true start apiserver "$bin/kube-apiserver" --etcd-servers=$client \
    --bind-address=127.0.0.1 --secure-port="${api##*:}" --cert-dir="$work/certificates" \
    --service-account-key-file="$work/account.key" --service-account-signing-key-file="$work/account.key" \
    --service-account-issuer=https://kubernetes.default.svc --service-cluster-ip-range=10.0.0.0/24 \
    --authorization-mode=RBAC --token-auth-file="$work/tokens.csv" --etcd-compaction-interval=10s
eventually "the API server is ready" kubectl get --raw /readyz
say "the API server is ready"
start controllers "$bin/kube-controller-manager" --kubeconfig="$work/kubeconfig" --leader-elect=true \
    --service-account-private-key-file="$work/account.key"

kubectl get configmaps -A --watch -o name >"$work/watched" 2>/dev/null &
processes+=($!)
eventually "the watch has begun" test -s "$work/watched"
kubectl create namespace shop >/dev/null
for number in $(seq 25); do kubectl -n shop create configmap "map-$number" --from-literal=number="$number" >/dev/null; done
count() { kubectl -n shop get configmaps --chunk-size=10 -o name | grep -c map-; }
eventually "a list in pages has all 25" is 25 count
eventually "the watch has seen the last" grep -q map-25 "$work/watched"
kubectl -n shop create deployment front --image=none --replicas=3 >/dev/null
pods() { kubectl -n shop get pods -o name | wc -l | tr -d ' '; }
eventually "the controllers make three pods" is 3 pods
kubectl -n shop scale deployment front --replicas=1 >/dev/null
eventually "one pod is left" is 1 pods
compactions() { curl -sf $client/metrics | awk '$1 == "etcd_debugging_mvcc_compact_revision" { revision = $2 } END { exit !(revision > 1) }'; }
eventually "the API server has compacted" compactions
kubectl delete namespace shop --wait=true --timeout=60s >/dev/null
if grep -iE 'inconsisten|cache is out of sync' "$work/apiserver.log" >&2; then
    say "the API server found its cache inconsistent with the store"
    exit 1
fi
say "created, listed, watched, scaled, compacted and deleted"
