#!/bin/bash
# Installs what crisp needs on Debian 12+ or Ubuntu 22.04+: system packages, and a virtual environment in .venv.
#
#   deploy/install-deps.sh            what the daemon needs
#   deploy/install-deps.sh --tests    also what `deploy/test.sh` needs
#   deploy/install-deps.sh --bench    also the runtimes that tests/bench compares with (starts Debian's containerd service)
#
# If everything is installed, it does nothing: it takes well under a second, and needs no root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

packages=(busybox-static ca-certificates containernetworking-plugins iproute2 iptables libseccomp2)
extra=""
for argument in "$@"; do
    case $argument in
        --tests)
            packages+=(conmon containerd debian-archive-keyring docker-registry e2fsprogs
                golang-github-containernetworking-plugin-dnsname gpg gpg-agent groff-base mmdebstrap mount openssl podman procps
                qemu-system-x86 runc skopeo strace uidmap umoci util-linux)
            extra="[dev]" ;;
        --bench)
            packages+=(containerd crun docker-registry runc skopeo)
            extra="[dev]" ;;
        -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) echo "install-deps.sh: unknown argument $argument (try --help)" >&2; exit 2 ;;
    esac
done

is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# Prefers the distribution's interpreter: a root daemon should not depend on one in a user's home.
find_python() {
    local candidate
    for candidate in ${PYTHON:-} /usr/bin/python3 /usr/bin/python3.{14,13,12,11} "$(command -v python3 || true)"; do
        if [ -n "$candidate" ] && is_recent "$candidate"; then
            echo "$candidate"
            return
        fi
    done
}

# venv needs ensurepip, which Debian has in a separate package.
can_make_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

python=$(find_python)
if [ ! -x .venv/bin/python ]; then
    if [ -z "$python" ]; then
        packages+=(python3.11 python3.11-venv)
        python=/usr/bin/python3.11
    elif [[ $python == /usr/bin/* ]] && ! can_make_venv "$python"; then
        packages+=("$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')")
    fi
fi

missing=()
for package in "${packages[@]}"; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "install-deps.sh: packages are missing: ${missing[*]}: run this script as root to install them" >&2
        exit 1
    fi
    echo "Installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    install=(apt-get install -q -y --no-install-recommends -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "${missing[@]}")
    # apt's lists may be old or absent: update them only if the first try fails.
    "${install[@]}" </dev/null >/dev/null 2>&1 || { apt-get update -q </dev/null && "${install[@]}" </dev/null; }
fi

[ -x .venv/bin/python ] || "$python" -m venv .venv

# The stamp holds a digest of pyproject.toml's requirements. [dev] contains what the daemon needs.
digest=$(.venv/bin/python -I -S - <<'END'
import hashlib, tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
wanted = [project.get(key) for key in ("name", "version", "scripts", "dependencies", "optional-dependencies")]
print(hashlib.sha256(repr(wanted).encode()).hexdigest())
END
)
stamp=.venv/crisp-installed
if ! grep -qxF -e "$digest [dev]" -e "$digest $extra" "$stamp" 2>/dev/null; then
    echo "Installing crisp and its Python packages into $PWD/.venv"
    # pip's warnings are about packaging: show them only if it fails.
    output=$(.venv/bin/python -m pip install --quiet --editable ".$extra" 2>&1 </dev/null) || {
        echo "$output" >&2
        exit 1
    }
    echo "$digest $extra" >"$stamp"
fi
