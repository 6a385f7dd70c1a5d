"""What crisp-oci's caller hands over to a process, and what others get of one: descriptors, and a pid file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

from runtime.command.flags import Flag, Options, UsageError
from runtime.errors import failing
from runtime.light import json, socket
from runtime.spec.values import Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

PIDFD_SOCKET: Final = Flag("pidfd-socket", argument="PATH", help="unix socket that gets a pidfd of the process")
PRESERVE_FDS: Final = Flag(
    "preserve-fds", argument="N", help="pass N descriptors after the standard streams (and $LISTEN_FDS)"
)


def preserved_descriptors(options: Options) -> int:
    """How many descriptors after the standard streams the program gets. Raises UsageError if one is not open."""
    listening = os.environ.get("LISTEN_FDS", "")
    count = options.number("preserve-fds") + (int(listening) if listening.isdecimal() else 0)
    for fd in range(3, 3 + count):
        if not _is_inherited(fd):
            raise UsageError(f"--preserve-fds: descriptor {fd} of {count} is not open")
    return count


def _is_inherited(fd: int) -> bool:
    """Whether our caller gave us that descriptor. Our own, such as the log's, close on exec: no container gets them."""
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


def write_pid_file(path: str, pid: int) -> None:
    """Whole or not at all."""
    directory, name = os.path.split(os.path.abspath(path))
    new = os.path.join(directory, f".{name}")
    with failing("write", path):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        # Exclusively: where others may write to the directory, the name could be their link to somebody's file.
        with open(new, "x") as file:
            file.write(str(pid))
        os.rename(new, path)


def send_console(master: int, path: str) -> None:
    """Give a terminal's master to who listens on a unix socket."""
    send_descriptor("console", master, path, b"/dev/ptmx")


def send_descriptor(what: str, fd: int, path: str, said: bytes) -> None:
    """Give a descriptor to who listens on a unix socket, with what runc says beside it."""
    with failing(f"send {what} to", path), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [said], [fd])


def send_listener(spec: Spec, listener: int, pid: int, state: Mapping[str, Any]) -> None:
    """Give the listener of a process's seccomp filter to who listens at listenerPath, and close it.

    With it goes the state of config-linux.md "The Container Process State". Raises OperationFailed.
    """
    profile = spec.linux.seccomp
    assert profile is not None
    message = {"ociVersion": spec.oci_version, "fds": ["seccompFd"], "pid": pid, "state": dict(state)}
    if profile.listener_metadata:
        message["metadata"] = profile.listener_metadata
    try:
        with failing("send seccomp listener to", profile.listener_path), socket.socket(socket.AF_UNIX) as connection:
            connection.connect(profile.listener_path)
            socket.send_fds(connection, [json.dumps(message).encode()], [listener])
    finally:
        os.close(listener)
