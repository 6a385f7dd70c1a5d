#!/bin/bash
# Unpacks Debian's Python, Redis and nginx, once a machine:   tests/programs.sh
#
# They are in /var/cache/crisp-tests/programs (PROGRAMS_DIR), with all libraries; nothing is installed. Prints the
# directory, which is a root; if it is there, nothing is done.
set -euo pipefail

case ${1:-} in -h | --help) sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
directory=${PROGRAMS_DIR:-/var/cache/crisp-tests/programs}
finish() { touch "$directory"; echo "$directory/root"; exit 0; }

mkdir -p "$directory"
if [ -d "$directory/root" ]; then finish; fi
exec 9>"$directory/lock"
flock 9
if [ -d "$directory/root" ]; then finish; fi  # somebody else may have unpacked them meanwhile
echo "Unpacking programs to checkpoint, once for this machine" >&2

# Where apt has Debian from here, as far as its lists tell.
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -E '/debian/?$' | head -1)
[ -n "$mirror" ] || { echo "programs.sh: apt knows no mirror of Debian: run apt-get update" >&2; exit 1; }
rm -rf "$directory/new"
mmdebstrap --quiet --variant=extract --include=python3-minimal,redis-server,nginx-light \
    bookworm "$directory/new" "$mirror" >&2 </dev/null
mv "$directory/new" "$directory/root"
finish
