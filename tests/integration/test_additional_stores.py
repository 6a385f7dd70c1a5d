"""Additional image stores: read, shared, never changed."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from image.errors import ImageReadOnly
from image.settings import ImageSettings
from image.store import ImageStore
from tests.daemon import CALL_SECONDS, Daemon
from tests.images import build_image, busybox_image, busybox_layer, busybox_layout, entry, layer
from tests.registry import Registry

SHARED = "localhost/shared:1"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry")) as running:
        running.push("busybox", "1", busybox_image())
        running.push("more", "1", build_image([busybox_layer(), layer(entry("more", b"more\n"))]))
        yield running


async def _filled(tmp_path: Path, kind: str) -> Path:
    """A store with busybox in it, closed."""
    path = tmp_path / "additional"
    store = await ImageStore.open(path, tmp_path / "registries.conf", ImageSettings(image_layers=kind))
    await store.import_archive(busybox_layout(tmp_path / "layout", SHARED))
    await store.close()
    return path


def _mounted_read_only(tmp_path: Path, kind: str) -> Iterator[Path]:
    """Fill a store, and mount it read-only."""
    path = asyncio.run(_filled(tmp_path, kind))
    subprocess.run(["mount", "--bind", path, path], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.fixture
def additional(tmp_path: Path) -> Iterator[Path]:
    yield from _mounted_read_only(tmp_path, "unpacked")


@pytest.fixture
def indexed(tmp_path: Path) -> Iterator[Path]:
    yield from _mounted_read_only(tmp_path, "erofs")


async def _open(tmp_path: Path, *additional: Path) -> ImageStore:
    settings = ImageSettings(additional_stores=additional, image_layers="unpacked")
    return await ImageStore.open(tmp_path / "own", tmp_path / "registries.conf", settings)


async def test_an_image_is_there_and_stays(tmp_path: Path, additional: Path) -> None:
    store = await _open(tmp_path, additional)
    (image,) = store.images()
    assert image.repo_tags == (SHARED,)
    assert image.pinned  # or kubelet would try to remove it when the disk gets full
    assert [path.parent for path in store.layers(image)] == [additional / "layers"]
    assert [verdict.problems for verdict in await store.verify()] == [()]
    with pytest.raises(ImageReadOnly, match="additional store"):
        await store.remove(SHARED)
    empty = await ImageStore.open(tmp_path / "empty", tmp_path / "registries.conf")
    assert store.usage()[0].inodes == empty.usage()[0].inodes  # what others lend is not on our disk
    await empty.close()
    await store.close()


async def test_mounted_layers_of_additional_stores(tmp_path: Path, indexed: Path) -> None:
    """And nothing keeps their file system busy when the store is closed."""
    store = await _open(tmp_path, indexed)
    (image,) = store.images()
    (only,) = store.layers(image)
    assert (only / "bin/busybox").read_bytes() == Path("/bin/busybox").read_bytes()
    assert [about["kind"] for about in store.layer_sizes(image)] == ["tar+erofs"]
    await store.close()


async def test_a_pull_of_what_is_there_fetches_no_layer(tmp_path: Path, additional: Path, registry: Registry) -> None:
    """The image becomes ours by its new name, and is the other store's again when that is removed."""
    store = await _open(tmp_path, additional)
    pulled = await store.pull(f"{registry.host}/busybox:1")
    (image,) = store.images()
    assert (pulled.id, set(image.repo_tags), image.pinned) == (image.id, {SHARED, f"{registry.host}/busybox:1"}, False)
    await store.close()
    store = await _open(tmp_path, additional)
    (image,) = store.images()
    assert set(image.repo_tags) == {SHARED, f"{registry.host}/busybox:1"}
    assert os.listdir(tmp_path / "own/layers") == ["0"]
    await store.remove(image.id)
    (image,) = store.images()
    assert (image.repo_tags, image.pinned) == ((SHARED,), True)
    await store.close()


async def test_layers_are_shared_with_other_images(tmp_path: Path, additional: Path, registry: Registry) -> None:
    store = await _open(tmp_path, additional)
    image = await store.pull(f"{registry.host}/more:1")
    top, base = store.layers(image)
    assert (top.parent, base.parent) == (tmp_path / "own/layers", additional / "layers")
    await store.close()
    # Without the store the image has lost a layer.
    store = await _open(tmp_path)
    assert store.images() == []
    await store.close()


async def test_a_lost_layer_is_the_other_stores(tmp_path: Path, additional: Path) -> None:
    store = await _open(tmp_path)
    (image,) = await store.import_archive(tmp_path / "layout")
    (own,) = store.layers(image)
    await store.close()
    own.rename(tmp_path / "stolen")
    for _ in range(2):
        store = await _open(tmp_path, additional)
        assert [found.id for found in store.images()] == [image.id]
        assert [path.parent for path in store.layers(image)] == [additional / "layers"]
        await store.close()


async def test_stores_that_cannot_be_read_are_left_out(
    tmp_path: Path, additional: Path, caplog: pytest.LogCaptureFixture
) -> None:
    in_use = tmp_path / "in-use"
    shutil.copytree(additional, in_use)
    (in_use / "images.db-wal").write_bytes(b"not empty")
    store = await _open(tmp_path, tmp_path / "absent", in_use, additional)
    assert len(store.images()) == 1
    await store.close()
    told = {record.store: str(record.error) for record in caplog.records if hasattr(record, "store")}
    assert set(told) == {tmp_path / "absent", in_use}
    assert "start and stop that" in told[in_use]


@pytest.mark.cri("ListImages")
@pytest.mark.cri("RemoveImage")
def test_containers_run_from_it(tmp_path: Path, additional: Path) -> None:
    settings = tmp_path / "crisp.toml"
    settings.write_text(f'additional_image_stores = ["{additional}"]\n')
    with Daemon.running(f"--config={settings}") as daemon:
        (image,) = daemon.images.ListImages(cri.ListImagesRequest(), timeout=CALL_SECONDS).images
        assert (list(image.repo_tags), image.pinned) == ([SHARED], True)
        with pytest.raises(grpc.RpcError) as raised:
            daemon.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=SHARED)), timeout=CALL_SECONDS)
        assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        with daemon.pod("lent") as pod:
            container_id = pod.run("sh", "-c", "echo hello; touch /new", image=SHARED)
            assert daemon.wait_exited(container_id).exit_code == 0
            daemon.restart()
            assert pod.log("main").endswith("hello\n")
