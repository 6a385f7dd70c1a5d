"""Makes layers of both kinds, unpacked and indexed, and tells whether they are the same tree."""

from __future__ import annotations

import asyncio
import os
import stat
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from image.erofs.mount import mount
from image.erofs.mounted import name_of
from image.errors import ImageError
from image.manifest import Blob
from image.unpack.workers import Workers

NOW = 1_790_000_000  # seconds: what no entry describes has the time of its making


async def made(workers: Workers, place: Path, tar: bytes, *, indexed: bool) -> str:
    """Make a layer in `place`; what it was refused with."""
    place.mkdir(parents=True)
    place.chmod(0o755)
    source = os.memfd_create("tar")
    os.write(source, tar)
    os.lseek(source, 0, os.SEEK_SET)
    try:
        unpacked = await workers.unpack(source, Blob("", len(tar), ""), place, indexed=indexed)
        if unpacked.unsettled is not None:
            unpacked.unsettled.close()
    except ImageError as error:
        return f"{type(error).__name__}: {error}".replace(str(place), "PLACE")
    finally:
        os.close(source)
    return ""


@contextmanager
def mounted(place: Path) -> Iterator[Path]:
    descriptor = mount(place, None)
    try:
        yield name_of(descriptor)
    finally:
        os.close(descriptor)


def tree(root: Path) -> dict[bytes, tuple[object, ...]]:
    """All that can be told of what is below `root`, and of itself."""
    found = {}
    names = defaultdict(list)
    top = os.fsencode(root) + b"/."
    paths = [top]
    for here, directories, files in os.walk(top):
        paths += [os.path.join(here, name) for name in (*directories, *files)]
    for path in paths:
        there = os.lstat(path)
        plain, directory = stat.S_ISREG(there.st_mode), stat.S_ISDIR(there.st_mode)
        name = path.removeprefix(top)
        names[there.st_ino].append(name)
        content = b""
        if plain and there.st_size < 1 << 20:
            content = Path(os.fsdecode(path)).read_bytes()
        elif stat.S_ISLNK(there.st_mode):
            content = os.readlink(path)
        keys = os.listxattr(path, follow_symlinks=False)
        found[name] = (
            *(there.st_mode, there.st_uid, there.st_gid, there.st_nlink, there.st_rdev),
            min(there.st_mtime_ns, NOW * 10**9),
            0 if directory else there.st_size,
            content,
            tuple(sorted((key, os.getxattr(path, key, follow_symlinks=False)) for key in keys)),
        )
    return {name: (*said, *sorted(names[os.lstat(top + name).st_ino])) for name, said in found.items()}


async def both(workers: Workers, place: Path, tar: bytes) -> str:
    """Make a layer of either kind, compare them, and say what both were refused with."""
    unpacked, indexed = place / "unpacked", place / "indexed"
    refusals = [
        await made(workers, unpacked, tar, indexed=False),
        await made(workers, indexed, tar, indexed=True),
    ]
    try:
        assert refusals[0] == refusals[1]
        if not refusals[0]:
            assert (indexed / "tar").read_bytes() == tar
            with mounted(indexed) as root:
                assert await asyncio.to_thread(tree, root) == await asyncio.to_thread(tree, unpacked)
    finally:
        await workers.remove_trees([place])
    return refusals[0]
