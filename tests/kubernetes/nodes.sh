#!/usr/bin/env bash
# A user's first minute on a real Kubernetes: a control plane on MetaStore, three nodes that run containers,
# images of the programs in this tree, the operator installed by helm, and a cluster of three members applied
# with kubectl. Then its first days: it is used, scaled, drained, backed up, restored, secured and deleted.
#
#   tests/kubernetes/nodes.sh          PROGRAMS=target/release: where the programs are (default: target/debug)
#   KEEP=1 tests/kubernetes/nodes.sh   leave everything running, to look at it; cluster/down.sh --purge ends it
#
# It needs root, namespaces and cgroups of its own; what is missing is said. `make e2e-nodes`.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
programs=${PROGRAMS:-${CARGO_TARGET_DIR:-$root/target}/debug}
bin=$("$here/install.sh" | tail -n 1)
export CLUSTER_DIR=${CLUSTER_DIR:-$(dirname "$bin")/nodes-test}
export KUBECONFIG=$CLUSTER_DIR/admin.kubeconfig
work=$(mktemp -d)
# kubectl finds its plugin there.
export PATH=$work:$bin:$PATH
audit=$work/audit.log

say() { echo "nodes: $*" >&2; }
die() { say "$*"; exit 1; }

# --- may this machine do it at all?
[ "$(id -u)" = 0 ] || die "cannot run here: root is needed for nodes that run containers"
unshare --mount --net --uts true 2>/dev/null || die "cannot run here: no right to make namespaces (unshare --mount --net --uts)"
[ -d /sys/fs/cgroup ] && [ -w /sys/fs/cgroup ] || die "cannot run here: /sys/fs/cgroup cannot be written"

finish() {
    local status=$?
    if [ "$status" != 0 ]; then
        say "failed; what is there:"
        kubectl get pods,msc,msb,mst,pvc -A -o wide >&2 || true
        kubectl get events -A --sort-by=.lastTimestamp 2>/dev/null | tail -n 15 >&2 || true
        kubectl logs -n metastore-system deployment/metastore-operator --tail=15 >&2 || true
    fi
    rm -rf "$work"
    [ -n "${KEEP:-}" ] || "$here/cluster/down.sh" --purge || true
}
trap finish EXIT

# step NAME COMMAND…: says how long it took.
step() {
    local name=$1 start=$SECONDS
    shift
    "$@" >"$work/out" 2>&1 || { cat "$work/out" >&2; die "$name: failed"; }
    say "$name: $((SECONDS - start)) s"
}

# eventually WHAT COMMAND…: within two minutes.
eventually() {
    local what=$1
    shift
    for _ in $(seq 240); do
        if "$@" >"$work/out" 2>&1; then return; fi
        sleep 0.5
    done
    cat "$work/out" >&2
    say "waited two minutes in vain until $what"
    return 1
}

is() { [ "$1" = "$("${@:2}")" ]; }
field() { kubectl get "$1" "$2" -o jsonpath="$3"; }
in_shell() { kubectl metastore shell "$1" -- "${@:2}"; }
value() { in_shell "$1" metastorectl get --print-value-only "$2"; }

# --- the machine's side
"$here/cluster/build.sh" control-plane node dns
for program in metastore metastorectl metastoreutl metastore-operator kubectl-metastore; do
    [ -x "$programs/$program" ] || die "$programs/$program is not built"
    # A debug build carries gigabytes of symbols.
    strip -o "$work/$program" "$programs/$program"
done
"$here/cluster/down.sh" --purge
if ip link show "${BRIDGE:-mst0}" >/dev/null 2>&1; then
    die "another cluster of these scripts runs on this machine: cluster/down.sh ends it"
fi
# Every call of the operator is written down, to find one that its role does not allow.
cat >"$work/audit-policy.yaml" <<'YAML'
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, users: ["system:serviceaccount:metastore-system:metastore-operator"]}
- {level: None}
YAML
step "control plane on MetaStore" env STORE_BIN="$work/metastore" \
    APISERVER_ARGS="--audit-policy-file=$work/audit-policy.yaml --audit-log-path=$audit" "$here/cluster/up.sh"
for node in 1 2 3; do step "node $node" "$here/cluster/node-up.sh" $node; done
step "image of the server" "$here/cluster/image.sh" localhost/metastore:0.1.0-test \
    "$work/metastore" "$work/metastorectl" "$work/metastoreutl"
step "image of the operator" "$here/cluster/image.sh" localhost/metastore-operator:0.1.0-test \
    "$work/metastore-operator" "$work/metastoreutl"

# --- the first minute
install_operator() {
    helm install metastore-operator-crds "$root/charts/metastore-operator-crds"
    helm install metastore-operator "$root/charts/metastore-operator" \
        --namespace metastore-system --create-namespace --wait --timeout 2m \
        --set image.registry=,image.repository=localhost/metastore-operator,image.tag=0.1.0-test \
        --set serverImage.registry=,serverImage.repository=localhost/metastore,serverImage.version=0.1.0-test \
        --set replicas=2
}
first_cluster() {
    kubectl apply -f "$root/examples/kubernetes/cluster.yaml"
    kubectl wait --for=condition=Available metastorecluster/example --timeout=5m
    kubectl wait --for=condition=AllMembersReady metastorecluster/example --timeout=5m
}
step "helm installs the operator" install_operator
step "three members serve" first_cluster
kubectl get metastoreclusters >&2
is 3/3 field msc example '{.status.ready}' || die "not three members are ready"
spread=$(kubectl get pods -l metastore.io/cluster=example -o jsonpath='{.items[*].spec.nodeName}' | tr ' ' '\n' | sort -u | wc -l)
[ "$spread" = 3 ] || die "the members are on $spread nodes and not on three"
step "a key is put and read" in_shell example metastorectl put greeting hello
is hello value example greeting || die "the key is not there"
step "helm test" helm test metastore-operator --namespace metastore-system
kubectl metastore plan example >"$work/plan" || die "no plan"
grep -q "nothing is to be done" "$work/plan" || { cat "$work/plan" >&2; die "the plan has something to do"; }

# From a Pod, by the name of the Service, as an application does.
from_pod() {
    kubectl run client --image=localhost/metastore:0.1.0-test --restart=Never --attach --rm --quiet --command -- \
        metastorectl --endpoints=http://example:2379 get --print-value-only greeting
}
is hello from_pod || die "a Pod does not reach the Service"
say "a Pod reaches the Service"

# --- its first days
kubectl scale msc example --replicas=5 >/dev/null
all_ready() { is "$2/$2" field msc "$1" '{.status.ready}' && is True field msc "$1" '{.status.conditions[?(@.type=="AllMembersReady")].status}'; }
step "five members" eventually "five members are ready" all_ready example 5
kubectl scale msc example --replicas=3 >/dev/null
step "three members again" eventually "three members are ready" all_ready example 3
drain() { kubectl drain node-2 --ignore-daemonsets --delete-emptydir-data --timeout=120s; }
step "a node is drained" drain
eventually "three members are ready on two nodes" all_ready example 3
kubectl uncordon node-2 >/dev/null
is hello value example greeting || die "the key is gone"
lose_pod() { kubectl delete pod "$(kubectl get pods -l metastore.io/cluster=example -o jsonpath='{.items[0].metadata.name}')"; }
step "a Pod is deleted" lose_pod
step "and is back" eventually "three members are ready" all_ready example 3

# --- backup by a Job, restore by an init container
kubectl apply -f - >/dev/null <<'YAML'
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: backups}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
YAML
back_up() { kubectl metastore backup example --claim backups --wait; }
step "a backup is verified" back_up
backup=$(kubectl get msb -o jsonpath='{.items[0].metadata.name}')
step "a cluster is restored from it" timeout 180 kubectl metastore restore "$backup" --to again --wait
is hello value again greeting || die "the restored cluster has no data"
kubectl delete msc again --timeout=60s >/dev/null

# --- encryption and users
kubectl apply -f "$root/examples/kubernetes/secure-cluster.yaml" >/dev/null
step "a cluster with TLS and users" kubectl wait --for=condition=AllMembersReady msc/secure --timeout=3m
secret_put() { in_shell secure metastorectl put secret word; }
step "root writes with TLS" eventually "root may write" secret_put
is word value secure secret || die "root does not read"

# --- the operator's own Pod goes, the other one takes over
holder=$(kubectl get lease -n metastore-system metastore-operator -o jsonpath='{.spec.holderIdentity}')
kubectl delete pod -n metastore-system "$holder" --grace-period=0 --force >/dev/null 2>&1
other_leads() { [ "$(kubectl get lease -n metastore-system metastore-operator -o jsonpath='{.spec.holderIdentity}')" != "$holder" ]; }
step "another operator leads" eventually "another operator leads" other_leads
kubectl scale msc example --replicas=1 >/dev/null
step "and acts" eventually "one member is ready" all_ready example 1
is hello value example greeting || die "the key is gone"

# --- and all of it goes away
step "clusters are deleted" kubectl delete msc --all --timeout=120s
step "the charts are uninstalled" helm uninstall metastore-operator --namespace metastore-system
[ "$(wc -l <"$audit")" -gt 100 ] || die "the audit log knows no calls of the operator"
if grep '"code":403' "$audit" >&2; then die "the role of the chart is too small"; fi
say "$(wc -l <"$audit") calls of the operator, none forbidden"
say "done"
