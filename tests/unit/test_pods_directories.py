"""Directories deeper than Python's stack, made and removed."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import stat
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from pods import directories
from pods.directories import Garbage, make_directories, remove_tree
from tests.waiting import eventually


def _deep(top: Path, levels: int) -> None:
    """Directories in directories, with a file in each, deeper than any path can say."""
    os.mkdir(top)
    descriptor = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=descriptor))
        os.mkdir("directory", dir_fd=descriptor)
        below = os.open("directory", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)


def test_directories_of_any_depth_are_made_and_removed(tmp_path: Path) -> None:
    deepest = f"{tmp_path}/top/" + "/".join("d" * 1500)
    make_directories(deepest)
    make_directories(deepest)
    assert stat.S_IMODE(os.stat(deepest).st_mode) == 0o755
    remove_tree(tmp_path / "top")
    _deep(tmp_path / "deeper", 5000)
    remove_tree(tmp_path / "deeper")
    remove_tree(tmp_path / "deeper")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for below in ("file", "file/x/y"):
        with pytest.raises(NotADirectoryError):
            make_directories(str(tmp_path / below))


def test_only_the_tree_is_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    top = tmp_path / "top"
    for name in ("a/b", "a/c", "d"):
        (top / name).mkdir(parents=True)
    for link in ("link", "a/b/link"):
        (top / link).symlink_to(outside)
    remove_tree(top)
    assert not top.exists()
    (tmp_path / "link").symlink_to(outside)
    with caplog.at_level(logging.WARNING):
        remove_tree(tmp_path / "link")
    assert [path.name for path in outside.iterdir()] == ["kept"]
    assert str(tmp_path / "link") in caplog.text


@pytest.mark.trial("removal-is-bounded", "what a container or a layer left is removed in bounded memory")
def test_any_number_of_names_is_removed_in_little_memory(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "files").mkdir(parents=True)
    (top / "deep/directories").mkdir(parents=True)
    (top / "a").touch()
    for number in range(1500):
        os.link(top / "a", top / f"files/{number:0200}")
    for number in range(300):
        (top / f"deep/directories/{number:0200}").mkdir()
        (top / f"{number:0200}/{number:0200}").mkdir(parents=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 16, hard))
    tracemalloc.start()
    try:
        remove_tree(top)
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    assert peak < 256 << 10


@pytest.mark.trial("large-removals", "What a container left is removed without waiting for those that left very much.")
async def test_a_small_tree_waits_for_no_large_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The large ones have no end here, as if each file of theirs took a while, until the small ones are gone."""
    small_ones_gone = threading.Event()
    unlink = os.unlink

    def slow_unlink(name: str, *, dir_fd: int) -> None:
        if name.startswith("many"):
            time.sleep(0.01)
            if small_ones_gone.is_set():
                unlink(name, dir_fd=dir_fd)
        else:
            unlink(name, dir_fd=dir_fd)

    large = [tmp_path / f"large{number}" for number in range(5)]
    for number, top in enumerate(large):
        place = top / "below" if number % 2 else top
        place.mkdir(parents=True)
        for file in range(30):
            (place / f"many{file}").touch()
    monkeypatch.setattr(os, "unlink", slow_unlink)
    garbage = Garbage()
    removal = asyncio.create_task(garbage.remove(large))
    for number in range(20):
        small = tmp_path / f"small{number}"
        (small / "directory").mkdir(parents=True)
        (small / "directory/file").touch()
        await garbage.remove([small])
        assert not small.exists()
    assert not removal.done()
    small_ones_gone.set()
    await removal
    assert list(tmp_path.iterdir()) == []


async def test_a_removal_goes_on_when_nobody_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directories, "_TURN", 0.0)
    top = tmp_path / "top"
    for number in range(300):
        (top / f"{number}/directory").mkdir(parents=True)
        (top / f"{number}/file").touch()
    removal = asyncio.create_task(Garbage().remove([top]))
    await asyncio.sleep(0)
    removal.cancel()
    await eventually(lambda: not top.exists())


async def test_a_removal_whose_caller_is_cancelled_is_no_fault_in_its_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[BaseException | None] = []

    class Threads:
        def submit(self, work: Callable[..., None], *args: object) -> None:
            def run() -> None:
                going_on.wait(60)
                try:
                    work(*args)
                except BaseException as error:
                    ended.append(error)
                else:
                    ended.append(None)

            threading.Thread(target=run).start()

    going_on = threading.Event()
    garbage = Garbage()
    monkeypatch.setattr(garbage, "_threads", Threads())
    removal = asyncio.create_task(garbage.remove([tmp_path / "top"]))
    await asyncio.sleep(0)
    removal.cancel()
    await asyncio.wait({removal})
    going_on.set()
    await eventually(lambda: ended == [None])


def test_a_removal_may_stop_anywhere(tmp_path: Path) -> None:
    _deep(tmp_path / "top", 200)
    (tmp_path / "top/link").symlink_to(tmp_path)
    turns = 1
    while not remove_tree(tmp_path / "top", 0):
        turns += 1
    assert turns > 200
    assert list(tmp_path.iterdir()) == []


async def test_a_closed_garbage_leaves_the_rest_to_the_next_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon's stop waits for one file at most, not for trees that take minutes."""
    monkeypatch.setattr(directories, "_TURN", 0.0)
    at_a_file, going_on = threading.Event(), threading.Event()
    unlink = os.unlink

    def slow_unlink(name: str, *, dir_fd: int) -> None:
        at_a_file.set()
        going_on.wait(60)
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", slow_unlink)
    for top in ("large", "waiting", "also waiting"):
        (tmp_path / top).mkdir()
        for number in range(300):
            (tmp_path / top / f"{number}").touch()
    garbage = Garbage()
    done = garbage.put(sorted(tmp_path.iterdir()))
    await asyncio.to_thread(at_a_file.wait)
    closing = asyncio.create_task(asyncio.to_thread(garbage.close))
    await eventually(lambda: garbage._closing.is_set())
    going_on.set()
    await closing
    assert all(one.done() for one in (*done, *garbage.put([tmp_path / "large"])))
    assert sum(len(list(top.iterdir())) for top in tmp_path.iterdir()) > 890
