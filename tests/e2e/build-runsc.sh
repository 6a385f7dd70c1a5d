#!/bin/bash
# Builds gVisor's runsc from its Go module, once a machine:   tests/e2e/build-runsc.sh
#
# It ends in /var/cache/crisp-tests/runsc-VERSION (RUNSC_DIR), whose path is printed; what is there already is not built
# again. Takes the Go module proxy, Go 1.26 and some 4 minutes of two cores.
set -euo pipefail

case ${1:-} in -h | --help) sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
version=v0.0.0-20260905035102-160fafc42237  # of the branch `go`, which has the generated sources
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
directory=${RUNSC_DIR:-/var/cache/crisp-tests/runsc-$version}

is_built() { [ -x "$directory/runsc" ]; }
finish() { touch "$directory"; echo "$directory"; exit 0; }

mkdir -p "$directory"
if is_built; then finish; fi
exec 9>"$directory/lock"
flock 9
if is_built; then finish; fi  # somebody else may have built it meanwhile
. "$here/go.sh"
require_go "$directory"
echo "Building runsc $version, once for this machine" >&2

work=$(mktemp -d "$directory/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
go mod init crisp.test/runsc 2>/dev/null
go mod edit -require "gvisor.dev/gvisor@$version" -tool gvisor.dev/gvisor/runsc
go mod tidy >tidy.log 2>&1 || { tail -20 tidy.log >&2; exit 1; }
nice -n 15 go build -ldflags "-s -w -X gvisor.dev/gvisor/runsc/version.version=$version" -o runsc gvisor.dev/gvisor/runsc
mv runsc "$directory"
finish
