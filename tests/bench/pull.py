"""`python -m tests.bench pull`: how long pulls take, and what memory: one large image, and many small ones at once."""

from __future__ import annotations

import asyncio
import gzip
import random
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
from rich.console import Console
from rich.table import Table

from cri.v1 import api_pb2, api_pb2_grpc
from tests.bench.machine import memory_bytes
from tests.bench.peers import Peer
from tests.images import build_image, digest, entry, layer
from tests.registry import Registry

LAYERS, FILES, SIZE = 10, 40_000, 500 << 20  # of the large image; SIZE in bytes, unpacked
SMALL, SMALL_FILES = 30, 60
LARGE_NAME, SMALL_NAME = "bench/large", "bench/small"
_WORDS = 4096
_SAMPLE_SECONDS = 0.02


@dataclass(eq=False)
class Puller:
    """One runtime, and what its pulls took."""

    peer: Peer
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    removals: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    memory: dict[str, int] = field(default_factory=dict)  # peak of the daemon's processes in bytes


def fill(registry: Registry) -> None:
    """Push the images. They are the same every time."""
    with ProcessPoolExecutor() as pool:
        layers = list(pool.map(_large_layer, range(LAYERS)))
    _push(registry, LARGE_NAME, layers)
    for number in range(SMALL):
        _push(registry, f"{SMALL_NAME}{number}", [_small_layer(number)])


def _push(registry: Registry, repository: str, layers: Sequence[tuple[bytes, str]]) -> None:
    # The tars are large: only their compressed forms and digests are kept.
    blobs = [blob for blob, _ in layers]
    diff_ids = [diff_id for _, diff_id in layers]
    image = build_image(blobs, compressed=False, layer_type=_GZIP_LAYER, diff_ids=diff_ids)
    registry.push(repository, "1", image)


_GZIP_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def _large_layer(number: int) -> tuple[bytes, str]:
    """A tenth of the image: files of 0.1 to 10 times the mean size in directories of 50, half text, half noise."""
    chance = random.Random(number)
    words = [chance.randbytes(chance.randint(3, 12)).hex().encode() for _ in range(_WORDS)]
    count, mean = FILES // LAYERS, SIZE // FILES
    entries = []
    for index in range(count):
        if index % 50 == 0:
            entries.append(entry(f"usr/lib/part{number}/d{index // 50}/"))
        size = int(mean * 10 ** chance.uniform(-1, 1) / 2.15)  # the mean of 10**uniform(-1, 1) is 2.15
        content = b" ".join(chance.choices(words, k=size // 17 + 1)) if index % 2 else chance.randbytes(size)
        entries.append(entry(f"usr/lib/part{number}/d{index // 50}/file{index}", content[:size]))
    return _compressed(layer(*entries))


def _small_layer(number: int) -> tuple[bytes, str]:
    chance = random.Random(1000 + number)
    return _compressed(layer(*(entry(f"app/{index}", chance.randbytes(8000)) for index in range(SMALL_FILES))))


def _compressed(tar: bytes) -> tuple[bytes, str]:
    return gzip.compress(tar, 6, mtime=0), digest(tar)


async def measure(peers: Sequence[Peer], rounds: int, registry: Registry, console: Console) -> list[Puller]:
    """Each pull for every runtime in turn, `rounds` times, and once more for memory (looking at it takes time)."""
    pullers = [Puller(peer) for peer in peers]
    large = [f"{registry.host}/{LARGE_NAME}:1"]
    small = [f"{registry.host}/{SMALL_NAME}{number}:1" for number in range(SMALL)]
    for number in range(rounds + 1):
        for what, names in (("one image of 500 MB", large), (f"{SMALL} small images at once", small)):
            console.print(f"round {number + 1}/{rounds + 1}: {what}", style="dim")
            for puller in pullers if number % 2 else reversed(pullers):
                if number == rounds:
                    with _peak(puller.peer) as peak:
                        await _pull(puller.peer, names)
                    puller.memory[what] = peak()
                else:
                    pulled, removed = await _pull(puller.peer, names)
                    puller.seconds[what].append(pulled)
                    puller.removals[what].append(removed)
    return pullers


async def _pull(peer: Peer, names: Sequence[str]) -> tuple[float, float]:
    """Pull all of `names` at once, and remove them afterwards: the seconds of each."""
    async with grpc.aio.insecure_channel(peer.address, options=(("grpc.default_authority", "localhost"),)) as channel:
        images: Any = api_pb2_grpc.ImageServiceStub(channel)
        specs = [api_pb2.ImageSpec(image=name) for name in names]
        before = time.perf_counter()
        await asyncio.gather(*(images.PullImage(api_pb2.PullImageRequest(image=spec)) for spec in specs))
        taken = time.perf_counter() - before
        before = time.perf_counter()
        for spec in specs:
            await images.RemoveImage(api_pb2.RemoveImageRequest(image=spec))
        removed = time.perf_counter() - before
        await asyncio.sleep(1)  # containerd removes in the background
        return taken, removed


class _peak:
    """Looks at the memory of a daemon and its workers until it is left; called, it gives the largest sum in bytes."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._largest = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Callable[[], int]:
        self._thread.start()
        return lambda: self._largest

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            self._largest = max(self._largest, memory_bytes(self._peer.daemon_pids()))


def report(pullers: Sequence[Puller], versions: dict[str, str], console: Console) -> dict[str, Any]:
    """Print the medians; the same as a document."""
    table = Table(title="pulls from a registry on this machine")
    table.add_column("")
    for puller in pullers:
        table.add_column(f"{puller.peer.name}\n{versions[puller.peer.name]}", justify="right")
    for what in pullers[0].seconds:
        table.add_row(f"{what}, s", *(f"{statistics.median(puller.seconds[what]):.2f}" for puller in pullers))
        removals = (f"{statistics.median(puller.removals[what]):.2f}" for puller in pullers)
        table.add_row("  their removal, s", *removals)
        table.add_row("  peak memory, MiB", *(f"{puller.memory[what] / 2**20:.0f}" for puller in pullers))
    console.print(table)
    return {
        one.peer.name: {"seconds": dict(one.seconds), "removals": dict(one.removals), "memory": one.memory}
        for one in pullers
    }


async def run(
    peers: Sequence[Peer], rounds: int, directory: Path, versions: dict[str, str], console: Console
) -> dict[str, Any]:
    """Fill a registry, measure, report."""
    with Registry(directory / "registry") as registry:
        console.print("making the images", style="dim")
        fill(registry)
        return report(await measure(peers, rounds, registry, console), versions, console)
