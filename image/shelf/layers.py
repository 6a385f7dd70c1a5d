"""Manages the directories of layers: creates each one once, makes it durable, shares it, removes it with its last user.

A layer is created as tmp/<n> and renamed to layers/<n>, where <n> is a short base 36 number, because an overlay mount
names all layers of an image in one page of memory. Users of a layer are recorded images and running pulls.

The directory holds the layer's files or, for an indexed layer, its tar and the index by which the kernel mounts it.
Such a mount is in no mount table of the machine's, and stays from its first use until the layer is removed.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from image.erofs.index import ROOT, describe
from image.erofs.mount import INDEX, TAR
from image.erofs.mounted import Mounted, Mounting
from image.erofs.seal import Seal
from image.errors import ImageError
from image.shelf.database import INDEXED, UNPACKED, LayerRecord
from image.shelf.layer_files import (
    base36,
    blob_of,
    explained,
    make_layer_directory,
    opened,
    remove_small,
    sync_directory,
    sync_file,
    sync_filesystem,
    unlink_indexed,
)
from image.shelf.turns import Turns
from image.tasks import Tasks
from image.unpack.inodes import Real
from image.unpack.layer_root import open_root
from image.unpack.lowers import Seen
from image.unpack.overlay import is_opaque
from image.unpack.workers import Below, Unpacked, Workers

_TRIES = 3
_QUICK_SECONDS = 0.05
_WORTH_KEEPING = 16 << 20  # bytes on disk of a layer that is recorded as soon as it is finished


Make = Callable[[int, Path], Awaitable[Unpacked]]


@dataclass(slots=True, eq=False)
class Layer:
    """A layer in use. `record` is None until it is unpacked; `recorded` tells whether the database has it.

    If it is `additional`, it belongs to an additional store: it is never removed, and does not count as disk usage.
    """

    chain_id: str
    number: int
    path: Path
    mounting: Mounting
    users: int = 0
    record: LayerRecord | None = None
    recorded: bool = False
    making: asyncio.Task[None] | None = None
    additional: bool = False
    indexed: bool = False
    _hides: bool | None = None
    _mounted: Mounted | None = None

    @property
    def root(self) -> Path:
        """Return the directory with the layer's files; mount an indexed layer first. Raises ImageError."""
        if not self.indexed:
            return self.path
        if self._mounted is None:
            with explained(f"mount layer in {self.path}"):
                self._mounted = self.mounting(self.path, Seal.parse(self._seal))
        return self._mounted.root

    def unmount(self) -> None:
        """End the mount. Containers that use it as a lower layer keep it."""
        if (mounted := self.give_up_mount()) is not None:
            mounted.unmount()

    def give_up_mount(self) -> Mounted | None:
        """Return the mount, if there is one, for the caller to end."""
        mounted, self._mounted = self._mounted, None
        return mounted

    @property
    def seal(self) -> str | None:
        """Return the seal of the index; None if the layer is unpacked."""
        return self._seal if self.indexed else None

    @property
    def _seal(self) -> str:
        assert self.record is not None
        return self.record.seal

    @property
    def blob(self) -> Path:
        """Return the path of the layer's original blob, if blobs are kept."""
        return blob_of(self.path)

    @property
    def tar(self) -> Path | None:
        """Return the path of an indexed layer's tar."""
        return self.path / TAR if self.indexed else None

    @property
    def hides_below(self) -> bool:
        """Tell whether the layer hides all layers below it. overlayfs does not check this at a layer's root."""
        if self._hides is None:
            with explained(f"read {self.path}"), opened(self.root) as root:
                self._hides = is_opaque(root)
        return self._hides

    @property
    def failed(self) -> bool:
        return self.making is not None and self.making.done() and self.record is None


class Layers:
    """The layers below a store's `root`. Belongs to one event loop.

    `forget(chain_ids)` removes layers from the database, `keep(records)` adds some that no image has, `unkeep(number)`
    takes one of those back; `workers` remove their directories, `mounting` mounts them. `parallel` layers of one image
    are unpacked at a time; all of them take their `turns`.
    """

    def __init__(
        self,
        root: Path,
        forget: Callable[[Sequence[str]], Awaitable[None]],
        keep: Callable[[Sequence[LayerRecord]], Awaitable[None]],
        unkeep: Callable[[int], Coroutine[None, None, None]],
        workers: Workers,
        mounting: Mounting,
        turns: Turns,
        parallel: int,
    ) -> None:
        self._final = root / "layers"
        self._temporary = root / "tmp"
        self._forget = forget
        self._keep = keep
        self._unkeep = unkeep
        self._keeping = False
        self._workers = workers
        self._mounting = mounting
        self._parallel = parallel
        self._layers: dict[str, Layer] = {}
        self._next = 1
        self._turns = turns
        self._tasks = Tasks()
        self._recording = Tasks()

    def load(self, records: Iterable[LayerRecord]) -> None:
        """Load the database's layers; they have no user yet."""
        for record in records:
            path = self._final / base36(record.number)
            layer = Layer(record.chain_id, record.number, path, self._mounting, 0, record, recorded=True)
            layer.indexed = record.kind == INDEXED
            self._layers[record.chain_id] = layer
            self._next = max(self._next, record.number + 1)

    def add_additional(self, records: Iterable[tuple[LayerRecord, Path]]) -> None:
        """Add the layers of additional stores, with their directories, except those that this store has."""
        for record, path in records:
            if record.chain_id not in self._layers:
                layer = Layer(record.chain_id, 0, path, self._mounting, 1, record, recorded=True, additional=True)
                layer.indexed = record.kind == INDEXED
                self._layers[record.chain_id] = layer

    def keep_finished(self) -> None:
        """From now on, keep the finished layers of cancelled pulls: the store will be closed."""
        self._keeping = True

    def unused(self, chain_ids: Iterable[str]) -> list[Layer]:
        """Drop and return those layers that have no user: the caller must forget and `discard` them."""
        found = [layer for layer in map(self._layers.get, chain_ids) if layer is not None and not layer.users]
        for layer in found:
            del self._layers[layer.chain_id]
        return found

    def close(self) -> None:
        """Close the mounts."""
        for layer in self._layers.values():
            layer.unmount()

    async def freed(self) -> None:
        """Return when the disk space of all removed layers is free."""
        await self._tasks.ended()

    def stack(self, chain_ids: Sequence[str]) -> list[Path]:
        """Return the directories to mount, topmost first, down to one that hides those below. Raises ImageError."""
        paths: list[Path] = []
        for chain_id in reversed(chain_ids):
            layer = self._layers[chain_id]
            paths.append(layer.root)
            if layer.hides_below:
                break
        return paths

    def get(self, chain_ids: Iterable[str]) -> list[Layer]:
        """Return existing layers."""
        return [self._layers[chain_id] for chain_id in chain_ids]

    def size(self, chain_ids: Iterable[str]) -> int:
        """Return the bytes that unpacked layers take."""
        records = [self._layers[chain_id].record for chain_id in chain_ids]
        return sum(record.size for record in records if record is not None)

    def usage(self) -> tuple[int, int]:
        """Return the bytes and inodes of all unpacked layers of this store."""
        own = [layer for layer in self._layers.values() if not layer.additional]
        records = [layer.record for layer in own if layer.record is not None]
        return sum(record.size for record in records), sum(record.inodes for record in records)

    def places(self) -> tuple[set[Path], set[str]]:
        """Return the directories of layers that are being made, and the directory names of all layers."""
        making = {layer.path for layer in self._layers.values() if layer.record is None}
        return making, {base36(layer.number) for layer in self._layers.values() if not layer.additional}

    # --- users

    def use(self, chain_ids: Iterable[str]) -> None:
        """Count one more user of existing layers."""
        for chain_id in chain_ids:
            self._layers[chain_id].users += 1

    def drop(self, chain_ids: Iterable[str]) -> list[Layer]:
        """Count one user less. Drop and return the layers without users: the caller must forget and `discard` them."""
        return self._drop([self._layers[chain_id] for chain_id in chain_ids])

    def _drop(self, layers: Iterable[Layer]) -> list[Layer]:
        dead: list[Layer] = []
        for layer in layers:
            layer.users -= 1
            if not layer.users:
                dead.append(layer)
            # A failed layer is dropped even while others still wait for it: a new request starts again.
            if (not layer.users or layer.failed) and self._layers.get(layer.chain_id) is layer:
                del self._layers[layer.chain_id]
        return dead

    async def discard(self, dead: Sequence[Layer]) -> None:
        """Remove the directories of dropped layers, and cancel their creation if it runs. Raises ImageError."""
        making = [layer.making for layer in dead if layer.making is not None]
        for task in making:
            task.cancel()
        if making:
            await asyncio.wait(making)
        await self._tasks.undisturbed(self._remove_indexed([layer for layer in dead if layer.indexed]))
        paths = [path for layer in dead if not layer.indexed for path in (layer.path, layer.blob)]
        if paths:
            # A small layer is gone before a worker's interpreter would have started.
            await self._workers.remove_trees(await asyncio.to_thread(remove_small, paths, _QUICK_SECONDS))

    async def _remove_indexed(self, dead: Sequence[Layer]) -> None:
        mounts = [mounted for layer in dead if (mounted := layer.give_up_mount()) is not None]
        held: list[int] = []
        try:
            await asyncio.to_thread(_unlink, [layer.path for layer in dead], held)
        finally:
            self._tasks.start(asyncio.to_thread(_close, mounts, held))

    @asynccontextmanager
    async def acquired(self, chain_ids: Sequence[str], make: Make) -> AsyncIterator[list[Layer]]:
        """Provide the layers of `chain_ids`, lowest first, unpacked and kept for the time of the context.

        `make(position, directory)` unpacks a missing layer; if another caller is unpacking it, wait for that. Raises
        what `make` raises.
        """
        layers = await self._acquire(chain_ids, make)
        try:
            yield layers
        finally:
            await self._let_go(layers)

    async def _acquire(self, chain_ids: Sequence[str], make: Make) -> list[Layer]:
        for attempt in range(1, _TRIES + 1):
            mine: set[Layer] = set()
            layers: list[Layer] = []
            turns = asyncio.Semaphore(self._parallel)
            for position, chain_id in enumerate(chain_ids):
                layers.append(self._join(chain_id, position, layers, make, mine, turns))
            try:
                await asyncio.gather(*(asyncio.shield(layer.making) for layer in layers if layer.making is not None))
                return layers
            except BaseException as error:
                culprit = next((layer for layer in layers if layer.failed), None)
                await self._let_go(layers)
                # Another pull's failure (its credentials, its registry) must not fail this one: try again.
                if not isinstance(error, ImageError) or culprit is None or culprit in mine or attempt == _TRIES:
                    raise
        raise AssertionError("unreachable")

    async def _let_go(self, layers: Sequence[Layer]) -> None:
        dead = self._drop(layers)
        if self._keeping:
            with suppress(ImageError):  # such as a full disk: they are removed then
                await self._keep_finished([layer for layer in dead if layer.record is not None and not layer.recorded])
            dead = [layer for layer in dead if not layer.recorded]
        if recorded := [layer.chain_id for layer in dead if layer.recorded]:
            await self._forget(recorded)
        await self.discard(dead)

    async def _keep_finished(self, layers: Sequence[Layer]) -> None:
        await self.sync(layers)
        await self.settle(layers)
        await self._keep([layer.record for layer in layers if layer.record is not None])
        for layer in layers:
            layer.recorded = True
            layer.unmount()

    def _join(
        self,
        chain_id: str,
        position: int,
        lower: Sequence[Layer],
        make: Make,
        mine: set[Layer],
        turns: asyncio.Semaphore,
    ) -> Layer:
        layer = self._layers.get(chain_id)
        if layer is None:
            layer = Layer(chain_id, self._next, self._temporary / base36(self._next), self._mounting)
            self._next += 1
            self._layers[chain_id] = layer
            mine.add(layer)
            layer.making = asyncio.create_task(self._make(layer, position, tuple(lower), make, turns))
            layer.making.add_done_callback(_retrieve)
        layer.users += 1
        return layer

    # --- making

    async def _make(
        self, layer: Layer, position: int, lower: Sequence[Layer], make: Make, turns: asyncio.Semaphore
    ) -> None:
        async with turns, self._turns.one():
            await self.freed()  # the layer may need the space
            make_layer_directory(layer.path)
            unpacked = await make(position, layer.path)
        with unpacked.unsettled or nullcontext():
            for below in reversed(lower):  # once one is done, so are all below it: the loop waits once
                if below.making is not None and below.record is None:
                    await asyncio.shield(below.making)
            layer.indexed = unpacked.indexed
            size, inodes = await self._finish(layer, unpacked, [self._below(one) for one in reversed(lower)])
        layer.record = LayerRecord(
            *(layer.chain_id, layer.number, unpacked.size - size, unpacked.inodes - inodes),
            kind=INDEXED if unpacked.indexed else UNPACKED,
            seal=await self._checked(layer, turns) if unpacked.indexed else "",
        )
        # Without an index, it would take a sync of the whole file system.
        if unpacked.indexed and layer.record.size >= _WORTH_KEEPING:
            await self._keep_early(layer)

    async def _keep_early(self, layer: Layer) -> None:
        """Record a finished layer before its image: if crispd is killed, the next pull need not fetch it again."""
        try:
            with suppress(ImageError):  # its pull will tell
                await self._recording.undisturbed(self._keep_finished([layer]))
        except asyncio.CancelledError:
            if layer.recorded:
                layer.recorded = False
                await self._recording.undisturbed(self._unkeep(layer.number))
            raise

    async def _checked(self, layer: Layer, turns: asyncio.Semaphore) -> str:
        async with turns, self._turns.one():
            return await self._workers.check_index(layer.path)

    async def _finish(self, layer: Layer, unpacked: Unpacked, lowers: Sequence[Below]) -> tuple[int, int]:
        """Do what had to wait for the layers below. Returns the bytes and inodes that this saved."""
        if not lowers and not unpacked.hides:
            return 0, 0  # no worker is needed to see that nothing is below
        if unpacked.unsettled is not None:
            async with self._turns.one():
                if layer.indexed:
                    if await self._workers.settle_index(layer.path, lowers, unpacked.unsettled):
                        return 0, 0
                    return await self._workers.index_again(layer.path, lowers, unpacked.unsettled), 0
                return await self._workers.settle(layer.path, lowers, unpacked.unsettled)
        if unpacked.adopts_root and not await asyncio.to_thread(_adopt_root, layer, lowers[0]):
            async with self._turns.one():
                return await self._workers.index_again(layer.path, lowers), 0
        return 0, 0

    def _below(self, layer: Layer) -> Below:
        """Return the possible places of an existing layer: another pull may be giving it its final name just now."""
        names = (layer.path,) if layer.additional else (layer.path, self._final / base36(layer.number))
        return Below(names, layer.seal)

    async def index_again(self, chain_ids: Sequence[str], damaged: Collection[str]) -> list[LayerRecord]:
        """Write the indexes of the layers `damaged` again, from their tars; `chain_ids` are an image's layers.

        Returns their new records, which the caller must store. Containers keep the mounts that they have. Raises
        ImageError, StorageFull.
        """
        layers = self.get(chain_ids)
        records = []
        for position, layer in enumerate(layers):
            if layer.chain_id in damaged and layer.record is not None:
                lowers = [self._below(one) for one in reversed(layers[:position])]
                async with self._turns.one():
                    await self._workers.index_again(layer.path, lowers)
                seal = await self._checked(layer, asyncio.Semaphore())
                await asyncio.to_thread(self._sync, [layer])
                layer.unmount()
                files = (layer.path, layer.path / TAR, layer.path / INDEX, layer.blob)
                size = sum(file.stat().st_blocks * 512 for file in files if file.exists())
                layer.record = replace(layer.record, seal=seal, size=size, sealed=time.time_ns())
                records.append(layer.record)
        return records

    async def sync(self, layers: Sequence[Layer]) -> None:
        """Write the content of unpacked layers to the disk. Raises StorageFull, ImageError."""
        if fresh := [layer for layer in layers if not layer.recorded]:
            await asyncio.to_thread(self._sync, fresh)

    def _sync(self, layers: Sequence[Layer]) -> None:
        with explained(f"write {self._temporary}"):
            if not all(layer.indexed for layer in layers):
                sync_filesystem(self._temporary)
                return
            # They are few files: nothing has to wait for what containers have written to the file system.
            for layer in layers:
                for file in (layer.path / TAR, layer.path / INDEX, layer.blob):
                    with suppress(FileNotFoundError):  # blobs are not always kept
                        sync_file(file)
                sync_directory(layer.path)

    async def settle(self, layers: Sequence[Layer]) -> None:
        """Give synced layers their final names, which must precede their recording. Raises StorageFull, ImageError."""
        if layers:
            await asyncio.to_thread(self._settle, layers)

    def _settle(self, layers: Sequence[Layer]) -> None:
        with explained(f"write {self._final}"):
            for layer in layers:
                final = self._final / base36(layer.number)
                if layer.path != final:
                    with suppress(FileNotFoundError):
                        os.rename(layer.blob, blob_of(final))
                    os.rename(layer.path, final)
                    layer.path = final
                if layer.record is not None:
                    layer.record = replace(layer.record, sealed=time.time_ns())
            sync_directory(self._final)
            sync_directory(self._temporary)


def _unlink(directories: Sequence[Path], held: list[int]) -> None:
    for directory in directories:
        with explained(f"remove {directory}"):
            unlink_indexed(directory, held)


def _close(mounts: Sequence[Mounted], descriptors: Sequence[int]) -> None:
    for mounted in mounts:
        mounted.unmount()
    for descriptor in descriptors:
        os.close(descriptor)


def _adopt_root(layer: Layer, lower: Below) -> bool:
    """Copy the attributes of the root of the layer below to this layer's root; return False if that is impossible."""
    with explained(f"unpack layer into {layer.path}"):
        below = open_root([os.fspath(name) for name in lower.names], seal=lower.seal)
        try:
            seen = Seen.of(below)
            if not layer.indexed:
                with opened(layer.path) as top:
                    Real().adopt(top, seen)
            elif seen.xattrs:  # they do not fit in the written index
                return False
            else:
                describe(layer.path / INDEX, [(ROOT, seen.about)])
        finally:
            os.close(below)
    return True


def _retrieve(task: asyncio.Task[None]) -> None:
    """Mark a task's exception as retrieved: waiters have got it, but maybe nobody waited."""
    with suppress(asyncio.CancelledError):
        task.exception()
