"""The image store on a real filesystem, against Debian's docker-registry and against a faulty one."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import signal
import sqlite3
import ssl
import stat
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, closing, suppress
from pathlib import Path
from typing import TypeVar

import pytest
import pytest_asyncio
import zstandard

from image.errors import (
    AuthenticationRequired,
    DigestMismatch,
    ImageError,
    ImageInUse,
    ImageNotFound,
    InvalidImage,
    InvalidReference,
    OtherPlatform,
    RegistryUnavailable,
    StorageFull,
)
from image.model import Credentials, Image, PullPhase, PullProgress
from image.settings import ImageSettings
from image.store import ImageStore
from tests import faulty_registry
from tests.faulty_registry import FaultyRegistry
from tests.images import (
    OCI_LAYER,
    BuiltImage,
    build_image,
    build_index,
    busybox_image,
    busybox_layout,
    compress,
    digest,
    entry,
    layer,
    tar_of,
    write_layout,
)
from tests.registry import Registry

_T = TypeVar("_T")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry")) as running:
        running.push("library/busybox", "1", busybox_image())
        yield running


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[ImageStore]:
    opened = await ImageStore.open(tmp_path / "image", tmp_path / "registries.conf")
    yield opened
    await opened.close()


def disk(root: Path) -> dict[str, tuple[int, int]]:
    """Every inode below `root`: relative path, with its mode and number of blocks."""
    found = {}
    for path in sorted(root.rglob("*")):
        there = path.lstat()
        found[str(path.relative_to(root))] = (there.st_mode, there.st_blocks)
    return found


def trees(root: Path) -> set[str]:
    """What there is of layers, finished or not."""
    return {f"{place}/{name}" for place in ("layers", "tmp") for name in os.listdir(root / place)} - {"layers/0"}


def run(*command: str | Path) -> bytes:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


async def until(condition: Callable[[], _T]) -> _T:
    """Wait, at most a minute, until `condition` is true of something."""
    for _ in range(12000):
        if found := condition():
            return found
        await asyncio.sleep(0.005)
    raise AssertionError("it never came to be")


async def pulled_layer(store: ImageStore, tmp_path: Path, *tars: bytes) -> list[Path]:
    """The layers of an image of these tars, topmost first."""
    layout = write_layout(tmp_path / f"layout-{digest(b''.join(tars))[7:19]}", {"": build_image(tars)})
    (image,) = await store.import_archive(layout)
    return store.layers(image)


# --- names, digests, mirrors


async def test_pull_list_find_remove(store: ImageStore, registry: Registry, tmp_path: Path) -> None:
    before = disk(tmp_path / "image")
    steps: list[PullProgress] = []
    name = f"{registry.host}/library/busybox:1"
    image = await store.pull(name, progress=steps.append)
    built = busybox_image()
    assert image.id == built.id
    assert image.repo_tags == (name,)
    assert image.repo_digests == (f"{registry.host}/library/busybox@{built.digest}",)
    assert (image.config.cmd, image.created) == (("sh",), 1706933106789000000)
    assert [steps[0].phase, steps[-1].phase] == [PullPhase.WAITING, PullPhase.COMPLETE]
    assert steps[-1].offset == steps[-1].total == max(step.offset for step in steps)
    for key in (image.id, image.id[7:], image.id[7:12], name, image.repo_digests[0], f"{name}@{built.digest}"):
        assert store.find(key) == image, key
    for key in ("busybox", f"{registry.host}/library/busybox", image.id[7:9], "sha256:" + "0" * 64, "A b"):
        assert store.find(key) is None, key
    assert store.images() == [image]
    (root,) = store.layers(image)
    assert run("chroot", root, "/bin/sh", "-c", "echo $((6*7))") == b"42\n"
    assert (root / "tmp").stat().st_mode & 0o7777 == 0o1777
    await store.remove(image.repo_digests[0])
    await store.remove("never/was:there")
    assert store.images() == []
    assert {k: v for k, v in disk(tmp_path / "image").items() if "images.db" not in k} == {
        k: v for k, v in before.items() if "images.db" not in k
    }


async def test_reported_usage_is_what_the_disk_says(store: ImageStore, registry: Registry, tmp_path: Path) -> None:
    image = await store.pull(f"{registry.host}/library/busybox:1")
    total = inodes = 0
    for path in (tmp_path / "image", *(tmp_path / "image").rglob("*")):
        there = path.lstat()
        if stat.S_ISDIR(there.st_mode) or there.st_nlink == 1 or path.name == "busybox":
            total += there.st_blocks * 512
            inodes += 1
    (usage,) = store.usage()
    own_directories = 7 * 4096
    assert (usage.inodes, usage.bytes) == (inodes, total - own_directories)
    assert image.size > 1 << 20


async def test_tags_move_and_digests_stay(store: ImageStore, registry: Registry) -> None:
    old, new = (build_image([layer(entry("v", text))]) for text in (b"old", b"new"))
    name = f"{registry.host}/moving:latest"
    registry.push("moving", "latest", old)
    first = await store.pull(name)
    registry.push("moving", "latest", new)
    second = await store.pull(name)
    assert (first.id, second.id) == (old.id, new.id)
    assert store.find(name) == second
    kept = store.find(old.id)
    assert kept is not None
    assert (kept.repo_tags, kept.repo_digests) == ((), (f"{registry.host}/moving@{old.digest}",))
    by_digest = await store.pull(f"{registry.host}/moving@{old.digest}")
    assert by_digest == kept


async def test_an_index_gives_this_machines_image(store: ImageStore, registry: Registry) -> None:
    here = build_image([layer(entry("here", b""))])
    there = build_image([layer(entry("there", b""))], architecture="pdp11")
    platforms = ({"os": "linux", "architecture": "pdp11"}, {"os": "linux", "architecture": _architecture(here)})
    index = build_index(zip((there, here), platforms, strict=True))
    registry.push("multi", "1", index)
    image = await store.pull(f"{registry.host}/multi:1")
    assert image.id == here.id
    assert image.repo_digests == (f"{registry.host}/multi@{index.digest}",)
    registry.push("foreign", "1", build_index([(there, platforms[0])]))
    with pytest.raises(OtherPlatform, match=r"no image for linux/\w+; the index has linux/pdp11"):
        await store.pull(f"{registry.host}/foreign:1")


def _architecture(image: BuiltImage) -> str:
    return str(json.loads(image.blobs[image.id])["architecture"])


async def test_mirrors_of_registries_conf(registry: Registry, tmp_path: Path) -> None:
    conf = tmp_path / "registries.conf"
    conf.write_text(
        f"""
        unqualified-search-registries = ["nowhere.invalid", "docker.io"]
        [[registry]]
        location = "docker.io"
        [[registry.mirror]]
        location = "127.0.0.1:1"
        [[registry.mirror]]
        location = "{registry.host}"
        [[registry]]
        location = "nowhere.invalid"
        blocked = false
        [[registry.mirror]]
        location = "{registry.host}/nothing"
        [[registry]]
        prefix = "gone.example"
        location = "127.0.0.1:1/gone"
        [[registry.mirror]]
        location = "{registry.host}/gone"
        """
    )
    store = await ImageStore.open(tmp_path / "image", conf, pinned=["busybox:1"])
    try:
        image = await store.pull("docker.io/library/busybox:1")
        assert image.repo_tags == ("docker.io/library/busybox:1",)
        assert image.pinned
        assert store.find("busybox:1") == image
        with pytest.raises(RegistryUnavailable, match=r"127\.0\.0\.1:1/gone/x: connect .*MANIFEST_UNKNOWN"):
            await store.pull("gone.example/x")
        conf.write_text('[[registry]]\nlocation = "docker.io"\nblocked = true\n')
        with pytest.raises(ImageError, match=r"registries\.conf blocks docker\.io"):
            await store.pull("busybox:1")
    finally:
        await store.close()


async def test_layers_are_shared_and_go_with_their_last_image(
    store: ImageStore, registry: Registry, tmp_path: Path
) -> None:
    base = layer(entry("base", b"b" * 10000))
    images = [build_image([base, layer(entry("top", text))]) for text in (b"1", b"2")]
    for tag, built in enumerate(images):
        registry.push("shared", str(tag), built)
    one, other = await asyncio.gather(*(store.pull(f"{registry.host}/shared:{tag}") for tag in range(2)))
    assert store.layers(one)[-1] == store.layers(other)[-1]
    assert len(trees(tmp_path / "image")) == 3
    assert all(len(path.name) <= 2 for path in store.layers(one))
    await store.remove(one.id)
    assert len(trees(tmp_path / "image")) == 2
    assert (store.layers(other)[-1] / "base").stat().st_size == 10000
    await store.remove(other.id)
    assert trees(tmp_path / "image") == set()


async def test_a_held_image_stays(store: ImageStore, tmp_path: Path) -> None:
    (image,) = await store.import_archive(busybox_layout(tmp_path / "layout"))
    store.hold(image.id)
    store.hold(image.id)
    store.release(image.id)
    with pytest.raises(ImageInUse, match=image.id):
        await store.remove("busybox")
    store.release(image.id)
    await store.remove("busybox")
    assert store.images() == []


async def test_an_image_without_layers(store: ImageStore, tmp_path: Path) -> None:
    (path,) = await pulled_layer(store, tmp_path)
    assert os.listdir(path) == []


# --- what a layer may contain


async def test_everything_a_layer_may_contain(store: ImageStore, tmp_path: Path) -> None:
    capability = bytes.fromhex("0100000200040000000000000000000000000000").decode("latin-1")
    tar = layer(
        entry("./", mode=0o711, uid=3, gid=4),
        entry("bin/", mode=0o2755, gid=50),
        entry("bin/su", b"su", mode=0o4755, uid=0, gid=7),
        entry("bin/ping", b"ping", mode=0o755, xattrs={"security.capability": capability, "user.note": "hi"}),
        entry("bin/big-owner", b"", uid=4_000_000_000, gid=4_000_000_001, mtime=1_600_000_000.25),
        entry("bin/same", type=tarfile.LNKTYPE, linkname="bin/su"),
        entry("bin/same", type=tarfile.LNKTYPE, linkname="bin/su"),
        entry("lib", type=tarfile.SYMTYPE, linkname="/usr/lib", uid=9),
        entry("lib/through-link", b"x", mode=0o600),
        entry("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
        entry("disk", type=tarfile.BLKTYPE, devmajor=7, devminor=1, mode=0o660, gid=6),
        entry("pipe", type=tarfile.FIFOTYPE, mode=0o622),
        entry("deep/down/here/file", b"x"),
        entry("twice", b"first"),
        entry("twice", b"second"),
        entry("was-file", b""),
        entry("was-file/", mode=0o700),
        entry("was-dir/", mode=0o700),
        entry("was-dir/in/", mode=0o700),
        entry("was-dir", b"now a file"),
        entry("mode0/", mode=0o000),
        entry("mode0/file", b"", mode=0o000),
    )
    old = os.umask(0o077)
    try:
        (root,) = await pulled_layer(store, tmp_path, tar)
    finally:
        os.umask(old)

    def shown(name: str) -> tuple[int, int, int]:
        there = os.lstat(f"{root}/{name}")
        return stat.S_IMODE(there.st_mode), there.st_uid, there.st_gid

    assert shown(".") == (0o711, 3, 4)
    assert shown("bin") == (0o2755, 0, 50)
    assert shown("bin/su") == (0o4755, 0, 7)
    assert shown("bin/ping") == (0o755, 0, 0)
    assert os.getxattr(root / "bin/ping", "security.capability")[:4] == b"\x01\x00\x00\x02"
    assert os.getxattr(root / "bin/ping", "user.note") == b"hi"
    assert shown("bin/big-owner")[1:] == (4_000_000_000, 4_000_000_001)
    assert (root / "bin/big-owner").stat().st_mtime_ns == 1_600_000_000_250_000_000
    assert (root / "bin").stat().st_mtime == 1_700_000_000
    assert (root / "bin/same").samefile(root / "bin/su")
    assert os.readlink(root / "lib") == "/usr/lib"
    assert shown("lib")[1] == 9
    assert (root / "usr/lib/through-link").read_bytes() == b"x"
    assert shown("usr/lib") == (0o755, 0, 0)
    assert (stat.S_ISCHR((root / "null").stat().st_mode), (root / "null").stat().st_rdev) == (True, os.makedev(1, 3))
    assert shown("null")[0] == 0o666
    assert (stat.S_ISBLK((root / "disk").stat().st_mode), shown("disk")) == (True, (0o660, 0, 6))
    assert (stat.S_ISFIFO((root / "pipe").stat().st_mode), shown("pipe")[0]) == (True, 0o622)
    assert shown("deep/down/here") == (0o755, 0, 0)
    assert (root / "twice").read_bytes() == b"second"
    assert shown("was-file")[0] == 0o700
    assert (root / "was-dir").read_bytes() == b"now a file"
    assert shown("mode0/file")[0] == 0


async def test_whiteouts_and_opaque_directories_in_an_overlay(store: ImageStore, tmp_path: Path) -> None:
    lower = layer(
        entry("keep", b"lower"), entry("gone", b""), entry("gone-dir/x", b""), entry("opaque/old", b""),
        entry("again/", mode=0o755), entry("again/old", b""), entry("late/old", b""), entry("implied/old", b""),
        entry("file-again", b"lower"), entry("sticky/", mode=0o1777, uid=5), entry("./", mode=0o751),
    )  # fmt: skip
    upper = layer(
        entry(".wh.gone", b""), entry(".wh.gone-dir", b""), entry("opaque/.wh..wh..opq", b""), entry("opaque/new", b""),
        entry(".wh.again", b""), entry("again/"), entry("again/new", b""),
        entry("late/new", b""), entry(".wh.late", b""),
        entry(".wh.implied", b""), entry("implied/new", b""),
        entry(".wh.file-again", b""), entry("file-again", b"upper"), entry("sticky/new", b""),
        entry(".wh..wh.plnk", b""),
    )  # fmt: skip
    upper_path, lower_path = await pulled_layer(store, tmp_path, lower, upper)
    assert stat.S_ISCHR((upper_path / "gone").lstat().st_mode)
    assert os.getxattr(upper_path / "opaque", "trusted.overlay.opaque") == b"y"
    merged = tmp_path / "merged"
    merged.mkdir()
    options = f"lowerdir={upper_path}:{lower_path}"
    run("mount", "-t", "overlay", "overlay", "-o", options, merged)
    try:
        found = {str(p.relative_to(merged)) for p in merged.rglob("*") if not p.is_dir()}
        assert found == {"keep", "opaque/new", "again/new", "late/new", "implied/new", "file-again", "sticky/new"}
        assert (merged / "file-again").read_bytes() == b"upper"
        # Directories the upper archive has no entry for keep what the lower layer says of them.
        assert ((merged / "sticky").stat().st_mode & 0o7777, (merged / "sticky").stat().st_uid) == (0o1777, 5)
        assert merged.stat().st_mode & 0o7777 == 0o751
    finally:
        run("umount", merged)


ESCAPE = f"crisp-escape-{os.getpid()}"
EVIL = {
    "up": ([entry(f"../../../../../../tmp/{ESCAPE}", b"x")], None),
    "absolute": ([entry(f"/tmp/{ESCAPE}", b"x")], None),
    "symlink-then-file": (
        [entry("l", type=tarfile.SYMTYPE, linkname="/tmp"), entry(f"l/{ESCAPE}", b"x")],
        None,
    ),
    "relative-symlink-then-file": (
        [entry("l", type=tarfile.SYMTYPE, linkname="../../../../../../tmp"), entry(f"l/{ESCAPE}", b"x")],
        None,
    ),
    "symlink-then-directory": (
        [entry("tmp", type=tarfile.SYMTYPE, linkname="/"), entry(f"tmp/tmp/{ESCAPE}/", mode=0o777)],
        None,
    ),
    "overwritten-symlink": (
        [entry(ESCAPE, type=tarfile.SYMTYPE, linkname=f"/tmp/{ESCAPE}"), entry(ESCAPE, b"x")],
        None,
    ),
    "magic-link": ([entry("l", type=tarfile.SYMTYPE, linkname="/proc/self/cwd"), entry("l/x", b"x")], None),
    "symlink-to-itself": ([entry("a", type=tarfile.SYMTYPE, linkname="a"), entry("a/x", b"")], "symbolic link"),
    "hard-link-outside": ([entry("shadow", type=tarfile.LNKTYPE, linkname="/etc/shadow")], "does not have"),
    "hard-link-up": ([entry("shadow", type=tarfile.LNKTYPE, linkname="../../../../etc/shadow")], "does not have"),
    "hard-link-through-symlink": (
        [entry("e", type=tarfile.SYMTYPE, linkname="/etc"), entry("x", type=tarfile.LNKTYPE, linkname="e/shadow")],
        "does not have",
    ),
    "hard-link-to-directory": ([entry("d/"), entry("x", type=tarfile.LNKTYPE, linkname="d")], "is a directory"),
    "device-of-no-number": ([entry("w", type=tarfile.CHRTYPE, devmajor=4096, devminor=0)], "out of range"),
    "hard-link-to-whiteout": ([entry(".wh.w", b""), entry("x", type=tarfile.LNKTYPE, linkname="w")], "does not have"),
    "whiteout-of-parent": ([entry("d/.wh...", b"")], "whiteout without a name"),
    "whiteout-of-self": ([entry("d/.wh..", b"")], "whiteout without a name"),
    "whiteout-of-nothing": ([entry("d/.wh.", b"")], "whiteout without a name"),
    "root-as-file": ([entry("x/..", b"file")], "root must be a directory"),
    "file-as-parent": ([entry("f", b""), entry("f/x", b"")], "Not a directory"),
    "device-as-parent": (
        [entry("f", type=tarfile.CHRTYPE, devmajor=1, devminor=3), entry("f/x", b"")],
        "Not a directory",
    ),
    "long-name": ([entry("n" * 300, b"")], "File name too long"),
    "long-path": ([entry("/".join(["p" * 200] * 30), b"")], "File name too long"),
    "deep-path": ([entry("p/" * 600 + "x", b"")], "components"),
    "negative-owner": ([entry("x", b"", uid=2**32 - 1)], "out of range"),
    "unknown-type": ([entry("x", b"", type=b"Z")], "not supported"),
    "time": ([entry("x", b"", mtime=2.0**70)], None),
}


@pytest.mark.parametrize("name", EVIL)
async def test_evil_layers_reach_nothing_outside(name: str, store: ImageStore, tmp_path: Path) -> None:
    entries, says = EVIL[name]
    canary = tmp_path / "canary"
    canary.write_text("as it was")
    sources = {path: path.stat() for path in (Path("/etc/shadow"), canary)}
    layout = write_layout(tmp_path / "layout", {"evil:1": build_image([layer(*entries)])})
    failure = None
    try:
        await store.import_archive(layout)
    except ImageError as error:
        failure = error
    assert not os.path.lexists(f"/tmp/{ESCAPE}")
    for path, before in sources.items():
        assert path.stat().st_nlink == before.st_nlink
        assert path.stat().st_ctime_ns == before.st_ctime_ns
    if says is None:
        assert failure is None, failure
    else:
        assert isinstance(failure, InvalidImage), failure
        assert says in str(failure)
        assert trees(tmp_path / "image") == set()
    # Whatever the tree became, it can be removed.
    await store.remove("evil:1")
    assert trees(tmp_path / "image") == set()


async def test_a_tree_deeper_than_any_path_can_be_removed(store: ImageStore, tmp_path: Path) -> None:
    steps = []
    here = ""
    name = "d" * 20 + "/"
    for number in range(3):
        steps += [entry(here + name * depth) for depth in range(1, 181)]
        steps.append(entry(f"s{number}", type=tarfile.SYMTYPE, linkname=here + name * 180))
        here = f"s{number}/"
    await pulled_layer(store, tmp_path, layer(*steps))
    with pytest.raises(InvalidImage, match="File name too long"):
        await pulled_layer(store, tmp_path, layer(*steps, entry(here + "e/" * 2)))
    await store.remove(store.images()[0].id)
    assert trees(tmp_path / "image") == set()


# --- damage on the way


async def test_wrong_digests_and_sizes_leave_nothing(store: ImageStore, registry: Registry, tmp_path: Path) -> None:
    content = layer(entry("x", os.urandom(300_000)))
    for number, damage in enumerate(("flip", "cut", "diff-id", "gone")):
        built = build_image([content + bytes(512 * number)])
        if damage == "diff-id":
            built = build_image([content + bytes(512 * number)], diff_ids=[digest(b"something else")])
        registry.push("damaged", str(number), built)
        (blob,) = (key for key in built.blobs if key != built.id)
        path = registry.blob_path(blob)
        if damage == "flip":
            data = bytearray(path.read_bytes())
            data[4] ^= 1  # the time in the gzip header: the content stays what it was
            path.write_bytes(data)
        elif damage == "cut":
            os.truncate(path, path.stat().st_size - 1000)
        elif damage == "gone":
            path.unlink()
        with pytest.raises((DigestMismatch, InvalidImage, ImageNotFound), match=blob):
            await store.pull(f"{registry.host}/damaged:{number}")
        assert store.images() == []
        assert trees(tmp_path / "image") == set()


@pytest.mark.parametrize(
    "level",
    [
        *("gzip-garbage", "gzip-cut", "two-members", "empty"),
        *("zstd", "zstd-garbage", "zstd-cut", "zstd-long", "zstd-window"),
    ],
)
async def test_compressed_streams(level: str, store: ImageStore, tmp_path: Path) -> None:
    tar = layer(entry("x", b"x" * 100_000))
    stored = {
        "gzip-garbage": compress(tar)[:200] + b"\xff" * 200,
        "gzip-cut": compress(tar)[:-20],
        "two-members": compress(tar[:70_000]) + compress(tar[70_000:]) + bytes(64),
        "zstd": b"\x50\x2a\x4d\x18\2\0\0\0xx" + zstd(tar[:70_000]) + zstd(tar[70_000:]) + b"\x5e\x2a\x4d\x18\0\0\0\0",
        "zstd-garbage": b"\x28\xb5\x2f\xfd" + b"x" * 100,
        "zstd-cut": zstd(tar)[:-20],
        "zstd-long": windowed(tar, 28),
        "zstd-window": windowed(tar, 29),
        "empty": b"",
    }[level]
    tar = b"" if level == "empty" else tar
    built = build_image([stored], compressed=False, layer_type=OCI_LAYER + "+gzip", diff_ids=[digest(tar)])
    layout = write_layout(tmp_path / "layout", {"": built})
    if level in ("two-members", "zstd", "zstd-long", "empty"):
        (image,) = await store.import_archive(layout)
        assert len(os.listdir(store.layers(image)[0])) == (level != "empty")
        return
    with pytest.raises((InvalidImage, DigestMismatch), match=r"zstd|gzip|digest"):
        await store.import_archive(layout)
    assert trees(tmp_path / "image") == set()


def zstd(content: bytes) -> bytes:
    return zstandard.compress(content, 3)


def windowed(content: bytes, log: int) -> bytes:
    """A frame that says it needs a window of 2**log bytes (RFC 8878, 3.1.1.1.2)."""
    frame = zstandard.ZstdCompressor(write_content_size=False, write_checksum=False).compress(content)
    assert frame[4] == 0
    return frame[:5] + bytes([(log - 10) << 3]) + frame[6:]


async def test_a_bomb_ends_at_the_limit(tmp_path: Path) -> None:
    bomb = layer(entry("zeros", bytes(8 << 20)))
    settings = ImageSettings(layer_limit=4 << 20)
    store = await ImageStore.open(tmp_path / "image", tmp_path / "registries.conf", settings)
    try:
        for number, stored in enumerate((bomb, compress(bomb), zstd(bomb))):
            built = build_image([stored], compressed=False, diff_ids=[digest(bomb)])
            layout = write_layout(tmp_path / f"layout{number}", {"": built})
            with pytest.raises(InvalidImage, match="more than 4194304 bytes"):
                await store.import_archive(layout)
        assert trees(tmp_path / "image") == set()
    finally:
        await store.close()


async def test_broken_connections_are_taken_up_again(store: ImageStore, tmp_path: Path) -> None:
    built = build_image([layer(entry("x", os.urandom(2_000_000)))])
    (blob,) = (key for key in built.blobs if key != built.id)
    async with FaultyRegistry({"a:1": built}).running() as registry:
        path = registry.blob_path("a", blob)
        fault = faulty_registry
        registry.faults = {
            path: [fault.reset, fault.half, fault.half, fault.status(503), fault.half, fault.whole_again],
            "/v2/a/manifests/1": [fault.reset, fault.status(429)],
            registry.blob_path("a", built.id): [fault.half],
        }
        await store.pull(f"{registry.host}/a:1")
        ranges = [request.range for request in registry.seen if request.path == path]
        assert ranges[2] == f"bytes={len(built.blobs[blob]) // 2}-"
        assert registry.faults[path] == []


async def test_a_registry_that_keeps_failing_is_unavailable(store: ImageStore, tmp_path: Path) -> None:
    built = build_image([layer(entry("x", os.urandom(200_000)))])
    (blob,) = (key for key in built.blobs if key != built.id)
    async with FaultyRegistry({"a:1": built}).running() as registry:
        path = registry.blob_path("a", blob)
        registry.faults[path] = [faulty_registry.status(500)] * 9
        with pytest.raises(RegistryUnavailable, match="answered 500"):
            await store.pull(f"{registry.host}/a:1")
        registry.faults[path] = [faulty_registry.reset] * 9
        with pytest.raises(RegistryUnavailable, match=blob):
            await store.pull(f"{registry.host}/a:1")
        registry.faults[path] = [faulty_registry.longer]
        with pytest.raises(DigestMismatch, match="more than"):
            await store.pull(f"{registry.host}/a:1")
    assert trees(tmp_path / "image") == set()


@pytest.mark.parametrize("basic", [False, True])
async def test_authentication(basic: bool, store: ImageStore) -> None:
    login = Credentials(username="user", password="pass")
    async with (
        FaultyRegistry({"a:1": busybox_image()}).running() as blobs,
        FaultyRegistry({"a:1": busybox_image()}, login="user:pass", basic=basic).running() as registry,
    ):
        registry.blobs_at = f"http://localhost:{blobs.host.partition(':')[2]}"
        name = f"{registry.host}/a:1"
        elsewhere = Credentials(username="user", password="pass", server_address="elsewhere.io")
        for wrong in (None, Credentials(username="user", password="wrong"), elsewhere):
            with pytest.raises(AuthenticationRequired):
                await store.pull(name, wrong)
        await store.pull(name, login)
        # Whoever the registry sends us to does not learn who we are.
        assert blobs.seen
        assert {request.authorization for request in blobs.seen} == {""}
        if not basic:
            token = "Bearer t-repository:a:pull"
            assert {r.authorization for r in registry.seen if "/blobs/" in r.path} == {token}


async def test_certificates_are_verified_unless_insecure(store: ImageStore, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
    files = ("-keyout", key, "-out", certificate)
    run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *subject, *files)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    async with FaultyRegistry({"a:1": busybox_image()}).running(tls) as registry:
        with pytest.raises(RegistryUnavailable, match="certificate verify failed"):
            await store.pull(f"{registry.host}/a:1")
        (tmp_path / "registries.conf").write_text(f'[[registry]]\nlocation = "{registry.host}"\ninsecure = true\n')
        await store.pull(f"{registry.host}/a:1")


# --- concurrency, death, full disks


async def test_concurrent_pulls_do_the_work_once(store: ImageStore) -> None:
    built = build_image([layer(entry(str(n), os.urandom(50_000))) for n in range(5)])
    async with FaultyRegistry({"a:1": built, "b:1": built}).running() as registry:
        names = [f"{registry.host}/a:1"] * 10 + [f"{registry.host}/b:1"]
        images = await asyncio.gather(*map(store.pull, names))
        assert {image.id for image in images} == {built.id}
        blobs = {digest for digest in built.blobs if digest != built.id}
        fetched = [path.rpartition("/")[2] for path in registry.count().elements() if "/blobs/" in path]
        assert sorted(name for name in fetched if name in blobs) == sorted(blobs)
        (image,) = store.images()
        assert len(image.repo_tags) == 2


async def test_a_pull_nobody_waits_for_is_undone_and_can_be_repeated(store: ImageStore, tmp_path: Path) -> None:
    built = build_image([layer(entry("x", os.urandom(400_000))), layer(entry("y", b"y"))])
    slow = next(key for key, blob in built.blobs.items() if len(blob) > 300_000)
    async with FaultyRegistry({"a:1": built}).running() as registry:
        registry.faults[registry.blob_path("a", slow)] = [faulty_registry.endless_wait]
        pulls = [asyncio.create_task(store.pull(f"{registry.host}/a:1")) for _ in range(2)]
        await until(lambda: trees(tmp_path / "image") and not registry.faults[registry.blob_path("a", slow)])
        pulls[0].cancel()
        await asyncio.sleep(0.1)
        assert not pulls[1].done()
        pulls[1].cancel()
        await asyncio.wait(pulls)
        await until(lambda: not trees(tmp_path / "image"))
        image = await store.pull(f"{registry.host}/a:1")
        assert len(store.layers(image)) == 2
        assert len(trees(tmp_path / "image")) == 2


async def test_a_killed_worker_is_an_error_and_leaves_nothing(store: ImageStore, tmp_path: Path) -> None:
    built = build_image([layer(entry("x", os.urandom(400_000)))])
    (blob,) = (key for key in built.blobs if key != built.id)
    async with FaultyRegistry({"a:1": built}).running() as registry:
        registry.faults[registry.blob_path("a", blob)] = [faulty_registry.half]
        pull = asyncio.create_task(store.pull(f"{registry.host}/a:1"))
        (worker,) = await until(lambda: _grandchildren("unpack.worker"))
        os.kill(int(worker), signal.SIGKILL)
        with pytest.raises(ImageError, match="its worker was killed"):
            await pull
        assert trees(tmp_path / "image") == set()
        await store.pull(f"{registry.host}/a:1")


def _grandchildren(word: str) -> list[str]:
    return [worker for forker in _children("self", word) for worker in _children(forker, word)]


def _children(parent: str, word: str) -> list[str]:
    found = []
    for task in Path(f"/proc/{parent}/task").iterdir():
        for pid in (task / "children").read_text().split():
            with suppress(OSError):
                if word in Path(f"/proc/{pid}/cmdline").read_text():
                    found.append(pid)
    return found


DAEMON = """
import asyncio, sys
from pathlib import Path
from image.store import ImageStore
async def main():
    store = await ImageStore.open(Path(sys.argv[1]), Path("/nonexistent"))
    print("open", flush=True)
    await store.pull(sys.argv[2])
    print("pulled", flush=True)
    await asyncio.sleep(3600)
asyncio.run(main())
"""


async def test_a_killed_daemon_leaves_nothing_half_visible(tmp_path: Path) -> None:
    built = build_image([layer(entry("x", os.urandom(3_000_000))), layer(entry("y", b"y" * 5000))])
    root = tmp_path / "image"
    async with FaultyRegistry({"a:1": built}).running() as registry:
        slow = next(key for key, blob in built.blobs.items() if len(blob) > 1_000_000)
        path = registry.blob_path("a", slow)
        registry.faults[path] = [faulty_registry.endless_wait]
        for wanted, images in ((b"open", 0), (b"pulled", 1)):
            daemon = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", DAEMON, root, f"{registry.host}/a:1"), stdout=asyncio.subprocess.PIPE
            )
            assert daemon.stdout is not None
            while wanted not in await daemon.stdout.readline():
                pass
            await until(lambda: len(trees(root)) == 2 and not registry.faults[path])
            daemon.kill()
            await daemon.wait()
            store = await ImageStore.open(root, tmp_path / "registries.conf")
            assert len(store.images()) == images
            assert len(trees(root)) == 2 * images
            await store.close()
    with sqlite3.connect(root / "images.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_what_a_pull_has_finished_stays_over_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is removed if nobody asks for it any more."""
    built = build_image([layer(entry("x", os.urandom(5000))), layer(entry("y", os.urandom(500_000)))])
    root = tmp_path / "image"

    async def stopped(registry: FaultyRegistry, slow: str) -> None:
        """Begin a pull, and close the store when one layer is finished and the other is not."""
        registry.faults[slow] = [faulty_registry.endless_wait]
        steps: list[PullProgress] = []
        store = await ImageStore.open(root, tmp_path / "registries.conf")
        pull = asyncio.create_task(store.pull(f"{registry.host}/a:1", progress=steps.append))
        await until(lambda: any(step.phase == PullPhase.COMPLETE for step in steps) and not registry.faults[slow])
        await until(lambda: store._layers.usage()[1])
        await store.close()
        with pytest.raises(asyncio.CancelledError):
            await pull
        assert trees(root) == {f"layers/{name}" for name in ("1", "2") if (root / "layers" / name).exists()}
        assert len(trees(root)) == 1

    async with FaultyRegistry({"a:1": built}).running() as registry:
        sizes = {len(blob): registry.blob_path("a", key) for key, blob in built.blobs.items()}
        quick, slow = (sizes[size] for size in sorted(sizes)[-2:])
        await stopped(registry, slow)
        store = await ImageStore.open(root, tmp_path / "registries.conf")
        assert store.images() == []
        image = await store.pull(f"{registry.host}/a:1")
        assert (registry.count()[quick], registry.count()[slow]) == (1, 2)
        assert [verdict.problems for verdict in await store.verify()] == [()]
        await store.remove(image.id)
        await store.close()
        await stopped(registry, slow)
        monkeypatch.setattr("image.store._KEPT_SECONDS", 0.0)
        store = await ImageStore.open(root, tmp_path / "registries.conf")
        assert trees(root) == set()
        await store.close()


async def test_a_large_layer_stays_if_the_daemon_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And goes if the pull is only cancelled."""
    monkeypatch.setattr("image.shelf.layers._WORTH_KEEPING", 1000)
    built = build_image([layer(entry("x", os.urandom(5000))), layer(entry("y", os.urandom(500_000)))])
    conf, settings = tmp_path / "registries.conf", ImageSettings(image_layers="erofs")
    async with FaultyRegistry({"a:1": built}).running() as registry:
        sizes = {len(blob): registry.blob_path("a", key) for key, blob in built.blobs.items()}
        quick, slow = (sizes[size] for size in sorted(sizes)[-2:])
        registry.faults[slow] = [faulty_registry.endless_wait]
        store = await ImageStore.open(tmp_path / "image", conf, settings)
        pull = asyncio.create_task(store.pull(f"{registry.host}/a:1"))
        await until(lambda: not registry.faults[slow] and trees(tmp_path / "image") >= {"layers/1"})
        await until(lambda: _recorded_layers(tmp_path / "image") == 1)
        shutil.copytree(tmp_path / "image", tmp_path / "killed")  # all that a killed one leaves
        pull.cancel()
        await until(lambda: trees(tmp_path / "image") == set())
        assert _recorded_layers(tmp_path / "image") == 0
        await store.close()

        again = await ImageStore.open(tmp_path / "killed", conf, settings)
        image = await again.pull(f"{registry.host}/a:1")
        assert (registry.count()[quick], registry.count()[slow]) == (1, 2)
        assert [len((place / name).read_bytes()) for place, name in zip(again.layers(image), "yx", strict=True)] == [
            500_000,
            5000,
        ]
        await again.close()


def _recorded_layers(root: Path) -> int:
    with closing(sqlite3.connect(root / "images.db")) as database:
        return int(database.execute("SELECT count(*) FROM layers").fetchone()[0])


async def test_one_daemon_a_store_and_a_lost_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("image.shelf.root._LOCK_WAIT", 0.1)
    store = await ImageStore.open(tmp_path / "image", tmp_path / "registries.conf")
    with pytest.raises(ImageError, match="another daemon has it"):
        await ImageStore.open(tmp_path / "image", tmp_path / "registries.conf")
    await store.import_archive(busybox_layout(tmp_path / "layout"))
    await store.close()
    (tmp_path / "image/layers/1").rename(tmp_path / "stolen")
    again = await ImageStore.open(tmp_path / "image", tmp_path / "registries.conf")
    assert again.images() == []
    await again.import_archive(tmp_path / "layout")
    await again.close()


async def test_a_full_disk(registry: Registry, tmp_path: Path) -> None:
    built = build_image([layer(entry("small", b"s" * 100_000)), layer(entry("big", os.urandom(6_000_000)))])
    many = build_image([layer(*(entry(f"f{n}", b"") for n in range(3000)))])
    registry.push("big", "1", built)
    registry.push("many", "1", many)
    small = tmp_path / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=6m,nr_inodes=1500", "tmpfs", small)
    async with AsyncExitStack() as undo:
        undo.callback(run, "umount", small)
        store = await ImageStore.open(small / "image", tmp_path / "registries.conf")
        undo.push_async_callback(store.close)
        kept = await store.pull(f"{registry.host}/library/busybox:1")
        used = os.statvfs(small)
        for name, room in (("big:1", r"\d of 6 MiB are free"), ("many:1", "none of 1500 inodes is free")):
            with pytest.raises(StorageFull, match=rf"no space left below {small}/\S+ \({room}\)"):
                await store.pull(f"{registry.host}/{name}")
            assert os.statvfs(small).f_bfree >= used.f_bfree - 2
            assert os.statvfs(small).f_ffree == used.f_ffree
        # A full disk is when images must go.
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            (small / "fill").write_bytes(bytes(8 << 20))
        await store.remove(kept.id)
        assert store.images() == []
        assert trees(small / "image") == set()


# --- archives


async def test_archives_of_every_kind(store: ImageStore, tmp_path: Path) -> None:
    layout = busybox_layout(tmp_path / "layout")
    kinds = {"directory": layout, "oci": tar_of(layout, tmp_path / "layout.tar")}
    run("skopeo", "copy", "-q", f"oci:{layout}", f"docker-archive:{tmp_path}/docker.tar:busybox:1")
    kinds["docker"] = tmp_path / "docker.tar"
    for kind, path in kinds.items():
        (image,) = await store.import_archive(path, f"example.io/{kind}:2")
        assert image.id == busybox_image().id
    assert store.images()[0].repo_tags == tuple(f"example.io/{kind}:2" for kind in sorted(kinds))
    await store.remove(busybox_image().id)
    (image,) = await store.import_archive(kinds["docker"])
    assert image.repo_tags == ("docker.io/library/busybox:1",)
    (root,) = store.layers(image)
    assert (root / "bin/sh").samefile(root / "bin/busybox")
    manifest, configuration = await store.documents(image)
    assert digest(configuration) == image.id
    assert image.id.encode() in manifest


async def test_archives_that_are_none(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no tar")
    (tmp_path / "empty").mkdir()
    tar_of(busybox_layout(tmp_path / "layout"), tmp_path / "cut.tar")
    os.truncate(tmp_path / "cut.tar", 700_000)
    two = write_layout(tmp_path / "two", {"a:1": build_image([]), "b:1": build_image([layer()])})
    damaged = busybox_layout(tmp_path / "damaged")
    (damaged / "blobs/sha256" / busybox_image().id[7:]).write_bytes(b"{}")
    for path in (tmp_path / "text", tmp_path / "empty", tmp_path / "cut.tar", damaged, tmp_path / "nothing"):
        with pytest.raises((InvalidImage, DigestMismatch), match=str(path)):
            await store.import_archive(path)
    with pytest.raises(InvalidImage, match="2 images in it, one name"):
        await store.import_archive(two, "x:1")
    with pytest.raises(InvalidReference):
        await store.import_archive(two, "X Y")
    assert len(await store.import_archive(two)) == 2
    assert trees(tmp_path / "image") == {"layers/1"} or len(trees(tmp_path / "image")) == 1


async def test_the_store_survives_a_restart(tmp_path: Path) -> None:
    images: list[list[Image]] = []
    for _ in range(2):
        store = await ImageStore.open(tmp_path / "image", tmp_path / "registries.conf", pinned=["busybox"])
        if not images:
            await store.import_archive(busybox_layout(tmp_path / "layout"))
        images.append(store.images())
        assert store.images()[0].pinned
        await store.close()
    assert images[0] == images[1]
