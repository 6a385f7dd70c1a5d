"""Connects our standard streams to a command in a container: Kubernetes' remotecommand protocol over WebSocket.

Each message begins with the number of its stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
from collections.abc import AsyncIterator, Callable
from typing import Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.typing import Subprotocol

from cri.client import terminal
from cri.client.errors import StreamFailed

_STDIN, _STDOUT, _STDERR, _OUTCOME, _RESIZE, _END = b"\0", 1, 2, 3, b"\4", b"\xff"
_ENDS: Final = "v5.channel.k8s.io"  # version 5, which has a message for the end of a stream
_VERSIONS: Final = [Subprotocol(_ENDS), Subprotocol("v4.channel.k8s.io")]
_CHUNK: Final = 64 << 10
_DEADLY: Final = (signal.SIGTERM, signal.SIGHUP)

Keys = Callable[[bytes], bytes | None]  # converts typed input to what is sent; None to leave


def open_socket(url: str, versions: list[Subprotocol]) -> connect:
    """Return a connection (to be awaited) to a URL from the daemon."""
    address = url.replace("http", "ws", 1)
    return connect(address, subprotocols=versions, compression=None, max_size=None, ping_interval=None, proxy=None)


def attend(url: str, *, stdin: bool, tty: bool, keys: Keys = lambda typed: typed) -> int:
    """Stay until the command at the URL ends; return its exit code, 0 after leaving by `keys`. Raises StreamFailed."""
    with terminal.raw() if stdin and tty else contextlib.nullcontext():
        return asyncio.run(_Attendance(stdin, tty, keys).run(url))


class _Attendance:
    def __init__(self, stdin: bool, tty: bool, keys: Keys) -> None:
        self._takes_input = stdin
        self._tty = tty
        self._keys = keys

    async def run(self, url: str) -> int:
        try:
            async with open_socket(url, _VERSIONS) as socket:
                return await self._until_killed(socket)
        except (OSError, InvalidHandshake) as error:
            raise StreamFailed(f"connect to {url}: {error}") from error

    async def _until_killed(self, socket: ClientConnection) -> int:
        """Return the exit code, or 128 plus the signal that ended us; the terminal is restored first."""
        loop = asyncio.get_running_loop()
        killed: asyncio.Future[int | None] = loop.create_future()

        def kill(number: int) -> None:
            if not killed.done():
                killed.set_result(128 + number)

        for number in _DEADLY:
            loop.add_signal_handler(number, kill, number)
        parts = [self._receive(socket)]
        parts += [self._send_input(socket)] if self._takes_input else []
        parts += [self._send_sizes(socket)] if self._tty else []
        tasks = [loop.create_task(part) for part in parts]
        waiting: set[asyncio.Future[int | None]] = {killed, *tasks}
        try:
            while True:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for future in done:
                    if (status := future.result()) is not None:
                        return status
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _receive(self, socket: ClientConnection) -> int | None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                message = await socket.recv(decode=False)
                if len(message) < 2:
                    continue
                if message[0] in (_STDOUT, _STDERR):
                    _write(message[0], memoryview(message)[1:])
                elif message[0] == _OUTCOME:
                    return _exit_code(message[1:])
        raise StreamFailed("the connection to the daemon ended before the command's exit status came")

    async def _send_input(self, socket: ClientConnection) -> int | None:
        with contextlib.suppress(ConnectionClosed):
            async for data in _input():
                typed = self._keys(data)
                if typed is None:
                    return 0
                if typed:
                    await socket.send(_STDIN + typed)
            if socket.subprotocol == _ENDS:
                await socket.send(_END + _STDIN)
        return None

    async def _send_sizes(self, socket: ClientConnection) -> int | None:
        changed = asyncio.Event()
        changed.set()
        asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, changed.set)
        with contextlib.suppress(ConnectionClosed):
            while await changed.wait():
                changed.clear()
                if (size := terminal.size()) is not None:
                    await socket.send(_RESIZE + json.dumps({"Width": size[0], "Height": size[1]}).encode())
        return None


async def _input() -> AsyncIterator[bytes]:
    """Yield standard input. It stays in blocking mode, because other processes may share it."""
    loop = asyncio.get_running_loop()
    waits = True
    while True:
        try:
            if waits:
                await _readable(loop)
        except PermissionError:  # a regular file, which is always readable
            waits = False
        try:
            data = os.read(0, _CHUNK)
        except BlockingIOError:  # another process made it non-blocking and read first
            continue
        if not data:
            return
        yield data


async def _readable(loop: asyncio.AbstractEventLoop) -> None:
    ready: asyncio.Future[None] = loop.create_future()

    def on_readable() -> None:
        loop.remove_reader(0)
        ready.set_result(None)

    loop.add_reader(0, on_readable)
    try:
        await ready
    finally:
        loop.remove_reader(0)


def _write(fd: int, data: memoryview) -> None:
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:  # another process made it non-blocking
            select.select((), (fd,), ())


def _exit_code(status: bytes) -> int:
    """Return the exit code in a metav1.Status. Raises StreamFailed if it has none."""
    outcome = json.loads(status)
    if outcome.get("status") == "Success":
        return 0
    for cause in outcome.get("details", {}).get("causes", ()):
        if cause.get("reason") == "ExitCode":
            return int(cause["message"])
    raise StreamFailed(outcome.get("message") or "the daemon gave no reason")
