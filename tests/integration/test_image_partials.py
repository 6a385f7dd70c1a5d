"""What came of a large layer stays when crispd ends: the next pull asks for the rest only, and trusts nothing of it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from aiohttp import web

from cri.admin.v1 import admin_pb2
from cri.v1 import api_pb2 as cri
from image.errors import DigestMismatch, ImageError, InvalidImage, RegistryUnavailable
from image.model import PullPhase, PullProgress
from image.settings import ImageSettings
from image.store import ImageStore
from tests import faulty_registry
from tests.daemon import Daemon
from tests.faulty_registry import FaultyRegistry
from tests.images import BuiltImage, build_image, entry, layer
from tests.registry import Registry
from tests.waiting import eventually, until

SIZE = 48 << 20  # bytes of a layer that comes by one connection


def test_a_killed_crispd_asks_a_real_registry_for_the_rest(tmp_path: Path) -> None:
    room = shutil.disk_usage(tmp_path)
    if room.free < room.total // 8:
        pytest.skip("the disk is too full for crispd to keep anything")
    built = build_image([layer(entry("x", os.urandom(SIZE)))])
    blob = max(built.blobs, key=lambda key: len(built.blobs[key]))
    whole = len(built.blobs[blob])
    with Registry(tmp_path / "registry", access_log=True) as registry, Daemon.running() as daemon:
        registry.push("a", "1", built)
        request = cri.PullImageRequest(image=cri.ImageSpec(image=f"{registry.host}/a:1"))
        partial = daemon.root / "image/partial" / blob.removeprefix("sha256:")
        with ThreadPoolExecutor(1) as pool, slowly():
            pull = pool.submit(daemon.images.PullImage, request)
            until(lambda: partial.exists() and partial.stat().st_size > SIZE // 4)
            daemon.kill9()
            with pytest.raises(grpc.RpcError):
                pull.result()
        came = partial.stat().st_size
        assert SIZE // 4 < came < whole
        daemon.start()
        image = daemon.images.PullImage(request).image_ref
        assert [answer for answer in registry.answers(blob) if answer[0] != 200] == [(206, whole - came)]
        verdicts = daemon.admin.VerifyImages(admin_pb2.VerifyImagesRequest(image=image)).images
        assert [list(verdict.problems) for verdict in verdicts] == [[]]
        assert list(partial.parent.iterdir()) == []
        daemon.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=image)))


@contextmanager
def slowly() -> Iterator[None]:
    """All connections of this namespace together have four megabytes a second: the layer takes twelve seconds."""
    limit = ["tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", "32mbit", "burst", "256kb", "latency", "200ms"]
    subprocess.run(limit, check=True)
    try:
        yield
    finally:
        subprocess.run(["tc", "qdisc", "del", "dev", "lo", "root"], check=True)


async def test_what_comes_within_seconds_is_not_kept(tmp_path: Path) -> None:
    built = build_image([layer(entry("x", os.urandom(24 << 20)))])
    blob = max(built.blobs, key=lambda key: len(built.blobs[key]))
    partial = tmp_path / "image/partial" / blob.removeprefix("sha256:")
    sizes: list[tuple[int, int]] = []

    def look(step: PullProgress) -> None:
        if step.layer == blob and step.phase == PullPhase.PULLING:
            sizes.append((step.offset, partial.stat().st_size))

    async with FaultyRegistry({"a:1": built}).running() as registry:
        store = await ImageStore.open(tmp_path / "image", tmp_path / "none")
        await store.pull(f"{registry.host}/a:1", progress=look)
        await store.close()
    assert any(size for _, size in sizes)
    assert {size for offset, size in sizes if offset > 16 << 20} == {0}  # the worker is at most 4 MiB behind
    assert list(partial.parent.iterdir()) == []


# --- a store whose large layers are small ones


@dataclass
class Halfway:
    """A store after a crispd that ended when half of the only layer of an image had come."""

    root: Path
    registry: FaultyRegistry
    built: BuiltImage
    blob: str
    content: bytes
    settings: ImageSettings

    @property
    def reference(self) -> str:
        return f"{self.registry.host}/a:1"

    @property
    def path(self) -> str:
        return self.registry.blob_path("a", self.blob)

    @property
    def partial(self) -> Path:
        return self.root / "partial" / self.blob.removeprefix("sha256:")

    @property
    def half(self) -> int:
        return len(self.built.blobs[self.blob]) // 2

    def asked(self) -> list[str]:
        """Return the ranges of the requests after the one that gave half."""
        return [seen.range for seen in self.registry.seen if seen.path == self.path][1:]

    def left(self) -> set[str]:
        places = ("partial", "tmp", "layers")
        return {f"{place}/{path.name}" for place in places for path in (self.root / place).iterdir()} - {"layers/0"}

    @asynccontextmanager
    async def store(self) -> AsyncIterator[ImageStore]:
        opened = await ImageStore.open(self.root, self.root / "none", self.settings)
        try:
            yield opened
        finally:
            await opened.close()

    async def comes_right(self) -> None:
        """The next pull makes the image, and leaves no more than it."""
        async with self.store() as store:
            image = await store.pull(self.reference)
            assert (store.layers(image)[0] / "x").read_bytes() == self.content
            assert [verdict.problems for verdict in await store.verify()] == [()]
            blobs = {"layers/1.blob"} if self.settings.keep_blobs else set()
            assert self.left() == {"layers/1"} | blobs
            assert store.pulls.counts.layers_fetched == 1


@pytest.fixture(autouse=True)
def any_blob_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """And this machine's disk, which others use, never short."""
    for name, value in (("LARGE", 1000), ("_TIMES", 1), ("_SHORT", 0.0)):
        monkeypatch.setattr(f"image.shelf.partials.{name}", value)


@asynccontextmanager
async def halfway(root: Path, kind: str = "auto", *, keep_blobs: bool = False) -> AsyncIterator[Halfway]:
    content = os.urandom(600_000)
    built = build_image([layer(entry("x", content))])
    async with FaultyRegistry({"a:1": built}).running() as registry:
        blob = max(built.blobs, key=lambda key: len(built.blobs[key]))
        settings = ImageSettings(image_layers=kind, keep_blobs=keep_blobs)
        it = Halfway(root, registry, built, blob, content, settings)
        registry.faults[it.path] = [faulty_registry.endless_wait]
        async with it.store() as store:
            pull = asyncio.create_task(store.pull(it.reference))
            await eventually(lambda: it.partial.exists() and it.partial.stat().st_size == it.half)
        assert pull.cancelled()
        assert it.left() == {f"partial/{it.partial.name}"}
        yield it


@pytest.mark.parametrize(("kind", "keep_blobs"), [("auto", False), ("auto", True), ("unpacked", False)])
async def test_the_rest_is_asked_for(kind: str, keep_blobs: bool, tmp_path: Path) -> None:
    async with halfway(tmp_path / "image", kind, keep_blobs=keep_blobs) as it:
        await it.comes_right()
        assert it.asked() == [f"bytes={it.half}-"]
        if keep_blobs:
            assert (it.root / "layers/1.blob").read_bytes() == it.built.blobs[it.blob]


async def test_what_came_as_a_whole_is_not_asked_for(tmp_path: Path) -> None:
    async with halfway(tmp_path / "image") as it:
        it.partial.write_bytes(it.built.blobs[it.blob])
        await it.comes_right()
        assert it.asked() == []


async def test_a_damaged_part_is_fetched_again(tmp_path: Path) -> None:
    async with halfway(tmp_path / "image") as it:
        there = it.partial.read_bytes()
        it.partial.write_bytes(there[:-1] + bytes((there[-1] ^ 1,)))
        await it.comes_right()
        assert it.asked() == [f"bytes={it.half}-", ""]


async def test_a_part_that_is_longer_than_the_whole_is_none(tmp_path: Path) -> None:
    async with halfway(tmp_path / "image") as it:
        it.partial.write_bytes(bytes(2 * it.half + 2))
        await it.comes_right()
        assert it.asked() == [""]


async def test_a_registry_without_ranges_sends_everything(tmp_path: Path) -> None:
    async with halfway(tmp_path / "image") as it:
        it.registry.always[it.path] = faulty_registry.whole_again
        await it.comes_right()
        assert it.asked() == [f"bytes={it.half}-"]


async def test_another_blob_under_the_same_name_is_refused_and_nothing_of_it_stays(tmp_path: Path) -> None:
    async with halfway(tmp_path / "image") as it:

        async def changed(request: web.Request, content: bytes) -> web.StreamResponse | None:
            return await faulty_registry.whole_again(request, content[:-100] + bytes(100))

        it.registry.always[it.path] = changed
        async with it.store() as store:
            with pytest.raises((DigestMismatch, InvalidImage)):
                await store.pull(it.reference)
            assert it.left() == set()
        assert it.asked() == [f"bytes={it.half}-", ""]
        it.registry.always.clear()
        await it.comes_right()


async def test_a_killed_worker_takes_its_part_along(tmp_path: Path) -> None:
    async with halfway(tmp_path / "image") as it:
        it.registry.faults[it.path] = [faulty_registry.half]  # a quarter of it

        async with it.store() as store:
            pull = asyncio.create_task(store.pull(it.reference))
            await eventually(lambda: it.partial.stat().st_size > it.half)
            for worker in _having_open(it.partial):
                os.kill(worker, signal.SIGKILL)
            with pytest.raises(ImageError, match="its worker was killed"):
                await pull
            assert it.left() == set()
        await it.comes_right()


def _having_open(path: Path) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if process.name != str(os.getpid()):
                found += [int(process.name) for file in (process / "fd").iterdir() if os.readlink(file) == str(path)]
    return found


async def test_what_came_stays_if_the_registry_goes_away_and_not_if_the_caller_does(tmp_path: Path) -> None:
    async def away(request: web.Request, content: bytes) -> web.StreamResponse | None:
        return web.Response(status=503)

    async with halfway(tmp_path / "image") as it:
        it.registry.faults[it.path] = [away] * 3
        async with it.store() as store:
            whole = len(it.built.blobs[it.blob])
            with pytest.raises(RegistryUnavailable, match=f"answered 503; {it.half} of {whole} bytes in all"):
                await store.pull(it.reference)
            assert it.left() == {f"partial/{it.partial.name}"}
            it.registry.faults[it.path] = [faulty_registry.endless_wait]
            pull = asyncio.create_task(store.pull(it.reference))
            await eventually(lambda: not it.registry.faults[it.path])
            pull.cancel()
            await asyncio.wait([pull])
            await eventually(lambda: not it.left())


async def test_old_parts_and_others_files_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a store is opened; and if the disk is short, when an image is removed, as kubelet does then."""
    async with halfway(tmp_path / "image") as it:
        (it.partial.parent / "other").touch()
        async with it.store() as store:
            await eventually(lambda: it.left() == {f"partial/{it.partial.name}"})
            assert it.partial in (await store.accounts(())).unfinished
            assert store.usage()[0].bytes > it.half
            await store.remove("none")
            assert it.partial.exists()
            monkeypatch.setattr("image.shelf.partials._SHORT", 2.0)
            await store.remove("none")
            assert it.left() == set()
            monkeypatch.setattr("image.shelf.partials._SHORT", 0.0)
        it.partial.touch()
        long_ago = time.time() - 7200
        os.utime(it.partial, (long_ago, long_ago))
        async with it.store():
            await eventually(lambda: not it.left())
