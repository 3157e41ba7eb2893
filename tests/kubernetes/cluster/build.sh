#!/usr/bin/env bash
# Builds the programs of a Kubernetes cluster from Go modules into $BIN_DIR.
#
#   build.sh [TARGET ...]      TARGET: control-plane, node, dns, etcd, helm, all (default: control-plane)
#
# A target whose version stamp is present is not built again.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

export CGO_ENABLED=0
JOBS=${JOBS:-$(nproc)}
mkdir -p "$BIN_DIR"

# fresh_module NAME: an empty module folder; prints its path.
fresh_module() {
  local dir=$CACHE_DIR/build/$1
  mkdir -p "$dir" && rm -f "$dir"/*.go "$dir"/go.*
  (cd "$dir" && go mod init "tests.local/$1" 2>/dev/null)
  echo "$dir"
}

# compile DIR LDFLAGS PACKAGE ...
compile() {
  local dir=$1 ldflags=$2; shift 2
  (cd "$dir" && go build -p "$JOBS" -ldflags "-s -w $ldflags" -o "$BIN_DIR/" "$@")
}

# kubernetes NAME COMMAND ...: k8s.io/kubernetes needs its staging modules at v0.0.0 and mends that by
# replace lines, which a dependent module does not inherit; they are derived from its own go.mod.
kubernetes() {
  local name=$1 dir src staging command pkg=() ver=${K8S_VERSION#v} ld=; shift
  dir=$(fresh_module "$name")
  src=$(cd "$dir" && go mod download -json "k8s.io/kubernetes@$K8S_VERSION" | jq -r .Dir)
  staging=v0.${ver#1.}
  (
    cd "$dir"
    sed -n 's|^\s*\(k8s.io/[a-z0-9-]*\) => ./staging/.*|\1|p' "$src/go.mod" |
      while read -r m; do echo "replace $m => $m $staging"; done >> go.mod
    sed -n '/^godebug/p' "$src/go.mod" >> go.mod
    echo "require k8s.io/kubernetes $K8S_VERSION" >> go.mod
  )
  IFS=. read -r major minor _ <<< "$ver"
  for pkg_path in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    ld+=" -X $pkg_path.gitVersion=$K8S_VERSION -X $pkg_path.gitMajor=$major -X $pkg_path.gitMinor=$minor"
    ld+=" -X $pkg_path.gitTreeState=archive"
  done
  for command in "$@"; do pkg+=("k8s.io/kubernetes/cmd/$command"); done
  compile "$dir" "$ld" "${pkg[@]}"
}

# missing PROGRAM ...: those of them that are not built; an interrupted build goes on, and what ../install.sh has
# built already is not built again.
missing() {
  local program
  for program in "$@"; do [ -x "$BIN_DIR/$program" ] || echo "$program"; done
}

# kubernetes_missing NAME COMMAND ...
kubernetes_missing() {
  local name=$1 programs; shift
  mapfile -t programs < <(missing "$@")
  [ ${#programs[@]} -eq 0 ] || kubernetes "$name" "${programs[@]}"
}

control_plane() { kubernetes_missing control-plane kube-apiserver kube-controller-manager kube-scheduler kubectl; }

etcd() {
  local dir; dir=$(fresh_module etcd)
  (cd "$dir" && go get "go.etcd.io/etcd/server/v3@$ETCD_VERSION" "go.etcd.io/etcd/etcdctl/v3@$ETCD_VERSION" "go.etcd.io/etcd/etcdutl/v3@$ETCD_VERSION")
  compile "$dir" "" go.etcd.io/etcd/server/v3 go.etcd.io/etcd/etcdctl/v3 go.etcd.io/etcd/etcdutl/v3
  mv "$BIN_DIR/server" "$BIN_DIR/etcd"
}

helm() {
  local dir; dir=$(fresh_module helm)
  (cd "$dir" && go get "helm.sh/helm/v4/cmd/helm@$HELM_VERSION")
  compile "$dir" "-X helm.sh/helm/v4/internal/version.version=$HELM_VERSION" helm.sh/helm/v4/cmd/helm
}

node() {
  local dir
  kubernetes_missing node kubelet kube-proxy
  dir=$(fresh_module containerd)
  (cd "$dir" && go get "github.com/containerd/containerd/v2@$CONTAINERD_VERSION")
  compile "$dir" "-X github.com/containerd/containerd/v2/version.Version=$CONTAINERD_VERSION" \
    github.com/containerd/containerd/v2/cmd/{containerd,containerd-shim-runc-v2,ctr}
}

# CoreDNS with only the plugins a cluster needs: a fraction of the full program's dependencies.
dns() {
  local dir; dir=$(fresh_module coredns)
  coredns_main > "$dir/main.go"
  (cd "$dir" && go get "github.com/coredns/coredns@$COREDNS_VERSION" && go build -p "$JOBS" -ldflags "-s -w" -o "$BIN_DIR/coredns" .)
}

coredns_main() {
  cat <<'GO'
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/ready"
)

func main() {
	dnsserver.Directives = []string{"bind", "ready", "errors", "log", "cache", "kubernetes"}
	coremain.Run()
}
GO
}

# build TARGET VERSION FUNCTION
build() {
  local stamp=$BIN_DIR/.$1-$2 start=$SECONDS
  if [ -e "$stamp" ]; then log "$1 $2: present"; return; fi
  log "$1 $2: building"
  "$3"
  touch "$stamp"
  log "$1 $2: built in $((SECONDS - start)) s"
}

command -v go >/dev/null || die "go is not installed"
apt_need jq=jq
[ $# -gt 0 ] || set -- control-plane
[ "$1" != all ] || set -- control-plane node dns etcd helm
for target in "$@"; do
  case $target in
    control-plane) build "$target" "$K8S_VERSION" control_plane ;;
    node)          build "$target" "$K8S_VERSION-$CONTAINERD_VERSION" node ;;
    dns)           build "$target" "$COREDNS_VERSION" dns ;;
    etcd)          build "$target" "$ETCD_VERSION" etcd ;;
    helm)          build "$target" "$HELM_VERSION" helm ;;
    *) die "unknown target $target" ;;
  esac
done
