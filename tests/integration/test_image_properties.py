"""Archives made by chance: both kinds of layers are the same tree, which GNU tar makes of them too, or refused alike.

A run of few is part of the tests. For more, with counts:

    CRISP_TEST_TARS=10000 CRISP_TEST_IMAGES=1000 pytest -s tests/integration/test_image_properties.py
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import stat
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from image.errors import DigestMismatch, InvalidImage, InvalidReference, StorageFull
from image.settings import ImageSettings
from image.store import ImageStore
from image.unpack.workers import Workers
from tests.evil import Evil
from tests.images import busybox_layout, write_layout
from tests.layer_kinds import both, made, mounted, tree

SEED, AT_ONCE = 20_261_129, 10
TARS = int(os.environ.get("CRISP_TEST_TARS", "200"))
IMAGES = int(os.environ.get("CRISP_TEST_IMAGES", "100"))
PLAIN = max(TARS // 20, 12)
FORMATS = ("gnu", "posix", "ustar", "oldgnu")
SIZES = (0, 1, 511, 512, 513, 4096, 70_000)
CLEAR = (InvalidImage, DigestMismatch, InvalidReference, StorageFull)


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True)


@pytest_asyncio.fixture
async def workers() -> AsyncIterator[Workers]:
    running = Workers()
    yield running
    await running.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A disk in memory: layers are mounted from ext4, and thousands of calls of syncfs would measure a real one."""
    backing, disk = tmp_path / "memory", tmp_path / "disk"
    for directory in (backing, disk):
        directory.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=1g", "memory", backing)
    try:
        with (backing / "disk").open("wb") as file:
            file.truncate(768 << 20)
        run("mkfs.ext4", "-q", "-F", backing / "disk")
        run("mount", "-o", "loop,nobarrier,data=writeback", backing / "disk", disk)
        try:
            yield disk
        finally:
            run("umount", disk)
    finally:
        run("umount", backing)


async def test_evil_archives_are_the_same_tree_or_refused_alike(workers: Workers, place: Path) -> None:
    evil = Evil(SEED, ["/etc/crisp-evil", f"{place}/canary"])
    outcomes: Counter[str] = Counter()

    async def one(number: int, tar: bytes) -> None:
        refusal = await both(workers, place / str(number), tar)
        outcomes[refusal.partition(":")[0]] += 1

    for start in range(0, TARS, AT_ONCE):
        await asyncio.gather(*(one(start + number, evil.tar()) for number in range(AT_ONCE)))
    print(f"\n{TARS} archives: {outcomes['']} the same tree, {TARS - outcomes['']} refused alike: {dict(outcomes)}")
    assert min(outcomes[""], outcomes["InvalidImage"]) > TARS // 10, outcomes


def _grow(root: Path, chance: random.Random) -> None:
    """Make a tree of what every format of GNU tar has."""
    directories = [root]
    files: list[Path] = []
    for number in range(chance.randint(5, 60)):
        at = chance.choice(directories) / f"{chance.choice('ab.!~')}{number}{'x' * chance.choice((0, 0, 0, 60))}"
        kind = chance.choice(("file", "file", "file", "directory", "link", "hard link", "pipe", "device"))
        if len(os.fsencode(at.relative_to(root))) > 90:  # of ustar's 100, without a prefix
            continue
        if kind == "directory":
            at.mkdir()
            directories.append(at)
        elif kind == "link":
            at.symlink_to(chance.choice(("a", "/etc/passwd", "../..", "t" * 95)))
        elif kind == "hard link" and files:
            at.hardlink_to(chance.choice(files))
        elif kind == "pipe":
            os.mkfifo(at)
        elif kind == "device":
            os.mknod(at, chance.choice((stat.S_IFCHR, stat.S_IFBLK)) | 0o600, os.makedev(1 + number, number))
        else:
            files.append(at)
            with at.open("wb") as file:
                file.write(chance.randbytes(chance.choice(SIZES)))
                if not chance.randrange(4):  # with a hole at its end, or before more
                    file.truncate(file.tell() + 200_000)
                    file.seek(0, os.SEEK_END)
                    file.write(chance.randbytes(chance.choice(SIZES)))
    for path in sorted(root.rglob("*"), reverse=True):
        os.chown(path, chance.randrange(70_000), chance.randrange(70_000), follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(chance.choice((0o644, 0o755, 0o4711, 0o2755, 0o1777, 0)))
        os.utime(path, (chance.randrange(1 << 31),) * 2, follow_symlinks=False)


def _copied(source: Path, model: Path, options: list[str]) -> bytes:
    """An archive of `source` made by GNU tar, which is unpacked into `model` by it as well."""
    said = subprocess.run(["tar", *options, "-C", source, "-cf", "-", "."], check=True, stdout=subprocess.PIPE)
    subprocess.run(["tar", "--numeric-owner", "-xpf", "-", "-C", model], input=said.stdout, check=True)
    return said.stdout


async def test_plain_archives_are_what_gnu_tar_makes_of_them(workers: Workers, place: Path) -> None:
    chance = random.Random(SEED)
    formats: Counter[str] = Counter()
    for number in range(PLAIN):
        here = place / str(number)
        source, model = here / "source", here / "model"
        for directory in (source, model):
            directory.mkdir(parents=True)
        _grow(source, chance)
        form = FORMATS[number % len(FORMATS)]
        holes = form in ("gnu", "posix", "oldgnu") and chance.random() < 0.5
        tar = _copied(source, model, [f"--format={form}", *["--sparse"] * holes])
        expected = await asyncio.to_thread(tree, model)
        assert await made(workers, here / "unpacked", tar, indexed=False) == ""
        assert await made(workers, here / "indexed", tar, indexed=True) == ""
        assert await asyncio.to_thread(tree, here / "unpacked") == expected
        with mounted(here / "indexed") as root:
            assert await asyncio.to_thread(tree, root) == expected
        formats[form] += 1
        await workers.remove_trees([here])
    print(f"\n{PLAIN} plain archives are what GNU tar makes of them: {dict(formats)}")


async def test_hostile_images_on_mounted_layers(place: Path, tmp_path: Path) -> None:
    """As test_image_evil.py, which is about unpacked layers: nothing of the machine or of another image is changed."""
    settings = ImageSettings(image_layers="erofs", signature_policy=None)
    evil = Evil(SEED, ["/etc/crisp-evil", f"{place}/image/layers/1/tar", f"{place}/image/layers/1/index"])
    outcomes: Counter[str] = Counter()
    store = await ImageStore.open(place / "image", place / "none", settings)

    async def one(number: int) -> None:
        hostile = evil.layer_image() if number % 4 else evil.document_image()
        layout = write_layout(tmp_path / "evil" / str(number), {f"evil:{number}": hostile})
        try:
            await asyncio.wait_for(store.import_archive(layout), 300)
            outcomes["imported"] += 1
        except CLEAR as error:  # any other is a failure of ours
            outcomes[type(error).__name__] += 1
        finally:
            shutil.rmtree(layout)

    try:
        (victim,) = await store.import_archive(busybox_layout(tmp_path / "layout", "victim:1"))
        for start in range(0, IMAGES, AT_ONCE):
            await asyncio.gather(*(one(number) for number in range(start, start + AT_ONCE)))
        assert {verdict.problems for verdict in await store.verify()} == {()}
        for image in store.images():
            store.layers(image)
            if image.id != victim.id:
                await store.remove(image.id)
        assert not os.path.lexists("/etc/crisp-evil")
        assert sorted(os.listdir(place / "image/layers")) == ["0", "1"]
        assert os.listdir(place / "image/tmp") == []
    finally:
        await store.close()
    print(f"\n{IMAGES} hostile images: {dict(outcomes)}")
    assert min(outcomes["imported"], outcomes["InvalidImage"]) > IMAGES // 20, outcomes
