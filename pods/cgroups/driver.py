"""The cgroup drivers: cgroups of pods are made through the file system or by systemd.

The daemon's driver is for the pods that it makes. A pod keeps the driver of its creation when the daemon's changes,
because its cgroups stay where they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

from pods.cgroups.places import CGROUPFS, SYSTEMD, container_cgroup, pod_cgroup
from pods.cgroups.systemd import Systemd
from pods.errors import PodError
from pods.model import Sandbox
from runtime.cgroups import SHIM_CGROUP, WORKERS_CGROUP, Cgroup, Hierarchies
from runtime.errors import OperationFailed, RuntimeCoreError
from runtime.spec.values import Memory, Resources

_log = logging.getLogger("crisp.pods")
_KILLED_SECONDS: Final = 2.0
_LEAST_FOR_WORKERS: Final = 1 << 30  # bytes: two workers with the largest window of zstd
_TRIES: Final = 3


class CgroupDriver(Protocol):
    """Manages a pod's cgroups, except the files in them, which the shims write. Every method raises PodError.

    `hold` and `make` are for a container's creation, `update` for new limits, `remove_container` and
    `remove_pod` for the ends.
    """

    @property
    def place_shims(self) -> Callable[[int], Awaitable[None]] | None:
        """Moves the process that forks all shims into a cgroup for them; None if that process does so itself."""

    async def place_streams(self, pid: int) -> None:
        """Move the process that serves streams, which outlives the daemon, out of the daemon's cgroup.

        It has one thread. Raises RuntimeCoreError, too.
        """

    @property
    def hold(self) -> bool:
        """Whether `make` needs a placeholder process to hold the cgroup until the container's own process runs."""

    async def place_workers(self, warm: int, memory: int) -> None:
        """Move the process that forks the workers of images into a cgroup whose memory is limited, in bytes.

        It has one thread. Raises RuntimeCoreError, too.
        """

    async def forget_workers(self) -> None:
        """Remove that cgroup, which no process is in any more. Best effort."""

    async def open(self) -> None:
        """Connect now instead of at the first use."""

    async def close(self) -> None: ...

    async def make(self, sandbox: Sandbox, container_id: str, placeholder: int, resources: Mapping[str, Any]) -> None:
        """Make the cgroup of a container of crisp's own handler. `resources` is its `linux.resources`.

        `placeholder` is the pid of the process that holds the cgroup, 0 without one.
        """

    async def update(self, sandbox: Sandbox, container_id: str, resources: Mapping[str, Any]) -> bool:
        """Hand over all limits after an update. Returns whether the driver wrote them to the cgroup's files."""

    async def remove_container(self, sandbox: Sandbox, container_id: str) -> None:
        """Remove what is left of the cgroup of an ended container of crisp's own handler. Best effort."""

    async def remove_pod(self, sandbox: Sandbox) -> None:
        """Remove a pod's cgroup that kubelet did not make. Best effort."""


class FileSystem:
    """Cgroups as directories: the shim makes a container's with its first process and removes it with its last."""

    place_shims: Callable[[int], Awaitable[None]] | None = None
    hold = False

    def __init__(self, cgroup: Callable[[str], Cgroup]) -> None:
        self._cgroup = cgroup

    async def place_streams(self, pid: int) -> None:
        await asyncio.to_thread(self._place, pid, self._cgroup(SHIM_CGROUP), Resources())

    async def place_workers(self, warm: int, memory: int) -> None:
        resources = Resources(memory=Memory(limit=memory, swap=memory))
        await asyncio.to_thread(lambda: self._place(warm, self._of_workers(), resources))

    def _place(self, pid: int, cgroup: Cgroup, resources: Resources) -> None:
        for attempt in range(_TRIES):
            try:
                cgroup.create(resources)
                cgroup.admit(pid)
                return
            except OperationFailed as error:  # another crispd that stops removes the cgroup while it is empty
                if error.errno not in (errno.ENOENT, errno.ENODEV) or attempt == _TRIES - 1:
                    with contextlib.suppress(OperationFailed):
                        cgroup.remove_if_unused()  # the process has ended meanwhile
                    raise

    async def forget_workers(self) -> None:
        with contextlib.suppress(RuntimeCoreError):
            await asyncio.to_thread(self._of_workers().remove_if_unused)

    def _of_workers(self) -> Cgroup:
        """Return their cgroup in the hierarchy of memory. Raises NotSupported."""
        cgroup = self._cgroup(WORKERS_CGROUP)
        return Cgroup(cgroup.hierarchies.only("memory"), cgroup.path)

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def make(
        self, sandbox: Sandbox, container_id: str, placeholder: int, resources: Mapping[str, Any]
    ) -> None: ...

    async def update(self, sandbox: Sandbox, container_id: str, resources: Mapping[str, Any]) -> bool:
        return False

    async def remove_container(self, sandbox: Sandbox, container_id: str) -> None: ...

    async def remove_pod(self, sandbox: Sandbox) -> None:
        # By name: pods of an older crisp have no mark to go by, nor has what a shim made that was killed just then.
        own = pod_cgroup(sandbox)
        for path in (own, os.path.dirname(own)):
            with contextlib.suppress(RuntimeCoreError):
                self._cgroup(path).remove_if_unused()


def workers_memory() -> int:
    """Return how many bytes of memory all workers of images may take together if the configuration does not say."""
    return max(_LEAST_FOR_WORKERS, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4)


class Cgroups:
    """The cgroups of a node's pods: the drivers, and the operations that do not depend on them."""

    def __init__(self, driver: str) -> None:
        self._hierarchies: Hierarchies | None = None
        self._told_of_workers = False
        self._drivers: Mapping[str, CgroupDriver] = {CGROUPFS: FileSystem(self._cgroup), SYSTEMD: Systemd()}
        self.driver = self._drivers[driver]  # for new pods

    def report_restrictions(self) -> None:
        """Log once what cgroups cannot do for containers if crispd is in a user namespace."""
        found = Hierarchies.usable()
        if not found.restricted:
            return
        controllers = sorted({*found.v1, *found.unified_controllers})
        if not found.mountpoints():
            _log.warning(
                "crispd is in a user namespace and may make no cgroups: containers have no limits and no statistics; "
                "delegate cgroups to it (see docs/rootless.md)"
            )
            return
        _log.warning(
            "crispd is in a user namespace: only limits of the delegated controllers are set, and devices are not "
            "filtered", extra={"controllers": controllers},
        )  # fmt: skip

    async def place_workers(self, warm: int, memory: int) -> None:
        """Limit the memory (bytes) of all workers of images together, which the process `warm` forks.

        Log once if that is impossible.
        """
        try:
            await self.driver.place_workers(warm, memory)
        except (PodError, RuntimeCoreError) as error:
            if not self._told_of_workers:
                self._told_of_workers = True
                _log.warning("the memory of pulls is not limited (pull_memory_limit)", extra={"error": error})

    async def place_streams(self, pid: int) -> None:
        """Move a process that serves streams out of the daemon's cgroup. Best effort."""
        try:
            await self.driver.place_streams(pid)
        except (PodError, RuntimeCoreError) as error:
            _log.warning("the process of streams stays in crispd's cgroup", extra={"error": error})

    def of(self, sandbox: Sandbox) -> CgroupDriver:
        """Return the driver of a pod's creation."""
        return self._drivers[sandbox.cgroup_driver]

    async def close(self) -> None:
        """Disconnect. No worker of images may be left."""
        await self.driver.forget_workers()
        for driver in self._drivers.values():
            await driver.close()

    def kill_container(self, sandbox: Sandbox, container_id: str) -> None:
        """Kill what a dead shim's container left running, and remove its cgroup. Best effort; may take seconds."""
        cgroup = self._cgroup(container_cgroup(sandbox, container_id))
        if not cgroup.exists():
            return
        try:
            cgroup.kill_in_pod()
            with contextlib.suppress(RuntimeCoreError):  # gVisor's processes are in version 1's hierarchies alone
                cgroup.wait_empty(_KILLED_SECONDS)
            _remove(cgroup)
        except RuntimeCoreError as error:
            _log.warning("could not remove cgroup", extra={"cgroup": cgroup.path, "error": error})

    def has_container(self, sandbox: Sandbox, container_id: str) -> bool:
        """Return whether a container's cgroup still exists."""
        return self._cgroup(container_cgroup(sandbox, container_id)).exists()

    async def remove_pod(self, sandbox: Sandbox) -> None:
        """Remove a pod's cgroup and its parents, as long as crisp made them and they are empty."""
        if not sandbox.config.cgroup_parent:
            await self.of(sandbox).remove_pod(sandbox)
        with contextlib.suppress(RuntimeCoreError):
            self._cgroup(f"{pod_cgroup(sandbox)}/below").remove_made_parents()

    def remove_unused(self, path: str) -> None:
        """Remove a cgroup if it is empty. Best effort."""
        with contextlib.suppress(RuntimeCoreError):
            self._cgroup(path).remove_if_unused()

    def _cgroup(self, path: str) -> Cgroup:
        if self._hierarchies is None:
            self._hierarchies = Hierarchies.usable()
        return Cgroup.at(self._hierarchies, path)


def _remove(cgroup: Cgroup) -> None:
    """Remove a cgroup whose processes were killed. They leave it slightly after they died. Raises RuntimeCoreError."""
    deadline = time.monotonic() + _KILLED_SECONDS
    while True:
        try:
            cgroup.remove()
            return
        except RuntimeCoreError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.01)
