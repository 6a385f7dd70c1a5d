"""CPUs that crisp itself is pinned to: containers are not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cri.v1 import api_pb2 as cri
from tests.daemon import Daemon
from tests.oci import Bundle

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU")
_ALL = sorted(os.sched_getaffinity(0))


@contextmanager
def _pinned() -> Iterator[None]:
    """What is started meanwhile is on the first CPU only, as by CPUAffinity= of a unit, or taskset(1)."""
    os.sched_setaffinity(0, _ALL[:1])
    try:
        yield
    finally:
        os.sched_setaffinity(0, _ALL)


def _cpus(text: str) -> list[int]:
    """Of "Cpus_allowed_list:", as /proc/PID/status has it."""
    found: list[int] = []
    for part in text.split(":")[1].strip().split(","):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return found


@pytest.mark.trial("affinity", "Containers and execs run on all CPUs of their cpuset, not on those crisp is pinned to.")
@pytest.mark.parametrize("user_namespace", [False, True])
def test_a_pinned_crisp_oci_pins_no_container(bundle: Bundle, user_namespace: bool) -> None:
    kinds = ("pid", "mount", "ipc", "uts", "network", *(("user",) if user_namespace else ()))
    mappings = [{"containerID": 0, "hostID": 100_000, "size": 65536}]
    linux = {"namespaces": [{"type": kind} for kind in kinds]}
    if user_namespace:
        linux |= {"uidMappings": mappings, "gidMappings": mappings}
    look = ("grep", "Cpus_allowed_list", "/proc/self/status")
    bundle.configure("sleep", "100", linux=linux)
    with _pinned():
        pid = bundle.create()
        assert sorted(os.sched_getaffinity(pid)) == _ALL
        assert _cpus(bundle.call("exec", "one", "busybox", *look).stdout) == _ALL
    bundle.delete()
    bundle.configure("sleep", "100", linux=linux | {"resources": {"cpu": {"cpus": str(_ALL[1]), "mems": "0"}}})
    with _pinned():
        assert sorted(os.sched_getaffinity(bundle.create())) == _ALL[1:2]


@pytest.mark.trial("affinity", "Containers and execs run on all CPUs of their cpuset, not on those crisp is pinned to.")
def test_a_pinned_crispd_pins_no_container() -> None:
    look = ("busybox", "grep", "Cpus_allowed_list", "/proc/self/status")
    with _pinned(), Daemon.running() as daemon:
        daemon.import_busybox()
        with daemon.pod("pinned") as pod:
            container = pod.run("sh", "-c", f"{' '.join(look)}; exec sleep 100", name="main")
            done = daemon.runtime.ExecSync(cri.ExecSyncRequest(container_id=container, cmd=look), timeout=60)
            assert _cpus(done.stdout.decode()) == _ALL
            assert _cpus(pod.log("main").split(" F ")[1]) == _ALL
