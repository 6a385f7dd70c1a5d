"""Talks to the zygote and the shims from the daemon's asyncio loop."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, TypeVar

from linux import syscalls
from runtime.errors import NO_CALL, OperationFailed, RuntimeCoreError, failing, from_json
from runtime.light import replace
from runtime.wire.calls import (
    FILTER_BY_DESCRIPTOR,
    Answer,
    Descriptors,
    Event,
    Made,
    ShimState,
    Start,
    Started,
    read_event,
)
from runtime.wire.frames import Decoder, Message, Outbox, ProtocolError, receive

_BOOT: Final = "import sys; sys.path.insert(0, sys.argv[1]); from runtime.shim.zygote import main; main("
_ZYGOTE_SECONDS: Final = 30.0
_PROBE_ANSWER: Final = 4096
# Forked shims overwrite these arguments in memory with their own title: reserve room for it.
_TITLE_ROOM: Final = "crisp zygote".ljust(96)


AnswerOf = TypeVar("AnswerOf", bound=Answer, covariant=True)


class Call(Protocol[AnswerOf]):
    """A call of `runtime.wire.calls` with the type of its answer."""

    call: ClassVar[str]

    @property
    def answer(self) -> type[AnswerOf]: ...

    def to_json(self) -> Message: ...


class ShimGone(RuntimeCoreError):
    """The connection to the shim ended before it answered."""


class ShimTooOld(RuntimeCoreError):
    """The shim was started by an earlier crispd and does not know the call."""


class Zygote:
    """Starts the zygote process, and a new one whenever the last is found dead."""

    def __init__(self, place: Callable[[int], Awaitable[None]] | None = None) -> None:
        """`place` moves a new process, and so all its shims, into a cgroup. Without it the process moves itself."""
        self._place = place
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._restarting = asyncio.Lock()
        self.generation = 0  # number of zygote processes so far

    async def start(self) -> None:
        """Start the process and wait until it can fork (about 50 ms).

        Raises RuntimeCoreError, or what `place` raises.
        """
        await asyncio.get_running_loop().run_in_executor(None, self._start)
        if self._place is not None:
            try:
                await self._place(self.pid)
            except BaseException:
                self.close()
                raise

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        room = str(Path(__file__).resolve().parent.parent)
        with theirs:
            self._process = _spawn(theirs, room, own_cgroup=self._place is None)
        ours.settimeout(_ZYGOTE_SECONDS)
        try:
            ready = ours.recv(16)
        except OSError as error:
            ours.close()
            self._process.kill()
            raise OperationFailed.of("start", "zygote", error) from error
        if ready != b"ready":
            ours.close()
            code = self._process.wait()
            raise RuntimeCoreError(f"start zygote: it exited with status {code}; see crispd's stderr for the reason")
        ours.settimeout(None)
        self._control = ours
        self.generation += 1

    def probe_idmap(self, directory: Path) -> str:
        """Return why files below `directory` cannot be id-mapped, "" if they can.

        Blocks; call it before any `spawn`.
        """
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if self._control is None:
                return "no zygote"
            socket.send_fds(self._control, [b"probe"], [fd])
            answer = self._control.recv(_PROBE_ANSWER).decode()
        finally:
            os.close(fd)
        return "" if answer == "able" else answer or "the zygote ended"

    async def spawn(self, on_event: Callable[[Event], None], on_lost: Callable[[], None]) -> ShimClient:
        """Fork a shim. The answer to its first call shows that it runs. Raises RuntimeCoreError."""
        with failing("fork", "shim"):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            with theirs:
                generation = self.generation
                try:
                    self._send(theirs)
                except OSError:
                    await self.replace(generation)
                    self._send(theirs)
        return ShimClient(ours, on_event, on_lost)

    async def replace(self, generation: int) -> None:
        """Start a new process in place of the given one, unless that was done already. Raises RuntimeCoreError."""
        async with self._restarting:
            if self.generation == generation:
                await asyncio.get_running_loop().run_in_executor(None, self.close)
                await self.start()

    def _send(self, birth: socket.socket) -> None:
        if self._control is None:
            raise OSError("no zygote")
        socket.send_fds(self._control, [b"fork"], [birth.fileno()])

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def close(self) -> None:
        """Let the zygote exit. Shims live on."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            self._process = None


def _spawn(control: socket.socket, room: str, *, own_cgroup: bool) -> subprocess.Popen[bytes]:
    """Start the zygote: the socket is descriptor 3, stderr is inherited, the environment is empty."""
    fd = control.fileno()
    move = f"import os; {fd} == 3 or (os.dup2({fd}, 3), os.close({fd})); "
    argv = [sys.executable, "-I", "-S", "-c", f"{move}{_BOOT}{own_cgroup})", room, _TITLE_ROOM]
    interpreter = _readonly_interpreter()
    try:
        return subprocess.Popen(
            argv,
            executable=f"/proc/self/fd/{interpreter}",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[fd, interpreter],
            env={},
            cwd="/",
        )
    finally:
        os.close(interpreter)


def _readonly_interpreter() -> int:
    """Open the interpreter's file on a read-only mount of its own.

    From the zygote's fork until its execve a container's process has this file as /proc/self/exe, and the container can
    make the execve run it again ("#!/proc/self/exe"). Root in the container must not be able to write to the host's
    Python (CVE-2019-5736).
    """
    path = os.path.realpath(sys.executable)
    with failing("make read-only", path):
        tree = syscalls.open_tree(syscalls.AT_FDCWD, path, syscalls.OPEN_TREE_CLONE)
        try:
            syscalls.mount_setattr(tree, "", syscalls.AT_EMPTY_PATH, attr_set=syscalls.MOUNT_ATTR_RDONLY)
        except OSError:
            os.close(tree)
            raise
    return tree


class ShimClient:
    """A connection to one shim: sends calls, returns answers, and reports the shim's events."""

    def __init__(
        self, sock: socket.socket, on_event: Callable[[Event], None], on_lost: Callable[[], None]
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder()
        self._outbox = Outbox(sock)
        self._pending: dict[int, tuple[asyncio.Future[Any], type[Answer]]] = {}
        self._count = 0
        self.abilities: tuple[str, ...] = ()  # as the shim reported them
        self._on_event = on_event
        self._on_lost = on_lost
        self._loop.add_reader(sock.fileno(), self._readable)

    @classmethod
    async def connect(
        cls, directory: Path, on_event: Callable[[Event], None], on_lost: Callable[[], None]
    ) -> ShimClient:
        """Connect to the running shim of a sandbox directory. Raises ShimGone if there is none."""
        try:
            fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ShimGone(f"connect to shim in `{directory}`: {error.strerror}") from error
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(f"/proc/self/fd/{fd}/shim.sock")  # works for any length of the directory's path
        except OSError as error:
            sock.close()
            raise ShimGone(f"connect to shim in `{directory}`: {error.strerror}") from error
        finally:
            os.close(fd)
        return cls(sock, on_event, on_lost)

    async def call(self, call: Call[AnswerOf], fds: Sequence[int] = ()) -> AnswerOf:
        """Make a call and wait for its answer. Raises the error that the shim reports, or ShimGone."""
        return await self.begin(call, fds)

    async def call_for_descriptors(self, call: Call[Descriptors]) -> tuple[int, ...]:
        """Make a call that is answered with descriptors, which the caller then owns. Raises as `call` does."""
        answer = self.begin(call)
        try:
            await asyncio.wait({answer})  # awaiting the future itself would cancel it with the caller
        except asyncio.CancelledError:
            answer.add_done_callback(_close_unwanted)
            raise
        return answer.result().fds

    def begin(self, call: Call[AnswerOf], fds: Sequence[int] = ()) -> asyncio.Future[AnswerOf]:
        """Send a call now and return the future of its answer. The descriptors may be closed on return."""
        if self._sock.fileno() < 0:
            raise ShimGone(f"{call.call}: the shim is gone")
        self._count += 1
        future: asyncio.Future[AnswerOf] = self._loop.create_future()
        self._pending[self._count] = future, call.answer
        self._outbox.put({"id": self._count, "call": call.call, **call.to_json()}, fds)
        self._flush()
        return future

    async def start(self, call: Start, program: bytes) -> Started:
        """Start a container under a seccomp filter (b"" for none). Raises as `call` does."""
        if not program:
            return await self.call(call)
        if FILTER_BY_DESCRIPTOR not in self.abilities:
            return await self.call(replace(call, filter=base64.b64encode(program).decode()))
        fd = os.memfd_create("seccomp-filter")
        try:
            os.write(fd, program)
            answer = self.begin(replace(call, filter_bytes=len(program)), (fd,))
        finally:
            os.close(fd)
        return await answer

    @property
    def alive(self) -> bool:
        return self._sock.fileno() >= 0

    def _flush(self) -> None:
        try:
            self._outbox.flush()
        except OSError:
            self._lose()
            return
        if self._outbox:
            self._loop.add_writer(self._sock.fileno(), self._writable)

    def _writable(self) -> None:
        self._loop.remove_writer(self._sock.fileno())
        self._flush()

    def _readable(self) -> None:
        try:
            alive = receive(self._sock, self._decoder)
            for message, fds in self._decoder.messages():
                self._take(message, fds)
        except BlockingIOError:
            return
        except (OSError, ProtocolError):
            alive = False
        if not alive:
            self._lose()

    def _take(self, message: Message, fds: list[int]) -> None:
        if "event" in message:
            close_all(fds)
            if (event := read_event(message)) is not None:
                self._on_event(event)
            return
        future, kind = self._pending.pop(message.get("id", 0), (None, Answer))
        if future is None or future.done() or "error" in message or kind is not Descriptors:
            close_all(fds)
        if future is None or future.done():
            return
        if "error" in message:
            _fail(future, _error_of(message["error"]))
            return
        try:
            answer = Descriptors(tuple(fds)) if kind is Descriptors else kind.from_json(message["ok"])
        except (KeyError, TypeError, ValueError) as error:
            _fail(future, RuntimeCoreError(f"the shim's answer is no {kind.__name__}: {error}"))
            return
        if isinstance(answer, (Made, ShimState)):
            self.abilities = answer.abilities
        future.set_result(answer)

    def _lose(self) -> None:
        if self.alive:
            self.close()
            self._on_lost()

    def close(self) -> None:
        """Close the connection; pending calls fail with ShimGone. The shim lives on."""
        if not self.alive:
            return
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._outbox.close()
        self._decoder.close()
        self._sock.close()
        pending, self._pending = self._pending, {}
        for future, _kind in pending.values():
            if not future.done():
                _fail(future, ShimGone("the shim's connection ended"))


def _fail(answer: asyncio.Future[Any], error: RuntimeCoreError) -> None:
    """Set the error and mark it as retrieved, so that asyncio does not log it if nobody waits for the answer."""
    answer.set_exception(error)
    answer.exception()


def _error_of(record: Mapping[str, Any]) -> RuntimeCoreError:
    error = from_json(record)
    if error.message.startswith(NO_CALL):
        return ShimTooOld("an older crisp started this pod and its shim cannot do this: recreate the pod")
    return error


def close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _close_unwanted(answer: asyncio.Future[Descriptors]) -> None:
    if not answer.cancelled() and answer.exception() is None:
        close_all(answer.result().fds)
