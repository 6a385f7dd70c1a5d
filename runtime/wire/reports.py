"""Defines what a child process reports to its parent on the way to the container's program, and the answers.

Child and parent are connected by a pair of SOCK_SEQPACKET sockets. A packet is one report: a JSON object, with at most
one descriptor alongside (unix(7), SCM_RIGHTS). All descriptors of the child's end are close-on-exec, so the parent
reads end of file when the program runs or when the child has died. An answer is a JSON object too. The state of hooks
contains annotations and may be larger than a packet; such an answer comes in a memfd alongside.

A container's init (runtime/process/init.py; its parent is runtime/shim/launch/own.py, or runtime/command/child.py):

    init                                          parent
      | --- Warned ------------------------------>  | a setting could not be applied; the start continues
      | --- Console, the terminal's other end --->  | if the process has a terminal
      | --- HooksDue ---------------------------->  | if there are creation hooks: runs prestart, createRuntime
      | <------------ the state that hooks get ---  | or kills the child instead of answering
      | --- SeccompListener, a descriptor ------->  | if the filter has one; with Born, after it
      | --- Born, a pidfd of the program -------->  | if the PID namespace has other processes: the init exits,
      |                                             | and its child continues (process/become.py)
      | --- Executing --------------------------->  | all is done except the execve
      | === end of file, by the execve =========>  | the program runs, or waits at its gate (crisp-oci create)
      |
      | --- Failed ------------------------------>  | instead of the rest, at any time. After Executing it is the
      | === end of file ========================>  | execve's error. End of file without Executing: killed

or, as a list of system calls (runtime/process/starting.py), which clones up to two further processes:

      | <------------------------------ the list ---  | once, before anything else
      | --- Warned ------------------------------>  | as above
      | --- Born -------------------------------->  | once for each process; the one before it exits
      | --- Executing --------------------------->  | as above
      | === end of file, by the execve =========>  | as above
      | --- Undone, end of file ----------------->  | instead: the errno, and which entry of the list it is from

An exec (runtime/process/join.py; its parent is runtime/shim/exec.py, or runtime/command/child.py):

      | --- Console, SeccompListener, Born ------>  | as above
      | === end of file, by the execve =========>  | the program runs, or the exec died: see its exit status
      | --- Failed, end of file ----------------->  | instead

or, as a list of system calls (runtime/process/joining.py), which has no JSON, and clones one or two further processes:

      | <------------------------------ the list ---  | once, before anything else
      | --- Born -------------------------------->  | as above, once for each
      | === end of file, by the execve =========>  | as above
      | --- Undone, end of file ----------------->  | instead: the errno, and which entry of the list it is from

The restorer of a checkpointed container (both ends: runtime/shim/launch/restored.py; the parent reads after its exit):

      | --- Console ----------------------------->  | if the container has a terminal
      | --- Restored, end of file --------------->  | the container's init runs as the parent's child
      | --- Failed, end of file ----------------->  | instead

A pod's infra process (runtime/process/infra.py; its parent is runtime/shim/pod.py):

      | <--------------------------------- "{}" ---  | if it is in a new user namespace: its ids are mapped now
      | === end of file, by the execve =========>  | the infra program runs. It is machine code and sends nothing
      | --- Failed, end of file ----------------->  | instead

A maker of new namespaces for the parent to open (both ends are in runtime/namespaces/user.py):

      | --- Ready ------------------------------->  | it is in them; the parent opens them by /proc and closes
      | --- Failed ------------------------------>  | instead

The runner of a shim's hooks (both ends are in runtime/shim/hook_process.py) writes a line with a Failed for each failed
hook to a memfd, which is read when the runner exits.

Containers of other OCI runtimes (runtime/shim/launch/external.py) have no such child, only an exit status.

A process at its gate (runtime/process/gate.py) has no socket, but a descriptor to wait for one byte and a descriptor
for one report: the pipe `exec.report` of a created container, or the socket of an exec. The gate's machine code writes
execve's error number there, a C int and nothing else: NotExecuted. If the interpreter itself waits, it may write
Failed.

A process in a PID namespace with other processes can be traced by those with CAP_SYS_PTRACE there, which can then speak
in its place. `Conversation` therefore accepts only reports that harm at most the container itself, and `decode` trusts
nothing in its packets.
"""

from __future__ import annotations

import os
import struct

from runtime.errors import ExecFailed, RuntimeCoreError, from_json
from runtime.light import contextlib, dataclass, json, socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Final

MAX_PACKET: Final = 65536  # bytes of a report, and of an answer
_SHORT_REASON: Final = 4096
_ERROR_NUMBER: Final = struct.Struct("=i")
# What lists of system calls say: no JSON begins with a null byte.
_BIRTH: Final = struct.Struct("=8sQ")
_BIRTH_HEAD: Final = b"\0born\0\0\0"
_UNDONE: Final = struct.Struct("=8sQQ")
_UNDONE_HEAD: Final = b"\0undone\0"


@dataclass(frozen=True, slots=True)
class Warned:
    """A setting could not be applied; the start continues."""

    text: str


@dataclass(frozen=True, slots=True)
class Console:
    """The other end of the process's terminal. The parent owns `fd`."""

    fd: int


@dataclass(frozen=True, slots=True)
class SeccompListener:
    """The listener of the process's filter (seccomp_unotify(2)), for the parent to pass on."""

    fd: int


@dataclass(frozen=True, slots=True)
class HooksDue:
    """The parent shall run the creation hooks now, and answer with the state that hooks get."""


@dataclass(frozen=True, slots=True)
class Born:
    """The process that will run the program from now on. It is a child of the parent too. `fd` is a pidfd."""

    pid: int
    fd: int


@dataclass(frozen=True, slots=True)
class Executing:
    """All is done except the execve. `steps` are those of a traced start, in nanoseconds of the monotonic clock."""

    steps: Sequence[tuple[str, int]] = ()


@dataclass(frozen=True, slots=True)
class Restored:
    """The container is restored. `pid` is its init."""

    pid: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The namespaces can be opened now."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The error for which the child exits."""

    error: RuntimeCoreError


@dataclass(frozen=True, slots=True)
class NotExecuted:
    """execve(2) refused the program with this errno. Sent by the gate's machine code, which knows only the errno."""

    number: int

    def error(self, program: str) -> ExecFailed:
        return ExecFailed(f'exec: "{program}": {os.strerror(self.number).lower()}', self.number)


@dataclass(frozen=True, slots=True)
class Undone:
    """The system call that is at an address of a list ended with this errno (runtime/process/script.py).

    `facts` explain an execve's; they come in a second report, since the filter may kill who collects them.
    """

    number: int
    at: int
    facts: bytes = b""


@dataclass(frozen=True, slots=True)
class Ended:
    """End of file. Never sent."""


Report = (
    Warned
    | Console
    | SeccompListener
    | HooksDue
    | Born
    | Executing
    | Restored
    | Ready
    | Failed
    | NotExecuted
    | Undone
)
_WITH_DESCRIPTOR: Final = (Console, SeccompListener, Born)


def encode(report: Report) -> bytes:
    """Encode a report as a packet of at most MAX_PACKET bytes. Its descriptor goes alongside."""
    if isinstance(report, Born):  # sent under the container's filter: do as little as possible
        return b'{"pid":%d}' % report.pid
    if isinstance(report, NotExecuted):
        return _ERROR_NUMBER.pack(report.number)
    if isinstance(report, Undone):
        return _UNDONE.pack(_UNDONE_HEAD, report.number, report.at) + report.facts
    packet = json.dumps(_members(report)).encode()
    if len(packet) > MAX_PACKET and isinstance(report, Failed):
        return encode(Failed(RuntimeCoreError(str(report.error)[:_SHORT_REASON] + "...")))
    return packet


def birth_by_list(pid: int = 0) -> bytes:
    """A Born as a list says it, whose last eight bytes are the pid."""
    return _BIRTH.pack(_BIRTH_HEAD, pid)


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
    """Decode a packet. None if it is invalid or lacks its descriptor. Raises nothing."""
    if len(packet) == _ERROR_NUMBER.size:
        return NotExecuted(*_ERROR_NUMBER.unpack(packet))
    if packet[:1] == b"\0":
        return _decode_of_list(packet, fds)
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


def _decode_of_list(packet: bytes, fds: Sequence[int]) -> Report | None:
    if len(packet) == _BIRTH.size and packet.startswith(_BIRTH_HEAD) and fds:
        pid = _BIRTH.unpack(packet)[1]
        return Born(pid, fds[0])
    if len(packet) >= _UNDONE.size and packet.startswith(_UNDONE_HEAD):
        _head, number, at = _UNDONE.unpack_from(packet)
        return Undone(number, at, packet[_UNDONE.size :])
    return None


def _is_step(value: object) -> bool:
    match value:
        case [str(), int()]:
            return True
    return False


def failure(packet: bytes, program: str) -> RuntimeCoreError | None:
    """Return why `program` was not executed, from all that a process at its gate has reported; None if nothing."""
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
    """The child's side of the conversation."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def fileno(self) -> int:
        return self._channel.fileno()

    def say(self, report: Report) -> None:
        """Send a report. The caller keeps its descriptor too. Raises OSError."""
        packet = encode(report)
        if isinstance(report, _WITH_DESCRIPTOR):
            socket.send_fds(self._channel, [packet], [report.fd])
        else:
            self._channel.send(packet)

    def fail(self, error: BaseException) -> None:
        """Send the error for which the child exits. Best effort."""
        if not isinstance(error, RuntimeCoreError):
            error = RuntimeCoreError(f"{type(error).__name__}: {error}")
        with contextlib.suppress(OSError):
            self.say(Failed(error))

    def await_answer(self) -> dict[str, Any] | None:
        """Return the parent's answer, or None if the parent closed its end; it then knows why."""
        packet, fds, _flags, _address = socket.recv_fds(self._channel, MAX_PACKET, 1, socket.MSG_CMSG_CLOEXEC)
        for fd in fds:
            with open(fd, "rb") as file:
                file.seek(0)
                packet = file.read()
        answer: dict[str, Any] | None = json.loads(packet) if packet else None
        return answer


def answer(channel: socket.socket, state: Mapping[str, Any]) -> None:
    """Send the answer that `Reporter.await_answer` returns. Raises OSError."""
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
    """A kind of child: the reports it may send, its last report on success, and the error if it dies without one."""

    may_say: tuple[type, ...]
    last: type | None  # None: end of file does not tell success from failure
    died: str


INIT: Final = Speaker(
    (Warned, Console, HooksDue, SeccompListener, Born, Executing, Failed, Undone),
    Executing,
    "the container's init died before its program ran",
)
EXEC: Final = Speaker(
    (Console, SeccompListener, Born, Failed, NotExecuted, Undone), None, "the exec died before its program ran"
)
RESTORER: Final = Speaker(
    (Console, Restored, Failed), Restored, "criu's parent died before it had restored the container"
)
INFRA: Final = Speaker((Failed,), None, "")
MAKER: Final = Speaker((Ready, Failed), Ready, "the process that makes a namespace died before it was done")
_OF_THE_BORN: Final = (SeccompListener, Executing, Failed, NotExecuted, Undone)


class Conversation:
    """The parent's side, without I/O: what the child has reported, and what it may still report.

    `bears`: another process than the child will run the program; after so many births. `listens`: the parent can pass
    on the filter's listener. `program` is the name in execve's error; `undone` names what failed in a list.
    """

    def __init__(
        self,
        speaker: Speaker,
        *,
        bears: int = False,
        listens: bool = False,
        program: str = "",
        undone: Callable[[Undone], RuntimeCoreError] | None = None,
    ) -> None:
        self._births = int(bears)
        self._undone = undone
        self.failure: RuntimeCoreError | None = None  # as reported by the child or by the process after it
        self._speaker = speaker
        self._born = False
        self._listens = listens
        self._program = program
        self._done = speaker.last is None

    @property
    def awaits_birth(self) -> bool:
        return self._births > 0

    def take(self, packet: bytes, fds: Sequence[int]) -> Report | Ended | None:
        """Decode a packet; None if the child may not send this report now.

        The caller owns a report's descriptor from now on. All others are closed.
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
            return not self._done  # only once: repeated steps would fill the parent's memory
        return self._listens or not isinstance(report, SeccompListener)

    def _note(self, report: Report) -> None:
        if isinstance(report, Born):
            self._births -= 1
            self._born = not self._births
        elif isinstance(report, SeccompListener):
            self._listens = False  # only one
        elif self._speaker.last is not None and isinstance(report, self._speaker.last):
            self._done = True
        elif isinstance(report, Undone):
            self.failure = self._undone(report) if self._undone else RuntimeCoreError("the process failed")
        else:
            self.failure = _failure(report, self._program) or self.failure

    @property
    def outcome(self) -> RuntimeCoreError | None:
        """Return why the child has failed, or None if it succeeded. Valid at the end of file."""
        if self.failure is None and (self.awaits_birth or not self._done):
            return RuntimeCoreError(self._speaker.died)
        return self.failure


def receive(channel: socket.socket, conversation: Conversation, *, wait: bool = True) -> Report | Ended | None:
    """Receive one packet; see `Conversation.take`. Raises BlockingIOError if there is none and `wait` is False."""
    flags = socket.MSG_CMSG_CLOEXEC | (0 if wait else socket.MSG_DONTWAIT)
    try:
        packet, fds, _flags, _address = socket.recv_fds(channel, MAX_PACKET, 1, flags)
    except ConnectionResetError:  # the child died before it read its answer
        packet, fds = b"", []
    return conversation.take(packet, fds)
