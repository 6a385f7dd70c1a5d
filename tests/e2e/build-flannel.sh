#!/bin/bash
# Builds flannel's daemon from its Go module, once a machine:   tests/e2e/build-flannel.sh
#
# It ends in /var/cache/crisp-tests/flannel-VERSION (FLANNEL_DIR), whose path is printed, as `flanneld`. What is there
# already is not built again. Takes the Go module proxy, Go 1.26, a C compiler (gcc, libc6-dev) and two minutes.
set -euo pipefail

case ${1:-} in -h | --help) sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
version=v0.28.10
. "$(dirname "${BASH_SOURCE[0]}")/go.sh"
directory=${FLANNEL_DIR:-/var/cache/crisp-tests/flannel-$version}

is_built() { [ -x "$directory/flanneld" ]; }
begin "flannel $version"
go mod init crisp.test/flannel 2>/dev/null
go mod edit -require "github.com/flannel-io/flannel@$version" -tool github.com/flannel-io/flannel
# The proxy does not have the versions that it requires of these, for a cloud that no test uses.
for part in common vpc; do
    module=github.com/tencentcloud/tencentcloud-sdk-go/tencentcloud/$part
    go mod edit -replace "$module=$module@v1.0.1000"
done
tidy
# One of its networks is in C.
command -v cc >/dev/null || { echo "no C compiler: apt-get install gcc libc6-dev" >&2; exit 1; }
CGO_ENABLED=1 nice go build -ldflags '-s -w' -o flanneld github.com/flannel-io/flannel
mv flanneld "$directory"
finish
