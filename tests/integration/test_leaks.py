"""The leak check itself: each kind of thing that it exists for is seen."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from tests import leaks


@contextmanager
def _undone(make: list[str], undo: list[str]) -> Iterator[None]:
    subprocess.run(make, check=True)
    try:
        yield
    finally:
        subprocess.run(undo, check=True)


@contextmanager
def _descriptor() -> Iterator[None]:
    number = os.pidfd_open(os.getpid())
    try:
        yield
    finally:
        os.close(number)


@contextmanager
def _process() -> Iterator[None]:
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            yield
        finally:
            process.kill()


@contextmanager
def _cgroup() -> Iterator[None]:
    hierarchy = next(path for path in (leaks.CGROUPS / "pids", leaks.CGROUPS) if path.is_dir())
    made = hierarchy / f"crisp-leak-{time.monotonic_ns()}"
    made.mkdir()
    try:
        yield
    finally:
        made.rmdir()


@pytest.mark.parametrize(
    ("kind", "making"),
    [
        ("mounts", lambda: _undone(["mount", "-t", "tmpfs", "leak", "/mnt"], ["umount", "/mnt"])),
        ("namespaces", lambda: _undone(["ip", "netns", "add", "leak"], ["ip", "netns", "delete", "leak"])),
        ("links", lambda: _undone(["ip", "link", "add", "leak", "type", "bridge"], ["ip", "link", "delete", "leak"])),
        ("rules", lambda: _undone(["iptables", "-t", "nat", "-N", "LEAK"], ["iptables", "-t", "nat", "-X", "LEAK"])),
        ("cgroups", _cgroup),
        ("processes", _process),
        ("descriptors", _descriptor),
    ],
)
def test_a_leak_of_each_kind_is_named(kind: str, making: Callable[[], AbstractContextManager[None]]) -> None:
    if kind == "cgroups" and not leaks.is_alone():
        pytest.skip("another box is on this machine")
    before = leaks.Snapshot.take()
    with making():
        left = leaks.settle(before, grace=0)
        assert any(line.startswith(f"{kind}: ") for line in left), left
    assert leaks.settle(before) == []
