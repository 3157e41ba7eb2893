#!/usr/bin/env bash
# A real Kubernetes control plane on MetaStore: kube-apiserver with its own consistency checks,
# kube-controller-manager and kube-scheduler, with a node that exists only as an object. Creates, lists in
# pages, watches, schedules, scales and deletes, and fails when anything of it does not come to its end.
#
#   tests/kubernetes/control-plane.sh      one member without TLS: about a minute; `make e2e-control-plane`
#   tests/kubernetes/control-plane.sh 3    three members with TLS everywhere, of which one after the other is
#                                          killed and started again all the time, for SECONDS_MIN seconds
#
#   SECONDS_MIN     how long the work is repeated at least [default: 0 with one member, 150 with three]
#   KILL_INTERVAL   seconds between two kills [default: 30]
set -euo pipefail

members=${1:-1}
seconds_min=${SECONDS_MIN:-$((members > 1 ? 150 : 0))}
kill_interval=${KILL_INTERVAL:-30}
# Longer than an election and a start; shorter than the interval.
down_seconds=3

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bin=$("$here/install.sh" | tail -n 1)
etcd_bin=$("$here/../tools/install.sh" | tail -n 1)
server=${METASTORE_BIN:-${CARGO_TARGET_DIR:-$here/../../target}/debug/metastore}
work=$(mktemp -d)
api=https://127.0.0.1:23811
processes=()

finish() {
    local status=$? member
    for member in $(seq "$members"); do
        [ -f "$work/member-$member.pid" ] && processes+=("$(cat "$work/member-$member.pid")")
    done
    # Nothing of theirs is kept, and an API server takes a minute to end gently.
    kill -KILL "${processes[@]}" 2>/dev/null || true
    wait 2>/dev/null || true
    if [ "$status" != 0 ]; then tail -n 15 "$work"/*.log | cut -c1-400 >&2; fi
    rm -rf "$work"
}
trap finish EXIT

say() { echo "control-plane: $*" >&2; }

# eventually WHAT COMMAND…: within two minutes.
eventually() {
    local what=$1
    shift
    for _ in $(seq 240); do
        if "$@" >/dev/null 2>"$work/last-error"; then return; fi
        sleep 0.5
    done
    say "waited two minutes in vain until $what: $(tail -n 1 "$work/last-error")"
    return 1
}

start() {
    local name=$1
    shift
    "$@" >>"$work/$name.log" 2>&1 &
    processes+=($!)
}

scheme=http
client_tls=() member_tls=() etcdctl_tls=() apiserver_tls=()
if [ "$members" -gt 1 ]; then
    scheme=https
    openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=metastore-ca -keyout "$work/ca.key" \
        -out "$work/ca.crt" 2>/dev/null
    openssl req -newkey rsa:2048 -nodes -subj /CN=metastore -keyout "$work/tls.key" -out "$work/tls.csr" 2>/dev/null
    openssl x509 -req -days 2 -in "$work/tls.csr" -CA "$work/ca.crt" -CAkey "$work/ca.key" -CAcreateserial \
        -extfile <(printf 'subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n') \
        -out "$work/tls.crt" 2>/dev/null
    files=("$work/ca.crt" "$work/tls.crt" "$work/tls.key")
    member_tls=(--client-cert-auth --trusted-ca-file "${files[0]}" --cert-file "${files[1]}" --key-file "${files[2]}"
        --peer-client-cert-auth --peer-trusted-ca-file "${files[0]}" --peer-cert-file "${files[1]}"
        --peer-key-file "${files[2]}")
    client_tls=(--cacert "${files[0]}" --cert "${files[1]}" --key "${files[2]}")
    etcdctl_tls=("${client_tls[@]}")
    apiserver_tls=(--etcd-cafile "${files[0]}" --etcd-certfile "${files[1]}" --etcd-keyfile "${files[2]}")
fi

client_url() { echo "$scheme://127.0.0.1:$((23790 + $1))"; }
peer_url() { echo "$scheme://127.0.0.1:$((23800 + $1))"; }
all_clients=() all_peers=()
for member in $(seq "$members"); do
    all_clients+=("$(client_url "$member")")
    all_peers+=("member-$member=$(peer_url "$member")")
done
clients=$(IFS=,; echo "${all_clients[*]}")
peers=$(IFS=,; echo "${all_peers[*]}")

start_member() {
    local member=$1 client peer
    client=$(client_url "$member") peer=$(peer_url "$member")
    "$server" --name "member-$member" --data-dir "$work/data-$member" --listen-client-urls "$client" \
        --advertise-client-urls "$client" --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" \
        --initial-cluster "$peers" ${member_tls[@]+"${member_tls[@]}"} >>"$work/member-$member.log" 2>&1 &
    echo $! >"$work/member-$member.pid"
}

# Kills one member after the other and starts it again, for ever.
kill_members() {
    local member
    while true; do
        for member in $(seq "$members"); do
            sleep $((kill_interval - down_seconds))
            kill -KILL "$(cat "$work/member-$member.pid")" || exit 1
            say "killed member $member"
            echo "$member" >>"$work/kills"
            sleep "$down_seconds"
            start_member "$member"
        done
    done
}

for member in $(seq "$members"); do start_member "$member"; done
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
kubectl() { "$bin/kubectl" --kubeconfig="$work/kubeconfig" --request-timeout=30s "$@"; }
# apply OBJECT: again and again, as a controller would. While a leader is elected, calls fail.
apply() { eventually "$1 is applied" kubectl apply -f "$1"; }
is() { [ "$1" = "$("${@:2}" 2>/dev/null)" ]; }

KUBE_WATCHCACHE_CONSISTENCY_CHECKER=true start apiserver "$bin/kube-apiserver" --etcd-servers="$clients" \
    ${apiserver_tls[@]+"${apiserver_tls[@]}"} \
    --bind-address=127.0.0.1 --secure-port="${api##*:}" --cert-dir="$work/certificates" \
    --service-account-key-file="$work/account.key" --service-account-signing-key-file="$work/account.key" \
    --service-account-issuer=https://kubernetes.default.svc --service-cluster-ip-range=10.0.0.0/24 \
    --authorization-mode=RBAC --token-auth-file="$work/tokens.csv" --etcd-compaction-interval=10s
eventually "the API server is ready" kubectl get --raw /readyz
say "the API server is ready"
# Both end when they cannot renew their lease, and a kubelet or systemd would start them again.
keep_running() {
    local name=$1
    shift
    (
        while true; do "$@" >>"$work/$name.log" 2>&1 & echo $! >"$work/$name.pid"; wait $! || true; sleep 1; done
    ) &
    processes+=($!)
}
keep_running controllers "$bin/kube-controller-manager" --kubeconfig="$work/kubeconfig" --leader-elect=true \
    --service-account-private-key-file="$work/account.key"
keep_running scheduler "$bin/kube-scheduler" --kubeconfig="$work/kubeconfig" --leader-elect=true --secure-port=23812

cat >"$work/node.yaml" <<'NODE'
apiVersion: v1
kind: Node
metadata: {name: paper}
NODE
apply "$work/node.yaml"
# A kubelet would report this and take the taint away.
ready='{"status":{"allocatable":{"cpu":"8","memory":"8Gi","pods":"100"},"capacity":{"cpu":"8","memory":"8Gi","pods":"100"},"conditions":[{"type":"Ready","status":"True","reason":"Paper","message":"","lastHeartbeatTime":"2026-01-01T00:00:00Z","lastTransitionTime":"2026-01-01T00:00:00Z"}]}}'
node_is_ready() { kubectl patch node paper --subresource=status --type=merge -p "$ready"; }
eventually "the node is ready" node_is_ready
cat >"$work/crd.yaml" <<'CRD'
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: parcels.shop.example}
spec:
  group: shop.example
  scope: Namespaced
  names: {kind: Parcel, plural: parcels, singular: parcel}
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]
CRD
apply "$work/crd.yaml"

if [ "$members" -gt 1 ]; then
    kill_members &
    processes+=($!)
fi

# A watch ends with its API server's time-out; kubectl begins it anew by itself only after an error.
watch_for_ever() { while true; do kubectl get configmaps -A --watch -o name --request-timeout=0 2>/dev/null || true; sleep 0.2; done; }
watch_for_ever >"$work/watched" &
processes+=($!)
eventually "the watch has begun" test -s "$work/watched"

round() {
    local space=$1 number count=25
    cat >"$work/space.yaml" <<SPACE
apiVersion: v1
kind: Namespace
metadata: {name: $space}
SPACE
    apply "$work/space.yaml"
    for number in $(seq "$count"); do
        cat >"$work/map.yaml" <<MAP
apiVersion: v1
kind: ConfigMap
metadata: {name: map-$number, namespace: $space}
data: {number: "$number"}
MAP
        apply "$work/map.yaml"
    done
    in_pages() { kubectl -n "$space" get configmaps --chunk-size=10 -o name | grep -c map-; }
    eventually "a list in pages has all $count" is "$count" in_pages
    # The names of the maps repeat in each round: only the first sees a new one.
    eventually "the watch has seen the last" grep -q "map-$count" "$work/watched"
    cat >"$work/parcel.yaml" <<PARCEL
apiVersion: shop.example/v1
kind: Parcel
metadata: {name: one, namespace: $space}
spec: {weight: 3}
PARCEL
    apply "$work/parcel.yaml"
    cat >"$work/front.yaml" <<FRONT
apiVersion: apps/v1
kind: Deployment
metadata: {name: front, namespace: $space}
spec:
  replicas: 3
  selector: {matchLabels: {app: front}}
  template:
    metadata: {labels: {app: front}}
    spec:
      tolerations: [{operator: Exists}]
      containers: [{name: none, image: none}]
FRONT
    apply "$work/front.yaml"
    scheduled() { kubectl -n "$space" get pods --field-selector spec.nodeName=paper -o name | wc -l | tr -d ' '; }
    eventually "three pods are made and scheduled" is 3 scheduled
    eventually "the deployment is scaled" kubectl -n "$space" scale deployment front --replicas=1
    # There is no kubelet that would end the pods of the node.
    only_one() {
        kubectl -n "$space" get pods -o jsonpath='{range .items[?(@.metadata.deletionTimestamp)]}{.metadata.name}{"\n"}{end}' |
            while read -r pod; do kubectl -n "$space" delete pod "$pod" --grace-period=0 --force >/dev/null 2>&1 || true; done
        is 1 scheduled
    }
    eventually "one pod is left" only_one
    gone() {
        kubectl delete namespace "$space" --wait=false >/dev/null 2>&1 || true
        kubectl -n "$space" delete pods --all --grace-period=0 --force >/dev/null 2>&1 || true
        [[ $(kubectl get namespace "$space" 2>&1) == *NotFound* ]]
    }
    eventually "the namespace is gone" gone
}

rounds=0
until [ "$rounds" -gt 0 ] && [ "$SECONDS" -ge "$seconds_min" ]; do
    rounds=$((rounds + 1))
    round "shop-$rounds"
    say "round $rounds: created, listed, watched, scheduled, scaled and deleted"
done

compacted() {
    curl -sf ${client_tls[@]+"${client_tls[@]}"} "$(client_url 1)/metrics" |
        awk '$1 == "etcd_debugging_mvcc_compact_revision" { revision = $2 } END { exit !(revision > 1) }'
}
eventually "the API server has compacted" compacted
if grep -iE 'inconsisten|cache is out of sync' "$work/apiserver.log" >&2; then
    say "the API server found its cache inconsistent with the store"
    exit 1
fi
same_hash() {
    "$etcd_bin/etcdctl" --endpoints "$clients" ${etcdctl_tls[@]+"${etcdctl_tls[@]}"} endpoint hashkv --rev "$1" \
        -w json | grep -o '"hash":[0-9]*' | sort | uniq -c | awk -v members="$members" '{ same = $1 == members } END { exit !(NR == 1 && same) }'
}
revision() {
    "$etcd_bin/etcdctl" --endpoints "$clients" ${etcdctl_tls[@]+"${etcdctl_tls[@]}"} get / -w json |
        grep -o '"revision":[0-9]*' | head -n 1 | cut -d: -f2
}
now=""
has_revision() { now=$(revision) && [ -n "$now" ]; }
members_agree() { has_revision && same_hash "$now"; }
eventually "all members have the same history" members_agree
say "$rounds rounds, $(wc -l <"$work/kills" 2>/dev/null || echo 0) kills; all members have the same history"
