"""kubelet and crispd in a user namespace (KubeletInUserNamespace): a node whose root is an ordinary user."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from linux import syscalls
from runtime.cgroups import Hierarchies
from tests import cgroups
from tests.e2e import manifests
from tests.e2e.kubelet import Kubelet
from tests.user_namespace import FIRST, RootlessDaemon, delegated_cgroups

T = TypeVar("T")


class RootlessKubelet(Kubelet):
    """A kubelet in crispd's namespaces."""

    def start(self, **settings: object) -> None:
        _give(self.directory)
        _give(self.daemon.directory / "node")
        for root in cgroups.hierarchies():
            _give(root / str(self._settings["cgroupRoot"]).lstrip("/"))
        super().start(**settings)

    def _call(self, method: str, path: str) -> bytes:
        call = super()._call
        return _in_network_of(self.daemon.pid(), lambda: call(method, path))


def _give(top: Path) -> None:
    """Everything below is of the namespace's root."""
    for path in (top, *top.rglob("*")):
        os.chown(path, FIRST, FIRST, follow_symlinks=False)


def _in_network_of(pid: int, function: Callable[[], T]) -> T:
    """What a function returns in a thread that is in a process's network namespace."""

    def there() -> T:
        with open(f"/proc/{pid}/ns/net", "rb") as namespace:
            syscalls.setns(namespace.fileno(), syscalls.CLONE_NEWNET)
        return function()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(there).result()


def test_a_kubelet_in_a_user_namespace_runs_a_pod() -> None:
    """With limits, a volume in memory, a probe over the pod's network, logs, an exec and statistics."""
    with delegated_cgroups(), RootlessDaemon.running() as daemon:
        daemon.import_busybox()
        into = _into(daemon)
        with RootlessKubelet.running(daemon, into=into, featureGates={"KubeletInUserNamespace": True}) as kubelet:
            kubelet.add(_limited())
            kubelet.until(lambda: kubelet.container("limited", "main").get("ready"), "find a container ready")
            assert kubelet.run("limited", "main", "cat /work/index.html") == "served\n"
            assert kubelet.logs("limited", "main") == "begun\n"
            (pid,) = _processes("httpd", FIRST)
            cgroup = next(line for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if ":memory:" in line)
            for place in (Path(cgroup.split(":")[2]), Path(cgroup.split(":")[2]).parent):
                limit = Path(f"{Hierarchies.detect().v1['memory']}{place}/memory.limit_in_bytes")
                assert int(limit.read_text()) == 48 << 20
            kubelet.until(lambda: _used(kubelet, "limited") > 0, "tell what a pod uses")


def _into(daemon: RootlessDaemon) -> list[str]:
    """A command that runs another one in crispd's namespaces, where kubelet can listen."""
    into = ["nsenter", "-t", str(daemon.pid()), "-U", "-m", "-n", "-i"]
    subprocess.run([*into, "ip", "link", "set", "lo", "up"], check=True)
    return into


def _limited() -> manifests.Object:
    probe = {"httpGet": {"path": "/index.html", "port": 8080}, "periodSeconds": 1}
    main = manifests.sh(
        "main", "echo begun; echo served >/work/index.html; exec httpd -f -p 8080 -h /work", readinessProbe=probe,
        resources={"limits": {"cpu": "200m", "memory": "48Mi"}}, volumeMounts=[{"name": "work", "mountPath": "/work"}],
    )  # fmt: skip
    return manifests.pod("limited", main, volumes=[{"name": "work", "emptyDir": {"medium": "Memory"}}])


def _processes(name: str, user: int) -> list[int]:
    """Those of a name and a user."""
    found = subprocess.run(["pgrep", "-x", "-u", str(user), name], check=True, capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def _used(kubelet: Kubelet, name: str) -> int:
    """The memory of a pod as kubelet's summary has it; 0 before it knows."""
    pods = json.loads(kubelet.get("/stats/summary"))["pods"]
    return sum(int(pod.get("memory", {}).get("workingSetBytes", 0)) for pod in pods
               if pod["podRef"]["name"] == f"{name}-node")  # fmt: skip
