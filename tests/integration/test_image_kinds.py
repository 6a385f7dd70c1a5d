"""Layers of both kinds, unpacked and indexed: an archive is the same tree, or refused with the same words."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, nullcontext, suppress
from pathlib import Path

import pytest
import pytest_asyncio

from cri.v1 import api_pb2 as cri
from image.erofs import probe
from image.erofs.mount import TAR
from image.erofs.mounted import Mounted, held
from image.erofs.seal import Seal
from image.errors import ImageError
from image.model import Image
from image.settings import ImageSettings
from image.store import ImageStore
from image.unpack.workers import Workers
from tests.daemon import Daemon
from tests.evil import ACLS, ATTRIBUTES
from tests.images import BUSYBOX, build_image, digest, entry, layer, write_layout
from tests.layer_kinds import both, made, mounted, tree

LENGTHS = (1, 400, 480, 481, 511, 512, 513, 4095)  # of symbolic links: behind the inode, or in blocks
MOUNTED = os.ST_RDONLY | os.ST_NODEV | os.ST_NOSUID


@pytest_asyncio.fixture
async def workers() -> AsyncIterator[Workers]:
    running = Workers()
    yield running
    await running.close()


def sparse(name: str, size: int, parts: list[tuple[int, bytes]]) -> tuple[tarfile.TarInfo, bytes]:
    """A file of pax format 1.0, whose map precedes its content."""
    numbers = [len(parts), *(number for at, part in parts for number in (at, len(part)))]
    table = "".join(f"{number}\n" for number in numbers).encode()
    headers = {"major": "1", "minor": "0", "realsize": str(size), "name": name}
    info, content = entry(
        f"GNUSparseFile.0/{name}", table.ljust(-(-len(table) // 512) * 512, b"\0") + b"".join(part for _, part in parts)
    )
    info.pax_headers = {f"GNU.sparse.{key}": value for key, value in headers.items()}
    return info, content


async def test_a_layer_with_everything(workers: Workers, tmp_path: Path) -> None:
    access = bytes.fromhex("0200000001000600ffffffff02000400e803000004000400ffffffff10000400ffffffff20000000ffffffff")
    odd = {"user.long": "v" * 2000, "user.empty": "", "trusted.t": "1", "com.apple.quarantine": "dropped"}
    many = [entry(f"many/{'n' * (number % 240)}{number}", b"%d" % number) for number in range(1500)]
    tar = layer(
        entry("./", mode=0o711, mtime=5, xattrs={"user.root": "r"}),
        entry("old", b"x" * 513, mtime=-5), entry("late", b"x" * 511, mtime=1 << 33),
        entry("beyond", b"1", mtime=1 << 60), entry("exactly", b"x" * 4096, pax_headers={}), entry("empty", b""),
        entry("large", os.urandom(300_000)),
        entry("owned", b"1", uid=4_294_967_294, gid=70_000, mode=0o6755, xattrs=odd),
        entry("acl", b"1", xattrs={"system.posix_acl_access": access.decode("utf-8", "surrogateescape")}),
        entry("!before a dot", b"1"), entry("d/", mode=0o1777, xattrs={"user.d": "d"}), *many,
        *(entry(f"links/{n}", type=tarfile.SYMTYPE, linkname="t" * n) for n in LENGTHS),
        entry("again", type=tarfile.LNKTYPE, linkname="large"),
        entry("d/again", type=tarfile.LNKTYPE, linkname="large"),
        entry("same link", type=tarfile.LNKTYPE, linkname="links/400"),
        entry("char", type=tarfile.CHRTYPE, devmajor=5, devminor=70_000), entry("pipe", type=tarfile.FIFOTYPE),
        entry("block", type=tarfile.BLKTYPE, devmajor=8, devminor=1), entry("gone/.wh.x", b""), entry(".wh.y", b""),
        entry("shut/.wh..wh..opq", b""),
        sparse("holes", 900_001, [(0, b"a" * 700), (5000, b"b" * 513), (70_000, b"c" * 9000), (899_999, b"d")]),
        sparse("nothing but a hole", 700_000, []),
        sparse("huge", 1 << 42, [(1 << 41, b"middle"), ((1 << 42) - 3, b"end")]),
        entry("old", b"another"), entry("last", b"no padding follows"),
    ).rstrip(b"\0")  # fmt: skip
    assert await both(workers, tmp_path / "layer", tar) == ""
    await made(workers, tmp_path / "again", tar, indexed=True)
    with mounted(tmp_path / "again") as root:
        huge = os.open(root / "huge", os.O_RDONLY)
        try:
            assert os.pread(huge, 8, 1 << 41) == b"middle\0\0"
            assert os.pread(huge, 8, (1 << 42) - 3) == b"end"
            assert os.fstatvfs(huge).f_flag & MOUNTED == MOUNTED
        finally:
            os.close(huge)
    shutil.rmtree(tmp_path / "again")


async def test_attributes_are_what_root_would_have_set(workers: Workers, tmp_path: Path) -> None:
    """Who makes an index may set none: it notes what the kernel would have made of them, or refuses what that would."""
    for number, (key, value) in enumerate(ATTRIBUTES):
        text = {key: value.decode("utf-8", "surrogateescape")}
        for what in (
            entry("it", b"1", mode=0o2754, xattrs=text),
            entry("it/", mode=0o2754, xattrs=text),
            entry("it", type=tarfile.SYMTYPE, linkname="a", xattrs=text),
            entry("it", type=tarfile.FIFOTYPE, xattrs=text),
            entry("it", type=tarfile.CHRTYPE, devmajor=1, devminor=3, xattrs=text),
        ):
            within = [entry("it/f", b"1"), entry("it/d/"), entry("it/implied/.wh.x", b"")] if what[0].isdir() else []
            again = [entry("it/", mode=0o1707)] if number % 2 and within else []
            refusal = await both(workers, tmp_path / "layer", layer(what, *within, *again))
            assert not refusal or "it" in refusal, (key, value, refusal)


async def test_nothing_inherits_a_directorys_default_access_list(workers: Workers, tmp_path: Path) -> None:
    text = {"system.posix_acl_default": ACLS[0].decode("utf-8", "surrogateescape")}
    within = (entry("it/f", b"1"), entry("it/implied/f", b"1"), entry("it/pipe", type=tarfile.FIFOTYPE))
    tar = layer(entry("it/", xattrs=text), *within)
    for indexed in (False, True):
        place = tmp_path / str(indexed)
        assert await made(workers, place, tar, indexed=indexed) == ""
        with mounted(place) if indexed else nullcontext(place) as root:
            assert os.listxattr(root / "it") == list(text)
            assert [os.listxattr(root / "it" / name) for name in ("f", "implied", "implied/f", "pipe")] == [[]] * 4


async def test_a_file_that_no_file_system_has_room_for(workers: Workers, tmp_path: Path) -> None:
    refusal = await both(workers, tmp_path / "layer", layer(sparse("endless", 1 << 50, [(0, b"x")])))
    assert "endless" in refusal
    assert "File too large" in refusal


async def test_what_an_index_has_no_room_for_is_unpacked(tmp_path: Path) -> None:
    """A hundred pieces so far apart that their addresses do not suffice; the layer below says what its root is like."""
    parts = [(number << 36, b"part") for number in range(100)]
    built = build_image([layer(entry("./", mode=0o711)), layer(sparse("vast", 100 << 36, parts), entry("d/f", b"f"))])
    settings = ImageSettings(image_layers="erofs", keep_blobs=True)
    store = await ImageStore.open(tmp_path / "image", tmp_path / "none", settings)
    (image,) = await store.import_archive(write_layout(tmp_path / "layout", {"": built}))
    assert kinds(store, image) == ["tar+erofs", "unpacked"]
    (top, _) = store.layers(image)
    assert stat.S_IMODE(top.stat().st_mode) == 0o711
    with (top / "vast").open("rb") as file:
        assert os.pread(file.fileno(), 8, 99 << 36) == b"part\0\0\0\0"
    assert os.listdir(tmp_path / "image/tmp") == []
    assert [verdict.problems for verdict in await store.verify()] == [()]
    await store.close()


BASE = layer(entry("d/", mode=0o1777, uid=7), entry("d/old", b"old"), entry("d/base", b"base"))
OVER = layer(entry("d/.wh.old", b""), entry("d/new", b"new"), entry("gone/.wh.x", b""))
TOP = layer(entry("d/top", b"top"), entry("d/.wh.base", b""))


def kinds(store: ImageStore, image: Image) -> list[str]:
    return [str(about["kind"]) for about in store.layer_sizes(image)]


async def test_a_store_has_both_kinds_and_goes_on_with_what_it_has(tmp_path: Path) -> None:
    """Layers of one kind on those of the other; what is damaged is found, by the digest that its content had."""

    @asynccontextmanager
    async def opened(kind: str) -> AsyncIterator[ImageStore]:
        store = await ImageStore.open(tmp_path / "image", tmp_path / "none", ImageSettings(image_layers=kind))
        try:
            yield store
            assert {problem for verdict in await store.verify() for problem in verdict.problems} == set()
        finally:
            await store.close()

    async def added(store: ImageStore, *tars: bytes) -> Image:
        layout = write_layout(tmp_path / "layout", {"": build_image(tars)})
        (image,) = await store.import_archive(layout)
        shutil.rmtree(layout)
        return image

    def seen(store: ImageStore, image: Image) -> dict[str, bytes]:
        with overlaid(store.layers(image), tmp_path) as merged:
            assert stat.S_IMODE((merged / "d").stat().st_mode) == 0o1777
            assert (merged / "d").stat().st_uid == 7
            return {os.fspath(path.relative_to(merged)): path.read_bytes() for path in merged.rglob("*/*")}

    old, new = {"d/old": b"old", "d/base": b"base"}, {"d/new": b"new", "d/base": b"base"}
    async with opened("unpacked") as store:
        first = await added(store, BASE)
        assert (kinds(store, first), seen(store, first)) == (["unpacked"], old)
    async with opened("erofs") as store:
        second = await added(store, BASE, OVER)
        assert (kinds(store, second), seen(store, second)) == (["unpacked", "tar+erofs"], new)
        assert seen(store, first) == old
    async with opened("unpacked") as store:
        third = await added(store, BASE, OVER, TOP)
        assert kinds(store, third) == ["unpacked", "tar+erofs", "unpacked"]
        assert (seen(store, second), seen(store, third)) == (new, {"d/new": b"new", "d/top": b"top"})
    async with opened("auto") as store:
        fourth = await added(store, OVER)
        assert kinds(store, fourth) == ["tar+erofs"]
        (tar,) = (tmp_path / "image/layers").glob("4/tar")
        sound = tar.read_bytes()
        tar.write_bytes(sound.replace(b"new", b"bad"))
        (verdict,) = [verdict for verdict in await store.verify() if verdict.problems]
        assert verdict.id == fourth.id
        assert f"not {digest(OVER)}" in "".join(verdict.problems)
        for image in store.images():
            await store.remove(image.id)
    assert os.listdir(tmp_path / "image/layers") == ["0"]


OVERS = {
    "owners, modes and times": layer(entry("d/e/new", b"new"), entry("d/.wh.old", b"")),
    "extended attributes": layer(entry("x/new", b"new"), entry("d/e/new", b"new")),
    "whiteouts of nothing": layer(entry("q/.wh.g", b""), entry("d/e/new", b"new")),
    "the root's alone": layer(entry("new", b"new")),
}


async def test_directories_without_entries_are_as_the_layers_below_say(tmp_path: Path) -> None:
    below = layer(
        entry("./", mode=0o711, uid=3), entry("d/", mode=0o1777, uid=7, mtime=1_500_000_000), entry("d/old", b""),
        entry("d/e/", mode=0o700, gid=9), entry("x/", mode=0o750, xattrs={"user.a": "1"}),
    )  # fmt: skip
    for what, over in OVERS.items():
        layout = write_layout(tmp_path / "layout", {"": build_image([below, over])})
        found = []
        for kind in ("unpacked", "erofs"):
            root = tmp_path / kind
            store = await ImageStore.open(root, tmp_path / "none", ImageSettings(image_layers=kind))
            (image,) = await store.import_archive(layout)
            found.append(await asyncio.to_thread(tree, store.layers(image)[0]))
            await store.close()
        assert found[0] == found[1], what
        shutil.rmtree(layout)


@contextmanager
def overlaid(layers: list[Path], tmp_path: Path) -> Iterator[Path]:
    """As a container has them."""
    place = tmp_path / "merged"
    place.mkdir()
    (tmp_path / "empty").mkdir(exist_ok=True)
    lower = ":".join(map(str, [*layers, tmp_path / "empty"]))
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", f"lowerdir={lower}", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)
        place.rmdir()


async def test_removing_indexed_layers_takes_no_worker_and_frees_the_space(tmp_path: Path) -> None:
    conf = tmp_path / "registries.conf"
    layers = [layer(entry(f"{number}", os.urandom(2_000_000))) for number in range(3)]
    layout = write_layout(tmp_path / "layout", {"": build_image(layers)})
    settings = ImageSettings(image_layers="erofs", keep_blobs=True)
    for _ in range(2):
        filling = await ImageStore.open(tmp_path / "image", conf, settings)
        (image,) = await filling.import_archive(layout)
        await filling.close()
        store = await ImageStore.open(tmp_path / "image", conf, settings)
        assert len(store.layers(image)) == len(layers)  # which mounts them
        await store.remove(image.id)
        assert store._workers._forker is None
        assert os.listdir(tmp_path / "image/layers") == ["0"]
        await store.close()
        assert not [name for name in _open_files() if str(tmp_path) in name or "erofs" in name]


def _open_files() -> list[str]:
    """What this process has open, files without a name included."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # of the listing itself
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return found


def test_containers_outlive_the_daemon_that_mounted_their_layers() -> None:
    with Daemon.running("--image-layers", "erofs") as daemon:
        daemon.import_busybox()
        mounts = Path("/proc/self/mountinfo").read_text()
        with daemon.pod("both") as pod:
            script = "while [ ! -e /go ]; do sleep 0.1; done; busybox cat /bin/busybox | wc -c; exit 3"
            before = pod.run("sh", "-c", script, name="before")
            assert "erofs" not in Path("/proc/self/mountinfo").read_text().removeprefix(mounts)
            daemon.kill9()
            daemon.start()
            after = pod.run("sh", "-c", "exit 4", name="after")
            assert daemon.wait_exited(after).exit_code == 4
            pod.exec(before, "touch", "/go")
            assert daemon.wait_exited(before).exit_code == 3
            assert pod.log("before").split()[-1] == str(BUSYBOX.stat().st_size)
            for container in (before, after):
                daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container), timeout=60)
        status = daemon.runtime.Status(cri.StatusRequest(verbose=True), timeout=60)
        assert json.loads(status.info["info"])["imageLayers"] == {"kind": "tar+erofs", "erofs": "mountable"}


def test_a_root_of_several_layers_has_one_device_number(tmp_path: Path) -> None:
    """Programs that stay on one file system (`du -x`) would leave out what other layers have."""
    busybox = BUSYBOX.read_bytes()
    tars = [layer(entry("bin/"), entry("bin/busybox", busybox, mode=0o755)), BASE, OVER, TOP]
    with Daemon.running("--image-layers", "erofs") as daemon:
        image = daemon.import_image(write_layout(tmp_path / "layout", {"": build_image(tars)}))
        with daemon.pod("one") as pod:
            script = "cd /; b=bin/busybox; $b touch d/own; for f in . $b d d/new d/top d/own; do $b stat -c %d $f; done"
            made = pod.run("/bin/busybox", "sh", "-c", script, image=image)
            assert daemon.wait_exited(made).exit_code == 0
            found = [line.split()[-1] for line in pod.log().splitlines()]
            assert (len(found), len(set(found))) == (6, 1)


def test_what_cannot_be_mounted_is_told_of(tmp_path: Path) -> None:
    """Files of a tmpfs cannot be mounted: a store there unpacks layers, or says why it cannot do what it was told."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "kinds", tmp_path], check=True)
    try:

        async def told(kind: str) -> tuple[str, str]:
            store = await ImageStore.open(tmp_path / "image", tmp_path / "none", ImageSettings(image_layers=kind))
            await store.close()
            return store.layer_kind, store.unmountable

        kind, reason = asyncio.run(told("auto"))
        assert kind == "unpacked"
        assert reason
        with pytest.raises(ImageError, match=r'image_layers: "erofs" is impossible .*' + re.escape(reason)):
            asyncio.run(told("erofs"))
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_kernel_that_does_not_read_the_end_of_a_tar_mounts_no_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found by reading: such a kernel mounts everything."""

    def cut(directory: str | os.PathLike[str], seal: Seal | None) -> Mounted:
        tar = Path(directory, TAR)
        os.truncate(tar, tar.stat().st_size // 4096 * 4096)
        return held(directory, seal)

    assert probe.way(tmp_path) == (held, "")
    monkeypatch.setattr(probe, "held", cut)
    assert probe.way(tmp_path)[1] == "a file in a mounted tar: Input/output error"


def test_a_store_opens_on_a_full_disk_and_after_a_killed_probe(tmp_path: Path) -> None:
    """Whether layers can be mounted is tried with files: no room for them, or older ones, are no reason to refuse."""
    disk, place = tmp_path / "disk", tmp_path / "place"
    place.mkdir()
    with disk.open("wb") as file:
        file.truncate(16 << 20)

    async def opened(*layers: bytes) -> bytes:
        """What an image of the store has, which `layers` are imported for."""
        store = await ImageStore.open(place / "image", tmp_path / "none", ImageSettings(image_layers="erofs"))
        try:
            if layers:
                await store.import_archive(write_layout(tmp_path / "layout", {"": build_image(layers)}))
            (image,) = store.images()
            return (store.layers(image)[0] / "d/old").read_bytes()
        finally:
            await store.close()

    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", disk], check=True)
    subprocess.run(["mount", "-o", "loop", disk, place], check=True)
    try:
        assert asyncio.run(opened(BASE)) == b"old"
        (place / "image/tmp/probe-0").mkdir()
        with closing(sqlite3.connect(place / "image/images.db")) as killed:  # a killed crispd leaves SQLite's own files
            killed.execute("SELECT count(*) FROM layers").fetchone()
            with suppress(OSError), (place / "filler").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 12))
            assert asyncio.run(opened()) == b"old"
        assert os.listdir(place / "image/tmp") == []
    finally:
        subprocess.run(["umount", place], check=True)
