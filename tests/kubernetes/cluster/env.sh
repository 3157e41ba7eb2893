# shellcheck shell=bash disable=SC2034
# Settings shared by the cluster scripts. Sourced, not run. Every value can be set in the environment.

set -euo pipefail

SCRIPT_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

CACHE_DIR=${CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/metastore/kubernetes-1.37.2}   # binaries and build folders, kept between runs
BIN_DIR=${BIN_DIR:-$CACHE_DIR/bin}
CLUSTER_DIR=${CLUSTER_DIR:-$CACHE_DIR/cluster}         # certificates, kubeconfigs, logs and pids of one cluster

K8S_VERSION=${K8S_VERSION:-v1.37.2}
ETCD_VERSION=${ETCD_VERSION:-v3.7.3}
HELM_VERSION=${HELM_VERSION:-v4.3.1}
CONTAINERD_VERSION=${CONTAINERD_VERSION:-v2.4.2}
COREDNS_VERSION=${COREDNS_VERSION:-v1.15.0}

export GOTOOLCHAIN=local
export GOFLAGS="${GOFLAGS:-} -mod=mod"

log() { printf '%s %s\n' "$(date +%H:%M:%S)" "$*" >&2; }
die() { log "error: $*"; exit 1; }

# apt_need COMMAND=PACKAGE ... installs the packages whose command is missing.
apt_need() {
  local pair missing=()
  for pair in "$@"; do
    PATH="$PATH:/usr/sbin:/sbin:/usr/lib/cni" command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  log "apt: installing ${missing[*]}"
  apt-get update -qq >/dev/null
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null 2> >(grep -v apt-utils >&2)
}

# wait_for SECONDS COMMAND ... repeats the command until it succeeds.
wait_for() {
  local end=$(($(date +%s) + $1)); shift
  until "$@" >/dev/null 2>&1; do
    [ "$(date +%s)" -lt "$end" ] || return 1
    sleep 0.1
  done
}

# Addresses. All of them live on this machine: a bridge in the caller's network namespace and one namespace per node.
SECURE_PORT=${SECURE_PORT:-6443}
BRIDGE=${BRIDGE:-mst0}
NODE_NET=${NODE_NET:-10.97.0}          # .1 is this machine (API server, DNS), .1N is node N
POD_NET=${POD_NET:-10.244}             # node N has POD_NET.N.0/24
SERVICE_NET=${SERVICE_NET:-10.96}      # SERVICE_NET.0.0/16
HOST_IP=$NODE_NET.1
PROVISIONER=test.metastore.io/folder   # of the storage class: provisioner.sh

PKI=$CLUSTER_DIR/pki
KUBECONFIG_ADMIN=$CLUSTER_DIR/admin.kubeconfig

# certificate NAME SUBJECT [SAN]: a key and a certificate signed by the cluster's authority, unless present.
certificate() {
  local name=$1 subject=$2 san=${3:-}
  [ -e "$PKI/$name.crt" ] && return 0
  mkdir -p "$PKI"
  if [ ! -e "$PKI/ca.crt" ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj /CN=test-ca \
      -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign,digitalSignature \
      -keyout "$PKI/ca.key" -out "$PKI/ca.crt" 2>/dev/null
  fi
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$subject" \
    -keyout "$PKI/$name.key" -out "$PKI/$name.csr" 2>/dev/null
  openssl x509 -req -in "$PKI/$name.csr" -CA "$PKI/ca.crt" -CAkey "$PKI/ca.key" -days 3650 -out "$PKI/$name.crt" \
    -set_serial "0x$(openssl rand -hex 8)" -extfile <(
      echo "keyUsage=critical,digitalSignature"
      echo "extendedKeyUsage=serverAuth,clientAuth"
      [ -z "$san" ] || echo "subjectAltName=$san") 2>/dev/null
  rm "$PKI/$name.csr"
}

# kubeconfig NAME ADDRESS: a kubeconfig at $CLUSTER_DIR/NAME.kubeconfig with the certificate of that name inside.
kubeconfig() {
  local b64="base64 -w0"
  cat > "$CLUSTER_DIR/$1.kubeconfig" <<YAML
apiVersion: v1
kind: Config
clusters:
- name: test
  cluster: {server: "https://$2:$SECURE_PORT", certificate-authority-data: $($b64 "$PKI/ca.crt")}
users:
- name: $1
  user: {client-certificate-data: $($b64 "$PKI/$1.crt"), client-key-data: $($b64 "$PKI/$1.key")}
contexts:
- name: test
  context: {cluster: test, user: $1}
current-context: test
YAML
  chmod 600 "$CLUSTER_DIR/$1.kubeconfig"
}

admin() { "$BIN_DIR/kubectl" --kubeconfig "$KUBECONFIG_ADMIN" "$@"; }

# alive PID: the process runs; one that ended and was not collected by its parent does not.
alive() { readlink "/proc/$1/exe" >/dev/null 2>&1; }

# stop_pid FILE [SECONDS]: ends the process whose id the file holds, by force when it lingers.
stop_pid() {
  local pid; [ -e "$1" ] && pid=$(cat "$1") && rm "$1" || return 0
  kill "$pid" 2>/dev/null || return 0
  wait_for "${2:-5}" eval "! alive $pid" || kill -9 "$pid" 2>/dev/null || true
}
