"""The leak check itself: each kind of thing that it exists for is seen, and what others do beside us is not."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests import box, cgroups, leaks
from tests.daemon import REPOSITORY

Making = Callable[[Path], AbstractContextManager[None]]

# Run in a box of its own: prints what it took for a leak while it made none, and while it made one of each version.
LOOKING = """
import os
from pathlib import Path
from tests import cgroups, leaks

before = leaks.Snapshot.take()
for _ in range(40):
    print("none:", leaks.Snapshot.take().since(before))
made = [hierarchy / "crisp" for hierarchy in (cgroups.hierarchies()[0], cgroups.hierarchies()[-1])]
for path in dict.fromkeys(made):
    path.mkdir(exist_ok=True)
print("one:", leaks.Snapshot.take().since(before))
for path in dict.fromkeys(made):
    path.rmdir()
print("none:", leaks.settle(before))
"""


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
    made = cgroups.hierarchies()[-1] / "session-1.scope"
    made.mkdir()
    try:
        yield
    finally:
        made.rmdir()


@contextmanager
def _loop(directory: Path) -> Iterator[None]:
    file = directory / "disk"
    with file.open("wb") as disk:
        disk.truncate(1 << 20)
    device = subprocess.run(["losetup", "--find", "--show", file], check=True, capture_output=True, text=True).stdout
    try:
        yield
    finally:
        subprocess.run(["losetup", "--detach", device.strip()], check=True)


@pytest.mark.parametrize(
    ("kind", "making"),
    [
        ("mounts", lambda _: _undone(["mount", "-t", "tmpfs", "leak", "/mnt"], ["umount", "/mnt"])),
        ("namespaces", lambda _: _undone(["ip", "netns", "add", "leak"], ["ip", "netns", "delete", "leak"])),
        ("links", lambda _: _undone(["ip", "link", "add", "leak", "type", "bridge"], ["ip", "link", "delete", "leak"])),
        ("rules", lambda _: _undone(["iptables", "-t", "nat", "-N", "LEAK"], ["iptables", "-t", "nat", "-X", "LEAK"])),
        ("cgroups", lambda _: _cgroup()),
        ("processes", lambda _: _process()),
        ("descriptors", lambda _: _descriptor()),
        ("loops", _loop),
    ],
)
def test_a_leak_of_each_kind_is_named(kind: str, making: Making, tmp_path: Path) -> None:
    before = leaks.Snapshot.take()
    with making(tmp_path):
        left = leaks.settle(before, grace=0)
        assert any(line.startswith(f"{kind}: ") for line in left), left
    assert leaks.settle(before) == []


@contextmanager
def _process_manager() -> Iterator[None]:
    """Makes cgroups and removes them all the time: a session's, and what another run's crispd names as ours would."""
    ended = threading.Event()

    def manage() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            for parent in (f"session-{number % 7}", "crisp", "crisp-shims"):
                for hierarchy in cgroups.hierarchies():
                    (hierarchy / parent / f"{number:064x}").mkdir(parents=True)
                for hierarchy in cgroups.hierarchies():
                    (hierarchy / parent / f"{number:064x}").rmdir()
                    (hierarchy / parent).rmdir()

    thread = threading.Thread(target=manage)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.trial("others-leaks", "What other programs make beside a run of tests is no leak of the run's.")
def test_cgroups_of_others_are_no_leaks(tmp_path: Path) -> None:
    """A run's own are told all the same, by whatever name, and its box leaves none."""
    output = tmp_path / "output"
    looking = ["sh", "-c", f"cd {REPOSITORY} && exec {sys.executable} -c '{LOOKING}' >{output} 2>&1"]
    with _process_manager():
        assert box.run(looking) == 0, output.read_text()
    *nothing, one, at_last = output.read_text().splitlines()
    assert {*nothing, at_last} == {"none: []"}
    assert one == "one: ['cgroups: /crisp']"


@pytest.mark.trial("others-leaks", "What other programs make beside a run of tests is no leak of the run's.")
def test_loop_devices_of_others_are_no_leaks() -> None:
    before = leaks.Snapshot.take()
    with tempfile.TemporaryDirectory(dir="/tmp") as directory, _loop(Path(directory)):
        assert leaks.Snapshot.take().since(before) == []
