"""The directories of layers: each made once, made durable, shared, and removed with its last user.

A layer is made as tmp/<n> and becomes layers/<n>, where <n> is a short base 36 number: an overlay mount names all of an
image's layers in one page of memory. Users of a layer are recorded images, and pulls in flight.

What is in the directory is the layer's files, or, of an indexed one, its tar and the index by which the kernel mounts
that. Such a mount is in no mount table: a descriptor of ours holds it up, from its first use to the layer's end.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from image.erofs.index import describe_root
from image.erofs.mount import INDEX, TAR, mount, name_of
from image.errors import ImageError
from image.shelf.database import INDEXED, UNPACKED, LayerRecord
from image.shelf.layer_files import (
    base36,
    blob_of,
    explained,
    make_layer_directory,
    opened,
    sync_directory,
    sync_filesystem,
)
from image.unpack.layer_root import open_root
from image.unpack.overlay import adopt_root, has_attributes, is_opaque
from image.unpack.workers import Below, Unpacked, Workers

_UNPACKERS = 16  # layers unpacked at a time, of all pulls: each is a process of some 15 MB
_PARALLEL = 4  # of one pull: a registry that drips holds up itself, not the others' pulls
_TRIES = 3


Make = Callable[[int, Path], Awaitable[Unpacked]]


@dataclass(slots=True, eq=False)
class Layer:
    """A layer in use. `record` is None until it is unpacked; `recorded` tells whether the database has it.

    One that is `lent` is another store's: it is not ours to remove, nor does it take our disk.
    """

    chain_id: str
    number: int
    path: Path
    users: int = 0
    record: LayerRecord | None = None
    recorded: bool = False
    making: asyncio.Task[None] | None = None
    lent: bool = False
    indexed: bool = False
    _hides: bool | None = None
    _mount: int | None = None

    @property
    def root(self) -> Path:
        """The directory that has its files. Raises ImageError."""
        if not self.indexed:
            return self.path
        if self._mount is None:
            with explained(f"mount layer in {self.path}"):
                self._mount = mount(self.path)
        return name_of(self._mount)

    def unmount(self) -> None:
        """Let go of the mount. Containers that have it below them keep it."""
        if self._mount is not None:
            os.close(self._mount)
            self._mount = None

    @property
    def blob(self) -> Path:
        """Where the layer is kept as it came, if blobs are kept."""
        return blob_of(self.path)

    @property
    def tar(self) -> Path | None:
        """The tar of an indexed layer."""
        return self.path / TAR if self.indexed else None

    @property
    def hides_below(self) -> bool:
        """Whether nothing of the layers below it is to be seen. overlayfs would not look whether a root says so."""
        if self._hides is None:
            with explained(f"read {self.path}"), opened(self.root) as root:
                self._hides = is_opaque(root)
        return self._hides

    @property
    def failed(self) -> bool:
        return self.making is not None and self.making.done() and self.record is None


class Layers:
    """The layers below a store's `root`. Belongs to one event loop.

    `forget(chain_ids)` takes layers out of the durable record; `workers` remove them;
    `parallel` layers of one image are made at a time.
    """

    def __init__(
        self,
        root: Path,
        forget: Callable[[Sequence[str]], Awaitable[None]],
        workers: Workers,
        parallel: int = _PARALLEL,
    ) -> None:
        self._final = root / "layers"
        self._temporary = root / "tmp"
        self._forget = forget
        self._workers = workers
        self._parallel = parallel
        self._layers: dict[str, Layer] = {}
        self._next = 1
        self._unpackers = asyncio.Semaphore(_UNPACKERS)

    def load(self, records: Iterable[LayerRecord]) -> None:
        """Take over what the durable record has; nobody uses it yet."""
        for record in records:
            path = self._final / base36(record.number)
            indexed = record.kind == INDEXED
            layer = Layer(record.chain_id, record.number, path, 0, record, recorded=True, indexed=indexed)
            self._layers[record.chain_id] = layer
            self._next = max(self._next, record.number + 1)

    def lend(self, records: Iterable[tuple[LayerRecord, Path]]) -> None:
        """Have other stores' layers, in their directories, for those that are not here."""
        for record, path in records:
            if record.chain_id not in self._layers:
                layer = Layer(record.chain_id, 0, path, 1, record, recorded=True, lent=True)
                layer.indexed = record.kind == INDEXED
                self._layers[record.chain_id] = layer

    def close(self) -> None:
        """Let go of the mounts."""
        for layer in self._layers.values():
            layer.unmount()

    def stack(self, chain_ids: Sequence[str]) -> list[Path]:
        """The directories to mount, topmost first: down to the first that hides what is below. Raises ImageError."""
        paths: list[Path] = []
        for chain_id in reversed(chain_ids):
            layer = self._layers[chain_id]
            paths.append(layer.root)
            if layer.hides_below:
                break
        return paths

    def get(self, chain_ids: Iterable[str]) -> list[Layer]:
        """Layers that exist."""
        return [self._layers[chain_id] for chain_id in chain_ids]

    def size(self, chain_ids: Iterable[str]) -> int:
        """Bytes that unpacked layers take."""
        records = [self._layers[chain_id].record for chain_id in chain_ids]
        return sum(record.size for record in records if record is not None)

    def usage(self) -> tuple[int, int]:
        """Bytes and inodes of all our unpacked layers."""
        own = [layer for layer in self._layers.values() if not layer.lent]
        records = [layer.record for layer in own if layer.record is not None]
        return sum(record.size for record in records), sum(record.inodes for record in records)

    # --- users

    def use(self, chain_ids: Iterable[str]) -> None:
        """Count one more user of layers that exist."""
        for chain_id in chain_ids:
            self._layers[chain_id].users += 1

    def drop(self, chain_ids: Iterable[str]) -> list[Layer]:
        """Count one user less; those nobody uses now are gone from here, for the caller to forget and `discard`."""
        return self._drop([self._layers[chain_id] for chain_id in chain_ids])

    def _drop(self, layers: Iterable[Layer]) -> list[Layer]:
        dead: list[Layer] = []
        for layer in layers:
            layer.users -= 1
            if not layer.users:
                dead.append(layer)
            # A failed one has no future even while others still wait for it: who asks from now on begins anew.
            if (not layer.users or layer.failed) and self._layers.get(layer.chain_id) is layer:
                del self._layers[layer.chain_id]
        return dead

    async def discard(self, dead: Sequence[Layer]) -> None:
        """Remove the directories of dropped layers, ending what still makes them. Raises ImageError."""
        making = [layer.making for layer in dead if layer.making is not None]
        for task in making:
            task.cancel()
        if making:
            await asyncio.wait(making)
        for layer in dead:
            layer.unmount()
        await self._workers.remove_trees([path for layer in dead for path in (layer.path, layer.blob)])

    @asynccontextmanager
    async def acquired(self, chain_ids: Sequence[str], make: Make) -> AsyncIterator[list[Layer]]:
        """The layers of `chain_ids`, lowest first, unpacked and kept for the time of the context.

        `make(position, directory)` unpacks one that does not exist; one that somebody else is making is waited for.
        Raises what `make` raises.
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
                # That another pull failed (its credentials, its registry) is no reason for this one to fail.
                if not isinstance(error, ImageError) or culprit is None or culprit in mine or attempt == _TRIES:
                    raise
        raise AssertionError("unreachable")

    async def _let_go(self, layers: Sequence[Layer]) -> None:
        dead = self._drop(layers)
        if recorded := [layer.chain_id for layer in dead if layer.recorded]:
            await self._forget(recorded)
        await self.discard(dead)

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
            layer = Layer(chain_id, self._next, self._temporary / base36(self._next))
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
        async with turns, self._unpackers:
            make_layer_directory(layer.path)
            unpacked = await make(position, layer.path)
        with unpacked.unsettled or nullcontext():
            for below in reversed(lower):  # when one is there, so are those below it: the rest is a look
                if below.making is not None and below.record is None:
                    await asyncio.shield(below.making)
            layer.indexed = unpacked.indexed
            size, inodes = await self._finish(layer, unpacked, [self._below(one) for one in reversed(lower)])
        layer.record = LayerRecord(
            *(layer.chain_id, layer.number, unpacked.size - size, unpacked.inodes - inodes),
            kind=INDEXED if unpacked.indexed else UNPACKED,
        )

    async def _finish(self, layer: Layer, unpacked: Unpacked, lowers: Sequence[Below]) -> tuple[int, int]:
        """Do what was left for when the layers below are there: the bytes and inodes that it saved."""
        if unpacked.unsettled is not None:
            async with self._unpackers:
                if layer.indexed:
                    return await self._workers.index_again(layer.path, lowers), 0
                return await self._workers.settle(layer.path, lowers, unpacked.unsettled)
        if unpacked.adopts_root and lowers and not await asyncio.to_thread(_adopt_root, layer, lowers[0]):
            async with self._unpackers:
                return await self._workers.index_again(layer.path, lowers), 0
        return 0, 0

    def _below(self, layer: Layer) -> Below:
        """Where a layer that is there may be found: another pull may give it its final name just now."""
        names = (layer.path,) if layer.lent else (layer.path, self._final / base36(layer.number))
        return Below(names, layer.indexed)

    async def sync(self, layers: Sequence[Layer]) -> None:
        """Bring the content of unpacked layers to the disk. Raises StorageFull, ImageError."""
        if any(not layer.recorded for layer in layers):
            await asyncio.to_thread(self._sync)

    def _sync(self) -> None:
        with explained(f"write {self._temporary}"):
            sync_filesystem(self._temporary)

    async def settle(self, layers: Sequence[Layer]) -> None:
        """Give synced layers their final names; only then may they be recorded. Raises StorageFull, ImageError."""
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


def _adopt_root(layer: Layer, lower: Below) -> bool:
    """Give the root of a layer what the one below says of its own; whether that could be done."""
    with explained(f"unpack layer into {layer.path}"):
        below = open_root([os.fspath(name) for name in lower.names], indexed=lower.indexed)
        try:
            if layer.indexed:
                if has_attributes(below):  # for which its index has no room
                    return False
                describe_root(layer.path / INDEX, os.fstat(below))
            else:
                with opened(layer.path) as top:
                    adopt_root(top, below)
        finally:
            os.close(below)
    return True


def _retrieve(task: asyncio.Task[None]) -> None:
    """Mark a task's failure as seen: who waited for it has got it, and maybe nobody did."""
    with suppress(asyncio.CancelledError):
        task.exception()
