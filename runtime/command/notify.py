"""Implements $NOTIFY_SOCKET (sd_notify(3)): tells the service manager that the container's program is ready.

The program gets a socket of its own. Only its READY= is passed on, with the init's pid outside the container, which
the program does not know. A container has nothing else to tell the manager.
"""

from __future__ import annotations

import os

from linux import syscalls
from runtime.command.store import NOTIFY_DIRECTORY, Entry
from runtime.errors import failing
from runtime.light import contextlib, replace, socket
from runtime.spec.values import Mount, Process, Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_PLACE: Final = "/run/notify"
_NAME: Final = "notify.sock"
_LARGEST: Final = 4096  # bytes of a datagram; the rest is ignored


def with_socket(spec: Spec, process: Process, directory: str) -> tuple[Spec, Process]:
    """Mount the state's `directory` into the container and set the process's variable."""
    mount = Mount(_PLACE, "bind", directory, ("bind", "nosuid", "noexec", "nodev", "ro"))
    others = tuple(entry for entry in process.env if not entry.startswith("NOTIFY_SOCKET="))
    process = replace(process, env=(*others, f"NOTIFY_SOCKET={_PLACE}/{_NAME}"))
    return replace(spec, mounts=(*spec.mounts, mount)), process


class Listener:
    """The container's socket. It must exist before the program runs."""

    def __init__(self, entry: Entry) -> None:
        path = entry.path(NOTIFY_DIRECTORY)
        with failing("listen in", path):
            directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(_NAME, dir_fd=directory)
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                short = f"/proc/self/fd/{directory}/{_NAME}"  # a socket's path has at most 107 bytes
                self._socket.bind(short)
                os.chmod(short, 0o777)
            finally:
                os.close(directory)

    def wait_ready(self, pid: int, pidfd: int) -> None:
        """Wait until the program is ready, and tell the manager; return also if the program has exited."""
        import select

        poll = select.poll()
        for fd in (self._socket.fileno(), pidfd):
            poll.register(fd, select.POLLIN)
        while True:
            if self._socket.fileno() not in dict(poll.poll()):
                return
            said = self._socket.recv(_LARGEST)
            if any(line.startswith(b"READY=") for line in said.split(b"\n")):
                break
        address = os.environ["NOTIFY_SOCKET"]
        with failing("notify", address), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.connect("\0" + address[1:] if address.startswith("@") else address)
            manager.send(b"READY=1\nMAINPID=%d" % pid)

    def begin(self, pid: int, pidfd: int) -> None:
        """Call `wait_ready` in a child process, for callers that stand in for the container in the foreground."""
        import select  # noqa: F401  (the child uses it and cannot import any more)

        from runtime.command.foreground import FORWARDED
        from runtime.light import signal

        if syscalls.fork() == 0:
            try:
                for number in FORWARDED:
                    signal.signal(number, signal.SIG_IGN)
                for stream in (0, 1, 2):
                    os.close(stream)
                self.wait_ready(pid, pidfd)
            finally:
                os._exit(0)
