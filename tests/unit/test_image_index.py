"""The index of a layer that the kernel mounts, as far as it needs no mount."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from image.erofs.index import Index

FILES = 5000


def test_a_directory_of_very_many_files_takes_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker has 512 MiB, and an archive may have a million files in one directory."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(FILES):
        (tree / f"file-{number}").touch()
    monkeypatch.chdir(tmp_path)  # it is changed by the writer
    file, tar = os.memfd_create("index"), os.memfd_create("tar")
    root = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    tracemalloc.start()
    try:
        Index(file).write(root, tar)
        assert tracemalloc.get_traced_memory()[1] < 400 * FILES
    finally:
        tracemalloc.stop()
        for descriptor in (file, tar, root):
            os.close(descriptor)
