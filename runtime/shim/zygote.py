"""Runs the zygote: an interpreter with this package loaded and its heap frozen. It only forks shims.

crispd starts it as `python -I -S` (no site-packages, no environment) with a SEQPACKET socket as descriptor 3. Each
datagram has one descriptor. With "fork" it is the new shim's connection to crispd. With "probe" it is a directory, and
the answer is "able" or the reason why files in it cannot be id-mapped. The zygote exits with crispd; its shims do not.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import signal
import socket
import sys
from typing import Final

from linux import syscalls
from linux.sealed import seal
from runtime.cgroups import SHIM_CGROUP, Cgroup, Hierarchies, v1, v2
from runtime.cgroups import device_filter as devices_bpf
from runtime.errors import OperationFailed, RuntimeCoreError
from runtime.namespaces import netdevices
from runtime.namespaces import user as userns
from runtime.process import infra
from runtime.process.become import set_oom_score_adj
from runtime.process.script import Runner
from runtime.rootfs.overlay import layers_can_be_appended
from runtime.shim.shim import Inheritance, shim_main
from runtime.spec.values import Resources

_CONTROL: Final = 3
_PRELOADED: Final = (devices_bpf, netdevices, v1, v2)  # loaded here because others import them lazily, after the fork
_JOINS: Final = 64  # attempts: each fails only if another crispd stops at that moment
_USUAL_DESCRIPTORS: Final = 1024
_SHIM_OOM_SCORE_ADJ: Final = -998  # the OOM killer takes shims after their pods


def main(own_cgroup: bool) -> None:
    """Serve until the control socket is closed.

    `own_cgroup`: enter the shims' cgroup ourselves, else crispd does it.
    """
    control = socket.socket(fileno=_CONTROL)
    control.set_inheritable(False)
    os.umask(0o022)
    _restore_descriptor_limit()
    _restore_signals()
    syscalls.close_all_from(_CONTROL, keep=(_CONTROL,))
    syscalls.set_name("crisp-zygote")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    inheritance = Inheritance(Hierarchies.usable(), infra.program_file(), infra.empty_mount_namespace(), Runner())
    if own_cgroup:
        _leave_the_daemons_cgroup(inheritance.hierarchies)
    set_oom_score_adj(_SHIM_OOM_SCORE_ADJ)
    # Inherited by shims and by what they clone into containers: until its execve an exec has the shim's memory and
    # descriptors, and root in the container could otherwise trace it (CVE-2016-9962).
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps shims; nobody needs their exit status
    layers_can_be_appended()
    seal()  # for every process forked from now on
    gc.collect()
    gc.freeze()
    control.send(b"ready")
    while True:
        data, fds, _flags, _address = socket.recv_fds(control, 16, 1)
        if not data:
            return
        if data == b"probe":
            control.send(userns.refusal(fds[0]).encode() or b"able")
            os.close(fds[0])
        else:
            _fork_shim(control, fds[0], inheritance)


def _restore_signals() -> None:
    """Reset signals that crispd's parent ignored (as a shell does for background jobs): containers would inherit it."""
    for number in signal.valid_signals():
        if signal.getsignal(number) is signal.SIG_IGN and number not in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _fork_shim(control: socket.socket, birth_fd: int, inheritance: Inheritance) -> None:
    try:
        pid = os.fork()
    except OSError as error:
        print(f"zygote: fork shim: {error}", file=sys.stderr, flush=True)
        os.close(birth_fd)  # crispd notices that
        return
    if pid == 0:
        control.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        shim_main(socket.socket(fileno=birth_fd), inheritance)
    os.close(birth_fd)


def _restore_descriptor_limit() -> None:
    """Reset the soft limit, which crispd has raised, to the usual value of a Linux system: containers inherit it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    usual = _USUAL_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_USUAL_DESCRIPTORS, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (usual, hard))


def _leave_the_daemons_cgroup(hierarchies: Hierarchies) -> None:
    """Enter a cgroup outside all pods': kubelet kills every process in a dead pod's cgroup."""
    cgroup = Cgroup.at(hierarchies, SHIM_CGROUP)
    for attempt in range(_JOINS):
        try:
            cgroup.create(Resources())
            cgroup.join_self()
            return
        except RuntimeCoreError as error:
            # Another crispd that stops removes the cgroup while it is empty.
            if not isinstance(error, OperationFailed) or error.errno != errno.ENOENT or attempt == _JOINS - 1:
                with contextlib.suppress(OSError):
                    print(f"zygote: could not leave crispd's cgroup: {error}", file=sys.stderr, flush=True)
                return
