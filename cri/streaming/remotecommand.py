"""Exec and attach: connects a command with five streams (stdin, stdout, stderr, the outcome, the terminal's size)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, Final

from cri.streaming.link import Link
from cri.streaming.pumps import Sink, Source
from cri.streaming.requests import Command
from cri.streaming.resize import Sizes
from cri.streaming.status import Outcome
from pods.errors import PodError

if TYPE_CHECKING:
    from cri.streaming.runtime import Runtime, Session

_log = logging.getLogger("crisp.streaming")


class Channel(IntEnum):
    """Stream numbers over WebSocket; over SPDY the header `streamType` tells them apart."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2
    ERROR = 3
    RESIZE = 4


_TERMINAL_SECONDS: Final = 0.05  # for a terminal's last output to pass through the kernel
_OUTPUTS: Final = (Channel.STDOUT, Channel.STDERR)
_TYPES: Final = {channel.name.lower(): channel for channel in Channel}


def greeting(command: Command) -> list[tuple[int, bytes]]:
    """Return the empty message that WebSocket clients wait for before they consider themselves connected."""
    if command.stdout:
        return [(Channel.STDOUT, b"")]
    return [(Channel.STDERR if command.stderr else Channel.ERROR, b"")]


class RemoteCommand:
    """The listener of a link for a command. `streams` are those that exist from the start (WebSocket)."""

    def __init__(
        self,
        runtime: Runtime,
        link: Link,
        command: Command,
        version: int,
        streams: Mapping[Channel, int],
        patience: float,
    ) -> None:
        self._runtime = runtime
        self._link = link
        self._command = command
        self._version = version
        self._patience = patience  # seconds to wait for the streams to be opened
        self._streams = dict(streams)
        self._complete = asyncio.Event()
        self._sources: dict[Channel, Source] = {}
        self._drained = asyncio.Event()
        self._writable = asyncio.Event()
        self._stdin: Sink | None = None
        self._sizes = Sizes()
        self._size: tuple[int, int] | None = None
        self._session: Session | None = None
        self._stopped = ""  # why the session ends before its command
        self._resizing: asyncio.Task[None] | None = None
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._check_complete()

    # -- the link's side ----------------------------------------------------------------------------------------------

    def opened(self, stream: int, headers: Mapping[str, str]) -> None:
        channel = _TYPES.get(headers.get("streamtype", ""))
        if channel is None or channel in self._streams:
            self._link.reset(stream)
            return
        self._streams[channel] = stream
        self._link.accept(stream)
        self._check_complete()

    def received(self, stream: int, data: memoryview) -> None:
        if stream == self._streams.get(Channel.STDIN) and self._command.stdin:
            self._sink().write(data)
            return
        self._link.consumed(stream, len(data))
        if stream == self._streams.get(Channel.RESIZE) and (size := self._sizes.feed(data)):
            self._size = size
            self._resize()

    def ended(self, stream: int) -> None:
        if stream == self._streams.get(Channel.STDIN) and self._command.stdin:
            self._sink().end()

    def was_reset(self, stream: int) -> None:
        self.ended(stream)

    def writable(self) -> None:
        self._writable.set()
        for source in tuple(self._sources.values()):
            source.resume()

    def lost(self) -> None:
        self._task.cancel()

    def stop(self, reason: str) -> None:
        self._stopped = reason
        self._task.cancel()

    @property
    def task(self) -> asyncio.Task[None]:
        return self._task

    # -- the command --------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            outcome = await self._outcome()
        except asyncio.CancelledError:
            if not self._stopped:
                raise
            self._task.uncancel()
            outcome = Outcome(None, self._stopped)
        await self._finish(outcome)

    async def _outcome(self) -> Outcome:
        try:
            async with asyncio.timeout(self._patience):
                await self._complete.wait()
        except TimeoutError:
            why = "the client did not open its streams in time"
            _log.info("streaming connection ended", extra=self._link.wire.fields | {"error": why})
            return Outcome(None, "timed out waiting for the client to open its streams")
        try:
            return await self._carried_out()
        except PodError as error:
            return Outcome(None, str(error))
        except Exception as error:
            _log.error("streaming failed by a bug in crisp", exc_info=error, extra=self._link.wire.fields)
            return Outcome(None, f"{type(error).__name__}: {error}")

    async def _carried_out(self) -> Outcome:
        session = self._session = await self._open()
        try:
            self._connect(session)
            code = await session.wait()
            if self._command.argv is not None:
                await self._drain_to_the_end()
            await self._drained.wait()
        finally:
            self._disconnect()
            await session.close()
        if self._command.argv is None:
            return Outcome(0)  # kubectl expects success, however the container ended
        return Outcome(code, "" if code is not None else "the command's exit code is unknown")

    async def _drain_to_the_end(self) -> None:
        """End the output of a command with it, even if a child keeps it open. A container's output ends by itself."""
        if self._command.tty:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TERMINAL_SECONDS):
                    await self._drained.wait()
        for source in tuple(self._sources.values()):
            source.until_dry()

    async def _open(self) -> Session:
        command = self._command
        if command.argv is None:
            return await self._runtime.open_attach(
                command.place, stdin=command.stdin, stdout=command.stdout, stderr=command.stderr
            )
        return await self._runtime.open_exec(
            command.place,
            command.argv,
            tty=command.tty,
            stdin=command.stdin,
            stdout=command.stdout,
            stderr=command.stderr,
        )

    def _connect(self, session: Session) -> None:
        for channel, descriptor in zip(_OUTPUTS, (session.stdout, session.stderr), strict=True):
            if descriptor >= 0:
                stream = self._streams.get(channel, -1)
                self._sources[channel] = Source(self._link, stream, descriptor, partial(self._drain, channel))
        if self._command.stdin:
            self._sink().open(session.stdin, session.close_stdin)
        self._resize()
        self._check_drained()

    def _drain(self, channel: Channel, _: OSError | None) -> None:
        """Handle the end of an output, or a read error, which is treated as the end."""
        del self._sources[channel]
        self._link.end(self._streams.get(channel, -1))
        self._check_drained()

    def _check_drained(self) -> None:
        if not self._sources:
            self._drained.set()

    def _check_complete(self) -> None:
        command = self._command
        wanted = {Channel.ERROR: True, Channel.STDIN: command.stdin, Channel.STDOUT: command.stdout}
        wanted[Channel.STDERR] = command.stderr
        if all(channel in self._streams for channel, needed in wanted.items() if needed):
            self._complete.set()

    def _sink(self) -> Sink:
        if self._stdin is None:
            self._stdin = Sink(self._link, self._streams[Channel.STDIN])
        return self._stdin

    def _disconnect(self) -> None:
        for source in self._sources.values():
            source.close()
        self._sources.clear()
        if self._stdin is not None:
            self._stdin.close()
        if self._resizing is not None:
            self._resizing.cancel()

    def _resize(self) -> None:
        """Set the terminal's size to the latest one; one call at a time."""
        if self._size and self._session and (self._resizing is None or self._resizing.done()):
            self._resizing = asyncio.get_running_loop().create_task(self._resize_to_newest(self._session))

    async def _resize_to_newest(self, session: Session) -> None:
        while self._size:
            (width, height), self._size = self._size, None
            try:
                await session.resize(width, height)
            except PodError as error:
                _log.debug("could not resize terminal", extra=self._link.wire.fields | {"error": error})

    async def _finish(self, outcome: Outcome) -> None:
        """Send the outcome and end all streams."""
        error = self._streams.get(Channel.ERROR, -1)
        if outcome.failure:
            _log.info("streaming command failed", extra=self._link.wire.fields | {"error": outcome.failure})
        if data := outcome.encoded(self._version):
            while not self._link.room(error):
                self._writable.clear()
                await self._writable.wait()
            self._link.send(error, data)
        for stream in self._streams.values():
            self._link.end(stream)
        self._link.goodbye()
        self._link.wire.end()
