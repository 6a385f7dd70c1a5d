"""What a process on its way to a container's program tells whoever cloned it, and what it is answered.

Each such child has one end of a pair of SOCK_SEQPACKET sockets, its parent the other. A packet is one report: a JSON
object, with at most one descriptor alongside (unix(7), SCM_RIGHTS). Every descriptor of the child's end closes on exec,
so the parent reads the end of file when the program runs, or when the child has died. An answer is a JSON object too;
one that is larger than a packet, since annotations are in the state of hooks, comes as a nameless file alongside.

A container's init (runtime/process/init.py; its parent is runtime/shim/launch/own.py, or runtime/command/child.py):

    init                                          parent
      | --- Warned ------------------------------>  | a limit is not as asked for; the start goes on
      | --- Console, the terminal's other end --->  | if the process has a terminal
      | --- HooksDue ---------------------------->  | if there are hooks until the start: runs prestart, createRuntime
      | <------------ the state that hooks get ---  | or kills it, and gives no answer
      | --- SeccompListener, a descriptor ------->  | if the filter has one; from a program that was born, after Born
      | --- Born, a pidfd of the program -------->  | if the PID namespace has others in it: the init ends, and what
      |                                             | follows is of the program that it bore (process/become.py)
      | --- Executing --------------------------->  | all is done but the execve
      | === end of file, by the execve =========>  | the program runs, or waits at its gate (crisp-oci create)
      |
      | --- Failed ------------------------------>  | instead of the rest, at any time; a Failed after Executing is the
      | === end of file ========================>  | execve's. An end without Executing: it was killed

An exec (runtime/process/join.py; its parent is runtime/shim/exec.py, or runtime/command/child.py):

      | --- Console, SeccompListener, Born ------>  | as above
      | === end of file, by the execve =========>  | the program runs, or the exec has died: its exit status tells
      | --- Failed, end of file ----------------->  | instead

The restorer of a checkpointed container (both ends: runtime/shim/launch/restored.py; the parent reads at its end):

      | --- Console ----------------------------->  | if the container has a terminal
      | --- Restored, end of file --------------->  | the container's init runs, and is a child of the parent's
      | --- Failed, end of file ----------------->  | instead

A pod's infra process (runtime/process/infra.py; its parent is runtime/shim/pod.py):

      | <--------------------------------- "{}" ---  | if it is in a new user namespace: now that has its ids
      | === end of file, by the execve =========>  | the infra program runs. It is machine code, and reports nothing
      | --- Failed, end of file ----------------->  | instead

The maker of namespaces that are opened before anybody is in them (both ends are in runtime/namespaces/user.py):

      | --- Ready ------------------------------->  | it is in them; the parent opens them by /proc, and hangs up
      | --- Failed ------------------------------>  | instead

The runner of a shim's hooks (both ends are in runtime/shim/hook_process.py) leaves a line with a Failed for each that
failed, in a nameless file which is read at its end.

Containers of other OCI runtimes (runtime/shim/launch/external.py) have no such child: the runtime's exit status tells.

A process at its gate (runtime/process/gate.py) has no socket but one byte to wait for, and a descriptor for one report,
which is the pipe `exec.report` of a created container, and the socket of an exec. There the gate's machine code writes
the number of execve's error, a C int and nothing else: NotExecuted. An interpreter that waits itself may write Failed.

Whoever is born into a PID namespace of others can be looked into by those with CAP_SYS_PTRACE there, who can then speak
in its place. `Conversation` lets it say no more than what can only harm the container itself, and `decode` believes
nothing about its packets.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Mapping, Sequence

from runtime.errors import ExecFailed, RuntimeCoreError, from_json
from runtime.light import dataclass, json, socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

MAX_PACKET: Final = 65536  # bytes of a report, and of an answer
_SHORT_REASON: Final = 4096
_ERROR_NUMBER: Final = struct.Struct("=i")


@dataclass(frozen=True, slots=True)
class Warned:
    """Something is not as asked for, and the start goes on."""

    text: str


@dataclass(frozen=True, slots=True)
class Console:
    """`fd` is the other end of the process's terminal, the parent's to keep."""

    fd: int


@dataclass(frozen=True, slots=True)
class SeccompListener:
    """`fd` is the listener of the process's filter (seccomp_unotify(2)), the parent's to give away."""

    fd: int


@dataclass(frozen=True, slots=True)
class HooksDue:
    """Now the parent runs the hooks of the creation, and answers with the state that hooks get."""


@dataclass(frozen=True, slots=True)
class Born:
    """From now on this process is the one that becomes the program: a child of the parent's, too. `fd` is a pidfd."""

    pid: int
    fd: int


@dataclass(frozen=True, slots=True)
class Executing:
    """All is done but the execve. `steps` are a traced start's, with the monotonic clock in nanoseconds."""

    steps: Sequence[tuple[str, int]] = ()


@dataclass(frozen=True, slots=True)
class Restored:
    """`pid` is the container's init."""

    pid: int


@dataclass(frozen=True, slots=True)
class Ready:
    """What the child was made for is there to be opened."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Why the child ends."""

    error: RuntimeCoreError


@dataclass(frozen=True, slots=True)
class NotExecuted:
    """execve(2) refused the program with this errno. Said by the gate's machine code, which knows no more."""

    number: int

    def error(self, program: str) -> ExecFailed:
        return ExecFailed(f'exec: "{program}": {os.strerror(self.number).lower()}', self.number)


@dataclass(frozen=True, slots=True)
class Ended:
    """End of file; never sent."""


Report = Warned | Console | SeccompListener | HooksDue | Born | Executing | Restored | Ready | Failed | NotExecuted
_WITH_DESCRIPTOR: Final = (Console, SeccompListener, Born)


def encode(report: Report) -> bytes:
    """The packet, at most MAX_PACKET bytes; a descriptor goes alongside."""
    if isinstance(report, Born):  # made under a filter: as little work as can be
        return b'{"pid":%d}' % report.pid
    if isinstance(report, NotExecuted):
        return _ERROR_NUMBER.pack(report.number)
    packet = json.dumps(_members(report)).encode()
    if len(packet) > MAX_PACKET and isinstance(report, Failed):
        return encode(Failed(RuntimeCoreError(str(report.error)[:_SHORT_REASON] + "...")))
    return packet


def _members(report: Report) -> dict[str, Any]:
    match report:
        case Failed(error):
            return {"failed": error.to_json()}
        case Executing(steps):
            return {"executing": steps}
        case Warned(text):
            return {"warning": text}
        case Restored(pid):
            return {"restored": pid}
        case Console():
            return {"console": True}
        case SeccompListener():
            return {"seccomp": True}
        case HooksDue():
            return {"hooks": True}
        case _:
            return {"ready": True}


def decode(packet: bytes, fds: Sequence[int] = ()) -> Report | None:
    """The report of a packet. None where there is none, or none with all that belongs to it. Raises nothing."""
    if len(packet) == _ERROR_NUMBER.size:
        return NotExecuted(*_ERROR_NUMBER.unpack(packet))
    try:
        message = json.loads(packet)
    except ValueError:
        return None
    match message, list(fds):
        case {"failed": dict(record)}, _:
            return Failed(from_json(record))
        case {"executing": list(steps)}, _:
            return Executing(tuple((name, at) for name, at in filter(_is_step, steps)))
        case {"warning": str(text)}, _:
            return Warned(text)
        case {"restored": int(pid)}, _:
            return Restored(pid)
        case {"pid": int(pid)}, [fd, *_]:
            return Born(pid, fd)
        case {"console": True}, [fd, *_]:
            return Console(fd)
        case {"seccomp": True}, [fd, *_]:
            return SeccompListener(fd)
        case {"hooks": True}, _:
            return HooksDue()
        case {"ready": True}, _:
            return Ready()
    return None


def _is_step(value: object) -> bool:
    match value:
        case [str(), int()]:
            return True
    return False


def failure(packet: bytes, program: str) -> RuntimeCoreError | None:
    """Why `program` was not executed, of all that a process at its gate has reported; None when it said nothing."""
    if not packet:
        return None
    return _failure(decode(packet), program) or RuntimeCoreError("the process failed")


def _failure(report: Report | None, program: str) -> RuntimeCoreError | None:
    match report:
        case Failed(error):
            return error
        case NotExecuted():
            return report.error(program)
    return None


class Reporter:
    """The child's side."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def fileno(self) -> int:
        return self._channel.fileno()

    def say(self, report: Report) -> None:
        """Send it. A descriptor stays the caller's too. Raises OSError."""
        packet = encode(report)
        if isinstance(report, _WITH_DESCRIPTOR):
            socket.send_fds(self._channel, [packet], [report.fd])
        else:
            self._channel.send(packet)

    def fail(self, error: BaseException) -> None:
        """Say why the child ends. Best effort."""
        if not isinstance(error, RuntimeCoreError):
            error = RuntimeCoreError(f"{type(error).__name__}: {error}")
        with contextlib.suppress(OSError):
            self.say(Failed(error))

    def await_answer(self) -> dict[str, Any] | None:
        """What the parent answers; None when it has gone away, and knows why."""
        packet, fds, _flags, _address = socket.recv_fds(self._channel, MAX_PACKET, 1, socket.MSG_CMSG_CLOEXEC)
        for fd in fds:
            with open(fd, "rb") as file:
                file.seek(0)
                packet = file.read()
        answer: dict[str, Any] | None = json.loads(packet) if packet else None
        return answer


def answer(channel: socket.socket, state: Mapping[str, Any]) -> None:
    """What `Reporter.await_answer` returns. Raises OSError."""
    packet = json.dumps(dict(state)).encode()
    if len(packet) <= MAX_PACKET:
        channel.send(packet)
        return
    with open(os.memfd_create("answer", os.MFD_CLOEXEC), "wb") as file:
        file.write(packet)
        file.flush()
        socket.send_fds(channel, [b"{}"], [file.fileno()])


@dataclass(frozen=True, slots=True)
class Speaker:
    """A kind of child: what it may say, what it says last when all went well, and what its silence means."""

    may_say: tuple[type, ...]
    last: type | None  # None: its end alone tells nothing
    died: str


INIT: Final = Speaker(
    (Warned, Console, HooksDue, SeccompListener, Born, Executing, Failed),
    Executing,
    "the container's init died before its program ran",
)
EXEC: Final = Speaker(
    (Console, SeccompListener, Born, Failed, NotExecuted), None, "the exec died before its program ran"
)
RESTORER: Final = Speaker(
    (Console, Restored, Failed), Restored, "criu's parent died before it had restored the container"
)
INFRA: Final = Speaker((Failed,), None, "")
MAKER: Final = Speaker((Ready, Failed), Ready, "the maker of a namespace died before it was made")
_OF_THE_BORN: Final = (SeccompListener, Executing, Failed, NotExecuted)


class Conversation:
    """The parent's side, without I/O: what the child has said, and what it may still say.

    `bears`: the program will be another process than the child. `listens`: there is somebody to give the listener of
    its filter to. `program` is named where its execve fails.
    """

    def __init__(self, speaker: Speaker, *, bears: bool = False, listens: bool = False, program: str = "") -> None:
        self.awaits_birth = bears
        self.failure: RuntimeCoreError | None = None  # what the child, or the program after it, said
        self._speaker = speaker
        self._born = False
        self._listens = listens
        self._program = program
        self._done = speaker.last is None

    def take(self, packet: bytes, fds: Sequence[int]) -> Report | Ended | None:
        """What a packet says, None for what counts for nothing.

        A report's descriptor is the caller's from now on; every other is closed.
        """
        if not packet:
            return Ended()
        report = decode(packet, fds)
        if report is not None and not self._may_say(report):
            report = None
        kept = report.fd if isinstance(report, _WITH_DESCRIPTOR) else -1
        for fd in fds:
            if fd != kept:
                os.close(fd)
        if report is not None:
            self._note(report)
        return report

    def _may_say(self, report: Report) -> bool:
        if not isinstance(report, self._speaker.may_say) or (self._born and not isinstance(report, _OF_THE_BORN)):
            return False
        if isinstance(report, Born):
            return self.awaits_birth
        if isinstance(report, Executing):
            return not self._done  # its steps are kept: who repeats it would fill the parent's memory
        return self._listens or not isinstance(report, SeccompListener)

    def _note(self, report: Report) -> None:
        if isinstance(report, Born):
            self.awaits_birth, self._born = False, True
        elif isinstance(report, SeccompListener):
            self._listens = False  # there is one
        elif self._speaker.last is not None and isinstance(report, self._speaker.last):
            self._done = True
        else:
            self.failure = _failure(report, self._program) or self.failure

    @property
    def outcome(self) -> RuntimeCoreError | None:
        """At the end: why the child has not done what it was made for, None when it has."""
        if self.failure is None and (self.awaits_birth or not self._done):
            return RuntimeCoreError(self._speaker.died)
        return self.failure


def receive(channel: socket.socket, conversation: Conversation, *, wait: bool = True) -> Report | Ended | None:
    """Take one packet, as `Conversation.take`. Raises BlockingIOError when there is none and it is not to wait."""
    flags = socket.MSG_CMSG_CLOEXEC | (0 if wait else socket.MSG_DONTWAIT)
    try:
        packet, fds, _flags, _address = socket.recv_fds(channel, MAX_PACKET, 1, flags)
    except ConnectionResetError:  # it died before it had read its answer, and tells no more
        packet, fds = b"", []
    return conversation.take(packet, fds)
