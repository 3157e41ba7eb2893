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
    local name=$1 start=$SECONDS
    shift
    "$@" >"$work/out" 2>&1 || { cat "$work/out" >&2; die "$name: failed"; }
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
    "$work/metastore-operator" "$work/metastoreutl" /etc/ssl/certs/ca-certificates.crt=/etc/ssl/certs/ca-certificates.crt
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

# --- clients that write and read all the time
# start_clients RECORD CLUSTER-URL [FLAG…]: the Secrets of a secure cluster are mounted where there are some.
start_clients() {
    local record=$1 url=$2 flags
    shift 2
    flags=$(printf '"%s", ' "$@" | sed 's/^"", $//')
    kubectl apply -f - <<YAML
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: $record}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: $record}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 60
  # A drain of another node must not end it.
  nodeSelector: {kubernetes.io/hostname: node-3}
  containers:
  - name: clients
    image: localhost/clients:0.1.0-test
    args: ["-endpoints=$url", "-duration=24h", "-output=/record/history.jsonl", $flags history]
    volumeMounts:
    - {name: record, mountPath: /record}
    - {name: tls, mountPath: /tls}
    - {name: root, mountPath: /root-user}
  volumes:
  - {name: record, persistentVolumeClaim: {claimName: $record}}
  - {name: tls, secret: {secretName: secure-client-tls, optional: true}}
  - {name: root, secret: {secretName: secure-root, optional: true}}
YAML
    kubectl wait --for=condition=Ready "pod/$record" --timeout="${limit_seconds}s"
    eventually "the clients work" are_at_work "$record"
}
are_at_work() { kubectl logs "$1" | grep READY; }
folder_of() { echo "$CLUSTER_DIR/volumes/$(field pvc "$1" '{.spec.volumeName}')"; }
# stop_clients RECORD: they do a last write and see its event, then the record is judged.
stop_clients() {
    local record=$1
    kubectl delete pod "$record" --wait=false
    # Only what its own end says tells why a record has no end.
    kubectl logs "$record" --follow >"$work/$record.log" 2>&1 || true
    kubectl wait --for=delete "pod/$record" --timeout="${limit_seconds}s"
    check-history "$(folder_of "$record")/history.jsonl" "$work/$record.phases" >"$work/$record.verdict" 2>&1 || {
        cat "$work/$record.verdict" "$work/$record.log"
        return 1
    }
}
show_verdict() { cat "$work/$1.verdict" >&2; [ -z "${REPORT:-}" ] || { echo "## $1" && cat "$work/$1.verdict"; } >>"$REPORT"; }

step "clients write and read" start_clients plain-clients http://example:2379
quietly() { sleep 10; } # nothing happens: what the other figures are compared with
during plain-clients "ten quiet seconds" quietly

# --- its first days
during plain-clients "growing from three to five" scale example 5
during plain-clients "shrinking to three" scale example 3
during plain-clients "restarting each for a new configuration" change example 3 '{"spec":{"config":{"logLevel":"warn"}}}'

# The operator is killed every few seconds, wherever it is in its work.
kill_operators() {
    while true; do
        sleep 3
        kubectl delete pod -n metastore-system --grace-period=0 --force \
            "$(kubectl get lease -n metastore-system metastore-operator -o jsonpath='{.spec.holderIdentity}')" >/dev/null 2>&1 || true
    done
}
kill_operators &
assassin=$!
during plain-clients "growing to five while operators are killed" scale example 5
during plain-clients "shrinking to three while operators are killed" scale example 3
kill "$assassin"
assassin=

drain() { kubectl drain node-2 --ignore-daemonsets --delete-emptydir-data --timeout="${limit_seconds}s" && eventually "three members are ready on two nodes" settled example 3; }
during plain-clients "draining a node" drain
kubectl uncordon node-2 >/dev/null
lose_pod() {
    local pod before
    pod=$(follower example)-0
    before=$(incarnation "$pod")
    kubectl delete pod "$pod" && restarted example 3 "$pod" "$before"
}
during plain-clients "deleting a Pod" lose_pod
kill_member() {
    local pod before
    pod=$("$1" example)-0
    before=$(incarnation "$pod")
    signal SIGKILL "$pod" && restarted example 3 "$pod" "$before"
}
during plain-clients "kill -9 of a follower" kill_member follower
during plain-clients "kill -9 of the leader" kill_member leader
lose_volume() {
    local member
    member=$(follower example)
    kubectl delete pvc "$member-data" --wait=false
    kubectl delete pod "$member-0" --wait=false
    replaced example 3 "$member"
}
during plain-clients "losing a volume with its claim" lose_volume
# Longer than Kubernetes takes to notice that a node is lost, which is 50 s: a new member that is made before that
# may be sent to the very same node.
change example 3 '{"spec":{"recovery":{"memberReplacement":{"unhealthyAfter":"60s","maxPerHour":5}}}}' >/dev/null
# The volume is empty, and the member comes back to it: it must not start, and is replaced.
wipe_member() {
    local member folder
    member=$(leader example)
    folder=$(folder_of "$member-data")
    [ -n "$(ls "$folder")" ] || { echo "$folder is empty already"; return 1; }
    # Stopped first: it must not notice by itself and start anew before everything is gone.
    signal SIGSTOP "$member-0"
    rm -rf "${folder:?}"/*
    signal SIGKILL "$member-0"
    replaced example 3 "$member"
}
during plain-clients "wiping the leader" wipe_member
# Nothing reaches the node any more, and nobody says goodbye.
link_of_node_2() { ip link set "${BRIDGE:-mst0}-n2" "$1"; }
cut_off() {
    local member
    member=$(kubectl get pods -l metastore.io/cluster=example --field-selector spec.nodeName=node-2 -o jsonpath='{.items[0].metadata.labels.metastore\.io/member}')
    link_of_node_2 down
    eventually "the member of the lost node is replaced" gone example "$member"
    eventually "three members serve without the node" settled example 3
}
during plain-clients "losing a node" cut_off
back() {
    link_of_node_2 up
    eventually "the node is back" is True field node node-2 '{.status.conditions[?(@.type=="Ready")].status}'
    eventually "no Pod is left over" is 3 eval 'kubectl get pods -l metastore.io/cluster=example,metastore.io/member -o name | wc -l'
    eventually "three members serve" settled example 3
}
during plain-clients "the node comes back" back
grow_volumes() {
    change example 3 '{"spec":{"storage":{"size":"2Gi"}}}'
    eventually "all volumes are larger" is "2Gi 2Gi 2Gi" kubectl get pvc -l metastore.io/cluster=example -o jsonpath='{.items[*].status.capacity.storage}'
}
during plain-clients "growing the volumes" grow_volumes

# --- backup by a Job, restore by an init container, while clients write
kubectl apply -f - >/dev/null <<'YAML'
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: backups}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
YAML
back_up() { kubectl metastore backup example --claim backups --wait; }
during plain-clients "a verified backup" back_up
backup=$(kubectl get msb -o jsonpath='{.items[0].metadata.name}')
step "a cluster is restored from it" timeout "$limit_seconds" kubectl metastore restore "$backup" --to again --wait
is hello value again greeting || die "the restored cluster has no data"
kubectl delete msc again --timeout="${limit_seconds}s" >/dev/null

# The same into S3: a server of that protocol on this machine.
s3_address=${NODE_NET:-10.97.0}.1:17070
mkdir -p "$work/objects/backups"
ROOT_ACCESS_KEY=access ROOT_SECRET_KEY=secret-secret "$stores/versitygw" --port "$s3_address" posix "$work/objects" >"$work/s3.log" 2>&1 &
object_store=$!
back_up_to_s3() {
    kubectl create secret generic s3 --from-literal=AWS_ACCESS_KEY_ID=access --from-literal=AWS_SECRET_ACCESS_KEY=secret-secret
    kubectl apply -f - <<YAML
apiVersion: metastore.io/v1alpha1
kind: MetaStoreBackup
metadata: {name: in-s3}
spec:
  clusterRef: {name: example}
  store: {s3: {bucket: backups, prefix: night, endpoint: "http://$s3_address", credentialsSecretRef: {name: s3}}}
YAML
    kubectl wait --for=condition=Verified msb/in-s3 --timeout="${limit_seconds}s"
    [ -n "$(find "$work/objects/backups/night" -name '*.manifest.json')" ]
}
during plain-clients "a verified backup into S3" back_up_to_s3
step "a cluster is restored from S3" timeout "$limit_seconds" kubectl metastore restore in-s3 --to again --wait
is hello value again greeting || die "the cluster restored from S3 has no data"
kubectl delete msc again --timeout="${limit_seconds}s" >/dev/null
kill "$object_store"
object_store=

# --- the operator's own Pod goes, the other one takes over
holder=$(kubectl get lease -n metastore-system metastore-operator -o jsonpath='{.spec.holderIdentity}')
kubectl delete pod -n metastore-system "$holder" --grace-period=0 --force >/dev/null 2>&1
holder_now() { kubectl get lease -n metastore-system metastore-operator -o jsonpath='{.spec.holderIdentity}'; }
during plain-clients "another operator leads" eventually "another operator leads" is_not "$holder" holder_now
# A cluster in use gets TLS: first beside plain text, then alone.
speaks_plain_text() { curl -sf -m 5 "http://$(field pod "$(leader example)-0" '{.status.podIP}'):2379/version"; }
during plain-clients "restarting each for TLS beside plain text" change example 3 \
    '{"spec":{"tls":{"issuer":{"operatorCA":{}},"client":{"mode":"Permissive"}}}}'
speaks_plain_text >"$work/out" || die "plain text is refused already"
is hello value example greeting || die "the key cannot be read with TLS"
during plain-clients "shrinking to one" scale example 1
step "the clients' history is judged" stop_clients plain-clients
show_verdict plain-clients
step "plain text is spoken no more" change example 1 '{"spec":{"tls":{"client":{"mode":"Required"}}}}'
if speaks_plain_text >"$work/out"; then die "plain text is spoken still"; fi
is hello value example greeting || die "the key is gone"

# --- a store that is full
full_store() {
    kubectl apply -f - <<'YAML'
apiVersion: metastore.io/v1alpha1
kind: MetaStoreCluster
metadata: {name: full}
spec: {replicas: 3, storage: {size: 1Gi}, config: {quota: 32Mi}}
YAML
    eventually "three members serve" settled full 3
    # History fills it: what is left after a compaction is small.
    in_shell full sh -c 'value=$(head -c 600000 /dev/urandom | base64 -w0); for number in $(seq 200); do echo "$value" | metastorectl put history >/dev/null 2>&1 || exit 0; done; exit 1'
    eventually "the operator has reclaimed space" disarmed full
    eventually "the store takes writes again" in_shell full metastorectl put small one
    eventually "three members serve" settled full 3
}
disarmed() { kubectl get events.events.k8s.io -o json | jq -e --arg name "$1" 'any(.items[]; .reason == "Disarm" and .regarding.name == $name)'; }
step "a full store is reclaimed" full_store
# Two of three volumes are gone for good, and a person decides.
lose_majority() {
    local survivor others id
    read -r survivor others <<<"$(members full)"
    id=$(field msc full '{.status.clusterID}')
    for member in $others; do
        kubectl delete pvc "$member-data" --wait=false
        kubectl delete pod "$member-0" --wait=false
    done
    eventually "the loss is reported" is False condition full Available
    kubectl metastore plan full
    kubectl metastore recover full --survivor "$survivor" --accept-data-loss "$id" --wait
    eventually "three members serve again" settled full 3
    is one value full small
}
step "a lost majority is given up" lose_majority
kubectl delete msc full --timeout="${limit_seconds}s" >/dev/null

# --- encryption and users
kubectl apply -f "$root/examples/kubernetes/secure-cluster.yaml" >/dev/null
step "a cluster with TLS and users" kubectl wait --for=condition=AllMembersReady msc/secure --timeout=3m
secret_put() { in_shell secure metastorectl put secret word; }
step "root writes with TLS" eventually "root may write" secret_put
step "clients write and read with TLS" start_clients secure-clients https://secure:2379 \
    -cacert=/tls/ca.crt -cert=/tls/tls.crt -key=/tls/tls.key -user=root -password=/root-user/password
during secure-clients "growing from one to three with TLS" scale secure 3
# What a member shows to who connects, and how often it has started.
shown() {
    local address
    address=$(field pod "$1" '{.status.podIP}')
    # It refuses a client without a certificate, after it has shown its own.
    { openssl s_client -connect "$address:2379" </dev/null 2>/dev/null || true; } | openssl x509 -noout -serial
}
rotate_certificates() {
    local pods pod
    local -A serials starts
    pods=$(kubectl get pods -l metastore.io/cluster=secure,metastore.io/member -o jsonpath='{.items[*].metadata.name}')
    for pod in $pods; do serials[$pod]=$(shown "$pod") starts[$pod]=$(incarnation "$pod"); done
    kubectl delete secret secure-server-tls secure-peer-tls secure-client-tls
    for pod in $pods; do eventually "$pod shows its new certificate" is_not "${serials[$pod]}" shown "$pod"; done
    eventually "three members serve" settled secure 3
    for pod in $pods; do is "${starts[$pod]}" incarnation "$pod" || { echo "$pod has restarted"; return 1; }; done
}
during secure-clients "new certificates" rotate_certificates
is word value secure secret || die "root does not read"
step "the clients' history is judged" stop_clients secure-clients
show_verdict secure-clients

# --- and all of it goes away
step "clusters are deleted" kubectl delete msc --all --timeout=120s
[ "$(wc -l <"$audit")" -gt 100 ] || die "the audit log knows no calls of the operator"
if grep '"code":403' "$audit" >&2; then die "the role of the chart is too small"; fi
say "$(wc -l <"$audit") calls of the operator, none forbidden"
# Only now: this takes the role away before the Pods have ended.
step "the charts are uninstalled" helm uninstall metastore-operator --namespace metastore-system
say "done"
