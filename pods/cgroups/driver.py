"""Who makes the cgroups of pods: crisp by the file system, or systemd.

One driver is the daemon's, for the pods that it makes. A pod keeps the driver that it was made with when the daemon's
changes, since its cgroups keep their places.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

from pods.cgroups.places import CGROUPFS, SYSTEMD, container_cgroup, pod_cgroup
from pods.cgroups.systemd import Systemd
from pods.model import Sandbox
from runtime.cgroups import Cgroup, Hierarchies
from runtime.errors import RuntimeCoreError

_log = logging.getLogger("crisp.pods")
_KILLED_SECONDS: Final = 2.0


class CgroupDriver(Protocol):
    """What a pod's cgroups take beside what the shims write into their files. All raises PodError.

    `hold` and `make` come with a container's creation, `update` with its new limits, `remove_pod` with the pod's end.
    """

    @property
    def place_shims(self) -> Callable[[int], Awaitable[None]] | None:
        """Puts the process that forks all shims into a cgroup for them; None where it does so itself."""

    @property
    def hold(self) -> bool:
        """Whether `make` needs a process that holds the container's cgroup until the container's own is there."""

    async def open(self) -> None:
        """Get ready now instead of at the first need."""

    async def close(self) -> None: ...

    async def make(self, sandbox: Sandbox, container_id: str, holder: int, resources: Mapping[str, Any]) -> None:
        """Make the cgroup of a container of crisp's own handler; `resources` as `linux.resources` has them."""

    async def update(self, sandbox: Sandbox, container_id: str, resources: Mapping[str, Any]) -> bool:
        """Take note of all the limits after an update. True if it wrote them to the files, in its own way."""

    async def remove_pod(self, sandbox: Sandbox) -> None:
        """Remove a pod's cgroup that no kubelet has made. Best effort."""


class FileSystem:
    """Directories: the shim makes a container's with its first process, and removes it with its last."""

    place_shims: Callable[[int], Awaitable[None]] | None = None
    hold = False

    def __init__(self, cgroup: Callable[[str], Cgroup]) -> None:
        self._cgroup = cgroup

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def make(self, sandbox: Sandbox, container_id: str, holder: int, resources: Mapping[str, Any]) -> None: ...

    async def update(self, sandbox: Sandbox, container_id: str, resources: Mapping[str, Any]) -> bool:
        return False

    async def remove_pod(self, sandbox: Sandbox) -> None:
        with contextlib.suppress(RuntimeCoreError):
            self._cgroup(pod_cgroup(sandbox)).remove_if_unused()  # an older crisp's has no mark


class Cgroups:
    """The cgroups of a node's pods: the drivers, and what is the same with each."""

    def __init__(self, driver: str) -> None:
        self._hierarchies: Hierarchies | None = None
        self._drivers: Mapping[str, CgroupDriver] = {CGROUPFS: FileSystem(self._cgroup), SYSTEMD: Systemd()}
        self.driver = self._drivers[driver]  # of the pods to come

    def of(self, sandbox: Sandbox) -> CgroupDriver:
        """The driver that a pod was made with."""
        return self._drivers[sandbox.cgroup_driver]

    async def close(self) -> None:
        for driver in self._drivers.values():
            await driver.close()

    def kill_container(self, sandbox: Sandbox, container_id: str) -> None:
        """End what a dead shim's container left running, and remove its cgroup. Best effort; may take seconds."""
        cgroup = self._cgroup(container_cgroup(sandbox, container_id))
        if not cgroup.exists():
            return
        try:
            cgroup.kill_in_pod()
            cgroup.wait_empty(_KILLED_SECONDS)
            cgroup.remove()
        except RuntimeCoreError as error:
            _log.warning("could not remove cgroup", extra={"cgroup": cgroup.path, "error": error})

    def has_container(self, sandbox: Sandbox, container_id: str) -> bool:
        """Whether there is something left of a container's cgroup."""
        return self._cgroup(container_cgroup(sandbox, container_id)).exists()

    async def remove_pod(self, sandbox: Sandbox) -> None:
        """Remove a pod's cgroup and those above it, as far as crisp made them and nothing is in them any more."""
        if not sandbox.config.cgroup_parent:
            await self.of(sandbox).remove_pod(sandbox)
        with contextlib.suppress(RuntimeCoreError):
            self._cgroup(f"{pod_cgroup(sandbox)}/below").remove_made_parents()

    def remove_unused(self, path: str) -> None:
        """Remove a cgroup if nothing is in it. Best effort."""
        with contextlib.suppress(RuntimeCoreError):
            self._cgroup(path).remove_if_unused()

    def _cgroup(self, path: str) -> Cgroup:
        if self._hierarchies is None:
            self._hierarchies = Hierarchies.detect()
        return Cgroup.at(self._hierarchies, path)
