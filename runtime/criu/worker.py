"""Runs criu(8) as a worker: protocol buffers over a socket that `criu swrk` inherits (criu.org/RPC).

Encodes only the fields that crisp uses. criu(8) describes them under the options of the same names.
"""

from __future__ import annotations

import os
import resource
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

from runtime.errors import NotSupported, RuntimeCoreError, failing
from runtime.light import contextlib, dataclass, signal, socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    Value = bool | int | str | bytes | Sequence[str] | Sequence[bytes]

DUMP: Final = 1
RESTORE: Final = 2
PRE_DUMP: Final = 4
_NOTIFY: Final = 6

OPTIONS: Final[Mapping[str, int]] = {
    "images_dir_fd": 1,
    "pid": 2,
    "leave_running": 3,
    "ext_unix_sk": 4,
    "tcp_established": 5,
    "shell_job": 7,
    "file_locks": 8,
    "log_level": 9,
    "log_file": 10,
    "notify_scripts": 12,
    "root": 13,
    "parent_img": 14,
    "track_mem": 15,
    "auto_dedup": 16,
    "work_dir_fd": 17,
    "link_remap": 18,
    "manage_cgroups": 24,
    "cg_root": 25,
    "rst_sibling": 26,
    "inherit_fd": 27,
    "manage_cgroups_mode": 34,
    "external": 37,
    "empty_ns": 38,
    "freeze_cgroup": 44,
    "timeout": 45,
    "tcp_skip_in_flight": 46,
    "orphan_pts_master": 50,
    "lsm_profile": 53,
    "lsm_mount_context": 63,
}
CGROUP_MODES: Final[Mapping[str, int]] = {"ignore": 0, "soft": 3, "full": 4, "strict": 5}
_LOG_LEVEL: Final = 4
_LONGEST_MESSAGE: Final = 1 << 20
_GIVING_UP_MILLISECONDS: Final = 400
_HARMLESS: Final = "setup RLIMIT_NOFILE for self"  # logged by every run without CAP_SYS_RESOURCE; criu continues
# What criu says of a known lack, and what the caller can do about it.
_REMEDIES: Final[Mapping[str, str]] = {
    "Can't get 1:16 opt: Operation not supported": (  # SO_PASSCRED, only of Unix sockets since Linux 6.16
        "this criu cannot checkpoint TCP and UDP sockets on Linux 6.16 and later: "
        "take a later criu or an older kernel, or let the program use Unix sockets"
    ),
}


@dataclass(frozen=True, slots=True)
class Notification:
    """An event that criu reports (criu(8) "--action-script"). `fd` is -1, or the receiver closes it."""

    script: str
    pid: int
    fd: int


def find(name: str = "criu") -> str:
    """Return the path of criu. Raises NotSupported."""
    found = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if found is None:
        raise NotSupported("find", name, "it is not installed (Debian: apt-get install criu)")
    return found


class Worker:
    """Runs one criu process for one request. It inherits the descriptors `keep` under the same numbers."""

    def __init__(
        self,
        prepare: Callable[[], None] | None = None,
        keep: Sequence[int] = (),
        program: str = "",
        deadline: float | None = None,
    ) -> None:
        """`prepare` runs in the child before criu; `program` is criu's path; `deadline` is of time.monotonic().

        Raises RuntimeCoreError.
        """
        program = program or find()
        self._deadline = deadline
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, failing("execute", program):
            self._process = subprocess.Popen(
                [program, "swrk", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), *keep),
                preexec_fn=prepare,
                process_group=None if deadline is None else 0,
                # A write beyond RLIMIT_FSIZE must be an error, not a signal: see `_give_up`.
                restore_signals=deadline is None,
            )

    def call(
        self,
        kind: int,
        options: Mapping[str, Value],
        log: str,
        notified: Callable[[Notification], None] = lambda _note: None,
    ) -> int:
        """Dump or restore, and return the pid of a restored process. `log` is the path of criu's log.

        `notified` is called for each notification, while criu waits. Raises RuntimeCoreError, and TimeoutError after
        the deadline: then criu has ended, and the processes that it dumped are as before.
        """
        asked: dict[str, Value] = {"log_level": _LOG_LEVEL, "log_file": os.path.basename(log), **options}
        failure: RuntimeCoreError | OSError | None = None
        try:
            self._socket.send(request(kind, asked))
            while True:
                if self._deadline is not None:
                    self._socket.settimeout(max(0.001, self._deadline - time.monotonic()))
                try:
                    message, fds, _flags, _address = socket.recv_fds(
                        self._socket, _LONGEST_MESSAGE, 1, socket.MSG_CMSG_CLOEXEC
                    )
                except TimeoutError:
                    self._give_up()
                    raise
                if not message:
                    raise RuntimeCoreError(f"criu ended without an answer{last_error(log)}")
                answer = decode(message)
                if answer.get(1) != _NOTIFY:
                    break
                note = decode(_bytes(answer.get(5)))
                try:
                    notified(Notification(_bytes(note.get(1)).decode(), _number(note.get(2)), fds[0] if fds else -1))
                except (RuntimeCoreError, OSError) as error:
                    failure = error
                self._socket.send(_number_field(1, _NOTIFY) + _number_field(3, failure is None))
            if failure is not None:
                raise failure
            if not _number(answer.get(2)):
                raise RuntimeCoreError(f"criu failed{last_error(log)}")
            return _number(decode(_bytes(answer.get(4))).get(1)) if kind == RESTORE else 0
        finally:
            self._socket.close()
            self._process.wait()

    def _give_up(self) -> None:
        """End criu before it has answered.

        A criu that is killed leaves its code in the process that it just dumps. So first let its next write to a file
        fail: it then removes that code and lets the process continue. Kill it only if that takes too long.
        """
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (0, 0))
        watched = os.pidfd_open(self._process.pid)
        try:
            poll = select.poll()
            poll.register(watched, select.POLLIN)
            if not poll.poll(_GIVING_UP_MILLISECONDS):
                os.killpg(self._process.pid, signal.SIGKILL)
        finally:
            os.close(watched)


def last_error(log: str) -> str:
    """Return the first error in criu's log, as ": REASON (see PATH)", with what to do about it where that is known."""
    try:
        with open(log, encoding="utf-8", errors="replace") as file:
            errors = [line.strip() for line in file if "Error (" in line and _HARMLESS not in line]
    except OSError:
        return ""
    # The first error is the cause; the later ones follow from it.
    if not errors:
        return f" (see {log})"
    remedy = next((f": {advice}" for said, advice in _REMEDIES.items() if said in errors[0]), "")
    return f": {errors[0].partition('Error ')[2]}{remedy} (see {log})"


def request(kind: int, options: Mapping[str, Value]) -> bytes:
    """Encode a criu_req with these options."""
    return _number_field(1, kind) + _bytes_field(2, b"".join(_field(OPTIONS[name], options[name]) for name in options))


def cgroup_root(path: str, controller: str = "") -> bytes:
    """Encode a value of "cg_root": the container's root cgroup in one version 1 hierarchy, or in all."""
    return (_bytes_field(1, controller.encode()) if controller else b"") + _bytes_field(2, path.encode())


def inherited(key: str, fd: int) -> bytes:
    """Encode a value of "inherit_fd"."""
    return _bytes_field(1, key.encode()) + _number_field(2, fd)


def _field(number: int, value: Value) -> bytes:
    if isinstance(value, int):
        return _number_field(number, value)
    if isinstance(value, str):
        return _bytes_field(number, value.encode())
    if isinstance(value, bytes):
        return _bytes_field(number, value)
    return b"".join(_field(number, each) for each in value)


def _number_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def decode(message: bytes) -> dict[int, int | bytes]:
    """Decode the fields of a message by number; the last value counts. Raises RuntimeCoreError for an invalid one."""
    return dict(fields_of(message))


def fields_of(message: bytes) -> list[tuple[int, int | bytes]]:
    """Decode the fields of a message: number and value, in order. Raises RuntimeCoreError for an invalid one."""
    fields: list[tuple[int, int | bytes]] = []
    at = 0
    try:
        while at < len(message):
            key, at = _read_varint(message, at)
            if key & 7 == 0:
                number, at = _read_varint(message, at)
                fields.append((key >> 3, number))
            elif key & 7 == 2:
                length, at = _read_varint(message, at)
                if at + length > len(message):
                    raise ValueError("the message is truncated")
                fields.append((key >> 3, message[at : at + length]))
                at += length
            else:
                raise ValueError(f"wire type {key & 7}")
    except (ValueError, IndexError) as error:
        raise RuntimeCoreError(f"could not decode criu's answer: {error}") from error
    return fields


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _bytes(value: int | bytes | None) -> bytes:
    return value if isinstance(value, bytes) else b""


def _number(value: int | bytes | None) -> int:
    return value if isinstance(value, int) else 0
