"""Calls systemd over D-Bus to start, change and stop units."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Final, Self

from jeepney import Message, message_bus
from jeepney.bus import get_bus
from jeepney.io.blocking import DBusConnection, open_dbus_connection
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
            address = get_bus(bus)
        except (KeyError, RuntimeError) as error:
            why = f"{error.args[0]} is not set" if isinstance(error, KeyError) else error
            raise RuntimeCoreError(f"connect to systemd on the {bus.lower()} bus: {why}") from error
        with failing_as(RuntimeCoreError, f"connect to systemd at {address}"):
            self._connection: DBusConnection = open_dbus_connection(bus)
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
        rule = systemd_bus.job_removed()
        ends: deque[Message] = deque()
        with failing_as(RuntimeCoreError, what), self._connection.filter(rule, queue=ends):
            self._call(message_bus.AddMatch(rule))  # before the call: the job may end before the call is answered
            (job,) = self._call(message)
            deadline = time.monotonic() + systemd_bus.SECONDS
            while True:
                left = max(deadline - time.monotonic(), 0)
                _number, ended, _unit, result = self._connection.recv_until_filtered(ends, timeout=left).body
                if ended == job:
                    break
            if result != "done":
                raise RuntimeCoreError(f"{what}: systemd's job ended with {result!r}")

    def _call(self, message: Message) -> tuple[Any, ...]:
        return tuple(unwrap_msg(self._connection.send_and_get_reply(message, timeout=systemd_bus.SECONDS)))


def _pure_v2() -> bool:
    return Hierarchies.detect().pure_v2
