"""Opens proc file systems of a PID namespace that the caller is not in and must not be visible in.

A proc file system shows the PID namespace of the process that opened its context (fsopen(2)). Since Linux 6.18 another
namespace can be named instead. Before, a helper process has to enter the namespace. It has nothing that a process
tracing it could use: capabilities only in its own user namespace, an empty root, and a socket to its parent as its only
descriptor.
"""

from __future__ import annotations

import errno
import os

from linux import syscalls
from runtime.errors import OperationFailed, failing
from runtime.light import contextlib, socket
from runtime.process import capabilities
from runtime.rootfs.tree import enter_empty_root
from runtime.spec.values import Capabilities

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, NoReturn

_NOBODY: Final = 65534
_LONGEST: Final = 64
_ADMIN: Final = frozenset({"CAP_SYS_ADMIN"})


def contexts(namespace: int, count: int) -> list[int]:
    """Return `count` contexts of new proc file systems of the PID namespace open at `namespace`.

    The caller is in the host's mount namespace and in the container's other namespaces. Forks on kernels that need it.
    Raises OperationFailed.
    """
    with failing("open", "proc file system of a PID namespace"):
        made: list[int] = []
        try:
            for _number in range(count):
                made.append(syscalls.fsopen("proc"))
                syscalls.fsconfig_descriptor(made[-1], "pidns", namespace)
        except OSError as error:
            for context in made:
                os.close(context)
            if error.errno != errno.EINVAL:
                raise
            return _opened_inside(namespace, count)
        return made


def _opened_inside(namespace: int, count: int) -> list[int]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            pid, pidfd = syscalls.clone()
            if pid == 0:
                _go_inside(namespace, count, theirs)
            os.close(pidfd)
        said, found, _flags, _address = socket.recv_fds(ours, _LONGEST, count, socket.MSG_CMSG_CLOEXEC)
        os.waitpid(pid, 0)
    if len(found) != count:
        reason = int(said) if said.isdigit() else errno.ECHILD
        raise OSError(reason, os.strerror(reason))
    return found


def _go_inside(namespace: int, count: int, channel: socket.socket) -> NoReturn:
    """In a child: drop what fsopen(2) does not need, and let a child in the PID namespace open the contexts."""
    try:
        syscalls.setns(namespace, syscalls.CLONE_NEWPID)
        enter_empty_root()
        for stream in (0, 1, 2):
            os.close(stream)
        syscalls.close_all_from(0, keep=(channel.fileno(),))
        _become_nobody()
        pid, pidfd = syscalls.clone()
        if pid == 0:
            socket.send_fds(channel, [b"made"], [syscalls.fsopen("proc") for _number in range(count)])
            os._exit(0)
        os.close(pidfd)
        os.waitpid(pid, 0)
    except (OSError, OperationFailed) as error:
        channel.send(b"%d" % (error.errno or errno.ECHILD))
    finally:
        os._exit(0)


def _become_nobody() -> None:
    """Become nobody, with capabilities only in a new user namespace that has an empty root."""
    with contextlib.suppress(OSError):  # an ordinary user's crisp-oci has no other ids
        capabilities.set_keepcaps()
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    capabilities.apply(Capabilities(permitted=_ADMIN, effective=_ADMIN))
    with contextlib.suppress(OSError):  # forbidden (user.max_user_namespaces): keeps CAP_SYS_ADMIN for one call
        syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
