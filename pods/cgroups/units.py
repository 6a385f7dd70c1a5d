"""Starts, changes and stops systemd units over the system's message bus, or systemd's own socket if there is no bus.

It uses jeepney: 50 KB of pure Python, whose protocol part does no I/O. A container costs one call, so a compiled
library would gain nothing; and crisp-oci, which has no event loop, uses the same messages.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from jeepney import HeaderFields, Message, message_bus
from jeepney.auth import BEGIN, Authenticator
from jeepney.io.asyncio import DBusConnection
from jeepney.wrappers import unwrap_msg

from pods.errors import PodError
from runtime.cgroups import systemd_bus
from runtime.cgroups.systemd import Property
from runtime.cgroups.systemd_bus import failing_as


class SystemdUnits:
    """The units of this machine's systemd. Every call raises PodError if systemd or the bus refuses or does not answer.

    It connects to the bus at the first call, and again after a lost connection.
    """

    def __init__(self) -> None:
        self._connecting = asyncio.Lock()
        self._bus: _Bus | None = None

    async def open(self) -> None:
        """Connect to the bus now."""
        with failing_as(PodError, f"connect to systemd by way of {systemd_bus.system_socket()}"):
            async with asyncio.timeout(systemd_bus.SECONDS):
                await self._connected()

    async def start(self, name: str, properties: Sequence[Property]) -> None:
        """Start a transient unit and wait until its processes are in its cgroup."""
        await self._job(f"start unit {name}", name, systemd_bus.start_transient_unit(name, properties))

    async def set_properties(self, name: str, properties: Sequence[Property]) -> None:
        """Change a unit's properties until it ends. A missing unit is no error."""
        with failing_as(PodError, f"set properties of unit {name}"):
            async with asyncio.timeout(systemd_bus.SECONDS):
                bus = await self._connected()
                await bus.call(systemd_bus.set_unit_properties(name, properties))

    async def stop(self, name: str) -> None:
        """Stop a unit and wait until it has stopped. A missing unit is no error."""
        await self._job(f"stop unit {name}", name, systemd_bus.stop_unit(name))

    async def close(self) -> None:
        """Close the connection."""
        bus, self._bus = self._bus, None
        if bus is not None:
            await bus.close()

    async def _job(self, what: str, unit: str, message: Message) -> None:
        with failing_as(PodError, what):
            async with asyncio.timeout(systemd_bus.SECONDS):
                bus = await self._connected()
                result = await bus.job(unit, message)
            if result != "done":
                raise PodError(f"{what}: its job ended with {result!r}")

    async def _connected(self) -> _Bus:
        async with self._connecting:
            if self._bus is None or self._bus.gone:
                await self.close()
                path = systemd_bus.system_socket()
                self._bus = _Bus(await _connect(path))
                if systemd_bus.is_bus(path):
                    await self._bus.call(message_bus.Hello())
                    await self._bus.call(message_bus.AddMatch(systemd_bus.job_removed()))
            return self._bus


async def _connect(path: str) -> DBusConnection:
    """Connect, and say who we are. Raises OSError, EOFError, AuthenticationError."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        authenticator = Authenticator()
        for line in authenticator:
            writer.write(line)
            if not (answer := await reader.readline()):
                raise EOFError
            authenticator.feed(answer)
        writer.write(BEGIN)
        await writer.drain()
    except BaseException:
        writer.close()
        raise
    return DBusConnection(reader, writer)


class _Bus:
    """One connection. Matches replies by serial number, and the ends of jobs by unit."""

    def __init__(self, connection: DBusConnection) -> None:
        self._connection = connection
        self._replies: dict[int, asyncio.Future[Message]] = {}
        # By unit: job and result; None when the connection is lost.
        self._ends: dict[str, asyncio.Queue[tuple[str, str] | None]] = {}
        self._receiver = asyncio.create_task(self._receive())

    @property
    def gone(self) -> bool:
        return self._receiver.done()

    async def call(self, message: Message) -> tuple[Any, ...]:
        """Send a message and return the reply's body. Raises DBusErrorResponse, EOFError, OSError."""
        if self.gone:
            raise EOFError
        serial = next(self._connection.outgoing_serial)
        self._replies[serial] = asyncio.get_running_loop().create_future()
        try:
            await self._connection.send(message, serial=serial)
            return tuple(unwrap_msg(await self._replies[serial]))
        finally:
            del self._replies[serial]

    async def job(self, unit: str, message: Message) -> str:
        """Send a message that starts a job, and return the job's result ("done"). One job per unit at a time."""
        ends = self._ends[unit] = asyncio.Queue()  # before the call: the job may end before its reply is read
        try:
            (job,) = await self.call(message)
            while (end := await ends.get()) is not None:
                if end[0] == job:
                    return end[1]
            raise EOFError
        finally:
            del self._ends[unit]

    async def close(self) -> None:
        self._receiver.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._receiver
        with contextlib.suppress(OSError):
            await self._connection.close()

    async def _receive(self) -> None:
        ended = systemd_bus.job_removed()
        try:
            while True:
                message = await self._connection.receive()
                reply = self._replies.get(message.header.fields.get(HeaderFields.reply_serial, 0))
                if reply is not None and not reply.done():
                    reply.set_result(message)
                elif ended.matches(message):
                    _number, job, unit, result = message.body
                    if unit in self._ends:
                        self._ends[unit].put_nowait((job, result))
        except (EOFError, OSError):
            return
        finally:
            for reply in self._replies.values():
                if not reply.done():
                    reply.set_exception(EOFError())
            for ends in self._ends.values():
                ends.put_nowait(None)
