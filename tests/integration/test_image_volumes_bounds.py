"""What an image's volumes cost that are filled with what the image has: what it has, and not what it claims."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from pods.oci import image_volumes


@pytest.mark.trial("volumes-cost-what-they-hold", "a volume is filled without a list of names and without holes")
def test_holes_stay_holes_and_names_are_not_listed(tmp_path: Path) -> None:
    rootfs, place = tmp_path / "rootfs", tmp_path / "volumes"
    data = rootfs / "data"
    data.mkdir(parents=True)
    with (data / "sparse").open("wb") as sparse:
        sparse.write(b"begin")
        sparse.seek(3 << 30)
        sparse.write(b"middle")
        sparse.truncate(4 << 30)
    (data / "hole").touch()
    os.truncate(data / "hole", 4 << 30)
    (data / "plain").write_bytes(b"x" * 100_000)
    for number in range(1500):
        (data / f"{number:0200}").touch()
    root = os.open(rootfs, os.O_RDONLY)
    tracemalloc.start()
    try:
        assert image_volumes.make(root, {"/data": "0"}, place, (0, 0), readonly=True) == {"/data": "0"}
        assert image_volumes.make(root, {"/data": "1"}, place, (0, 0), readonly=False) == {}
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        os.close(root)
    made = place / "0"
    assert peak < 512 << 10
    assert len(os.listdir(made)) == 1503
    assert (made / "plain").read_bytes() == b"x" * 100_000
    for name in ("sparse", "hole"):
        status = (made / name).stat()
        assert status.st_size == 4 << 30
        assert status.st_blocks * 512 < 1 << 20
    with (made / "sparse").open("rb") as sparse:
        assert sparse.read(6) == b"begin\0"
        sparse.seek(3 << 30)
        assert sparse.read(7) == b"middle\0"
