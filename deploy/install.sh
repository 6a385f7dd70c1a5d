#!/bin/bash
# Installs crisp as a service of this machine:   sudo ./deploy/install.sh
#
# /opt/crisp, the virtual environment, is made anew each time: run it again to upgrade; pods go on meanwhile. Files under
# /etc are written only where there are none. Prints what it did; starts the service where systemd is PID 1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ "$(id -u)" != 0 ]; then
    echo "install.sh: a service takes root: sudo ./deploy/install.sh" >&2
    exit 1
fi

deploy/install-deps.sh
# A running crispd has loaded its modules, and its shims can load nothing any more: replacing the files is safe. Only what
# crispd starts anew until it is restarted, below, may find half of them: a worker that unpacks a layer (the pull fails and
# is repeated), or a zygote in the place of one that died (pods fail to start until then).
.venv/bin/python -m venv --clear /opt/crisp
/opt/crisp/bin/python -m pip install --quiet . </dev/null
for command in crisp crispd crisp-oci; do
    ln -sf "/opt/crisp/bin/$command" "/usr/local/bin/$command"
done

for page in docs/man/*; do
    install -D -m 644 -t "/usr/local/share/man/man${page##*.}" "$page"
done

# place FILE DIRECTORY: never over a file that somebody may have changed
place() {
    if [ -e "$2/$(basename "$1")" ]; then
        echo "kept $2/$(basename "$1")"
    else
        install -D -m 644 -t "$2" "$1"
        echo "wrote $2/$(basename "$1")"
    fi
}
place deploy/crisp.toml /etc/crisp
[ -e /etc/crictl.yaml ] || place deploy/crictl.yaml /etc
if [ -z "$(find /etc/cni/net.d -name '*.conf*' 2>/dev/null)" ]; then
    place deploy/10-crisp-bridge.conflist /etc/cni/net.d
fi

place deploy/sysctl.d/90-crisp.conf /etc/sysctl.d
place deploy/modules-load.d/crisp.conf /etc/modules-load.d
place deploy/tmpfiles.d/crisp.conf /etc/tmpfiles.d

if [ -d /run/systemd/system ]; then
    systemctl restart systemd-modules-load.service || echo "install.sh: see crisp doctor for modules" >&2
    /lib/systemd/systemd-sysctl /etc/sysctl.d/90-crisp.conf
    systemd-tmpfiles --create /etc/tmpfiles.d/crisp.conf
    install -m 644 -t /etc/systemd/system deploy/crispd.service
    systemctl daemon-reload
    systemctl enable --quiet crispd.service
    systemctl restart crispd.service
    echo "crispd runs; try: sudo crisp info"
else
    echo "No systemd here: start /usr/local/bin/crispd yourself."
fi
