"""Paths inside a root, resolved in userspace as openat2(2) resolves them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linux import syscalls
from linux.resolve import open_inside

_PARTS = ("a", "b", "up", "out", "root", "loop", "file", "..", ".", "", "none", "far", "magic")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> int:
    top = tmp_path_factory.mktemp("top")
    inside = top / "inside"
    (inside / "a/b").mkdir(parents=True)
    (top / "file").write_text("outside")
    (inside / "file").write_text("inside")
    (inside / "a/file").write_text("deeper")
    for name, target in {
        "up": "..", "a/up": "../..", "a/b/up": "../../../../../file", "out": "/../file", "a/out": "/a/../../file",
        "root": "/", "a/root": "/a/b/..", "loop": "a/loop", "a/loop": "/loop", "far": "a//b/./../file",
        "magic": f"/proc/self/fd/0{top}",
    }.items():  # fmt: skip
        (inside / name).symlink_to(target)
    return os.open(inside, os.O_PATH)


def _by_kernel(root: int, path: str, resolve: int) -> tuple[int, int] | int:
    how = syscalls._OpenHow(os.O_PATH | os.O_CLOEXEC, 0, syscalls.RESOLVE_IN_ROOT | resolve)
    while True:
        fd = syscalls.libc.syscall(
            ctypes.c_long(syscalls.SYS_OPENAT2), root, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)
        )
        if fd >= 0 or ctypes.get_errno() != errno.EAGAIN:  # of a rename somewhere
            return _identity(fd) if fd >= 0 else ctypes.get_errno()


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    os.close(fd)
    return status.st_dev, status.st_ino


@settings(max_examples=300)
@given(parts=st.lists(st.sampled_from(_PARTS), min_size=1, max_size=6), follow=st.booleans())
def test_it_ends_where_the_kernel_does(root: int, parts: list[str], follow: bool) -> None:
    path = "/".join(parts).lstrip("/") or "."
    expected = _by_kernel(root, path, 0 if follow else syscalls.RESOLVE_NO_SYMLINKS)
    try:
        found: tuple[int, int] | int = _identity(open_inside(root, path, os.O_PATH, follow=follow))
    except OSError as error:
        found = error.errno or 0
    assert found == expected


def test_renames_elsewhere_on_the_machine_do_not_make_it_fail(root: int, tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    renaming = os.fork()
    if renaming == 0:
        os.close(theirs)
        os.set_blocking(ours, False)
        here, there = tmp_path / "here", tmp_path / "there"
        here.touch()
        while True:
            here.rename(there)
            there.rename(here)
            with contextlib.suppress(BlockingIOError):
                if not os.read(ours, 1):
                    os._exit(0)  # with whoever has the other end
    try:
        for _ in range(50_000):
            os.close(syscalls.open_in_root(root, "a/b/../b/../b/../file", os.O_PATH))
    finally:
        os.close(ours)
        os.close(theirs)
        os.waitpid(renaming, 0)


def test_files_are_opened_for_what_is_asked(root: int) -> None:
    with os.fdopen(open_inside(root, "far", os.O_RDONLY)) as file:
        assert file.read() == "deeper"
    with pytest.raises(OSError, match="far") as refused:
        open_inside(root, "far", os.O_RDONLY, follow=False)
    assert refused.value.errno == errno.ELOOP


def test_nothing_stays_open(root: int) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for path in ("a/b/..", "far", "none/x", "loop", "file/x", "a/b/up"):
        try:
            os.close(open_inside(root, path, os.O_PATH))
        except OSError:
            continue
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_the_root_may_be_named_by_a_path(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    directory = os.open(tmp_path, os.O_RDONLY)
    found = open_inside(directory, "../../x", os.O_PATH)
    assert os.path.samestat(os.fstat(found), os.stat(tmp_path / "x"))
    os.close(found)
    os.close(directory)


@settings(max_examples=200)
@given(parts=st.lists(st.sampled_from((*_PARTS, "dangling", "new")), min_size=1, max_size=6))
def test_what_is_made_on_the_way_is_inside(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    top = tmp_path_factory.mktemp("made")
    inside = top / "inside"
    (inside / "a/b").mkdir(parents=True)
    for name, target in {
        "up": "..", "a/up": "../../../../out/of/it", "root": "/", "a/root": "/a/b/..", "loop": "/loop",
        "dangling": "/none/more", "a/dangling": "../../x/../y", "far": f"{top}/outside", "magic": "/proc/self/fd/0/x",
    }.items():  # fmt: skip
        (inside / name).symlink_to(target)
    root = os.open(inside, os.O_PATH)

    def make(name: str, directory: int, last: bool) -> None:
        os.mkdir(name, dir_fd=directory)

    place, failure = str(inside), errno.ELOOP
    try:
        found = open_inside(root, "/".join(parts).lstrip("/") or ".", os.O_PATH, make=make)
        place = os.readlink(f"/proc/self/fd/{found}")
        os.close(found)
    except OSError as error:
        failure = error.errno or 0
    os.close(root)
    assert failure == errno.ELOOP
    assert place == str(inside) or place.startswith(f"{inside}/")
    assert [entry.name for entry in top.iterdir()] == ["inside"]
