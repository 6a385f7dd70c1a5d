"""Parent cgroups that crisp had to make: whoever leaves last removes them, after whatever happened, and no others."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cri.v1 import api_pb2 as cri
from runtime.cgroups import Hierarchies
from tests.daemon import CALL_SECONDS, Daemon, Pod
from tests.oci import REPOSITORY, Bundle
from tests.processes import parent_of, titled
from tests.waiting import until

TOP = "crisptest"
PARENT = f"/{TOP}/kubepods/burstable/pod"
HANDLERS = ("", "runc")
MOUNTPOINTS = tuple(map(Path, Hierarchies.detect().mountpoints()))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    settings = tmp_path / "crisp.toml"
    settings.write_text(f'[runtime_handlers.runc]\npath = "{shutil.which("runc", path="/usr/sbin:/usr/bin")}"\n')
    with Daemon.running(f"--config={settings}") as daemon:
        daemon.import_busybox()
        yield daemon


@pytest.fixture
def others() -> Iterator[set[Path]]:
    """Cgroups as kubelet makes them: not in every hierarchy, and not down to where the pods are."""
    made = [MOUNTPOINTS[0] / TOP, MOUNTPOINTS[0] / TOP / "kubepods", MOUNTPOINTS[-1] / TOP]
    for path in made:
        path.mkdir()
    yield set(made)
    for path in reversed(made):
        path.rmdir()


def _cgroups() -> set[Path]:
    """Of all hierarchies, those below `TOP`."""
    tops = [mountpoint / TOP for mountpoint in MOUNTPOINTS]
    return {path for top in tops for path in (top, *top.rglob("*")) if path.is_dir()}


_names = itertools.count()


def _run(daemon: Daemon, handler: str, parent: str = PARENT) -> tuple[Pod, str]:
    config = daemon.sandbox_config(f"pod{next(_names)}")
    config.linux.cgroup_parent = parent
    request = cri.RunPodSandboxRequest(config=config, runtime_handler=handler)
    pod = Pod(daemon, daemon.runtime.RunPodSandbox(request, timeout=CALL_SECONDS).pod_sandbox_id, config)
    return pod, pod.run("sleep", "1000")


def _shim(pod: Pod, container_id: str) -> int:
    request = cri.ContainerStatusRequest(container_id=container_id, verbose=True)
    info = json.loads(pod.daemon.runtime.ContainerStatus(request, timeout=CALL_SECONDS).info["info"])
    return parent_of(int(info["pid"]))


@contextmanager
def _emptied(daemon: Daemon) -> Iterator[None]:
    try:
        yield
    finally:
        daemon.empty()


@pytest.mark.trial("made-parents", "Whoever leaves last removes the parent cgroups that crisp made, and no others.")
@pytest.mark.cri("RunPodSandbox", "linux.cgroup_parent")
def test_many_pods_of_one_parent(daemon: Daemon, others: set[Path]) -> None:
    """Some leave while others come; what is under the parent and what is beside it, by both runtimes."""

    def live(number: int) -> None:
        pod, container_id = _run(daemon, HANDLERS[number % 2], f"{PARENT}{number % 3 or ''}")
        assert pod.exec(container_id, "true").exit_code == 0
        pod.remove()

    with _emptied(daemon), ThreadPoolExecutor(8) as pool:
        list(pool.map(live, range(24)))
    assert _cgroups() == others


@pytest.mark.trial("made-parents", "Whoever leaves last removes the parent cgroups that crisp made, and no others.")
def test_shims_and_the_daemon_are_killed(daemon: Daemon, others: set[Path]) -> None:
    with _emptied(daemon):
        (maker, _), (lost, in_lost), (alone, in_alone) = [_run(daemon, handler) for handler in ("", *HANDLERS)]
        own, in_own = _run(daemon, "runc", parent="")
        maker.remove()
        shim = _shim(lost, in_lost)
        for pid in (parent_of(shim), shim):  # first its keeper, which would start a successor
            os.kill(pid, signal.SIGKILL)
        assert daemon.wait_exited(in_lost).exit_code != 0
        shims = [_shim(alone, in_alone), _shim(own, in_own)]
        keepers = titled("crisp zygote")
        daemon.kill9()
        for pid in (*keepers, *shims):
            with suppress(ProcessLookupError):  # a zygote without pods leaves with its crispd
                os.kill(pid, signal.SIGKILL)
        daemon.start()
        for container_id in (in_alone, in_own):
            assert daemon.wait_exited(container_id).exit_code != 0
        later, _ = _run(daemon, "")
        assert (MOUNTPOINTS[-1] / PARENT.lstrip("/")).exists()
        for path in MOUNTPOINTS:
            os.removexattr(path / "crisp", "user.crisp.made")  # as if the shim had been killed before it set it
        for pod in (lost, alone, own, later):
            pod.remove()
        assert _cgroups() == others
        assert not [path for path in MOUNTPOINTS if (path / "crisp").exists()]


@pytest.mark.trial("made-parents", "Whoever leaves last removes the parent cgroups that crisp made, and no others.")
@pytest.mark.oci("linux.cgroupsPath")
def test_containers_of_crisp_oci(tmp_path: Path, others: set[Path]) -> None:
    bundle = Bundle.make(tmp_path)
    for name, path in (("first", f"{PARENT}/first"), ("second", f"{PARENT}/deeper/second"), ("default", "")):
        bundle.configure("sleep", "1000", linux={"cgroupsPath": path})
        subprocess.run(bundle.command("create", name), cwd=bundle.directory, check=True, stdin=subprocess.DEVNULL,
                       stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})  # fmt: skip
    for name in ("first", "default", "second"):
        assert [path for path in _cgroups() if path.name == "pod"]
        bundle.call("delete", "--force", name)
    until(lambda: _cgroups() == others)
    assert not [path for path in MOUNTPOINTS if (path / "crisp-oci").exists()]
