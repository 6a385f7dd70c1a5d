#!/bin/bash
# Unpacks a criu that knows today's kernels, once a machine:   tests/criu.sh
#
# It is Debian 13's, with the libraries that it was linked with, in /var/cache/crisp-tests/criu (CRIU_DIR); nothing is
# installed. Prints the directory, in which `criu` is the program to run; if that is there, nothing is done.
set -euo pipefail

case ${1:-} in -h | --help) sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
directory=${CRIU_DIR:-/var/cache/crisp-tests/criu}
finish() { touch "$directory"; echo "$directory"; exit 0; }

mkdir -p "$directory"
if [ -x "$directory/criu" ]; then finish; fi
exec 9>"$directory/lock"
flock 9
if [ -x "$directory/criu" ]; then finish; fi  # somebody else may have unpacked it meanwhile
echo "Unpacking criu, once for this machine" >&2

# Where apt has Debian from here, as far as its lists tell.
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -E '/debian/?$' | head -1)
[ -n "$mirror" ] || { echo "criu.sh: apt knows no mirror of Debian: run apt-get update" >&2; exit 1; }
rm -rf "$directory/root"
mmdebstrap --quiet --variant=extract --include=criu trixie "$directory/root" "$mirror" >&2 </dev/null
cat >"$directory/criu.new" <<END
#!/bin/sh
exec "\$(echo $directory/root/usr/lib64/ld-linux-*.so.*)" --library-path "\$(echo $directory/root/usr/lib/*-linux-gnu)" $directory/root/usr/sbin/criu "\$@"
END
chmod 755 "$directory/criu.new"
mv "$directory/criu.new" "$directory/criu"
finish
