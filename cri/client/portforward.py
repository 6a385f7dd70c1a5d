"""`crisp port-forward`: forwards local ports to ports in a pod."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from dataclasses import dataclass
from typing import Final

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.typing import Subprotocol

from cri.client.connection import Connection
from cri.client.errors import ClientError, UsageError
from cri.client.names import pod_candidates, pods, resolve
from cri.client.remote import open_socket
from cri.v1 import api_pb2

_PROTOCOL: Final = [Subprotocol("v4.channel.k8s.io")]
_DATA, _FAILURE = 0, 1
_CHUNK: Final = 64 << 10
_PATIENCE = 10.0  # seconds of silence from the pod after our side ended, which the protocol cannot tell it


@dataclass(frozen=True, slots=True)
class Forward:
    """A local port, 0 for any free one, and a port in the pod."""

    local: int
    remote: int


def parse_forward(text: str) -> Forward:
    """Parse `[LOCAL:]PORT`. Without LOCAL it is the same port, with an empty one any port. Raises UsageError."""
    local, colon, remote = text.rpartition(":")
    numbers = [int(part) if part.isascii() and part.isdigit() else -1 for part in (local or "0", remote)]
    if not (0 <= numbers[0] <= 0xFFFF and 0 < numbers[1] <= 0xFFFF):
        raise UsageError(f"port-forward {text}: expected PORT, LOCAL:PORT or :PORT with port numbers")
    return Forward(numbers[0] if colon else numbers[1], numbers[1])


def run(arguments: argparse.Namespace, connection: Connection) -> int:
    """Forward until interrupted."""
    forwards = [parse_forward(text) for text in arguments.ports]
    pod = resolve(arguments.pod, pod_candidates(pods(connection)), "pod")
    return asyncio.run(_serve(connection, pod.id, arguments.address, forwards))


async def _serve(connection: Connection, pod_id: str, address: str, forwards: list[Forward]) -> int:
    async with contextlib.AsyncExitStack() as servers:
        for forward in forwards:
            client = _Client(connection, pod_id, forward.remote)
            try:
                server = await asyncio.start_server(client.serve, address, forward.local)
            except OSError as error:
                raise UsageError(f"listen on {address}:{forward.local}: {error.strerror}") from error
            await servers.enter_async_context(server)
            port = server.sockets[0].getsockname()[1]
            print(f"Forwarding from {address}:{port} -> {forward.remote}", flush=True)
        await asyncio.get_running_loop().create_future()
    return 0


class _Client:
    def __init__(self, connection: Connection, pod_id: str, port: int) -> None:
        self._connection = connection
        self._pod_id = pod_id
        self._port = port

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one local connection. Each has a URL and a WebSocket of its own."""
        try:
            url = await asyncio.to_thread(self._url)
            async with open_socket(url, _PROTOCOL) as socket:
                await _Exchange(socket, reader, writer, self._port).run()
        except (ClientError, OSError, InvalidHandshake) as error:
            print(f"crisp: could not forward a connection to port {self._port}: {error}", file=sys.stderr)
        finally:
            writer.close()

    def _url(self) -> str:
        request = api_pb2.PortForwardRequest(pod_sandbox_id=self._pod_id, port=[self._port])
        url: str = self._connection.change(self._connection.runtime.PortForward, request).url
        return url


class _Exchange:
    """Copies between a local connection and a WebSocket until the pod's side ends."""

    def __init__(
        self, socket: ClientConnection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int
    ) -> None:
        self._socket = socket
        self._reader = reader
        self._writer = writer
        self._port = port
        self._heard = True

    async def run(self) -> None:
        sending = asyncio.create_task(self._send())
        receiving = asyncio.create_task(self._receive())
        try:
            await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED)
            while self._heard and not receiving.done():
                self._heard = False
                await asyncio.wait({receiving}, timeout=_PATIENCE)
        finally:
            for task in (sending, receiving):
                task.cancel()
            await asyncio.gather(sending, receiving, return_exceptions=True)

    async def _send(self) -> None:
        with contextlib.suppress(ConnectionClosed, ConnectionError):
            while data := await self._reader.read(_CHUNK):
                await self._socket.send(b"\0" + data)

    async def _receive(self) -> None:
        greeted: set[int] = set()  # the first message of each stream only repeats the port
        with contextlib.suppress(ConnectionClosed, ConnectionError):
            while True:
                message = await self._socket.recv(decode=False)
                self._heard = True
                if message[0] not in greeted:
                    greeted.add(message[0])
                elif message[0] == _DATA:
                    self._writer.write(message[1:])
                    await self._writer.drain()
                elif message[0] == _FAILURE:
                    text = message[1:].decode(errors="replace")
                    print(f"crisp: could not forward a connection to port {self._port}: {text}", file=sys.stderr)
