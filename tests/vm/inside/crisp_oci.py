"""crisp-oci where only this machine can try it: its systemd is PID 1, its cgroups are of version 2, criu tracks memory.

tests/integration/test_runtime_checkpoint.py tries more of checkpoints, with a later criu.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import counting, leaks
from tests.counting import MIB
from tests.oci import Bundle
from tests.vm.inside.node import MACHINE, left_since, systemctl


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    before = leaks.Snapshot.take()
    made = Bundle.make(tmp_path)
    yield made
    made.delete()
    assert left_since(before) == []


def test_a_scope_of_this_systemd(bundle: Bundle) -> None:
    """--systemd-cgroup through a container's life, with two checkpoints: of its memory, then of what changed."""
    flag, scope = "--systemd-cgroup", "crisp-one.scope"
    counting.configure(bundle, "sh", "-c", counting.SCRIPT, cgroupsPath="system.slice:crisp:one")
    counting.start(bundle, flag)
    unit = ("--property=ActiveState,MemoryMax,Slice,Delegate", "--value", scope)
    assert systemctl("show", *unit).split() == ["system.slice", "yes", str(64 * MIB), "active"]
    bundle.call(flag, "update", "--memory", str(96 * MIB), "one")
    systemctl("daemon-reload")
    assert systemctl("show", "--property=MemoryMax", "--value", scope) == str(96 * MIB)
    assert (counting.cgroup(bundle) / "memory.max").read_text().strip() == str(96 * MIB)
    mounts = counting.mounts(bundle)
    first: tuple[str, ...] = ()
    if MACHINE["tracks_memory"]:
        bundle.call("checkpoint", "--pre-dump", "--image-path", "../first", "one")
        assert bundle.status() == "running"
        first = ("--parent-path", "../first")
    bundle.call("checkpoint", "--image-path", "../images", *first, "one")
    counted = counting.lines(bundle)[-1]
    assert systemctl("show", "--property=LoadState", "--value", scope) == "not-found"
    counting.restore(bundle, "--image-path", "../images", flags=(flag,))
    assert systemctl("show", *unit).split() == ["system.slice", "yes", str(64 * MIB), "active"]
    assert (counting.cgroup(bundle) / "memory.max").read_text().strip() == str(64 * MIB)
    assert counting.mounts(bundle) == mounts
    assert counting.inside(bundle, "cat", "/proc/self/cgroup") == "0::/"
    counting.wait_until(lambda: counting.lines(bundle)[-1] > counted + 2)
    lines = counting.lines(bundle)
    assert lines == list(range(1, len(lines) + 1))
    bundle.delete()
    assert systemctl("show", "--property=LoadState", "--value", scope) == "not-found"
