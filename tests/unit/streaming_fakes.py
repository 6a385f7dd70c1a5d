"""The streaming server without a network and without containers: a transport in memory, commands made of pipes."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Sequence
from typing import Any

from cri.streaming.connection import ClientConnection, Timeouts
from cri.streaming.requests import Command, Ports, Request
from cri.streaming.sessions import Sessions
from pods.errors import PodError
from pods.streams.places import ContainerPlace, PodPlace

GREETING = b"output"
CODE = 3
TOKEN = "T" * 22  # as long as a real one
CONTAINER = ContainerPlace("c", "/nowhere")
EXEC = Command(CONTAINER, ("sh",), tty=False, stdin=True, stdout=True, stderr=True)
PORTS = Ports(PodPlace("p", "/nowhere"), (80, 81))


class FakeSession:
    """A command that writes GREETING to each output, keeps what it is sent, and exits with CODE when its input ends.

    A piece of input goes into `written` when the loop comes round.
    """

    def __init__(self, *, stdin: bool, stdout: bool, stderr: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        self._reader = -1
        self.stdin = self.stdout = self.stderr = -1
        self.written = bytearray()
        self.sizes: list[tuple[int, int]] = []
        self.closed = False
        if stdin:
            self._reader, self.stdin = os.pipe2(os.O_NONBLOCK)
            self._loop.add_reader(self._reader, self._read)
        self.stdout = _full_pipe() if stdout else -1
        self.stderr = _full_pipe() if stderr else -1

    def _read(self) -> None:
        if data := os.read(self._reader, 1 << 20):
            self.written += data
        else:
            self.exit(CODE)

    def exit(self, code: int | None) -> None:
        if not self._ended.done():
            self._ended.set_result(code)
        if self._reader >= 0:
            self._loop.remove_reader(self._reader)
            os.close(self._reader)
            self._reader = -1

    async def wait(self) -> int | None:
        await asyncio.wait({self._ended})
        code: int | None = self._ended.result()
        return code

    async def resize(self, width: int, height: int) -> None:
        self.sizes.append((width, height))

    def close_stdin(self) -> None:
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1

    async def close(self) -> None:
        assert not self.closed
        self.closed = True
        self.exit(None)
        self.close_stdin()
        for descriptor in (self.stdout, self.stderr):
            if descriptor >= 0:
                os.close(descriptor)


def _full_pipe() -> int:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    os.write(writer, GREETING)
    os.close(writer)
    return reader


class FakeRuntime:
    """`sessions` are those that were opened, `ports` the other ends of connections to ports."""

    def __init__(self) -> None:
        self.sessions: list[FakeSession] = []
        self.ports: list[socket.socket] = []
        self.failure: PodError | None = None

    async def open_exec(
        self, place: ContainerPlace, argv: Sequence[str], *, tty: bool, stdin: bool, stdout: bool, stderr: bool
    ) -> FakeSession:
        return await self.open_attach(place, stdin=stdin, stdout=stdout, stderr=stderr)

    async def open_attach(self, place: ContainerPlace, *, stdin: bool, stdout: bool, stderr: bool) -> FakeSession:
        if self.failure:
            raise self.failure
        self.sessions.append(FakeSession(stdin=stdin, stdout=stdout, stderr=stderr))
        return self.sessions[-1]

    async def open_port(self, place: PodPlace, port: int) -> socket.socket:
        if self.failure:
            raise self.failure
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        theirs.send(GREETING)
        self.ports.append(theirs)
        return ours

    def close(self) -> None:
        for port in self.ports:
            port.close()


class MemoryTransport(asyncio.Transport):
    """Takes all that is written. `socket` stands in for the one that is watched and asked for options."""

    def __init__(self, wire: ClientConnection, watched: socket.socket) -> None:
        super().__init__({"socket": watched})
        self._wire = wire
        self._loop = asyncio.get_running_loop()
        self.written = bytearray()
        self.reading = True
        self.closed = False

    def write(self, data: Any) -> None:
        assert not self.closed
        self.written += data

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None: ...

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def abort(self) -> None:
        self.lose()

    def close(self) -> None:
        self.lose()

    def lose(self) -> None:
        """The connection ends."""
        if not self.closed:
            self.closed = True
            self._loop.call_soon(self._wire.connection_lost, None)


class MemoryClient:
    """One connection to a server; `request` is what the token in its first bytes will stand for."""

    def __init__(self, server: Sessions, watched: socket.socket, request: Request) -> None:
        self.token = secrets.token_urlsafe(16)
        server.expect(self.token, request)
        self.wire = server.connection()
        self.transport = MemoryTransport(self.wire, watched)
        self.wire.connection_made(self.transport)

    def send(self, data: bytes) -> None:
        """Bytes from the client, with the token where TOKEN is."""
        data = data.replace(TOKEN.encode(), self.token.encode())
        while data and not self.transport.closed:
            buffer = self.wire.get_buffer(-1)
            length = min(len(data), len(buffer))
            buffer[:length] = data[:length]
            self.wire.buffer_updated(length)
            data = data[length:]


def memory_server(runtime: Any, timeouts: Timeouts | None = None) -> Sessions:
    return Sessions(runtime, timeouts)
