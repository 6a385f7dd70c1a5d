"""The systemd cgroup driver: a scope for each container, one for the shims, and a slice for a pod without a parent."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from pods.cgroups.places import container_scope, pod_slice
from pods.cgroups.units import SystemdUnits
from pods.errors import PodError
from pods.model import Sandbox
from runtime.cgroups import Hierarchies
from runtime.cgroups.systemd import Scope, limit_properties, scope_properties
from runtime.spec.parse import parse_resources
from runtime.spec.values import Memory, Resources

_log = logging.getLogger("crisp.pods")
# Outside the pods' cgroups: kubelet kills what it finds in a dead pod's. When the machine is shut down, systemd stops
# other slices with all that is in them; and containers whose shim is gone are killed, without their time to end.
_SHIMS_SLICE: Final = "system.slice"
_DEVICES: Final = Path("/proc/devices")


class Systemd:
    """A `CgroupDriver` that asks systemd for units. The shims write the cgroups' files."""

    hold = True  # systemd does not make a scope without a process

    def __init__(self) -> None:
        self._units = SystemdUnits()
        self._pure_v2: bool | None = None

    async def open(self) -> None:
        """Connect to systemd now instead of at the first use."""
        await self._units.open()

    async def close(self) -> None:
        await self._units.close()

    async def place_shims(self, zygote: int) -> None:
        """Put a zygote, and so all shims that it forks, into a scope of their own."""
        scope = Scope(_SHIMS_SLICE, f"crisp-shims-{secrets.token_hex(4)}.scope")
        await self._start(scope, "Shims of crisp's pods", zygote, Resources())

    async def place_streams(self, pid: int) -> None:
        """systemd removes the scope with the process."""
        scope = Scope(_SHIMS_SLICE, f"crisp-streams-{secrets.token_hex(4)}.scope")
        await self._start(scope, "Streams of crisp's pods", pid, Resources())

    async def place_workers(self, warm: int, memory: int) -> None:
        """systemd removes the scope with the last process in it."""
        scope = Scope(_SHIMS_SLICE, f"crisp-layers-{secrets.token_hex(4)}.scope")
        await self._start(scope, "Workers of crisp's images", warm, Resources(memory=Memory(limit=memory, swap=memory)))

    async def forget_workers(self) -> None: ...

    async def make(self, sandbox: Sandbox, container_id: str, placeholder: int, resources: Mapping[str, Any]) -> None:
        scope = container_scope(sandbox, container_id)
        await self._start(scope, f"crisp container {container_id}", placeholder, parse_resources(resources))

    async def update(self, sandbox: Sandbox, container_id: str, resources: Mapping[str, Any]) -> bool:
        """Give systemd the new limits, or it restores the old ones. It writes them to the files itself, rounded."""
        properties = limit_properties(parse_resources(resources), pure_v2=self._is_pure_v2())
        if properties:
            await self._units.set_properties(container_scope(sandbox, container_id).name, properties)
        return True

    async def remove_container(self, sandbox: Sandbox, container_id: str) -> None:
        """Stop the scope. systemd does so itself, unless the shim removed the cgroup before systemd saw it empty."""
        await self._stop(container_scope(sandbox, container_id).name)

    async def remove_pod(self, sandbox: Sandbox) -> None:
        """Stop the slice of a pod without a parent."""
        await self._stop(pod_slice(sandbox.id, sandbox.config))

    async def _stop(self, unit: str) -> None:
        try:
            await self._units.stop(unit)
        except PodError as error:
            _log.warning("could not stop systemd unit", extra={"unit": unit, "error": error})

    async def _start(self, scope: Scope, description: str, pid: int, resources: Resources) -> None:
        devices = ""
        with suppress(OSError):
            devices = _DEVICES.read_text()
        properties = scope_properties(
            scope, description, [pid], resources, pure_v2=self._is_pure_v2(), devices=devices
        )
        await self._units.start(scope.name, properties)

    def _is_pure_v2(self) -> bool:
        if self._pure_v2 is None:
            self._pure_v2 = Hierarchies.detect().pure_v2
        return self._pure_v2
