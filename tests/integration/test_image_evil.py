"""A thousand images that are damaged or evil, with digests that match, so that they reach what unpacks them."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path

from image.errors import DigestMismatch, InvalidImage, InvalidReference, StorageFull
from image.settings import ImageSettings
from image.store import ImageStore
from tests.evil import Evil
from tests.images import busybox_layout, write_layout

SEED, LAYERS, DOCUMENTS, AT_ONCE = 20_261_125, 750, 250, 25
CLEAR = (InvalidImage, DigestMismatch, InvalidReference, StorageFull)

def run(*command: str | Path) -> None:
    subprocess.run(command, check=True)


_State = dict[str, tuple[int, ...]]


def state(*roots: Path) -> _State:
    """Every inode below `roots`, and what would tell of a change."""
    found = {}
    for root in roots:
        for path in (root, *root.rglob("*")):
            there = path.lstat()
            links = 1 if path.is_dir() else there.st_nlink
            found[str(path)] = (there.st_ino, there.st_mode, there.st_uid, there.st_size, links, there.st_ctime_ns)
    return found


async def test_a_thousand_evil_images(tmp_path: Path) -> None:
    """Run on a tmpfs: a thousand calls of syncfs on a disk would measure the disk."""
    place = tmp_path / "place"
    place.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=256m", "evil", place)
    try:
        outside = place / "outside"
        outside.mkdir()
        (outside / "canary").write_text("as it was")
        victim = place / "image/layers/1"
        targets = [str(outside / "canary"), str(outside / "new"), "/etc/crisp-evil", f"{victim}/bin/busybox"]
        store = await ImageStore.open(place / "image", place / "none", ImageSettings(signature_policy=None))
        try:
            (image,) = await store.import_archive(busybox_layout(place / "layout", "victim:1"))
            assert store.layers(image) == [victim]
            before = state(outside, victim)
            outcomes = await _attack(store, place / "evil", Evil(SEED, targets))
            assert state(outside, victim) == before
            assert not os.path.lexists("/etc/crisp-evil")
            assert [verdict.problems for verdict in await store.verify()] == [()] * len(store.images())
            for other in store.images():
                if other.id != image.id:
                    await store.remove(other.id)
            assert sorted(os.listdir(place / "image/layers")) == ["0", "1"]
            assert os.listdir(place / "image/tmp") == []
            # Were nearly all of one kind, the generator would have lost its aim.
            assert min(outcomes["InvalidImage"], outcomes["imported"]) > 100, outcomes
        finally:
            await store.close()
    finally:
        run("umount", place)


async def _attack(store: ImageStore, place: Path, evil: Evil) -> Counter[str]:
    outcomes: Counter[str] = Counter()

    async def one(number: int) -> None:
        made = evil.layer_image() if number < LAYERS else evil.document_image()
        layout = write_layout(place / str(number), {f"evil:{number}": made})
        try:
            await asyncio.wait_for(store.import_archive(layout), 60)
            outcomes["imported"] += 1
        except CLEAR as error:  # any other is a failure of ours
            outcomes[type(error).__name__] += 1
        finally:
            shutil.rmtree(layout)

    for start in range(0, LAYERS + DOCUMENTS, AT_ONCE):
        await asyncio.gather(*map(one, range(start, start + AT_ONCE)))
    return outcomes
