#!/usr/bin/env bash
# A user's first minute on a real Kubernetes, and then everything that may happen to a cluster: a control plane on
# MetaStore, three nodes that run containers, images of the programs in this tree, the operator installed by helm,
# and a cluster of three members applied with kubectl. While it is scaled, rolled, drained, killed, wiped and cut off,
# a Pod with etcd's own Go client writes and reads all the time through its Service, and records every answer. At the
# end no acknowledged write may be lost, the history must be linearizable, and no call of the operator forbidden.
#
#   tests/kubernetes/nodes.sh          PROGRAMS=target/release: where the programs are (default: target/debug)
#   KEEP=1 tests/kubernetes/nodes.sh   leave everything running, to look at it; cluster/down.sh --purge ends it
#   REPORT=FILE                        how long nothing was acknowledged during each operation, as a table
#   PARTS=life                         only that part of it; there are life and charts
#   PATIENCE=2                         a factor for everything that is waited for, on a busy machine
#
# It needs root, namespaces and cgroups of its own; what is missing is said. `make e2e-nodes`.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
programs=${PROGRAMS:-${CARGO_TARGET_DIR:-$root/target}/debug}
bin=$("$here/install.sh" | tail -n 1)
tools=$("$here/../tools/install.sh" | tail -n 1)
stores=$("$here/install-stores.sh" versitygw | tail -n 1)
export CLUSTER_DIR=${CLUSTER_DIR:-$(dirname "$bin")/nodes-test}
export KUBECONFIG=$CLUSTER_DIR/admin.kubeconfig
work=$(mktemp -d)
# kubectl finds its plugin there.
export PATH=$work:$bin:$PATH
audit=$work/audit.log
# Everything that one operation may take.
limit_seconds=$((180 * ${PATIENCE:-1}))

say() { echo "nodes: $*" >&2; }
die() { say "$*"; exit 1; }

# --- may this machine do it at all?
[ "$(id -u)" = 0 ] || die "cannot run here: root is needed for nodes that run containers"
unshare --mount --net --uts true 2>/dev/null || die "cannot run here: no right to make namespaces (unshare --mount --net --uts)"
[ -d /sys/fs/cgroup ] && [ -w /sys/fs/cgroup ] || die "cannot run here: /sys/fs/cgroup cannot be written"

finish() {
    local status=$?
    for process in ${assassin:-} ${object_store:-}; do kill "$process" 2>/dev/null || true; done
    if [ "$status" != 0 ]; then
        say "failed; what is there:"
        kubectl get pods,msc,msb,mst,pvc -A -o wide >&2 || true
        kubectl get msc -A -o jsonpath='{range .items[*]}{.metadata.name}{": "}{range .status.conditions[*]}{.type}={.status} {.message}{"\n  "}{end}{"\n"}{end}' >&2 || true
        kubectl get events -A --sort-by=.lastTimestamp 2>/dev/null | tail -n 15 >&2 || true
        kubectl logs -n metastore-system -l app.kubernetes.io/name=metastore-operator --prefix --tail=15 2>/dev/null | cut -c1-600 >&2 || true
        kubectl logs -l metastore.io/cluster --prefix --tail=5 2>/dev/null | cut -c1-400 >&2 || true
    fi
    [ -n "${KEEP:-}" ] || "$here/cluster/down.sh" --purge || true
    rm -rf "$work"
}
trap finish EXIT

# step NAME COMMAND…: says how long it took.
step() {
    local name=$1 start=$SECONDS status
    shift
    # Not with `||` behind it: then no failure inside of a function but its last one would count.
    set +e
    (set -e && "$@") >"$work/out" 2>&1
    status=$?
    set -e
    [ "$status" = 0 ] || { cat "$work/out" >&2; die "$name: failed"; }
    say "$name: $((SECONDS - start)) s"
}

now() { date +%s%N; }

# during RECORD NAME COMMAND…: a step whose time is noted, to tell later what the clients of that record saw in it.
during() {
    local record=$1 name=$2 begin
    shift
    begin=$(now)
    step "$@"
    echo "$begin $(now) $name" >>"$work/$record.phases"
}

# eventually WHAT COMMAND…
eventually() {
    local what=$1 end=$((SECONDS + limit_seconds))
    shift
    while [ $SECONDS -lt $end ]; do
        if "$@" >"$work/last" 2>&1; then return; fi
        sleep 0.5
    done
    cat "$work/last" >&2
    say "waited $limit_seconds s in vain until $what"
    return 1
}

is() { [ "$1" = "$("${@:2}")" ]; }
is_not() { local found; found=$("${@:2}") && [ "$1" != "$found" ]; }
field() { kubectl get "$1" "$2" -o jsonpath="$3"; }
in_shell() { kubectl metastore shell "$1" -- "${@:2}"; }
value() { in_shell "$1" metastorectl get --print-value-only "$2"; }
members() { field msc "$1" '{.status.members[*].name}'; }
condition() { field msc "$1" "{.status.conditions[?(@.type==\"$2\")].status}"; }

# settled CLUSTER N: what was asked for is there, as the operator and as the kubelets see it.
settled() {
    kubectl get msc "$1" -o json | jq -e --argjson count "$2" '
        (.metadata.generation == .status.observedGeneration) and (.status.voters == $count) and
        ([.status.conditions[] | select(.type | IN("Available", "AllMembersReady", "AllMembersUpdated")) | .status] == ["True", "True", "True"])' &&
        kubectl get pods -l "metastore.io/cluster=$1,metastore.io/member" -o json | jq -e --argjson count "$2" '
        [.items[] | select(.metadata.deletionTimestamp == null and any(.status.conditions[]?; .type == "Ready" and .status == "True"))] | length == $count'
}
# change CLUSTER N PATCH: changes the spec, and waits until it is so.
change() { kubectl patch msc "$1" --type=merge -p "$3" && eventually "$1 is as wanted" settled "$1" "$2"; }
scale() { kubectl scale msc "$1" --replicas="$2" && eventually "$1 has $2 members" settled "$1" "$2"; }
gone() { [[ " $(members "$1") " != *" $2 "* ]]; }
# replaced CLUSTER N MEMBER
replaced() { eventually "$3 is replaced" gone "$1" "$3" && eventually "$1 is whole again" settled "$1" "$2"; }
incarnation() { kubectl get pod "$1" -o jsonpath='{.metadata.uid} {.status.containerStatuses[0].restartCount}'; }
# restarted CLUSTER N POD INCARNATION
restarted() { eventually "$3 has started anew" is_not "$4" incarnation "$3" && eventually "$1 is whole again" settled "$1" "$2"; }
node_of() { local node; node=$(field pod "$1" '{.spec.nodeName}') && echo "${node#node-}"; }
# signal SIGNAL POD: to the process of its container, as the kernel does it when memory is short.
signal() {
    local id
    id=$(field pod "$2" '{.status.containerStatuses[0].containerID}')
    "$here/cluster/node-exec.sh" "$(node_of "$2")" ctr -n k8s.io task kill --signal "$1" "${id#containerd://}"
}
leader() { field msc "$1" '{.status.leader}'; }
# The network of a node, down or up.
link_of_node_2() { ip link set "${BRIDGE:-mst0}-n2" "$1"; }
follower() { field msc "$1" '{.status.members[?(@.role=="Follower")].name}' | cut -d' ' -f1; }

# --- the machine's side
"$here/cluster/build.sh" control-plane node dns
for program in metastore metastorectl metastoreutl metastore-operator kubectl-metastore check-history; do
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
# The server starts without certificate authorities of a system; whoever speaks to stores of objects has some.
step "image of the operator" "$here/cluster/image.sh" localhost/metastore-operator:0.1.0-test \
    "$work/metastore-operator" "$work/kubectl-metastore" "$work/metastoreutl" /etc/ssl/certs/ca-certificates.crt=/etc/ssl/certs/ca-certificates.crt
step "image of the clients" "$here/cluster/image.sh" localhost/clients:0.1.0-test "$tools/clientv3-check"

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
    kubectl run client --image=localhost/metastore:0.1.0-test --restart=Never --command -- \
        metastorectl --endpoints=http://example:2379 get --print-value-only greeting >&2
    kubectl wait --for=jsonpath='{.status.phase}'=Succeeded pod/client --timeout=60s >&2
    kubectl logs client
    kubectl delete pod client --wait=false >&2
}
is hello from_pod || die "a Pod does not reach the Service"
say "a Pod reaches the Service"

for part in ${PARTS:-life charts}; do
    # shellcheck source=/dev/null
    source "$here/nodes-$part.sh"
done

# --- and all of it goes away
step "clusters are deleted" kubectl delete msc --all --timeout=120s
[ "$(wc -l <"$audit")" -gt 100 ] || die "the audit log knows no calls of the operator"
if grep '"code":403' "$audit" >&2; then die "the role of the chart is too small"; fi
say "$(wc -l <"$audit") calls of the operator, none forbidden"
# Only now: this takes the role away before the Pods have ended.
step "the charts are uninstalled" helm uninstall metastore-operator --namespace metastore-system
say "done"
