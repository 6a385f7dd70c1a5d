"""A limit of a container's own files, on a crispd whose root enforces project quotas."""

from __future__ import annotations

import os
from pathlib import Path

from cri.v1 import api_pb2 as cri
from linux import quotas
from pods import disk_quotas
from pods.directories import remove_tree
from tests.daemon import CALL_SECONDS, Daemon
from tests.waiting import until

LIMIT = 8 << 20


def enforced(root: Path) -> bool:
    """Whether the file system of crispd's root enforces project quotas."""
    directory = os.open(root, os.O_RDONLY)
    try:
        return quotas.quotas_of(directory) is quotas.Quotas.ENFORCED
    finally:
        os.close(directory)


def look_at_limits(daemon: Daemon) -> None:
    """The culprit alone is stopped, at its limit; its use is told as it is; afterwards no number is taken."""
    annotations = {f"disk-limit.crisp/{name}": str(LIMIT) for name in ("greedy", "fails")}
    with daemon.pod(config=daemon.sandbox_config("greedy", annotations=annotations)) as pod:
        greedy, other = pod.run("sleep", "1000", name="greedy"), pod.run("sleep", "1000", name="other")
        fill = "dd if=/dev/zero of=/file bs=1M count=12"
        filled = pod.exec(greedy, "sh", "-c", fill)
        assert (filled.exit_code, b"quota exceeded" in filled.stderr or b"No space" in filled.stderr) == (1, True)
        assert pod.exec(other, "sh", "-c", fill).exit_code == 0
        assert LIMIT * 0.98 <= _used(daemon, greedy) <= LIMIT
        assert _used(daemon, other) >= 12 << 20
        assert pod.exec(greedy, "rm", "/file").exit_code == 0
        assert _used(daemon, greedy) < 1 << 20  # at once
        assert pod.exec(greedy, "sh", "-c", "mkdir /made && mv /made /moved && touch /moved/file").exit_code == 0
        words = pod.run("sh", "-c", f"{fill} || exit 3", name="fails")
        assert daemon.wait_exited(words).exit_code == 3
        root = daemon.root / "containers"
        projects = [_project(root / one) for one in (greedy, other, words)]
        assert len({*projects, 0}) == 4
        at = os.open(root, os.O_RDONLY)
        try:
            assert [quotas.use_of(at, project).limit for project in projects] == [LIMIT, 0, LIMIT]
            for one in (greedy, other, words):
                daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=one), timeout=CALL_SECONDS)
            nothing = quotas.Use(0, 0, 0)
            until(lambda: all(quotas.use_of(at, project) == nothing for project in projects))
        finally:
            os.close(at)


def look_at_removal(daemon: Daemon) -> None:
    """A directory may have what was there before it became a project, as a restored container's has its checkpoint."""
    root = daemon.root / "containers/of-a-test"
    (root / "restore/some/where").mkdir(parents=True)
    disk_quotas.begin(root, LIMIT)
    (root / "upper/some/where").mkdir(parents=True)
    (root / "upper/some/where/file").write_bytes(b"x")
    assert remove_tree(root)
    assert not root.exists()


def _used(daemon: Daemon, container: str) -> int:
    request = cri.ContainerStatsRequest(container_id=container)
    stats = daemon.runtime.ContainerStats(request, timeout=CALL_SECONDS).stats
    return int(stats.writable_layer.used_bytes.value)


def _project(path: Path) -> int:
    directory = os.open(path, os.O_RDONLY)
    try:
        return quotas.project_of(directory)
    finally:
        os.close(directory)
