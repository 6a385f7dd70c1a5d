"""`python -m tests.bench pull`: time, processors and memory of pulls, and pods whose images must be pulled first."""

from __future__ import annotations

import asyncio
import gzip
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console

from tests.bench import report
from tests.bench.machine import memory_bytes, used_by
from tests.bench.phases import Contender
from tests.images import build_image, busybox_layer, digest, entry, layer
from tests.registry import Registry

LAYERS, FILES, SIZE = 10, 40_000, 500 << 20  # of the large image, beside busybox; SIZE in bytes, unpacked
SMALL, SMALL_FILES = 30, 60
LARGE_NAME, SMALL_NAME = "bench/large", "bench/small"
_WORDS = 4096
_SAMPLE_SECONDS = 0.02
_REST_SECONDS = 1.0  # containerd removes in the background
_MEBI = 1 << 20

FIGURES = (
    *(
        report.Figure(f"{images}{what}", unit, tail=False)
        for images in ("large", "small")
        for what, unit in (("", "s"), (", CPU", "s"), (", removal", "s"), (", peak memory", "MiB"))
    ),
    report.Figure("pod start, large image not there", "s", tail=False),
    report.Figure("pod start, small image not there", "s", tail=False),
)


def fill(registry: Registry) -> None:
    """Push the images. They are the same every time."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:  # gRPC's threads do not survive a fork
        layers = list(pool.map(_large_layer, range(LAYERS)))
    busybox = _compressed(busybox_layer())
    _push(registry, LARGE_NAME, [busybox, *layers])
    for number in range(SMALL):
        # A pod is started of the first one.
        _push(registry, f"{SMALL_NAME}{number}", [*([] if number else [busybox]), _small_layer(number)])


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


async def measure(contenders: Sequence[Contender], rounds: int, registry: Registry, console: Console) -> None:
    """Everything for every runtime in turn, `rounds` times, and once more for memory (looking at it takes time)."""
    large = [f"{registry.host}/{LARGE_NAME}:1"]
    small = [f"{registry.host}/{SMALL_NAME}{number}:1" for number in range(SMALL)]
    for number in range(rounds + 1):
        for what, names in (("large", large), ("small", small)):
            console.print(f"round {number + 1}/{rounds + 1}: {what}", style="dim")
            for one in contenders if number % 2 else reversed(contenders):
                if number == rounds:
                    with _peak(one) as peak:
                        await _pull(one, names)
                    one.note({f"{what}, peak memory": peak() / _MEBI})
                else:
                    one.note({f"{what}{name}": taken for name, taken in (await _pull(one, names)).items()})
                    one.note({f"pod start, {what} image not there": await _cold_start(one, names[0])})


async def _pull(one: Contender, names: Sequence[str]) -> dict[str, float]:
    """Pull all of `names` at once, and remove them afterwards: the seconds of each, and the pulls' processor time."""
    used, before = used_by(one.peer.cgroups), time.perf_counter()
    await asyncio.gather(*(one.client.pull(name) for name in names))
    taken = {"": time.perf_counter() - before, ", CPU": used_by(one.peer.cgroups) - used}
    taken[", removal"] = sum([(await one.client.remove_image(name))["RemoveImage"] for name in names]) / 1000
    await asyncio.sleep(_REST_SECONDS)
    return taken


async def _cold_start(one: Contender, name: str) -> float:
    """The seconds in which kubelet's calls start a pod whose image must be pulled."""
    pod, times = await one.client.run_pod(pull=name)
    await one.client.remove_pod(pod)
    await one.client.remove_image(name)
    await asyncio.sleep(_REST_SECONDS)
    return times["pod start"] / 1000


class _peak:
    """Looks at the memory of a daemon and its workers until it is left; called, it gives the largest sum in bytes."""

    def __init__(self, one: Contender) -> None:
        self._peer = one.peer
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
            # What a worker shares with the process that forked it is counted right only if both stand still.
            with self._peer.frozen():
                self._largest = max(self._largest, memory_bytes(self._peer.daemon_pids()))


async def run(
    contenders: Sequence[Contender], rounds: int, directory: Path, versions: dict[str, str], console: Console
) -> None:
    """Fill a registry, measure, report."""
    with Registry(directory / "registry") as registry:
        console.print("making the images", style="dim")
        fill(registry)
        for one in contenders:
            one.peer.move_into_cgroup()
        await measure(contenders, rounds, registry, console)
    report.print_table({one.peer.name: one.samples for one in contenders}, versions, console, FIGURES)
