"""Calls systemd over D-Bus to start, change and stop units."""

from __future__ import annotations

import socket
import time
from collections import deque
from typing import Any, Final, Self

from jeepney import HeaderFields, Message, Parser, message_bus
from jeepney.auth import BEGIN, Authenticator
from jeepney.bus import get_bus
from jeepney.wrappers import unwrap_msg

from runtime.cgroups import Hierarchies, systemd_bus
from runtime.cgroups.systemd import Property, Scope, limit_properties, scope_properties
from runtime.cgroups.systemd_bus import failing_as
from runtime.errors import RuntimeCoreError
from runtime.light import contextlib
from runtime.spec.values import Resources

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

SYSTEM: Final = "SYSTEM"
SESSION: Final = "SESSION"


class Units:
    """Units of the machine's systemd or of the user's. All calls raise RuntimeCoreError."""

    def __init__(self, bus: str) -> None:
        try:
            path: str = systemd_bus.system_socket() if bus == SYSTEM else get_bus(bus)
        except (KeyError, RuntimeError) as error:
            why = f"{error.args[0]} is not set" if isinstance(error, KeyError) else error
            raise RuntimeCoreError(f"connect to systemd on the {bus.lower()} bus: {why}") from error
        with failing_as(RuntimeCoreError, f"connect to systemd at {path}"):
            self._connection = _Connection(path)
        self._bus = bus

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def root(self) -> str:
        """Return the cgroup that contains the manager's slices, "" for the root."""
        if self._bus == SYSTEM:
            return ""
        with failing_as(RuntimeCoreError, "ask systemd for its cgroup"):
            ((_, path),) = self._call(systemd_bus.get_control_group())
        return str(path).rstrip("/")

    def start(
        self, scope: Scope, container_id: str, pid: int, resources: Resources, more: Sequence[Property] = ()
    ) -> None:
        """Create a scope with a process in it and wait until it is started. `more` overrides our properties."""
        devices = ""
        with contextlib.suppress(OSError), open("/proc/devices") as file:
            devices = file.read()
        properties = scope_properties(
            scope, f"crisp-oci container {container_id}", [pid], resources, pure_v2=_pure_v2(), devices=devices
        )
        own = {name for name, _signature, _value in more}
        properties = [*(each for each in properties if each[0] not in own), *more]
        self._job(f"start unit {scope.name}", systemd_bus.start_transient_unit(scope.name, properties))

    def limit(self, name: str, resources: Resources) -> None:
        """Tell systemd the new limits, or it would write the old ones again. It writes them to the files, rounded."""
        properties: Sequence[Property] = limit_properties(resources, pure_v2=_pure_v2())
        if properties:
            with failing_as(RuntimeCoreError, f"set properties of unit {name}"):
                self._call(systemd_bus.set_unit_properties(name, properties))

    def stop(self, name: str) -> None:
        """Stop a unit and wait for it. A missing unit counts as stopped."""
        self._job(f"stop unit {name}", systemd_bus.stop_unit(name))

    def _job(self, what: str, message: Message) -> None:
        with failing_as(RuntimeCoreError, what):
            (job,) = self._call(message)
            result = self._connection.end_of(job)
            if result != "done":
                raise RuntimeCoreError(f"{what}: systemd's job ended with {result!r}")

    def _call(self, message: Message) -> tuple[Any, ...]:
        return self._connection.call(message)


class _Connection:
    """A connection to a message bus or to systemd itself. Its methods raise DBusErrorResponse, EOFError, OSError."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(systemd_bus.SECONDS)
        self._parser = Parser()
        self._serial = 0
        self._ends: deque[Message] = deque()
        try:
            self._socket.connect(path)
            authenticator = Authenticator()
            for line in authenticator:
                self._socket.sendall(line)
                authenticator.feed(self._read())
            self._socket.sendall(BEGIN)
            if systemd_bus.is_bus(path):
                self.call(message_bus.Hello())
                self.call(message_bus.AddMatch(systemd_bus.job_removed()))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def call(self, message: Message) -> tuple[Any, ...]:
        """Send a call and return the body of its answer."""
        self._serial += 1
        self._socket.sendall(message.serialise(self._serial))
        deadline = time.monotonic() + systemd_bus.SECONDS
        while True:
            answer = self._receive(deadline)
            if answer.header.fields.get(HeaderFields.reply_serial) == self._serial:
                return tuple(unwrap_msg(answer))
            self._keep(answer)

    def end_of(self, job: str) -> str:
        """Wait for the end of a job and return its result; the job may have ended before the call was answered."""
        deadline = time.monotonic() + systemd_bus.SECONDS
        while True:
            while self._ends:
                _number, ended, _unit, result = self._ends.popleft().body
                if ended == job:
                    return str(result)
            self._keep(self._receive(deadline))

    def _keep(self, message: Message) -> None:
        if systemd_bus.job_removed().matches(message):
            self._ends.append(message)

    def _receive(self, deadline: float) -> Message:
        while (message := self._parser.get_next_message()) is None:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            self._parser.add_data(self._read())
        return message

    def _read(self) -> bytes:
        if not (data := self._socket.recv(4096)):
            raise EOFError
        return data


def _pure_v2() -> bool:
    return Hierarchies.detect().pure_v2
