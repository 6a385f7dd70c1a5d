#!/bin/bash
# Builds gVisor's runsc from its Go module, once a machine:   tests/e2e/build-runsc.sh
#
# It ends in /var/cache/crisp-tests/runsc-VERSION (RUNSC_DIR), whose path is printed; what is there already is not built
# again. Takes the Go module proxy, Go 1.26 and some 4 minutes of two cores.
set -euo pipefail

case ${1:-} in -h | --help) sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
version=v0.0.0-20260905035102-160fafc42237  # of the branch `go`, which has the generated sources
. "$(dirname "${BASH_SOURCE[0]}")/go.sh"
directory=${RUNSC_DIR:-/var/cache/crisp-tests/runsc-$version}

is_built() { [ -x "$directory/runsc" ]; }
begin "runsc $version"
go mod init crisp.test/runsc 2>/dev/null
go mod edit -require "gvisor.dev/gvisor@$version" -tool gvisor.dev/gvisor/runsc
tidy
nice -n 15 go build -ldflags "-s -w -X gvisor.dev/gvisor/runsc/version.version=$version" -o runsc gvisor.dev/gvisor/runsc
mv runsc "$directory"
finish
