"""The box that integration tests run in: mount, network, PID and IPC namespaces of their own.

Links, iptables rules, named network namespaces, mounts and processes that a test leaves behind can then be told from
what else happens on the machine; none of it, nor ip_forward, reaches the machine; and whatever a crashed run leaves is
gone with it. Cgroups are the machine's own: there is no private copy of a v1 hierarchy.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

MARK = "CRISP_TEST_BOX"

# The shell is PID 1 inside and reaps orphans, as an init would. / is shared again, as it is under systemd, since
# Bidirectional volumes need that.
INIT = """
set -e
mount --make-rshared /
mkdir -p /run/netns
mount -t tmpfs -o mode=755 netns /run/netns
mount --make-shared /run/netns
ip link set lo up
set +e
"$@"
exit $?
"""
NAMESPACES = ("--mount", "--net", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc", "--propagation=private")


def inside() -> bool:
    """Is this process in a box?"""
    return MARK in os.environ


def run_pytest(arguments: Sequence[str]) -> int:
    """Run pytest with these arguments in a new box, on this terminal; its exit status. Takes root."""
    command = ["unshare", *NAMESPACES, "sh", "-c", INIT, "box", sys.executable, "-m", "pytest", *arguments]
    with subprocess.Popen(command, env=os.environ | {MARK: "1"}) as box:
        # Ctrl-C reaches pytest inside by the terminal; dying here first would cut its tear-down short.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            return box.wait()
        finally:
            signal.signal(signal.SIGINT, before)
