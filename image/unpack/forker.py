"""The warm process that forks workers, and a single worker: its input, its output, its end."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import ExitStack, suppress
from io import FileIO

from image.unpack import worker_filter
from linux.search_path import search_path

_PIPE_SIZE = 1 << 20  # bytes
_ANSWER_PIECE = 64 << 10  # bytes
_ANSWER_LIMIT = 1 << 20  # bytes
_LIBRARIES = ("isal", "zstandard")
_START = "import sys; sys.path += sys.argv[2:]; from image.unpack.worker import serve; serve(int(sys.argv[1]))"
# Nothing of the daemon's, which may have a proxy's password. Each of a worker's threads would have an arena of its own.
_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}


class Forker:
    """The warm process (image.unpack.worker's `serve`) and the socket to it."""

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        self._process = process
        self._control = control

    @classmethod
    async def start(cls, inherited: Sequence[int]) -> Forker:
        filters = await asyncio.to_thread(worker_filter.programs)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                for filter_ in filters:
                    ours.send(b"filter" + filter_)
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-I", "-S", "-c", _START, str(theirs.fileno()), *search_path(_LIBRARIES)),
                    stdin=asyncio.subprocess.DEVNULL,
                    env=_ENVIRONMENT,
                    pass_fds=(theirs.fileno(), *inherited),
                )
            except BaseException:
                ours.close()
                raise
        return cls(process, ours)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.returncode is not None

    def fork(self, descriptors: Sequence[int]) -> None:
        """Request a worker with these descriptors: the request, the blob, the answer, the pipe that ends it, the socket
        at which we get its pidfd, and what the request has more."""
        with suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self._control, [b"fork"], descriptors)

    def let_go(self) -> None:
        """Close the socket, at which the process ends; the event loop's child watcher collects it."""
        self._control.close()

    async def end(self) -> None:
        self._control.close()
        await self._process.wait()


class Job:
    """One worker. It is killed when its job is over, so none that was taken over by an image goes on.

    If the daemon dies, the worker ends with its parent, or when its end of `life` is closed.
    """

    def __init__(self, forker: Forker, request: bytes, more: Sequence[int]) -> None:
        self._forker = forker
        self._request = request
        self._more = more  # additional descriptors for this request

    async def run(self, source: AsyncIterator[bytes] | int | None) -> bytes:
        """Run the worker and return its answer, b"" if none started. It has ended on return and on cancellation."""
        with ExitStack() as ends:
            answer, answer_end = _pipe(ends)
            life_end, life = _pipe(ends)
            blob_end, sink = _pipe(ends)
            birth, birth_end = (ends.enter_context(one) for one in socket.socketpair(type=socket.SOCK_SEQPACKET))
            request = ends.enter_context(FileIO(os.memfd_create("request"), "r+"))
            request.write(self._request)
            request.seek(0)
            blob = source if isinstance(source, int) else blob_end.fileno()
            own = (request.fileno(), blob, answer_end.fileno(), life_end.fileno(), birth_end.fileno())
            self._forker.fork([*own, *self._more])
            for end in (answer_end, life_end, blob_end, birth_end):
                end.close()
            try:
                os.set_blocking(answer.fileno(), False)
                if not await _read(answer.fileno(), 1):
                    return b""
                if source is not None and not isinstance(source, int):
                    await _feed(sink, source)
                sink.close()
                return b"\n" + await _read_answer(answer.fileno())
            finally:
                life.close()
                await _undisturbed(_gone(birth, answer.fileno()))


def _pipe(ends: ExitStack) -> tuple[FileIO, FileIO]:
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    return ends.enter_context(FileIO(read_end, "r")), ends.enter_context(FileIO(write_end, "w"))


async def _read_answer(descriptor: int) -> bytes:
    """Read until the other end is closed, or the data is too long for an answer."""
    said = bytearray()
    while len(said) < _ANSWER_LIMIT and (piece := await _read(descriptor, _ANSWER_PIECE)):
        said += piece
    return bytes(said)


async def _drain(descriptor: int) -> None:
    while await _read(descriptor, _ANSWER_PIECE):
        pass


async def _read(descriptor: int, size: int) -> bytes:
    while True:
        try:
            return os.read(descriptor, size)
        except BlockingIOError:
            await _ready(descriptor, write=False)


async def _gone(birth: socket.socket, answer: int) -> None:
    """Kill the worker, and wait until it has ended."""
    await _ready(birth.fileno(), write=False)
    _, descriptors, _, _ = socket.recv_fds(birth, 1, 1, socket.MSG_CMSG_CLOEXEC)
    if not descriptors:  # there is none; or its parent was killed, and it with it
        await _drain(answer)
        return
    (worker,) = descriptors
    try:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(worker, signal.SIGKILL)
        await _ready(worker, write=False)
    finally:
        os.close(worker)


async def _undisturbed(doing: Coroutine[None, None, None]) -> None:
    """Wait for the end of `doing`, even if cancelled."""
    waiting = asyncio.ensure_future(doing)
    while not waiting.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([waiting])


async def _feed(sink: FileIO, source: AsyncIterator[bytes]) -> None:
    """Write `source` into the pipe. A worker that has failed closes the pipe; its answer has the reason."""
    descriptor = sink.fileno()
    os.set_blocking(descriptor, False)
    with suppress(OSError):  # an unprivileged daemon may have reached its limit for pipes
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    with sink, suppress(BrokenPipeError):
        async for piece in source:
            await _write(descriptor, piece)


async def _write(sink: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        try:
            view = view[os.write(sink, view) :]
        except BlockingIOError:
            await _ready(sink, write=True)


async def _ready(descriptor: int, *, write: bool) -> None:
    """Wait until `descriptor` is writable or readable."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    (loop.add_writer if write else loop.add_reader)(descriptor, _resolve, ready)
    try:
        await ready
    finally:
        (loop.remove_writer if write else loop.remove_reader)(descriptor)


def _resolve(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
