"""kubeadm init and join on two nodes of kind; one is drained, crisp is upgraded on it, and its pods come back."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Final

from tests.e2e.kind.trial import NAME, REPOSITORY, SECONDS, Trial, subnet_of, timed
from tests.waiting import until

_STAYS: Final = f"{NAME}-control-plane"
_UPGRADED: Final = f"{NAME}-worker"
_PARTS: Final = ("bin", "cri", "image", "linux", "network", "pods", "runtime", "README.md", "LICENSE")
_WHEELS: Final = "wheels"
_Containers = Mapping[str, tuple[str, int]]  # id and restarts by pod and container


class TwoNodes(Trial):
    """A Deployment runs on both; meanwhile the other node's containers, and those that a drain leaves, go on."""

    nodes = (_STAYS, _UPGRADED)

    @property
    def steps(self) -> Sequence[Callable[[], None]]:
        return self.create, self.connect, self.load, self.deploy, self.drain, self.upgrade, self.uncordon, self.delete

    def build(self) -> None:
        super().build()
        _make_later_wheel(self.directory)

    def connect(self) -> None:
        """Let pods reach those of the other node, as a network plugin for several nodes does, and run on both."""
        numbers = dict(zip(self.nodes, range(len(self.nodes)), strict=True))
        for node, other in permutations(self.nodes, 2):
            address = self._of_node(other, "{.status.addresses[?(@.type=='InternalIP')].address}").split()[0]
            self.podman.run("exec", node, "ip", "route", "add", subnet_of(numbers[other]), "via", address)
        self.kubectl("taint", "nodes", _STAYS, "node-role.kubernetes.io/control-plane-")

    def deploy(self) -> None:
        super().deploy()
        self._require_both()

    def drain(self) -> None:
        self._others = self._containers(_STAYS)
        with timed("kubectl drain"):
            self.kubectl("drain", _UPGRADED, "--ignore-daemonsets", "--timeout=2m")
        self._left = self._containers(_UPGRADED)
        _require(not any(name.startswith("default/web-") for name in self._left), f"after the drain: {self._left}")

    def upgrade(self) -> None:
        """Install a later version where the first one is, and restart crispd; what still runs there goes on."""
        (wheel,) = (self.directory / _WHEELS).glob("*.whl")
        version = wheel.name.split("-")[1]
        with timed(f"upgrade from {self._runtime()} to {version}, until kubelet tells it"):
            self.podman.run("cp", wheel, f"{_UPGRADED}:/root/")
            self.podman.run("exec", _UPGRADED, "/opt/crisp/bin/pip", "install", "--quiet", "--no-deps", "--no-index",
                            f"/root/{wheel.name}")  # fmt: skip
            self.podman.run("exec", _UPGRADED, "systemctl", "daemon-reload")  # as an installation of the unit takes
            self.podman.run("exec", _UPGRADED, "systemctl", "restart", "crispd")
            until(lambda: self._runtime() == f"crisp://{version}", SECONDS, pause=1)
        self.kubectl("wait", "--for=condition=Ready", f"node/{_UPGRADED}", "--timeout=1m")
        _require(self._containers(_UPGRADED) == self._left, "a container did not live through the upgrade")
        proxy = next(name for name in self._left if "/kube-proxy-" in name).split("/")[1]
        of_proxy = ("--namespace=kube-system", proxy)
        _require(bool(self.read("logs", *of_proxy)), "kube-proxy's log is empty")
        self.kubectl("exec", *of_proxy, "--", "kube-proxy", "--version")

    def uncordon(self) -> None:
        with timed("kubectl uncordon, until the Deployment is on both"):
            self.kubectl("uncordon", _UPGRADED)
            self.kubectl("rollout", "status", "deployment/web", "--timeout=3m")
        self._require_both()
        until(self.serves, SECONDS, pause=1)
        _require(self._containers(_STAYS) == self._others, "a container of the other node was touched")
        self.kubectl("get", "nodes", "--output=wide")
        self.kubectl("get", "pods", "--all-namespaces", "--output=wide")

    def _require_both(self) -> None:
        found = {node: sum(name.startswith("default/web-") for name in self._containers(node)) for node in self.nodes}
        _require(found == dict.fromkeys(self.nodes, 2), f"pods of the Deployment by node: {found}")

    def _containers(self, node: str) -> _Containers:
        """Those of a node that run."""
        said = self.read("get", "pods", "--all-namespaces", f"--field-selector=spec.nodeName={node}", "--output=json")
        return {
            "/".join((pod["metadata"]["namespace"], pod["metadata"]["name"], one["name"])): (
                one["containerID"], one["restartCount"],
            )
            for pod in json.loads(said)["items"]
            for one in pod["status"].get("containerStatuses", ())
            if "running" in one["state"]
        }  # fmt: skip

    def _runtime(self) -> str:
        """What kubelet says of the upgraded node's runtime, such as crisp://0.2.0."""
        return self._of_node(_UPGRADED, "{.status.nodeInfo.containerRuntimeVersion}")

    def _of_node(self, node: str, path: str) -> str:
        return self.read("get", "node", node, f"--output=jsonpath={path}")


def _make_later_wheel(directory: Path) -> None:
    """Build the checkout as a later version; takes a network."""
    source, wheels = directory / "source", directory / _WHEELS
    source.mkdir()
    for name in _PARTS:
        path = REPOSITORY / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source)
    lines = (REPOSITORY / "pyproject.toml").read_text().splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("version = "))
    major, minor, patch = lines[at].split('"')[1].split(".")
    lines[at] = f'version = "{major}.{minor}.{int(patch) + 1}"'  # of the three numbers that kubelet reads
    (source / "pyproject.toml").write_text("\n".join(lines) + "\n")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), str(source)]
    subprocess.run(pip, check=True, stdin=subprocess.DEVNULL)


def _require(what: bool, otherwise: str) -> None:
    if not what:
        raise RuntimeError(otherwise)
