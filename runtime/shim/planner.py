"""Makes the lists of inits (runtime/process/starting.py) for all shims of a zygote, in one process.

A shim that made one would write to 1.6 MiB of the memory that it shares with the zygote, and keep the copies for as
long as its pod lives; and it would run that code for the first time. The planner runs it again and again.

The zygote forks it, and it dies with the zygote. One that is asked nothing for long leaves, and the next request brings
another one. A request is a datagram with two descriptors: where the answer goes, and the rootfs. The answer is two
datagrams: the list's births and names, and the list. If there is none, the shim makes the list itself.
"""

from __future__ import annotations

import marshal
import os
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from linux import syscalls
from runtime.cgroups import Cgroup, Hierarchies
from runtime.errors import RuntimeCoreError
from runtime.light import json, socket
from runtime.logs.writer import complain
from runtime.process.init import Start
from runtime.process.joining import Program
from runtime.process.starting import NO_STREAMS, InitList
from runtime.rootfs.plan import plan_mounts
from runtime.spec.parse import parse

NAME: Final = "crisp-planner"
_MOST: Final = 192 << 10  # bytes of a datagram: less than net.core.wmem_default
_PATIENCE: Final = 1.0  # seconds: somebody has stopped a planner that takes longer
_NO_WAIT: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class Asked:
    """A list that the planner was asked for."""

    def __init__(self, planner: Planner, start: Start, null_streams: Sequence[int], answer: socket.socket) -> None:
        self._planner = planner
        self._start = start
        self._null_streams = null_streams
        self._answer = answer
        answer.settimeout(_PATIENCE)

    def list(self) -> InitList | None:
        """Wait for the list. None if there is no planner to make it."""
        with self._answer as answer:
            try:
                told, image = answer.recv(_MOST), answer.recv(_MOST)
            except TimeoutError:
                self._planner.give_up()
                return None
            except OSError:
                return None
        if not image:
            return None
        births, names = marshal.loads(told)
        program = Program(image, names) if births >= 0 else None
        return InitList(self._start, self._null_streams, program, births)


class Planner:
    """The shims' end of the planner's socket, which all of them share."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._stopped = False

    def fileno(self) -> int:
        return self._requests.fileno()

    def give_up(self) -> None:
        """Ask no more: the planner does not answer."""
        self._stopped = True

    def ask(self, start: Start, null_streams: Sequence[int], content: bytes) -> Asked | None:
        """Ask for the list of a start, which has no mounts, with config.json's content. None if nobody can be asked."""
        if self._stopped or start.empty_mount_namespace < 0:
            return None
        what: Any = (
            start.container_id, content, tuple(start.trees), dict(start.directories), start.filter_program,
            start.filter_flags, list(null_streams),
        )  # fmt: skip
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                socket.send_fds(self._requests, [marshal.dumps(what)], [theirs.fileno(), start.rootfs], _NO_WAIT)
            except OSError:  # there is no planner, or the request is too long
                ours.close()
                return None
        return Asked(self, start, null_streams, ours)


def planner_main(
    requests: socket.socket, hierarchies: Hierarchies, empty_mount_namespace: int, idle_seconds: float
) -> NoReturn:
    """Answer requests as long as there is a zygote or a shim, until none comes for `idle_seconds`."""
    try:
        syscalls.set_name(NAME)
        syscalls.set_process_title(NAME)
        requests.settimeout(idle_seconds)
        while True:
            data, fds, _flags, _address = socket.recv_fds(requests, _MOST, 2, socket.MSG_CMSG_CLOEXEC)
            if not data:
                break
            _serve(data, fds, hierarchies, empty_mount_namespace)
    except TimeoutError:
        pass
    finally:
        os._exit(0)


def _serve(data: bytes, fds: Sequence[int], hierarchies: Hierarchies, empty_mount_namespace: int) -> None:
    made = None
    try:
        made = _make(data, fds[1], hierarchies, empty_mount_namespace)
    except (RuntimeCoreError, OSError):
        pass  # the shim comes upon it itself, and tells it
    except Exception as error:
        complain(f"could not make an init's list: {type(error).__name__}: {error}")
    for fd in fds[1:]:
        os.close(fd)  # before the answer: then nobody but the shim has the rootfs
    with socket.socket(fileno=fds[0]) as answer:
        if made is None:
            return
        program = made.program
        told = (-1, b"") if program is None else (made.births, program.encoded_names())
        try:
            answer.send(marshal.dumps(told), _NO_WAIT)
            answer.send(b"-" if program is None else program.image, _NO_WAIT)
        except OSError:
            pass  # the shim is dead, or the list too long


def _make(data: bytes, rootfs: int, hierarchies: Hierarchies, empty_mount_namespace: int) -> InitList | None:
    container_id, content, trees, directories, filter_program, filter_flags, null_streams = marshal.loads(data)
    spec = parse(json.loads(content))
    if spec.process is None:
        return None
    cgroup = Cgroup.at(hierarchies, spec.linux.cgroups_path)
    start = Start(
        container_id=container_id,
        spec=spec,
        process=spec.process,
        mounts=plan_mounts(spec, None),
        rootfs=rootfs,
        empty_mount_namespace=empty_mount_namespace,
        cgroup=cgroup,
        in_unified_cgroup=bool(cgroup.unified),
        stdio=NO_STREAMS,
        filter_program=filter_program,
        filter_flags=filter_flags,
        trees=dict.fromkeys(trees, -1),
        directories=directories,
    )
    return InitList.of(start, null_streams)
