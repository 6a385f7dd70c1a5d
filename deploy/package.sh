#!/bin/bash
# Builds a Debian package of crisp:   deploy/package.sh [DIRECTORY]
#
# It ends in DIRECTORY (the working directory) as crisp_VERSION_ARCHITECTURE.deb, whose path is printed. It holds a virtual
# environment of its own with Python packages from PyPI, so it fits the release and architecture that it was built on. Needs no
# root. DEBFULLNAME and DEBEMAIL name another maintainer; COMPRESSION is dpkg-deb's (xz).
set -euo pipefail

case ${1:-} in -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
target=$(realpath "${1:-.}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
home=/usr/lib/crisp
python=$(readlink -f /usr/bin/python3)
minor=$("$python" -c 'import sys; print(sys.version_info[1])')
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)-1
architecture=$(dpkg --print-architecture)
maintainer="${DEBFULLNAME:-crisp maintainers} <${DEBEMAIL:-crisp@localhost}>"
# Times in the package: of the last commit, or of the build.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
umask 022
mkdir -p "$root$home" "$root/DEBIAN"

# -- the virtual environment --------------------------------------------------------------------------------------------------
# A build leaves files beside the sources; they are not to be in the checkout.
mkdir "$work/source"
cp -r --parents bin cri image linux network pods runtime pyproject.toml README.md LICENSE "$work/source"
"$python" -m venv "$work/pip"
"$python" -m venv --without-pip "$root$home"
"$work/pip/bin/pip" --quiet --disable-pip-version-check --python "$root$home/bin/python" install --no-compile --only-binary=:all: \
    "$work/source" </dev/null
site=$root$home/lib/python3.$minor/site-packages
# What a program needs at run time; headers, tests and installers' notes are none of it.
rm -rf "$root$home/include" "$root$home"/bin/[aA]ctivate* "$site"/*.dist-info/{RECORD,direct_url.json,REQUESTED,INSTALLER} "$root$home/lib64"
find "$site" -type d \( -name tests -o -name testing \) -prune -exec rm -rf {} +
find "$site" \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.h' -o -name '*.c' -o -name '*.proto' \) -delete
find "$root$home/bin" -mindepth 1 ! -name 'python*' ! -name 'crisp*' -delete
sed -i "1s|^#!.*|#!$home/bin/python3|" "$root$home/bin/crisp" "$root$home/bin/crispd"
sed -i '/^command = /d' "$root$home/pyvenv.cfg"
find "$root$home/lib" -type f -exec chmod 644 {} +
# Compiled here, for the one Python that the package depends on: nothing has to be made, or removed, where it is installed.
find "$root$home" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
"$python" -m compileall -q --invalidation-mode timestamp -s "$root" -p / "$site"

# -- what belongs to the system -----------------------------------------------------------------------------------------------
mkdir -p "$root/usr/bin"
for command in crisp crispd crisp-oci; do
    ln -s "../lib/crisp/bin/$command" "$root/usr/bin/$command"
done
mkdir -p "$root/usr/lib/systemd/system"
sed "s|/opt/crisp/bin/|$home/bin/|" deploy/crispd.service >"$root/usr/lib/systemd/system/crispd.service"
for kind in sysctl modules-load tmpfiles; do
    install -D -m 644 -t "$root/usr/lib/$kind.d" deploy/$kind.d/*
done
install -D -m 644 -t "$root/etc/crisp" deploy/crisp.toml
printf '%s\n' /etc/crisp/crisp.toml >"$root/DEBIAN/conffiles"
for page in docs/man/*; do
    mkdir -p "$root/usr/share/man/man${page##*.}"
    gzip -9n <"$page" >"$root/usr/share/man/man${page##*.}/${page##*/}.gz"
done
documents=$root/usr/share/doc/crisp
install -D -m 644 -t "$documents/examples" deploy/10-crisp-bridge.conflist deploy/crictl.yaml deploy/kubeadm.yaml deploy/kubelet.yaml \
    deploy/runtimeclass.yaml deploy/logrotate.d/crispd deploy/selinux/crisp.cil
install -m 644 README.md "$documents"
gzip -9n <CHANGELOG.md >"$documents/changelog.gz"
install -m 644 deploy/debian/copyright "$documents/copyright"
gzip -9n >"$documents/changelog.Debian.gz" <<END
crisp ($version) unstable; urgency=medium

  * See changelog.gz.

 -- $maintainer  $(date --utc --rfc-email --date="@$SOURCE_DATE_EPOCH")
END
install -D -m 644 deploy/debian/lintian-overrides "$root/usr/share/lintian/overrides/crisp"

# -- the package --------------------------------------------------------------------------------------------------------------
for script in postinst prerm postrm; do
    install -m 755 -t "$root/DEBIAN" deploy/debian/$script
done
cat >"$root/DEBIAN/control" <<END
Package: crisp
Version: $version
Architecture: $architecture
Maintainer: $maintainer
Installed-Size: $(du -k -s --apparent-size "$root" | cut -f1)
Depends: python3 (>= 3.$minor), python3 (<< 3.$((minor + 1))), python3.$minor, libc6 (>= 2.36), libgcc-s1, libseccomp2 (>= 2.5), libstdc++6
Recommends: ca-certificates, containernetworking-plugins, iproute2, iptables
Suggests: criu, crun
Section: admin
Priority: optional
Description: container runtime for Kubernetes, written in Python
 crisp serves CRI v1, the interface that kubelet speaks, and runs containers with
 a runtime core of its own: there is no runc, conmon or containerd underneath.
 Pods keep running when the daemon crashes or is upgraded.
 .
 The package has a virtual environment of its own with the Python packages that
 the daemon needs.
END
(cd "$root" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | sort -z | xargs -0 md5sum >"$work/md5sums")
install -m 644 "$work/md5sums" "$root/DEBIAN/md5sums"
# dpkg-deb sets times later than SOURCE_DATE_EPOCH to it, and a module's compiled file holds the module's.
mkdir -p "$target"
dpkg-deb --root-owner-group "-Z${COMPRESSION:-xz}" --build "$root" "$target/crisp_${version}_$architecture.deb" >/dev/null
echo "$target/crisp_${version}_$architecture.deb"
