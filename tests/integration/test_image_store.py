"""What the store keeps: exports that other tools read, damage that it finds, disks that lose power."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sqlite3
import stat
import struct
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from image.erofs.layout import BLOCK, with_blocks
from image.erofs.seal import Seal
from image.errors import DigestMismatch, ImageError, ImageInUse, ImageNotFound, InvalidImage
from image.model import Image
from image.settings import LAYER_KINDS, ImageSettings
from image.store import ImageStore
from image.unpack.workers import Workers
from tests.daemon import Daemon
from tests.faulty_registry import FaultyRegistry
from tests.images import build_image, busybox_layout, digest, entry, layer, write_layout
from tests.registry import Registry
from tests.waiting import eventually, until


@asynccontextmanager
async def opened(root: Path, keep_blobs: bool = True, kind: str = "unpacked") -> AsyncIterator[ImageStore]:
    settings = ImageSettings(keep_blobs=keep_blobs, image_layers=kind)
    store = await ImageStore.open(root / "image", root / "registries.conf", settings)
    try:
        yield store
    finally:
        await store.close()


@pytest.mark.trial("garbage-delays-no-start", "a store opens without waiting until what a crash left is removed")
async def test_a_store_opens_before_garbage_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New layers get the names that the garbage had, while it is still there."""
    source = busybox_layout(tmp_path / "source", "example.io/busybox:1")
    async with opened(tmp_path) as store:
        (image,) = await store.import_archive(source)
        await store.remove(image.id)
    for left in ("tmp/1", "tmp/archive-0", "layers/1"):
        (tmp_path / "image" / left / "etc").mkdir(parents=True)
    going_on, remove_trees = asyncio.Event(), Workers.remove_trees

    async def slow(workers: Workers, paths: Sequence[Path]) -> None:
        if paths and paths[0].parent.name == "garbage":
            await going_on.wait()
        await remove_trees(workers, paths)

    monkeypatch.setattr(Workers, "remove_trees", slow)
    async with opened(tmp_path) as store:
        (image,) = await store.import_archive(source)
        assert len(list((tmp_path / "image/garbage").iterdir())) == 3
    async with opened(tmp_path) as store:  # goes on where the other was closed
        going_on.set()
        await eventually(lambda: not list((tmp_path / "image/garbage").iterdir()))
        assert await store.verify(image.id)
        assert all((place / "bin/busybox").exists() for place in store.layers(image))


def run(*command: str | Path) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout


def blobs_of(layout: Path) -> set[str]:
    return set(os.listdir(layout / "blobs/sha256"))


async def test_exports_are_byte_exact_for_skopeo_umoci_and_ourselves(tmp_path: Path) -> None:
    source = busybox_layout(tmp_path / "source", "example.io/busybox:1")
    async with opened(tmp_path) as store:
        (image,) = await store.import_archive(source)
        for form in ("oci", "oci-archive", "docker-archive"):
            await store.export("example.io/busybox:1", tmp_path / form, form)
    assert blobs_of(tmp_path / "oci") == blobs_of(source)
    assert not list(tmp_path.glob(".*"))
    (tmp_path / "unpacked").mkdir()
    run("tar", "-xf", tmp_path / "oci-archive", "-C", tmp_path / "unpacked")
    assert blobs_of(tmp_path / "unpacked") == blobs_of(source)

    run("skopeo", "copy", "-q", f"oci-archive:{tmp_path}/oci-archive:1", f"oci:{tmp_path}/by-skopeo:1")
    assert blobs_of(tmp_path / "by-skopeo") == blobs_of(source)
    run("skopeo", "copy", "-q", f"docker-archive:{tmp_path}/docker-archive", f"dir:{tmp_path}/from-docker")
    assert image.id.removeprefix("sha256:") in os.listdir(tmp_path / "from-docker")
    run("umoci", "unpack", "--image", f"{tmp_path}/oci:1", tmp_path / "bundle")
    assert (tmp_path / "bundle/rootfs/bin/busybox").read_bytes() == Path("/bin/busybox").read_bytes()

    for number, form in enumerate(("oci", "oci-archive", "docker-archive")):
        place = tmp_path / f"again{number}"
        place.mkdir()
        async with opened(place) as store:
            (again,) = await store.import_archive(tmp_path / form)
            assert (again.id, again.repo_tags) == (image.id, ("example.io/busybox:1",))


async def test_layers_that_are_mounted_are_exported_without_their_blobs(tmp_path: Path) -> None:
    """As a docker-archive, which has no manifest's digest to keep."""
    tars = [layer(entry("a", b"1")), layer(entry("b", b"2")), layer(entry("a", b"1"))]
    source = write_layout(tmp_path / "source", {"example.io/a:1": build_image(tars)})
    async with opened(tmp_path, keep_blobs=False, kind="erofs") as store:
        (image,) = await store.import_archive(source)
        with pytest.raises(ImageNotFound, match="keep_blobs"):
            await store.export(image.id, tmp_path / "oci", "oci")
        await store.export("example.io/a:1", tmp_path / "out", "docker-archive")
        (tar,) = (tmp_path / "image/layers").glob("2/tar")
        tar.write_bytes(b"damaged")
        with pytest.raises(DigestMismatch, match="run crisp image verify"):
            await store.export(image.id, tmp_path / "again", "docker-archive")
    run("skopeo", "copy", "-q", f"docker-archive:{tmp_path}/out", f"dir:{tmp_path}/from-docker")
    assert image.id.removeprefix("sha256:") in os.listdir(tmp_path / "from-docker")
    (tmp_path / "other").mkdir()
    async with opened(tmp_path / "other") as store:
        assert [again.id for again in await store.import_archive(tmp_path / "out")] == [image.id]


async def test_what_cannot_be_exported_leaves_no_file(tmp_path: Path) -> None:
    source = busybox_layout(tmp_path / "source", "example.io/busybox:1")
    async with opened(tmp_path, keep_blobs=False) as store:
        (image,) = await store.import_archive(source)
        with pytest.raises(ImageNotFound, match="keep_blobs"):
            await store.export(image.id, tmp_path / "out", "oci")
        await store.remove(image.id)
    async with opened(tmp_path) as store:
        (image,) = await store.import_archive(source)
        with pytest.raises(InvalidImage, match="exists"):
            await store.export(image.id, source, "oci")
        with pytest.raises(InvalidImage, match="format 'zip'"):
            await store.export(image.id, tmp_path / "out", "zip")
        blob = store.layers(image)[0].with_suffix(".blob")
        blob.write_bytes(b"damaged")
        with pytest.raises(DigestMismatch, match="run crisp image verify"):
            await store.export(image.id, tmp_path / "out", "oci-archive")
        (verdict,) = await store.verify()
        assert "kept blob" in verdict.problems[0]
        await store.remove(image.id)
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]
    assert os.listdir(tmp_path / "image/layers") == ["0"]


async def test_a_damaged_tar_is_found_and_repaired(tmp_path: Path) -> None:
    """In the content of a file, where the time of the tar's own inode does not tell: a disk may give back others."""
    built = build_image([layer(entry("d/base", b"b" * 10000)), layer(entry("d/over", b"o"))])
    with Registry(tmp_path / "registry") as registry:
        registry.push("a", "1", built)
        async with opened(tmp_path, keep_blobs=False, kind="erofs") as store:
            image = await store.pull(f"{registry.host}/a:1")
            (tar,) = (path for path in (tmp_path / "image/layers").glob("*/tar") if b"bbbb" in path.read_bytes())
            tar.write_bytes(tar.read_bytes().replace(b"bbbb", b"bbbc"))
            (tar.parent.parent / "2/index").unlink(missing_ok=True)
            (verdict,) = await store.verify()
            assert "is sha256:" in "".join(verdict.problems)
            assert "2 inodes, not 3" in "".join(verdict.problems)
            assert [verdict.problems for verdict in await store.repair()] == [()]
            assert (store.layers(image)[-1] / "d/base").read_bytes() == b"b" * 10000


async def test_a_changed_index_is_not_mounted_and_is_written_again(tmp_path: Path) -> None:
    """From the tar alone: without a registry, and while containers use the image."""
    below = layer(entry("d/", mode=0o1777), entry("d/base", b"base"), entry("d/gone", b""))
    built = build_image([below, layer(entry("d/over", b"over"), entry("d/.wh.gone", b""))])

    def look(store: ImageStore, image: Image) -> tuple[int, list[bytes], bytes]:
        top, base = store.layers(image)
        names = sorted(os.listdir(os.fsencode(top / "d")))
        return stat.S_IMODE((top / "d").stat().st_mode), names, (base / "d/base").read_bytes()

    async with opened(tmp_path, keep_blobs=False, kind="erofs") as store:
        (image,) = await store.import_archive(write_layout(tmp_path / "layout", {"a:1": built}))
        sound = look(store, image)
        sizes = store.layer_sizes(image)
    for number, change in (("2", "flip"), ("1", "flip"), ("2", "unlink")):
        index = tmp_path / "image/layers" / number / "index"
        if change == "flip":
            content = index.read_bytes()
            index.write_bytes(content[:-40] + bytes([content[-40] ^ 1]) + content[-39:])
        else:
            index.unlink()
        async with opened(tmp_path, keep_blobs=False, kind="erofs") as store:
            with pytest.raises(ImageError, match="changed: run crisp image verify" if change == "flip" else "No such"):
                store.layers(image)
            (verdict,) = await store.verify()
            assert f"layers/{number}" in "".join(verdict.problems)
            store.hold(image.id)
            assert [verdict.problems for verdict in await store.repair()] == [()]
            assert look(store, image) == sound
            assert store.layer_sizes(image) == sizes
        async with opened(tmp_path, keep_blobs=False, kind="erofs") as store:
            assert look(store, image) == sound
            assert [verdict.problems for verdict in await store.verify()] == [()]
    assert os.listdir(tmp_path / "image/tmp") == []


async def test_indexes_that_nobody_checked_are_checked_when_a_store_is_opened(tmp_path: Path) -> None:
    """As a crisp before seals left them: a sound one is used from then on, another is removed with its image."""
    built = {f"a:{number}": build_image([layer(entry("f", b"%d" % number))]) for number in range(2)}
    async with opened(tmp_path, keep_blobs=False, kind="erofs") as store:
        sound, other = await store.import_archive(write_layout(tmp_path / "layout", built))
        content = (store.layers(sound)[0] / "f").read_bytes()
    with sqlite3.connect(tmp_path / "image/images.db") as connection:
        connection.executescript("ALTER TABLE layers DROP COLUMN seal; PRAGMA user_version = 5;")
    connection.close()
    index = tmp_path / "image/layers/2/index"
    there = index.read_bytes()
    end = len(there.rstrip(b"\0"))  # what follows fills the page
    index.write_bytes(there[: end - 128] + b"\xff" * 128 + there[end:])
    for _ in range(2):
        async with opened(tmp_path, keep_blobs=False, kind="erofs") as store:
            assert [image.id for image in store.images()] == [sound.id]
            assert (store.layers(sound)[0] / "f").read_bytes() == content
            assert store.find(other.id) is None
    assert sorted(os.listdir(tmp_path / "image/layers")) == ["0", "1"]


async def test_short_indexes_of_an_earlier_crisp_are_lengthened_when_a_store_is_opened(tmp_path: Path) -> None:
    """Linux 7.3 mounts no others. One that was changed stays as it is, for its mount to tell."""
    built = {f"a:{number}": build_image([layer(entry("f", b"%d" % number))]) for number in range(2)}
    async with opened(tmp_path, keep_blobs=False, kind="erofs") as store:
        sound, other = await store.import_archive(write_layout(tmp_path / "layout", built))
        content = (store.layers(sound)[0] / "f").read_bytes()
    indexes = [tmp_path / "image/layers" / name / "index" for name in "12"]
    lengths = [path.stat().st_size for path in indexes]
    with sqlite3.connect(tmp_path / "image/images.db") as connection:
        for number, path in enumerate(indexes, start=1):
            there = path.read_bytes()
            blocks = -(-len(there.rstrip(b"\0")) // BLOCK)
            path.write_bytes(with_blocks(there, blocks)[: blocks * BLOCK])
            (seal,) = connection.execute("SELECT seal FROM layers WHERE number = ?", (number,)).fetchone()
            with path.open("rb") as file:
                text = Seal.of(file.fileno(), Seal.parse(seal).begin).text
            connection.execute("UPDATE layers SET seal = ? WHERE number = ?", (text, number))
    connection.close()
    with indexes[1].open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"changed")
    for _ in range(2):
        async with opened(tmp_path, keep_blobs=False, kind="erofs") as store:
            assert [path.stat().st_size for path in indexes] == [lengths[0], blocks * BLOCK]
            assert (store.layers(sound)[0] / "f").read_bytes() == content
            assert {verdict.id: bool(verdict.problems) for verdict in await store.verify()} == {
                sound.id: False, other.id: True
            }  # fmt: skip
            with pytest.raises(ImageError, match="its index was changed"):
                store.layers(other)


@pytest.mark.parametrize("keep_blobs", [False, True])
async def test_damage_is_found_and_repaired(keep_blobs: bool, tmp_path: Path) -> None:
    base = layer(entry("d/base", b"b" * 10000), entry("d/same", type=tarfile.LNKTYPE, linkname="d/base"))
    built = [build_image([base, layer(entry(name, name.encode()))]) for name in ("one", "other")]
    with Registry(tmp_path / "registry") as registry:
        for number, image in enumerate(built):
            registry.push("a", str(number), image)
        names = [f"{registry.host}/a:{number}" for number in range(2)]
        async with opened(tmp_path, keep_blobs) as store:
            for name in names:
                await store.pull(name)
            imported = write_layout(tmp_path / "layout", {"c:1": build_image([layer(entry("x", b"x"))])})
            (local,) = await store.import_archive(imported)
            assert {verdict.problems for verdict in await store.verify()} == {()}
            one, other = (store.find(name) for name in names)
            assert one is not None
            assert other is not None
            (store.layers(one)[-1] / "d/base").write_bytes(b"c" * 10000)
            (store.layers(other)[0] / "other").unlink()
            (store.layers(local)[0] / "x").chmod(0o4755)
            found = {verdict.id: "; ".join(verdict.problems) for verdict in await store.verify()}
            assert "was changed" in found[one.id]
            assert "was changed" in found[other.id]
            assert "1 inodes, not 2" in found[other.id]
            assert "was changed" in found[local.id]
            store.hold(other.id)
            with pytest.raises(ImageInUse):
                await store.repair()
            store.release(other.id)
            left = [verdict for verdict in await store.repair() if verdict.problems]
            assert [verdict.id for verdict in left] == [local.id]
            for name in names:
                again = store.find(name)
                assert again is not None
                assert (store.layers(again)[-1] / "d/base").read_bytes() == b"b" * 10000
        async with opened(tmp_path, keep_blobs) as store:
            assert len([verdict for verdict in await store.verify() if not verdict.problems]) == 2


async def test_a_repair_that_fails_for_one_image_is_made_for_the_others(tmp_path: Path) -> None:
    built = [build_image([layer(entry(name, b"x"))]) for name in ("one", "two")]
    served = {f"a:{number}": image for number, image in enumerate(built)}
    async with FaultyRegistry(served).running() as registry, opened(tmp_path, keep_blobs=False) as store:
        images = [await store.pull(f"{registry.host}/a@{image.digest}") for image in built]
        for image in images:
            (store.layers(image)[0] / "more").write_bytes(b"")
        del served["a:0"]
        with pytest.raises(ImageNotFound):
            await store.repair()
        assert store.find(images[0].id) is None
        assert [verdict.problems for verdict in await store.verify()] == [()]


async def test_an_image_that_is_removed_while_others_are_verified(tmp_path: Path) -> None:
    built = [build_image([layer(entry(name, b"x"))]) for name in ("one", "two")]
    async with opened(tmp_path) as store:
        archive = write_layout(tmp_path / "layout", {f"a:{number}": image for number, image in enumerate(built)})
        first, second = await store.import_archive(archive)
        verifying = asyncio.create_task(store.verify())
        await asyncio.sleep(0)
        await store.remove(second.id)
        assert [verdict.id for verdict in await verifying] == [first.id]


PULLER = """
import asyncio, sys
from pathlib import Path
from image.settings import ImageSettings
from image.store import ImageStore
from image.unpack.workers import Workers
async def main():
    root = Path(sys.argv[1])
    settings = ImageSettings(keep_blobs=True, image_layers=sys.argv[4])
    store = await ImageStore.open(root / "image", Path("/nonexistent"), settings)
    print("open", flush=True)
    for number in range(int(sys.argv[3])):
        image = await store.pull(f"{sys.argv[2]}:{number}")
        print(image.id, flush=True)
asyncio.run(main())
"""
EXT4_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = struct.pack("I", 2)  # what is neither on the disk nor in the journal is lost, as when the power goes


@pytest.mark.parametrize("kind", LAYER_KINDS[1:])
async def test_a_power_cut_leaves_whole_images_only(kind: str, tmp_path: Path) -> None:
    disk, mount, count = tmp_path / "disk", tmp_path / "mount", 5
    mount.mkdir()
    with disk.open("wb") as file:
        file.truncate(96 << 20)
    images = [
        build_image([layer(entry("a", os.urandom(300_000))), layer(entry("b", bytes([n])))]) for n in range(count)
    ]
    with Registry(tmp_path / "registry") as registry:
        for number, image in enumerate(images):
            registry.push("a", str(number), image)
        seen = set()
        for cut in range(6):
            run("mkfs.ext4", "-q", "-F", disk)
            run("mount", "-o", "loop", disk, mount)
            try:
                command = (sys.executable, "-c", PULLER, mount, f"{registry.host}/a", str(count), kind)
                puller = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=-3)
                assert puller.stdout is not None
                said = [await puller.stdout.readline() for _ in range(1 + cut)]
                await asyncio.sleep(0.03 * (cut % 3))
                where = os.open(mount, os.O_RDONLY)
                fcntl.ioctl(where, EXT4_IOC_SHUTDOWN, NO_LOG_FLUSH)
                os.close(where)
                with suppress(ProcessLookupError):
                    puller.kill()
                await puller.wait()
            finally:
                await _unmounted(mount)
            run("mount", "-o", "loop", disk, mount)
            try:
                async with opened(mount) as store:
                    verdicts = await store.verify()
                    assert {verdict.problems for verdict in verdicts} <= {()}
                    # What was answered is there.
                    assert {line.decode().strip() for line in said[1:]} <= {verdict.id for verdict in verdicts}
                    for image in store.images():
                        assert len((store.layers(image)[-1] / "a").read_bytes()) == 300_000
                    assert len(os.listdir(mount / "image/layers")) == 1 + 4 * len(verdicts)
                    assert os.listdir(mount / "image/tmp") == []
                    seen.add(len(verdicts))
            finally:
                await _unmounted(mount)
        assert len(seen) > 2


async def _unmounted(mount: Path) -> None:
    """Unmount; workers of a killed process may take a moment to end."""
    for _ in range(1200):
        if not (await (await asyncio.create_subprocess_exec("umount", "-q", mount)).wait()):
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{mount} stays busy")


async def test_the_details_of_an_image(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        (image,) = await store.import_archive(busybox_layout(tmp_path / "source"))
        (kept,) = store.layer_sizes(image)
        manifest, configuration = await store.documents(image)
        assert kept["bytes"] == image.size - len(manifest) - len(configuration)
        assert digest(configuration) == image.id
        assert json.loads(manifest)["layers"]


def test_fifty_containers_take_the_disk_of_one_image(daemon: Daemon) -> None:
    """And their removal gives all of it back, to the byte."""

    def used() -> int:
        places = (daemon.root / "containers", daemon.root / "image")
        paths = (path for place in places for path in place.rglob("*") if not path.name.startswith("images.db"))
        return sum(there.st_blocks * 512 for there in {(s.st_dev, s.st_ino): s for s in map(os.lstat, paths)}.values())

    (image,) = daemon.images.ListImages(cri.ListImagesRequest()).images
    before = used()
    with daemon.pod("many") as pod:
        for number in range(50):
            pod.create("true", name=f"c{number}")
        with pytest.raises(grpc.RpcError, match="containers use") as refused:
            daemon.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=image.id)))
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        # Each has some directories: overlay's own, and those that its mounts need and the image lacks.
        assert used() - before < 50 * 48 << 10
    until(lambda: not list((daemon.root / "containers").iterdir()))
    assert used() == before
