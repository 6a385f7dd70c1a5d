"""`crisp check`: finds where the node's records and the machine disagree, and mends it on request."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Final

import msgspec

from linux.mounts import unmount_if_mounted, unpin_namespace
from linux.processes import end
from network.errors import NetworkError
from pods.cgroups.places import container_cgroup
from pods.check import processes, there
from pods.errors import PodError
from pods.model import ContainerState, SandboxState
from pods.recorder.entry import Life
from pods.state.transitions import is_over
from runtime.client import ShimGone, ShimSilent
from runtime.errors import RuntimeCoreError
from runtime.wire.calls import KEEP, GetState, ShimState
from runtime.wire.states import RUNNING, STARTING

if TYPE_CHECKING:
    from pathlib import Path

    from image.store import ImageStore
    from network.network import Network
    from pods.cgroups.driver import Cgroups
    from pods.check.processes import Orphan
    from pods.check.there import There
    from pods.life.creation import Creations
    from pods.life.network_upkeep import NetworkUpkeep
    from pods.life.recovery import Recovery
    from pods.life.sandboxes import Sandboxes
    from pods.life.shims import Shims
    from pods.model import Container, Sandbox
    from pods.state.memory import State
    from pods.state.store import Record

_log = logging.getLogger("crisp.pods")
_SETTLE_SECONDS: Final = 0.5  # what is under way disagrees for a moment
_LOOKS: Final = 3
_EXPECTED: Final = (PodError, RuntimeCoreError, NetworkError, OSError)

Mend = Callable[[], Awaitable[object]]


class Disagreement(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is there and should not be, or the reverse.

    `kind` is one of: address, cgroup, container, database, directory, image, mount, namespace, pod, process, shim.
    `repaired` says whether it was mended; `advice` what to do if not.
    """

    kind: str
    object: str
    text: str
    repaired: bool = False
    advice: str = ""


@dataclass(frozen=True, slots=True)
class _Found:
    kind: str
    object: str
    text: str
    mend: Mend | None = None
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of the node that are held against each other."""

    state: State
    shims: Shims
    network: Network
    images: ImageStore
    cgroups: Cgroups
    sandboxes: Sandboxes
    creations: Creations
    recovery: Recovery
    upkeep: NetworkUpkeep


class Check:
    """Looks at everything, and again if something disagrees: what does not last is under way, and no disagreement."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._state, self._settings = parts.state, parts.state.settings

    async def run(self, *, repair: bool) -> list[Disagreement]:
        """Return all disagreements; mend those that can be mended if `repair`. Raises PodError."""
        found = await self._look()
        for _look in range(_LOOKS - 1):
            if not found:
                return []
            await asyncio.sleep(_SETTLE_SECONDS)
            again = await self._look()
            found = {key: again[key] for key in found if key in again}
        return [await self._told(one, repair) for one in found.values()]

    async def _told(self, one: _Found, repair: bool) -> Disagreement:
        repaired, advice = False, one.advice
        if repair and one.mend is not None:
            try:
                await one.mend()
                repaired = True
            except _EXPECTED as error:
                advice = f"could not be repaired: {error}"
        elif one.mend is not None:
            advice = "crisp check --repair"
        fields = {"kind": one.kind, "object": one.object, "repaired": repaired}
        _log.warning("check: %s", one.text, extra=fields)
        return Disagreement(kind=one.kind, object=one.object, text=one.text, repaired=repaired, advice=advice)

    async def _look(self) -> dict[tuple[str, str], _Found]:
        known = self._known()
        sandboxes = [record.sandbox for record in self._state.sandboxes.values()]
        try:
            seen = await asyncio.to_thread(there.look, self._settings, sandboxes)
            stored = await self._state.store.read()
        except (OSError, RuntimeCoreError) as error:
            raise PodError(f"check: {error}") from error
        known |= self._known()  # also what was made meanwhile
        states = await self._shim_states()
        found = [
            *self._database(*stored),
            *self._network(),  # before the namespaces that plugins need
            *self._files(seen, known),
            *self._kernel(seen, known),
            *self._shims(seen, known, states),
            *self._orphans(seen, known),
            *self._images(),
        ]
        return {(one.kind, one.object): one for one in found}

    def _known(self) -> set[str]:
        """Return the ids of all pods and containers that there are, or that are being made or removed."""
        parts = self._parts
        return {
            *self._state.sandboxes,
            *self._state.containers,
            *parts.sandboxes.in_the_making(),
            *parts.creations.in_the_making(),
        }

    async def _shim_states(self) -> dict[str, ShimState | None]:
        """Ask the shim of every ready pod. None for one that is gone; those that do not answer are left out."""

        async def ask(sandbox_id: str) -> tuple[str, ShimState | None] | None:
            try:
                return sandbox_id, await self._parts.shims.of(sandbox_id).call(GetState())
            except ShimGone:
                return sandbox_id, None
            except ShimSilent:
                return None

        ready = [record.sandbox.id for record in self._state.sandboxes.values() if _is_ready(record.sandbox)]
        return dict(answer for answer in await asyncio.gather(*map(ask, ready)) if answer is not None)

    # -- the database -------------------------------------------------------------------------------------------------

    def _database(self, problems: list[str], stored: dict[str, Record]) -> Iterator[_Found]:
        for problem in problems:
            yield _Found("database", str(self._state.store.path), f"the database is damaged: {problem}", self._rewrite,
                         "")  # fmt: skip
        held: dict[str, Record] = dict(self._state.sandboxes)
        held.update(self._state.containers)
        making = {*self._parts.sandboxes.in_the_making(), *self._parts.creations.in_the_making()}
        for object_id in held.keys() | stored.keys():
            mine, written = held.get(object_id), stored.get(object_id)
            if mine == written or object_id in making:
                continue
            if mine is None:
                assert written is not None
                text, mend = "the database has a record that crispd does not know", self._forgetter(object_id)
            else:
                text = "the database has no record of it" if written is None else "the database has an older record"
                mend = self._writer(mine)
            yield _Found("database", object_id, text, mend)

    def _writer(self, record: Record) -> Mend:
        return lambda: self._state.store.put(record)

    def _forgetter(self, object_id: str) -> Mend:
        async def forget() -> None:
            await self._state.store.delete_sandbox(object_id)
            await self._state.store.delete_container(object_id)

        return forget

    async def _rewrite(self) -> None:
        """Write everything that is known again."""
        for sandbox in list(self._state.sandboxes.values()):
            await self._state.store.put(sandbox)
        for container in list(self._state.containers.values()):
            await self._state.store.put(container)

    # -- directories --------------------------------------------------------------------------------------------------

    def _files(self, seen: There, known: set[str]) -> Iterator[_Found]:
        for sandbox_id in seen.sandbox_dirs - known:
            place = self._settings.sandbox_dir(sandbox_id)
            yield _Found("directory", str(place), "belongs to no pod", self._pod_remover(sandbox_id))
        places = [self._settings.bundle_dir(container_id) for container_id in seen.bundles - known]
        places += [self._settings.container_root(container_id) for container_id in seen.layers - known]
        for place in set(places) - self._state.garbage.under_way():
            yield _Found("directory", str(place), "belongs to no container", self._tree_remover(place))
        for record in self._state.containers.values():
            container = record.container
            if container.id not in seen.layers and container.state is not ContainerState.EXITED:
                place = self._settings.container_root(container.id)
                text = f"container {container.id} has lost its writable layer"
                yield _Found("directory", str(place), text, advice="remove the container")

    def _tree_remover(self, place: Path) -> Mend:
        return lambda: self._state.garbage.remove([place])

    def _pod_remover(self, sandbox_id: str) -> Mend:
        return lambda: self._parts.recovery.remove_unknown(sandbox_id)

    # -- mounts, namespaces, cgroups ----------------------------------------------------------------------------------

    def _kernel(self, seen: There, known: set[str]) -> Iterator[_Found]:
        for place, sandbox_id in seen.mounts.items():
            if self._is_over(sandbox_id, known):
                yield _Found("mount", place, "belongs to no running pod", _later(unmount_if_mounted, place))
        for sandbox_id, lived_in in seen.pins.items():
            path = str(self._settings.netns_path(sandbox_id))
            # An unknown one may be another daemon's: then its infra process is in it.
            if self._is_over(sandbox_id, known) and not (lived_in and sandbox_id not in known):
                yield _Found("namespace", path, "belongs to no running pod", _later(unpin_namespace, path))
        for path, container_id in seen.cgroups.items():
            record = self._state.containers.get(container_id)
            if record is None and container_id in known:
                continue
            if record is None or is_over(record.container):
                sandbox = self._sandbox_with(path, container_id)
                if sandbox is not None:
                    yield _Found("cgroup", path, "belongs to no running container", self._killer(sandbox, container_id))

    def _is_over(self, sandbox_id: str, known: set[str]) -> bool:
        record = self._state.sandboxes.get(sandbox_id)
        return sandbox_id not in known if record is None else record.stopped

    def _sandbox_with(self, path: str, container_id: str) -> Sandbox | None:
        for record in self._state.sandboxes.values():
            if container_cgroup(record.sandbox, container_id) == path:
                return record.sandbox
        return None

    def _killer(self, sandbox: Sandbox, container_id: str) -> Mend:
        return lambda: asyncio.to_thread(self._parts.cgroups.kill_container, sandbox, container_id)

    # -- shims --------------------------------------------------------------------------------------------------------

    def _shims(self, seen: There, known: set[str], states: dict[str, ShimState | None]) -> Iterator[_Found]:
        for pid, sandbox_id in seen.shims.items():
            if self._is_over(sandbox_id, known):
                yield _Found("shim", f"{sandbox_id} (pid {pid})", "its pod is gone", self._shim_killer(pid, sandbox_id))
        for sandbox_id, _since in self._parts.shims.silent():
            yield _Found("shim", sandbox_id, "does not answer", advice="see `crisp doctor`; delete the pod to end it")
        for sandbox_id, state in states.items():
            record = self._state.sandboxes.get(sandbox_id)
            if record is None or not _is_ready(record.sandbox):
                continue
            if state is None or not state.infra_alive:
                text = "is ready, but its shim is gone" if state is None else "is ready, but its infra process is gone"
                yield _Found("pod", sandbox_id, text, self._loser(sandbox_id))
                continue
            if not state.kept and KEEP in state.abilities:
                text = "has no keeper: if it died, its pod would end"
                yield _Found("shim", sandbox_id, text, self._keep_giver(sandbox_id))
            yield from self._containers(sandbox_id, state, known)

    def _containers(self, sandbox_id: str, state: ShimState, known: set[str]) -> Iterator[_Found]:
        learn = self._learner(sandbox_id, state)
        for container_id in state.containers.keys() - known:
            yield _Found("container", container_id, "the shim has it, and crispd does not know it", learn)
        for container in self._state.containers_of(sandbox_id):
            text = _difference(container, state)
            if text:
                yield _Found("container", container.id, text, learn)
            elif container.state is ContainerState.RUNNING and not os.path.exists(f"/proc/{container.pid}"):
                yield _Found("process", str(container.pid), f"container {container.id} runs without its process",
                             advice="remove the container")  # fmt: skip

    def _learner(self, sandbox_id: str, state: ShimState) -> Mend:
        return lambda: self._parts.recovery.heard_again(sandbox_id, state)

    def _keep_giver(self, sandbox_id: str) -> Mend:
        async def mend() -> None:
            self._parts.shims.keep(sandbox_id)

        return mend

    def _loser(self, sandbox_id: str) -> Mend:
        return lambda: self._parts.recovery.sandbox_lost(sandbox_id)

    def _shim_killer(self, pid: int, sandbox_id: str) -> Mend:
        return _ender(pid, lambda: processes.shim_of(pid, self._settings) == sandbox_id)

    def _orphans(self, seen: There, known: set[str]) -> Iterator[_Found]:
        """Yield infra processes and placeholders without a shim. Those of no pod of this daemon's are only told."""
        # A successor's, whose keeper is dead too, is a child of PID 1.
        recorded = {record.sandbox.infra_pid for record in self._state.sandboxes.values()}
        for one in seen.orphans:
            if one.pid in recorded:
                continue
            ours = one.sandbox_id in known or self._was_ours(one.sandbox_id)
            text = f"{one.what} of {f'pod sandbox {one.sandbox_id}' if one.sandbox_id else 'no pod'} without its shim"
            mend = _ender(one.pid, partial(_is_still, one)) if ours else None
            advice = "" if ours else f"unless another crispd has that pod: kill -9 {one.pid}"
            yield _Found("process", str(one.pid), text, mend, advice)

    def _was_ours(self, sandbox_id: str) -> bool:
        """Return whether a recording tells of the sandbox, which may be removed."""
        entries = chain.from_iterable(recording.entries() for recording in self._state.recorder.recordings())
        return any(isinstance(entry, Life) and entry.id == sandbox_id for entry in entries)

    # -- network and images -------------------------------------------------------------------------------------------

    def _network(self) -> Iterator[_Found]:
        network = self._parts.network
        valid = {one.sandbox_id for one in self._parts.upkeep.valid()}
        cached = {one.sandbox_id: one for one in network.attachments()}
        for sandbox_id in cached.keys() - valid:
            attachment = cached[sandbox_id]
            yield _Found("address", sandbox_id, "the network was given to a pod that is gone",
                         _coroutine(network.remove, attachment))  # fmt: skip
        making = set(self._parts.sandboxes.in_the_making())
        for record in self._state.sandboxes.values():
            sandbox = record.sandbox
            if record.network and _is_ready(sandbox) and sandbox.id not in cached and sandbox.id not in making:
                yield _Found("address", sandbox.id, "crisp has no record of the pod's network, and cannot give it back",
                             advice="delete the pod when you can")  # fmt: skip
        for place, sandbox_id in network.leases():
            if sandbox_id not in valid and sandbox_id not in cached:
                holder = f"{sandbox_id}, which is no pod of crisp's" if sandbox_id else "nobody: host-local was killed"
                yield _Found("address", str(place), f"is reserved for {holder}",
                             advice=f"unless another runtime has that pod: rm {place}")  # fmt: skip

    def _images(self) -> Iterator[_Found]:
        for image_id, path in self._parts.images.missing_layers():
            yield _Found("image", image_id, f"its layer {path} is gone", advice="crisp image verify --repair")
        there_are = {image.id for image in self._parts.images.images()}
        for record in self._state.containers.values():
            for image_id in record.container.images:
                if image_id not in there_are:
                    yield _Found("image", image_id, f"container {record.container.id} was made of it, and it is gone",
                                 advice="recreate the pod")  # fmt: skip


def _is_ready(sandbox: Sandbox) -> bool:
    return sandbox.state is SandboxState.READY


def _difference(container: Container, state: ShimState) -> str:
    """Return how a container's record differs from what its shim says; "" if it does not."""
    now = state.containers.get(container.id)
    if now is None:
        return "" if is_over(container) else "the shim does not have it"
    if now.state == RUNNING and is_over(container):
        return "it runs, and its record says that it has ended"
    if now.exit is not None and not is_over(container):
        return "it has ended, and its record says that it has not"
    if now.state in (RUNNING, STARTING) and container.state is ContainerState.CREATED:
        return "it runs, and its record says that it was not started"
    return ""


def _ender(pid: int, still: Callable[[], bool]) -> Mend:
    return lambda: asyncio.to_thread(end, pid, still)


def _is_still(orphan: Orphan) -> bool:
    return processes.orphan(orphan.pid) == orphan


def _later(work: Callable[[str], None], path: str) -> Mend:
    return lambda: asyncio.to_thread(work, path)


def _coroutine(work: Callable[..., Awaitable[object]], *args: object) -> Mend:
    return lambda: work(*args)
