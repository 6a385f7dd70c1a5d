"""Talks to the zygote and the shims from the daemon's asyncio loop."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, TypeVar

from linux import syscalls
from linux.credentials import peer_pid
from runtime.errors import NO_CALL, OperationFailed, RuntimeCoreError, failing, from_json
from runtime.light import replace
from runtime.link import Link
from runtime.spare import Spare
from runtime.wire.calls import (
    FILTER_BY_DESCRIPTOR,
    KEEP,
    Answer,
    Asleep,
    Attach,
    Awake,
    Descriptors,
    Event,
    Exec,
    GetState,
    Keep,
    Made,
    Prepare,
    Renew,
    ShimState,
    Start,
    Started,
    read_event,
)
from runtime.wire.frames import Message, ProtocolError

_BOOT: Final = "import sys; sys.path.insert(0, sys.argv[1]); from runtime.shim.zygote import main; main("
_ZYGOTE_SECONDS: Final = 60.0  # it takes 0.05 where the processor is free
_ZYGOTE_EXIT_SECONDS: Final = 5.0
_PROBE_ANSWER: Final = 4096
QUIET_SECONDS: Final = 10.0  # after which a shim that has not taken a call is asked whether it is there
ANSWER_SECONDS: Final = 10.0  # that it then has: it takes calls within milliseconds, also on a machine with much to do
_LASTING: Final = frozenset({Exec.call, Attach.call})  # answered when the command or the client ends
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


class ShimSilent(RuntimeCoreError):
    """The shim lives but takes no calls: somebody stopped it, or the kernel does not return from a system call."""


class ShimTooOld(RuntimeCoreError):
    """The shim was started by an earlier crispd and does not know the call."""


class Zygote:
    """Starts the zygote process, and a new one whenever the last is found dead."""

    def __init__(
        self,
        place: Callable[[int], Awaitable[None]] | None = None,
        on_lost: Callable[[], None] = lambda: None,
        sleep_seconds: int = 0,
    ) -> None:
        """`place` moves a new process, and so all its shims, into a cgroup. Without it the process moves itself.

        `on_lost` is called when the process has ended although nobody closed it. Shims that have had nothing to do for
        `sleep_seconds` sleep; 0 for never.
        """
        self._place = place
        self._on_lost = on_lost
        self._sleep_seconds = sleep_seconds
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = -1  # a pidfd of the process, which is watched
        self._spare: Spare | None = None
        self._restarting = asyncio.Lock()
        self.generation = 0  # number of zygote processes so far
        self.code = ""  # what tells its code from that of another version

    async def start(self) -> None:
        """Start the process and wait until it can fork (about 50 ms).

        Raises RuntimeCoreError, or what `place` raises.
        """
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._start)
        if self._place is not None:
            try:
                await self._place(self.pid)
            except BaseException:
                self.close()
                raise
        if self._control is not None:
            self._ended = os.pidfd_open(self.pid)
            loop.add_reader(self._ended, self._lost)

    def _lost(self) -> None:
        self._unwatch()
        self._on_lost()

    def _unwatch(self) -> None:
        if self._ended >= 0:
            asyncio.get_running_loop().remove_reader(self._ended)
            os.close(self._ended)
            self._ended = -1

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        room = Path(__file__).resolve().parent.parent
        self.code = _digest_of_code(room)
        with theirs:
            arguments = (self._place is None, self.code, self._sleep_seconds)
            self._process = _spawn(theirs, str(room), arguments)
        ours.settimeout(_ZYGOTE_SECONDS)
        try:
            ready = ours.recv(16)
        except OSError as error:
            ours.close()
            self._process.kill()
            if isinstance(error, TimeoutError):
                raise RuntimeCoreError(f"start zygote: it was not ready within {_ZYGOTE_SECONDS:.0f} s") from error
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

    async def spawn(
        self,
        on_event: Callable[[Event], None],
        on_lost: Callable[[], None],
        on_voice: Callable[[ShimState | None], None] = lambda _state: None,
    ) -> ShimClient:
        """Fork a shim, or take the one that was forked ahead.

        The answer to its first call shows that it runs. Raises RuntimeCoreError.
        """
        with failing("fork", "shim"):
            spare, self._spare = self._spare, None
            shim = spare.take() if spare is not None else None
            if shim is None:
                generation = self.generation
                try:
                    shim = self._fork()
                except OSError:
                    await self.replace(generation)
                    shim = self._fork()
        return ShimClient(shim, on_event, on_lost, on_voice)

    def fork_ahead(self) -> None:
        """Fork the next shim now, if there is a process to do that. It ends with its connection, so with the caller."""
        if self._spare is None:
            with contextlib.suppress(OSError):
                self._spare = Spare(self._fork())

    def _fork(self) -> socket.socket:
        """Send the request for a shim. Returns the connection to it. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                self._send(theirs)
            except OSError:
                ours.close()
                raise
        return ours

    async def replace(self, generation: int) -> None:
        """Start a new process in place of the given one, unless that was done already. Raises RuntimeCoreError."""
        async with self._restarting:
            if self.generation == generation:
                if self._spare is not None:
                    self._spare.drop()  # a zygote that does not run may not have forked it
                    self._spare = None
                if self._process is not None:
                    self._process.kill()  # dead, or it does not answer
                self.close()
                await self.start()

    def _send(self, birth: socket.socket, word: bytes = b"fork") -> None:
        if self._control is None:
            raise OSError("no zygote")
        socket.send_fds(self._control, [word], [birth.fileno()])

    def keep(self, shim: ShimClient) -> None:
        """Become the keeper of a shim that has none. Does nothing if the shim is too old, or the zygote is dead."""
        if not shim.alive or KEEP not in shim.abilities:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs, contextlib.suppress(OSError):
            self._send(ours, b"keep")
            shim.tell(Keep(sleeps=True), (theirs.fileno(),))

    async def renew(self, shim: ShimClient) -> None:
        """Replace a shim of another version by one of this zygote's. Raises RuntimeCoreError if it has to stay.

        The connection goes on: the successor answers what is asked meanwhile.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs, failing("renew", f"shim {shim.pid}"):
            self._send(ours, b"renew")
            answer = shim.begin(Renew(), (theirs.fileno(),))
        await answer

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def close(self) -> None:
        """Leave the zygote, which exits when it has no pods' shims any more. They live on. Called on the event loop."""
        self._unwatch()
        if self._spare is not None:
            self._spare.end()
            self._spare = None
        process, self._process = self._process, None
        control, self._control = self._control, None
        if process is None or control is None:
            return
        with control:
            control.settimeout(_ZYGOTE_EXIT_SECONDS)
            try:
                control.shutdown(socket.SHUT_WR)
                if control.recv(16):  # it stays, as the keeper of its shims
                    threading.Thread(target=process.wait, name="zygote", daemon=True).start()
                    return
            except OSError as error:
                if isinstance(error, TimeoutError):
                    process.kill()  # somebody has stopped it
        process.wait()


def _digest_of_code(room: Path) -> str:
    """Return what tells the code of a zygote, and so of its shims, from that of another version."""
    digest = hashlib.blake2b(sys.version.encode(), digest_size=16)
    for package in ("linux", "runtime"):
        for place in sorted((room / package).rglob("*.py")):
            digest.update(str(place.relative_to(room)).encode() + b"\0" + place.read_bytes())
    return digest.hexdigest()


def _spawn(control: socket.socket, room: str, arguments: tuple[bool, str, int]) -> subprocess.Popen[bytes]:
    """Start the zygote: the socket is descriptor 3, stderr is inherited, the environment is empty."""
    fd = control.fileno()
    move = f"import os; {fd} == 3 or (os.dup2({fd}, 3), os.close({fd})); "
    argv = [sys.executable, "-I", "-S", "-c", f"{move}{_BOOT}*{arguments!r})", room, _TITLE_ROOM]
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
    """A connection to one shim: sends calls, returns answers, and reports the shim's events.

    A shim takes calls in order and at once, however long their answers need. So an answer shows that it has taken all
    calls up to that one. A shim that takes no call for `QUIET_SECONDS`, and then does not answer a question within
    `ANSWER_SECONDS`, is set apart: what waits for it fails with ShimSilent, further calls fail at once, and
    `on_voice` gets its state when it answers again, after every call that it was sent. Commands and attachments that
    had begun stay: their bytes do not need the answer.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_event: Callable[[Event], None],
        on_lost: Callable[[], None],
        on_voice: Callable[[ShimState | None], None] = lambda _state: None,
    ) -> None:
        """`on_voice` is called with None when the shim falls silent, and with its state when it answers again."""
        self._loop = asyncio.get_running_loop()
        self._link = Link(sock, self._take, self.lose, self.lose)
        self._pending: dict[int, tuple[asyncio.Future[Any], type[Answer], str]] = {}
        self._count = 0
        self._taken = 0  # the last call that the shim is known to have taken
        self._timer: asyncio.TimerHandle | None = None
        self._question = 0  # number of the call that asks a quiet shim, or one set apart, whether it is there
        self.asleep: Asleep | None = None  # what it said last, if it has left until the next call
        self.silent_since = 0.0  # time.monotonic(); 0 for a shim that answers
        self.pid = 0  # of the shim, once known
        self.abilities: tuple[str, ...] = ()  # as the shim reported them
        self.code = ""  # what tells its version; "" if it did not
        self._on_event = on_event
        self._on_lost = on_lost
        self._on_voice = on_voice

    @classmethod
    def connect(
        cls,
        directory: Path,
        on_event: Callable[[Event], None],
        on_lost: Callable[[], None],
        on_voice: Callable[[ShimState | None], None] = lambda _state: None,
    ) -> ShimClient:
        """Connect to the running shim of a sandbox directory. Raises ShimGone if there is none."""
        try:
            fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ShimGone(f"connect to shim in `{directory}`: {error.strerror}") from error
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)  # a shim that takes no connections must not hold us
            sock.connect(f"/proc/self/fd/{fd}/shim.sock")  # works for any length of the directory's path
        except OSError as error:
            sock.close()
            raise ShimGone(f"connect to shim in `{directory}`: {error.strerror}") from error
        finally:
            os.close(fd)
        client = cls(sock, on_event, on_lost, on_voice)
        client.pid = peer_pid(sock)
        return client

    @property
    def resting(self) -> ShimState | None:
        """The state of a shim that sleeps, and that nothing was asked since."""
        return self.asleep.state if self.asleep is not None and not self._pending else None

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
        if self.silent_since:
            raise self._silence(call.call)
        answer = self._send(call, fds)
        self._watch()
        return answer

    def tell(self, call: Call[Answer], fds: Sequence[int] = ()) -> None:
        """Send a call whose answer nobody needs, also to a shim that is set apart: it takes it when it can."""
        if self.alive:
            self._send(call, fds)
            self._watch()

    def _send(self, call: Call[AnswerOf], fds: Sequence[int]) -> asyncio.Future[AnswerOf]:
        if not self.alive:
            raise ShimGone(f"{call.call}: the shim is gone")
        self._count += 1
        future: asyncio.Future[AnswerOf] = self._loop.create_future()
        self._pending[self._count] = future, call.answer, call.call
        self._link.send({"id": self._count, "call": call.call, **call.to_json()}, fds)
        return future

    # -- a shim that does not answer ----------------------------------------------------------------------------------

    def _watch(self) -> None:
        if self._timer is None and self.alive and not self.silent_since:
            self._timer = self._loop.call_later(QUIET_SECONDS, self._check, self._count)

    def _check(self, waited_for: int) -> None:
        """Look, some time after call `waited_for`, whether the shim has taken it; if not, ask it."""
        self._timer = None
        if self._taken >= waited_for:
            if any(number > self._taken for number in self._pending):  # later ones, which are not that old yet
                self._watch()
            return
        self._ask()
        if not self.alive:
            return
        self._timer = self._loop.call_later(ANSWER_SECONDS, self.set_apart)

    def _ask(self) -> None:
        self._send(GetState(), ())
        self._question = self._count

    def set_apart(self) -> None:
        """Treat the shim as silent until it answers again."""
        if self.silent_since or not self.alive:
            return
        self._stop_timer()
        self.silent_since = time.monotonic()
        for number, (future, _kind, name) in list(self._pending.items()):
            if number > self._taken or name not in _LASTING:
                del self._pending[number]
                if not future.done():
                    _fail(future, self._silence(name))
        self._ask()  # answered after all that it was sent
        self._on_voice(None)

    def _silence(self, call: str) -> ShimSilent:
        who = f"pid {self.pid}" if self.pid else "pid not known"
        return ShimSilent(
            f"{call}: the pod's shim ({who}) does not answer; it is asked again, and stopping the pod ends it"
        )

    def _took(self, number: int, state: ShimState | None) -> None:
        self._taken = max(self._taken, number)
        if number < self._question or not self._question:
            return
        self._question = 0
        self._stop_timer()
        if self._pending and max(self._pending) > number:
            self._watch()
        if self.silent_since and state is not None:
            self.silent_since = 0.0
            self._on_voice(state)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def start(self, call: Start, program: bytes) -> Started:
        """Start a container under a seccomp filter (b"" for none). Raises as `call` does."""
        if not program:
            return await self.call(call)
        if FILTER_BY_DESCRIPTOR not in self.abilities:
            return await self.call(replace(call, filter=base64.b64encode(program).decode()))
        with _in_file(program) as fd:
            answer = self.begin(replace(call, filter_bytes=len(program)), (fd,))
        return await answer

    def prepare(self, call: Prepare, program: bytes) -> None:
        """Let the shim work ahead for the start of a container under this filter (b"" for none)."""
        if not program:
            self.tell(call)
            return
        with _in_file(program) as fd:
            self.tell(replace(call, filter_bytes=len(program)), (fd,))

    @property
    def alive(self) -> bool:
        return self._link.open

    def _take(self, message: Message, fds: list[int]) -> None:
        """Take an event or an answer. Raises ProtocolError if it is neither."""
        if "event" in message:
            close_all(fds)
            if (event := _event_of(message)) is not None:
                self._hear(event)
            return
        number = message.get("id", 0)
        if not isinstance(number, int):
            close_all(fds)
            raise ProtocolError(f"answer to {number!r:.80}")
        future, kind, _call = self._pending.pop(number, (None, Answer, ""))
        if future is None or future.done() or "error" in message or kind is not Descriptors:
            close_all(fds)
        if future is None or future.done():
            self._took(number, None)
            return
        if "error" in message:
            self._took(number, None)
            _fail(future, _error_of(message["error"]))
            return
        try:
            answer = Descriptors(tuple(fds)) if kind is Descriptors else kind.from_json(message["ok"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self._took(number, None)
            _fail(future, RuntimeCoreError(f"the shim's answer is no {kind.__name__}: {error}"))
            return
        if isinstance(answer, (Made, ShimState)):
            self.abilities, self.pid, self.code = answer.abilities, answer.pid, answer.code
        self._took(number, answer if isinstance(answer, ShimState) else None)
        future.set_result(answer)

    def _hear(self, event: Event) -> None:
        if isinstance(event, Asleep):
            self.asleep = event
        elif isinstance(event, Awake):
            self.asleep, self.pid = None, event.pid
        else:
            self._on_event(event)

    def lose(self) -> None:
        """Take the connection for lost: the shim is dead."""
        if self.alive:
            self.close()
            self._on_lost()

    def close(self) -> None:
        """Close the connection; pending calls fail with ShimGone. The shim lives on."""
        if not self.alive:
            return
        self._stop_timer()
        self._link.close()
        pending, self._pending = self._pending, {}
        for future, _kind, _call in pending.values():
            if not future.done():
                _fail(future, ShimGone("the shim's connection ended"))


@contextlib.contextmanager
def _in_file(program: bytes) -> Iterator[int]:
    """Provide a descriptor of a file in memory that has the program."""
    fd = os.memfd_create("seccomp-filter")
    try:
        os.write(fd, program)
        yield fd
    finally:
        os.close(fd)


def _fail(answer: asyncio.Future[Any], error: RuntimeCoreError) -> None:
    """Set the error and mark it as retrieved, so that asyncio does not log it if nobody waits for the answer."""
    answer.set_exception(error)
    answer.exception()


def _event_of(message: Message) -> Event | None:
    try:
        return read_event(message)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProtocolError(f"not an event: {error}") from error


def _error_of(record: object) -> RuntimeCoreError:
    error = from_json(record) if isinstance(record, dict) else RuntimeCoreError(f"the shim's error is {record!r:.80}")
    if error.message.startswith(NO_CALL):
        return ShimTooOld("an older crisp started this pod and its shim cannot do this: recreate the pod")
    return error


def close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _close_unwanted(answer: asyncio.Future[Descriptors]) -> None:
    if not answer.cancelled() and answer.exception() is None:
        close_all(answer.result().fds)
