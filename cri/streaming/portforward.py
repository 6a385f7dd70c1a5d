"""Port-forward: a pair of streams for each connection to a port in the pod, one for data and one for an error."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from cri.streaming.link import Link
from cri.streaming.pumps import Sink, Source
from pods.errors import PodError

if TYPE_CHECKING:
    from cri.streaming.runtime import Runtime
    from pods.streams.places import PodPlace

_MAX_PORT: Final = 0xFFFF
_log = logging.getLogger("crisp.streaming")


class Pair:
    """The two streams of a connection."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.data: int | None = None
        self.error: int | None = None
        self.sink: Sink | None = None
        self.source: Source | None = None
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.ended = asyncio.Event()  # the client sends no more, or the port accepts no more
        self.drained = asyncio.Event()  # the port sends no more
        self.failure: OSError | None = None


class PortForward:
    """The listener of a link for port-forward.

    Over SPDY, pairs come and go as the client opens streams; the streams of a pair have the same `requestID`. Over
    WebSocket all pairs exist from the start, and the connection ends with the last one.
    """

    def __init__(
        self,
        runtime: Runtime,
        link: Link,
        place: PodPlace,
        patience: float,
        follow: Callable[[asyncio.Task[None]], None],
    ) -> None:
        """`follow` is called with each task, which may outlive the connection for a moment."""
        self._runtime = runtime
        self._link = link
        self._place = place
        self._patience = patience  # seconds to wait for the second stream of a pair
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, Pair] = {}
        self._pairs: dict[int, Pair] = {}  # by stream; each pair is here twice
        self._fixed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._follow = follow

    def forward(self, ports: Sequence[int]) -> None:
        """Start the pairs of a WebSocket: streams 2n and 2n+1 belong to port n."""
        self._fixed = True
        for number, port in enumerate(ports):
            pair = Pair(port)
            self._add(pair, 2 * number, data=True)
            self._add(pair, 2 * number + 1, data=False)
            self._start(pair)

    # -- the link's side ----------------------------------------------------------------------------------------------

    def opened(self, stream: int, headers: Mapping[str, str]) -> None:
        kind, port = headers.get("streamtype"), _port(headers.get("port", ""))
        if kind not in ("data", "error") or not port:
            self._link.reset(stream)
            return
        data = kind == "data"
        # Older clients without requestID open the error stream first, and the data stream right after it.
        request = headers.get("requestid") or f"stream {stream - 2 if data else stream}"
        pair = self._waiting.get(request)
        if pair is None:
            pair = self._waiting[request] = Pair(port)
            pair.timer = self._loop.call_later(self._patience, self._expire, request)
        elif (pair.data if data else pair.error) is not None:
            self._link.reset(stream)
            return
        self._add(pair, stream, data=data)
        self._link.accept(stream)
        if pair.data is not None and pair.error is not None:
            del self._waiting[request]
            self._start(pair)

    def received(self, stream: int, data: memoryview) -> None:
        pair = self._pairs.get(stream)
        if pair is not None and pair.sink is not None and stream == pair.data:
            pair.sink.write(data)
        else:
            self._link.consumed(stream, len(data))

    def ended(self, stream: int) -> None:
        pair = self._pairs.get(stream)
        if pair is not None and pair.sink is not None and stream == pair.data:
            pair.sink.end()

    def was_reset(self, stream: int) -> None:
        pair = self._pairs.get(stream)
        if pair is None or stream != pair.data:
            return
        if pair.task is not None:
            pair.task.cancel()
        else:
            self._forget(pair)

    def writable(self) -> None:
        for pair in tuple(self._pairs.values()):
            if pair.source is not None:
                pair.source.resume()

    def lost(self) -> None:
        for pair in tuple(self._waiting.values()):
            self._forget(pair)
        for task in self._tasks:
            task.cancel()

    def stop(self, reason: str) -> None:
        for pair in set(self._pairs.values()):
            self._report(pair, reason)
        self._link.goodbye()
        self._link.wire.end()

    # -- pairs --------------------------------------------------------------------------------------------------------

    def _add(self, pair: Pair, stream: int, *, data: bool) -> None:
        self._pairs[stream] = pair
        if data:
            pair.data, pair.sink = stream, Sink(self._link, stream)
        else:
            pair.error = stream

    def _start(self, pair: Pair) -> None:
        if pair.timer is not None:
            pair.timer.cancel()
        pair.task = self._loop.create_task(self._run(pair))
        self._tasks.add(pair.task)
        self._follow(pair.task)
        pair.task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("streaming failed by a bug in crisp", exc_info=error, extra=self._link.wire.fields)
        if self._fixed and not self._tasks:
            self._link.goodbye()
            self._link.wire.end()

    def _expire(self, request: str) -> None:
        pair = self._waiting[request]
        self._report(pair, "timed out waiting for the other stream of the pair")
        self._forget(pair)

    async def _run(self, pair: Pair) -> None:
        try:
            connection = await self._runtime.open_port(self._place, pair.port)
            try:
                await self._carry(pair, connection)
            finally:
                if pair.source is not None:
                    pair.source.close()
                if pair.sink is not None:
                    pair.sink.close()
                connection.close()
            if pair.failure is not None:
                self._report(pair, f"forward port {pair.port} of pod {self._place.sandbox}: {pair.failure.strerror}")
        except PodError as error:
            self._report(pair, str(error))
        finally:
            self._forget(pair)

    async def _carry(self, pair: Pair, connection: socket.socket) -> None:
        """Copy both directions until both have ended; either may end first."""
        assert pair.data is not None
        assert pair.sink is not None

        def finish() -> None:
            with contextlib.suppress(OSError):  # the port has closed already; the source notices
                connection.shutdown(socket.SHUT_WR)
            pair.ended.set()

        def finished(error: OSError | None) -> None:
            pair.failure = error
            if error is not None:
                pair.ended.set()
            elif pair.data is not None:
                self._link.end(pair.data)
            pair.drained.set()

        pair.sink.open(connection.fileno(), finish)
        pair.source = Source(self._link, pair.data, connection.fileno(), finished)
        await pair.drained.wait()
        if not self._fixed:  # WebSocket has no message for the end of one direction
            await pair.ended.wait()

    def _report(self, pair: Pair, message: str) -> None:
        _log.info("could not forward port", extra=self._link.wire.fields | {"error": message})
        if pair.error is not None:
            self._link.send(pair.error, message.encode())
        if pair.data is not None:
            self._link.reset(pair.data)

    def _forget(self, pair: Pair) -> None:
        """End the streams of a pair that have not ended, and forget it."""
        if pair.timer is not None:
            pair.timer.cancel()
        if pair.sink is not None:
            pair.sink.close()
        for request in [request for request, waiting in self._waiting.items() if waiting is pair]:
            del self._waiting[request]
        for stream in (pair.data, pair.error):
            if stream is not None:
                self._link.end(stream)
                self._pairs.pop(stream, None)


def _port(text: str) -> int:
    """Parse a port's number; 0 if it is none. int() raises for thousands of digits."""
    digits = text.lstrip("0")
    return int(digits) if text.isascii() and digits.isdigit() and len(digits) < 6 and int(digits) <= _MAX_PORT else 0
