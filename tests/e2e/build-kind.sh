#!/bin/bash
# Builds kind from its Go module, once a machine:   tests/e2e/build-kind.sh
#
# It ends in /var/cache/crisp-tests/kind-VERSION (KIND_DIR), whose path is printed, as `kind`; beside it, in `files`, is
# what the module has for the file system of node images. What is there already is not built again. Takes the Go module
# proxy, Go 1.26 and half a minute.
set -euo pipefail

case ${1:-} in -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
version=v0.33.0
. "$(dirname "${BASH_SOURCE[0]}")/go.sh"
directory=${KIND_DIR:-/var/cache/crisp-tests/kind-$version}

is_built() { [ -x "$directory/kind" ]; }
begin "kind $version"
go mod init crisp.test/kind 2>/dev/null
go mod edit -require "sigs.k8s.io/kind@$version" -tool sigs.k8s.io/kind
tidy
nice go build -ldflags '-s -w' -o kind sigs.k8s.io/kind
rm -rf "$directory/files"
cp -r --no-preserve=mode "$(go list -m -f '{{.Dir}}' sigs.k8s.io/kind)/images/base/files" "$directory"
mv kind "$directory"
finish
