# A part of nodes.sh, which sources it: the life of a cluster while clients write and read, and its history.
# shellcheck shell=bash

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
