"""CPUs that crisp itself is pinned to: containers are not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cri.v1 import api_pb2 as cri
from tests.daemon import CALL_SECONDS, Daemon, Pod
from tests.integration.test_handlers import RUNC
from tests.oci import Bundle
from tests.waiting import until

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
def test_a_pinned_crispd_pins_no_container(tmp_path: Path) -> None:
    """Not by its own runtime, nor by another: Debian's runc hands down what it was born with."""
    look = ("busybox", "grep", "Cpus_allowed_list", "/proc/self/status")
    settings = tmp_path / "crisp.toml"
    settings.write_text(f'[runtime_handlers.runc]\npath = "{RUNC}"\n')
    with _pinned(), Daemon.running(f"--config={settings}") as daemon:
        daemon.import_busybox()
        for handler in ("", "runc"):
            config = daemon.sandbox_config(f"pinned{handler}")
            request = cri.RunPodSandboxRequest(config=config, runtime_handler=handler)
            pod = Pod(daemon, daemon.runtime.RunPodSandbox(request, timeout=CALL_SECONDS).pod_sandbox_id, config)
            container = pod.run("sh", "-c", f"{' '.join(look)}; exec sleep 100", name="main")
            assert _cpus(pod.exec(container, *look).stdout.decode()) == _ALL
            until(lambda pod=pod: "Cpus" in pod.log("main"))  # type: ignore[misc]
            assert _cpus(pod.log("main").split(" F ")[1]) == _ALL
            pod.remove()
