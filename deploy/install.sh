#!/bin/bash
# Installs crisp as a service of this machine:   sudo ./deploy/install.sh
#
# Recreates the virtual environment /opt/crisp each time. To upgrade, run it again; pods keep running. Never overwrites files
# under /etc. Prints what it did. Starts the service if systemd is PID 1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ "$(id -u)" != 0 ]; then
    echo "install.sh: installing a service needs root: run sudo ./deploy/install.sh" >&2
    exit 1
fi

deploy/install-deps.sh
# Replacing the files is safe: a running crispd has loaded its modules, and its shims never load another one. Only a process
# that crispd starts before its restart (below) may find half of the files: a worker that unpacks a layer (the pull fails, and
# kubelet repeats it), or a zygote that replaces a dead one (pods fail to start until the restart).
.venv/bin/python -m venv --clear /opt/crisp
/opt/crisp/bin/python -m pip install --quiet . </dev/null
for command in crisp crispd crisp-oci; do
    ln -sf "/opt/crisp/bin/$command" "/usr/local/bin/$command"
done

for page in docs/man/*; do
    install -D -m 644 -t "/usr/local/share/man/man${page##*.}" "$page"
done

# place FILE DIRECTORY: copies the file, unless it exists: somebody may have changed it
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
    systemctl restart systemd-modules-load.service || echo "install.sh: loading kernel modules failed: run crisp doctor to see which are missing" >&2
    /lib/systemd/systemd-sysctl /etc/sysctl.d/90-crisp.conf
    systemd-tmpfiles --create /etc/tmpfiles.d/crisp.conf
    install -m 644 -t /etc/systemd/system deploy/crispd.service
    systemctl daemon-reload
    systemctl enable --quiet crispd.service
    systemctl restart crispd.service
    echo "crispd is running. Try: sudo crisp info"
else
    echo "This machine does not run systemd: start /usr/local/bin/crispd yourself."
fi
