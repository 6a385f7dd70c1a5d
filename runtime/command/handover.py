"""Passes descriptors from crisp-oci's caller to a container's process, and from it to sockets; writes pid files."""

from __future__ import annotations

import os

from runtime.command.flags import Flag, Options, UsageError
from runtime.errors import failing
from runtime.light import contextlib, json, socket
from runtime.spec.values import Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Final

PIDFD_SOCKET: Final = Flag("pidfd-socket", argument="PATH", help="send a pidfd of the process to this unix socket")
PRESERVE_FDS: Final = Flag(
    "preserve-fds", argument="N", help="pass N descriptors after the standard streams (and $LISTEN_FDS)"
)


def preserved_descriptors(options: Options) -> int:
    """Return how many descriptors after the standard streams the program gets. Raises UsageError if one is closed."""
    listening = os.environ.get("LISTEN_FDS", "")
    count = options.number("preserve-fds") + (int(listening) if listening.isdecimal() else 0)
    for fd in range(3, 3 + count):
        if not _is_inherited(fd):
            raise UsageError(f"--preserve-fds: descriptor {fd} is not open")
    return count


def _is_inherited(fd: int) -> bool:
    """Return whether our caller passed us the descriptor. Our own are close-on-exec, so no container gets them."""
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


def write_pid_file(path: str, pid: int) -> None:
    """Write the pid file atomically."""
    directory, name = os.path.split(os.path.abspath(path))
    new = os.path.join(directory, f".{name}")
    with failing("write", path):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        # "x": in a directory where others may write, the name could be their link to another file.
        with open(new, "x") as file:
            file.write(str(pid))
        os.rename(new, path)


def send_console(master: int, path: str) -> None:
    """Send a terminal's master to the listener of a unix socket."""
    send_descriptor("console", master, path, b"/dev/ptmx")


def send_descriptor(what: str, fd: int, path: str, said: bytes) -> None:
    """Send a descriptor to the listener of a unix socket, with the same text that runc sends."""
    with failing(f"send {what} to", path), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [said], [fd])


def send_listener(spec: Spec, listener: int, pid: int, state: Mapping[str, Any]) -> None:
    """Send the seccomp filter's listener to the socket at listenerPath, and close it.

    The state of config-linux.md "The Container Process State" goes with it. Raises OperationFailed.
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
