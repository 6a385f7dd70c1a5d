#!/bin/bash
# Builds critest and crictl of cri-tools from their Go module, once a machine:   tests/e2e/build-critest.sh
#
# They end, with ginkgo, which runs critest's specs in parallel, and with two programs of its stand-in images (one is
# Debian's dynamically linked busybox, whose shell runs programs from PATH, as the official image's does), in
# /var/cache/crisp-tests/critest-VERSION (CRITEST_DIR), whose path is printed; what is there already is not built again.
# Takes the Go module proxy, Go 1.26 and some 3 minutes of two cores.
set -euo pipefail

case ${1:-} in -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
version=v1.37.0
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/go.sh"
directory=${CRITEST_DIR:-/var/cache/crisp-tests/critest-$version}

is_built() {
    local program
    for program in critest crictl ginkgo standin busybox; do
        [ -x "$directory/$program" ] || return 1
    done
    is_standin_built
}
is_standin_built() { cmp -s "$here/standin/main.go" "$directory/standin.go" && [ -x "$directory/standin" ]; }
begin "critest and crictl $version"
if ! is_standin_built; then
    nice go build -ldflags '-s -w' -o "$directory/standin" "$here/standin/main.go"
    cp "$here/standin/main.go" "$directory/standin.go"
    if is_built; then finish; fi
fi

chmod 755 "$work"  # apt's own user writes there
{ apt-get download -q busybox || { apt-get update -q && apt-get download -q busybox; }; } </dev/null >&2
dpkg-deb --extract busybox_*.deb .
go mod init crisp.test/critest 2>/dev/null
go mod edit -require "sigs.k8s.io/cri-tools@$version" -tool sigs.k8s.io/cri-tools/cmd/crictl -tool github.com/onsi/ginkgo/v2/ginkgo
# critest is a test's program, and packages that only have tests are no tools.
printf 'package critest\n\nimport _ "sigs.k8s.io/cri-tools/pkg/validate"\n' >validate.go
tidy
nice go build -ldflags '-s -w' -o ginkgo github.com/onsi/ginkgo/v2/ginkgo
nice go build -ldflags "-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version=$version" -o crictl sigs.k8s.io/cri-tools/cmd/crictl
nice go test -c -vet=off -ldflags "-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version=$version" -o critest sigs.k8s.io/cri-tools/cmd/critest
mv ginkgo crictl critest bin/busybox "$directory"
finish
