#!/bin/bash
# Builds programs of Kubernetes from its Go module, once a machine:   tests/e2e/build-kubernetes.sh [PROGRAM...]
#
# PROGRAM is a directory of kubernetes/cmd: kubelet (the default), kube-apiserver, kube-scheduler,
# kube-controller-manager, kubeadm, ...; or etcd, of its own module. They end in /var/cache/crisp-tests/kubernetes-VERSION
# (KUBERNETES_DIR), whose path is printed; what is there already is not built again. Takes the Go module proxy, Go 1.26
# (fetched where there is none) and, for kubelet, some 3 minutes of two cores. KUBERNETES_VERSION: another than v1.37.2.
set -euo pipefail

case ${1:-} in -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
version=${KUBERNETES_VERSION:-v1.37.2}
etcd=v3.7.0  # watches of an API server of 1.37 ended early with Debian's 3.4
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
. "$here/go.sh"
require_go "$directory"
echo "Building ${missing[*]} $version, once for this machine" >&2

# A module of ours whose only content is the wish for these programs. Kubernetes' own go.mod names its staging modules
# at v0.0.0 and replaces them by directories, which a module that requires it does not see.
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
package_of() { if [ "$1" = etcd ]; then echo go.etcd.io/etcd/server/v3; else echo "k8s.io/kubernetes/cmd/$1"; fi; }
for program in "${missing[@]}"; do
    go mod edit -tool="$(package_of "$program")"
done
if [[ " ${missing[*]} " == *" etcd "* ]]; then
    go mod edit -require "go.etcd.io/etcd/server/v3@$etcd"
fi
go mod tidy >tidy.log 2>&1 || { tail -20 tidy.log >&2; exit 1; }

minor=${version#v1.}
stamp="-s -w -X k8s.io/component-base/version.gitVersion=$version
    -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=${minor%%.*}"
for program in "${missing[@]}"; do
    nice go build -ldflags "${stamp//$'\n'/ }" -o "$program" "$(package_of "$program")"
    mv "$program" "$directory/$program"
done
echo "$directory"
