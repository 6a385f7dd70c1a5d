#!/bin/bash
# Builds programs of Kubernetes from its Go module, once a machine:   tests/e2e/build-kubernetes.sh [PROGRAM...]
#
# PROGRAM is a directory of kubernetes/cmd: kubelet (the default), kube-apiserver, kube-scheduler,
# kube-controller-manager, kubeadm, ...; or one that the conformance tests take: e2e.test, ginkgo, agnhost,
# sample-apiserver; or etcd or coredns, of their own modules. They end in /var/cache/crisp-tests/kubernetes-VERSION
# (KUBERNETES_DIR), whose path is printed; what is there already is not built again. Takes the Go module proxy, Go 1.26
# (fetched where there is none) and, for kubelet, some 3 minutes of two cores. KUBERNETES_VERSION: another than v1.37.2.
set -euo pipefail

case ${1:-} in -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/go.sh"
version=${KUBERNETES_VERSION:-v1.37.2}
etcd=v3.7.0  # watches of an API server of 1.37 ended early with Debian's 3.4
coredns=v1.15.0
directory=${KUBERNETES_DIR:-/var/cache/crisp-tests/kubernetes-$version}
programs=("${@:-kubelet}")

has() {
    [ -x "$directory/$1" ] && { [ "$1" != coredns ] || cmp -s "$here/coredns/main.go" "$directory/coredns.go"; }
}
is_built() {
    local program
    missing=()
    for program in "${programs[@]}"; do
        has "$program" || missing+=("$program")
    done
    [ ${#missing[@]} = 0 ]
}
begin "programs of Kubernetes $version"

package_of() {
    case $1 in
        e2e.test) echo k8s.io/kubernetes/test/e2e ;;
        agnhost) echo k8s.io/kubernetes/test/images/agnhost ;;
        ginkgo) echo github.com/onsi/ginkgo/v2/ginkgo ;;  # of the version that e2e.test has, or it runs nothing in parallel
        sample-apiserver) echo k8s.io/sample-apiserver ;;
        etcd) echo go.etcd.io/etcd/server/v3 ;;
        coredns) echo . ;;
        *) echo "k8s.io/kubernetes/cmd/$1" ;;
    esac
}

# Makes a module of ours in the present directory, whose only content is the wish for these programs.
start_module() {
    local program
    go mod init crisp.test/kubernetes 2>/dev/null
    printf '//go:build tools\n\npackage tools\n\n' >tools.go
    for program in "$@"; do
        printf 'import _ "%s"\n' "$(package_of "$program")" >>tools.go
    done
}

minor=${version#v1.}
stamp="-s -w -X k8s.io/component-base/version.gitVersion=$version
    -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=${minor%%.*}"
build() {
    local how=(build)
    [ "$1" != e2e.test ] || how=(test -c -vet=off)  # vet would go through every dependency
    nice go "${how[@]}" -ldflags "${stamp//$'\n'/ }" -o "$1" "$(package_of "$1")"
    mv "$1" "$directory/$1"
}

ours=()
for program in "${missing[@]}"; do
    [ "$program" = coredns ] || ours+=("$program")
done
if [ ${#ours[@]} != 0 ]; then
    mkdir "$work/kubernetes"
    cd "$work/kubernetes"
    start_module "${ours[@]}"
    # Kubernetes' own go.mod names its staging modules at v0.0.0 and replaces them by directories, which a module that
    # requires it does not see.
    theirs=$(go mod download -json "k8s.io/kubernetes@$version" | sed -n 's/^\t"GoMod": "\(.*\)",$/\1/p')
    staged=v0.${version#v1.}
    for module in $(sed -n 's|^\t\(k8s.io/[a-z0-9-]*\) v0\.0\.0$|\1|p' "$theirs"); do
        go mod edit -replace "$module=$module@$staged"
    done
    go mod edit -require "k8s.io/kubernetes@$version"
    if [[ " ${ours[*]} " == *" etcd "* ]]; then
        go mod edit -require "go.etcd.io/etcd/server/v3@$etcd"
    fi
    tidy
    for program in "${ours[@]}"; do
        build "$program"
    done
fi
if [[ " ${missing[*]} " == *" coredns "* ]]; then
    mkdir "$work/coredns"
    cd "$work/coredns"
    go mod init crisp.test/coredns 2>/dev/null
    cp "$here/coredns/main.go" .
    go mod edit -require "github.com/coredns/coredns@$coredns"
    tidy
    build coredns
    cp main.go "$directory/coredns.go"
fi
finish
