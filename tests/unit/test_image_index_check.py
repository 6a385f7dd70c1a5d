"""An index is checked before the kernel mounts it: what the writer writes passes, and nothing else."""

from __future__ import annotations

import os
import random
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from image.erofs import layout
from image.erofs.check import check
from image.erofs.index import Index, is_short, lengthen
from image.erofs.layout import BLOCK, SLOT, TAR_BLOCK, Malformed
from image.erofs.seal import Changed

SEED, CHANGES = 20_261_130, 1500
TAR_SIZE = 40 * BLOCK + 100
ATTRIBUTE = "user.crisp"


class Made:
    """An index of a tree with something of everything, that can be changed and restored."""

    def __init__(self, place: Path) -> None:
        self.index, self.tar = os.memfd_create("index"), os.memfd_create("tar")
        os.ftruncate(self.tar, TAR_SIZE)
        tree = place / "tree"
        for name in ("d/e", "many"):
            (tree / name).mkdir(parents=True)
        for number in range(60):
            (tree / "many" / f"{'n' * (number % 30)}{number}").touch()
        writer = Index(self.index)
        for number, (name, size) in enumerate((("plain", 700), ("d/other", BLOCK), ("d/e/cut off", 150))):
            with (tree / name).open("wb") as file:
                file.truncate(size)
                at = TAR_SIZE - size - (TAR_SIZE - size) % BLOCK if name == "d/e/cut off" else number * 4 * BLOCK
                writer.place(os.fstat(file.fileno()).st_ino, at, size)
        with (tree / "sparse").open("wb") as file:
            file.truncate(90_000)
            parts = iter([[memoryview(b"x" * 700)], [memoryview(b"y")]])
            writer.expand(os.fstat(file.fileno()).st_ino, 90_000, [(5000, 700), (80_000, 1)], lambda _: next(parts))
        os.symlink("t" * 100, tree / "short")
        os.symlink("t" * 600, tree / "long")
        os.link(tree / "plain", tree / "d/again")
        os.mkfifo(tree / "pipe")
        writer.notes.set_xattr((tree / "plain").stat().st_ino, ATTRIBUTE.encode(), b"value")
        root = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
        here = os.getcwd()
        try:
            writer.write(root, self.tar)  # changes the working directory
        finally:
            os.chdir(here)
            os.close(root)
        self.sound = os.pread(self.index, os.fstat(self.index).st_size, 0)
        head = layout.parse_header(self.sound[: 3 * BLOCK])
        self.inodes = head.inodes_at * BLOCK

    def becomes(self, content: bytes) -> None:
        os.ftruncate(self.index, 0)
        os.pwrite(self.index, content, 0)

    def with_bytes(self, at: int, piece: bytes) -> bytes:
        return self.sound[:at] + piece + self.sound[at + len(piece) :]

    def inode(self, mode: int) -> int:
        """Where the first inode of a kind is."""
        for at in range(self.inodes + SLOT, len(self.sound), SLOT):
            number = (at - self.inodes) // SLOT
            if struct.unpack_from("<I", self.sound, at + 20) == (number,):
                it = layout.parse_inode(self.sound, at)
                if stat.S_IFMT(it.mode) == mode and it.size:
                    return at
        raise AssertionError

    def close(self) -> None:
        os.close(self.index)
        os.close(self.tar)


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    it = Made(tmp_path)
    yield it
    it.close()


def far(made: Made) -> bytes:
    return made.with_bytes(made.inode(stat.S_IFREG) + 16, struct.pack("<I", TAR_BLOCK + 40))


def long(made: Made) -> bytes:
    return made.with_bytes(made.inode(stat.S_IFREG) + 8, struct.pack("<Q", 42 * BLOCK))


def elsewhere(made: Made) -> bytes:
    return made.with_bytes(made.inode(stat.S_IFDIR) + 16, struct.pack("<I", made.inodes // BLOCK))


def compressed(made: Made) -> bytes:
    return made.with_bytes(made.inode(stat.S_IFREG), struct.pack("<H", 1 << 1 | 1))


def renamed(made: Made) -> bytes:
    return made.sound.replace(b"againe", b"a/aine")


def named_twice(made: Made) -> bytes:
    return made.sound.replace(b"againe", b"eeeeee")


def redirecting(made: Made) -> bytes:
    name, index = b"overlay.re", 4
    at = made.sound.index(b"crispvalue") - 4
    return made.with_bytes(at, struct.pack("<BBH", len(name), index, 0) + name)


def later_header(made: Made) -> bytes:
    return made.with_bytes(1024 + 80, struct.pack("<I", 0xFFFF))


WRONG: dict[str, Callable[[Made], bytes]] = {
    one.__name__: one for one in (far, long, elsewhere, compressed, renamed, named_twice, redirecting, later_header)
}


@pytest.mark.parametrize("what", WRONG)
def test_what_the_writer_does_not_write_is_refused(made: Made, what: str) -> None:
    changed = WRONG[what](made)
    assert changed != made.sound
    made.becomes(changed)
    with pytest.raises(Malformed):
        check(made.index, made.tar)


def test_an_index_ends_with_a_page(made: Made) -> None:
    """Linux 7.3 mounts none that is shorter than one."""
    assert len(made.sound) % 4096 == 0


@pytest.mark.parametrize("interrupted", [False, True])
def test_an_index_of_an_earlier_crisp_gets_the_rest_of_its_page(made: Made, tmp_path: Path, interrupted: bool) -> None:
    """Whatever an interruption left of the two steps."""
    blocks = -(-len(made.sound.rstrip(b"\0")) // BLOCK)
    assert blocks % 8
    short = layout.with_blocks(made.sound, blocks)[: blocks * BLOCK]
    made.becomes(short)
    check(made.index, made.tar)
    path = tmp_path / "index"
    path.write_bytes(short)
    assert is_short(path)
    if interrupted:
        os.truncate(path, len(made.sound))
    for _ in range(2):
        lengthen(path)
        assert path.read_bytes() == made.sound
    assert not is_short(path)


def test_a_changed_index_is_refused_or_has_another_seal(made: Made) -> None:
    """Whatever is changed: the check ends, with the same error for all that is wrong, and the seal tells."""
    chance = random.Random(SEED)
    seal = check(made.index, made.tar)
    seal.require(made.index)
    assert seal.is_of(made.index)
    refused = 0
    for _ in range(CHANGES):
        changed = bytearray(made.sound)
        for _ in range(chance.choice((1, 1, 1, 8))):
            at = chance.randrange(chance.choice((0, made.inodes)), len(changed))
            changed[at] = chance.choice((0, 1, 0xFF, changed[at] ^ 1 << chance.randrange(8)))
        cut = len(changed) - BLOCK * (chance.random() < 0.02)
        if bytes(changed[:cut]) == made.sound:
            continue
        made.becomes(bytes(changed[:cut]))
        try:
            other = check(made.index, made.tar)
        except Malformed:
            refused += 1
        else:
            assert other != seal
        assert not seal.is_of(made.index)
        if bytes(changed[seal.begin * BLOCK : cut]) != made.sound[seal.begin * BLOCK :]:
            with pytest.raises(Changed):
                seal.require(made.index)
    assert refused > CHANGES // 4


def test_contents_with_holes_have_the_seal_of_a_copy_without(made: Made, tmp_path: Path) -> None:
    seal = check(made.index, made.tar)
    (tmp_path / "copy").write_bytes(made.sound)
    copy = os.open(tmp_path / "copy", os.O_RDONLY)
    try:
        assert seal.is_of(copy)
    finally:
        os.close(copy)
