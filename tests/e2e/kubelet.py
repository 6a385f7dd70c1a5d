"""A real kubelet for tests, on a crispd: static pods from a directory, and kubelet's own API on the loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml

from tests import cgroups
from tests.daemon import REPOSITORY, Daemon
from tests.e2e import ground, kubernetes
from tests.e2e.processes import complaints

SAMPLE = REPOSITORY / "deploy/kubelet.yaml"
NODE = "node"
NODE_IP = "192.0.2.1"
START_SECONDS = 120.0
STOP_SECONDS = 60.0
CLEAR_SECONDS = 60.0
T = TypeVar("T")


class KubeletFailed(Exception):
    """kubelet did not start, answer, or do in time what a test waits for; carries the end of its log."""


class Kubelet:
    """One kubelet. `Kubelet.running()` makes one for a `with` block."""

    def __init__(
        self,
        daemon: Daemon,
        cgroup_root: str,
        arguments: tuple[str, ...],
        settings: Mapping[str, Any],
        identity: tuple[Path, Path] | None = None,
        into: Sequence[str] = (),
    ) -> None:
        self.daemon, self.into = daemon, into
        self.directory = daemon.directory / "kubelet"
        self.manifests = self.directory / "manifests"
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._log = self.directory / "kubelet.log"
        self._arguments = arguments
        self._identity = identity
        self._settings: dict[str, Any] = {"cgroupRoot": cgroup_root, **settings}
        self.manifests.mkdir(parents=True)

    @classmethod
    @contextmanager
    def running(
        cls,
        daemon: Daemon,
        *arguments: str,
        identity: tuple[Path, Path] | None = None,
        into: Sequence[str] = (),
        **settings: Any,
    ) -> Iterator[Self]:
        """A started kubelet on its own cgroup and directories; afterwards its pods are gone and it is stopped.

        `arguments` are added to its command line, `settings` to its configuration file (deploy/kubelet.yaml).
        `identity` is a certificate and its key for those who ask its API; `into` is a command that runs it, in other
        namespaces.
        """
        with ExitStack() as undo:
            directory = daemon.directory / "node"
            directory.mkdir()
            undo.enter_context(ground.covered_directories(directory, into))
            undo.enter_context(ground.address(NODE_IP, into))
            root = f"/crisp-e2e-{daemon.directory.name}"
            undo.enter_context(cgroups.tree(root.lstrip("/")))
            undo.callback(daemon.empty)
            kubelet = cls(daemon, root, arguments, settings, identity, into)
            undo.callback(kubelet.end)
            kubelet.start()
            undo.callback(kubelet.clear)
            yield kubelet

    def start(self, **settings: Any) -> None:
        """Start it, with more `settings` than before, and return when it is healthy. Raises KubeletFailed."""
        self._settings |= settings
        config = self.directory / "config.yaml"
        config.write_text(yaml.safe_dump(self.configuration()))
        program = kubernetes.directory("kubelet") / "kubelet"
        command = [program, f"--config={config}", f"--hostname-override={NODE}", f"--node-ip={NODE_IP}", "--v=2"]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.into, *command, *self._arguments],
                cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self.until(self._is_healthy, "be healthy", START_SECONDS)

    def configuration(self) -> dict[str, Any]:
        """The sample that deploy/ offers, made to fit the test's directories and machine."""
        sample = yaml.safe_load(SAMPLE.read_text())
        return {
            **sample,
            "address": "127.0.0.1",
            "port": self.port,
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "containerRuntimeEndpoint": self.daemon.listen,
            "enforceNodeAllocatable": [],
            "evictionHard": {"memory.available": "1Mi"},
            "failCgroupV1": False,
            "failSwapOn": False,
            "healthzPort": 0,
            "makeIPTablesUtilChains": False,  # they outlive kubelet
            "oomScoreAdj": 0,  # lower takes CAP_SYS_RESOURCE
            "staticPodPath": str(self.manifests),
            "volumePluginDir": str(self.directory / "volume-plugins"),
            # What is minutes on a node: seconds.
            "crashLoopBackOff": {"maxContainerRestartPeriod": "1s"},
            "fileCheckFrequency": "1s",
            "syncFrequency": "1s",
            **self._settings,
        }

    def stop(self) -> None:
        """End it with SIGTERM; pods go on."""
        process = self._running()
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise KubeletFailed(f"stop kubelet: still there {STOP_SECONDS} s after SIGTERM\n{self.log()}") from None
        finally:
            self.process = None

    def kill9(self) -> None:
        """Kill it as a crash would."""
        self._running().send_signal(signal.SIGKILL)
        self._running().wait()
        self.process = None

    def end(self) -> None:
        """Stop it if it runs."""
        if self.process is not None:
            self.stop()

    def add(self, pod: Mapping[str, Any]) -> None:
        """Write a static pod's manifest."""
        name = f"{pod['metadata']['name']}.yaml"
        temporary = self.directory / name  # kubelet would read half a file
        temporary.write_text(yaml.safe_dump(dict(pod)))
        temporary.rename(self.manifests / name)

    def remove(self, name: str) -> None:
        """Take a static pod's manifest away."""
        (self.manifests / f"{name}.yaml").unlink()

    def clear(self) -> None:
        """Take every manifest away and wait until nothing is left of the pods, their volumes included."""
        if self.process is None:
            self.start()
        for manifest in self.manifests.iterdir():
            manifest.unlink()
        volumes = self.daemon.directory / "node/kubelet/pods"
        self.until(lambda: not self.pods() and not os.listdir(volumes), "be rid of its pods", CLEAR_SECONDS)

    def pods(self) -> dict[str, dict[str, Any]]:
        """The pods kubelet knows, by their names in the manifests."""
        items = json.loads(self.get("/pods"))["items"] or []
        return {pod["metadata"]["name"].removesuffix(f"-{NODE}"): pod for pod in items}

    def pod(self, name: str) -> dict[str, Any]:
        """A pod as kubelet tells of it; {} if it knows none of that name."""
        return self.pods().get(name, {})

    def container(self, pod: str, name: str) -> dict[str, Any]:
        """A container's status; {} if there is none yet."""
        status = self.pod(pod).get("status", {})
        kinds = ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses")
        return next((one for kind in kinds for one in status.get(kind) or () if one["name"] == name), {})

    def run(self, pod: str, container: str, command: str) -> str:
        """What a command, split at spaces, prints in a container: kubelet's /run, which is an ExecSync."""
        query = urllib.parse.urlencode({"cmd": command})
        return self._call("POST", f"/run/default/{pod}-{NODE}/{container}?{query}").decode()

    def logs(self, pod: str, container: str, **options: str) -> str:
        """A container's log through kubelet."""
        query = urllib.parse.urlencode(options)
        return self.get(f"/containerLogs/default/{pod}-{NODE}/{container}?{query}").decode()

    def get(self, path: str) -> bytes:
        """GET of kubelet's API. Raises KubeletFailed with what it answered."""
        return self._call("GET", path)

    def until(self, condition: Callable[[], T], what: str, seconds: float = 90.0) -> T:
        """What `condition` answers once that is true. Raises KubeletFailed: wait for kubelet to `what`."""
        deadline = time.monotonic() + seconds
        while not (answer := condition()):
            if self.process is not None and self.process.poll() is not None:
                raise KubeletFailed(f"wait for kubelet to {what}: it exited with {self.process.poll()}\n{self.log()}")
            if time.monotonic() > deadline:
                raise KubeletFailed(f"wait for kubelet to {what}: not in {seconds} s\n{self.summary()}\n{self.log()}")
            time.sleep(0.1)
        return answer

    def summary(self) -> str:
        """A line for each container."""
        kinds = ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses")
        return "\n".join(
            f"{pod} {container['name']}: {container['state']} restarts {container['restartCount']}"
            for pod, known in self.pods().items()
            for kind in kinds
            for container in known["status"].get(kind) or ()
        )

    def log(self) -> str:
        """The end of what it complained of."""
        return complaints(self._log, "kubelet")

    def _call(self, method: str, path: str) -> bytes:
        address = self.configuration()["address"]
        request = urllib.request.Request(f"https://{address}:{self.port}{path}", method=method)
        # Its certificate is signed by itself and new at each start.
        context = ssl._create_unverified_context()
        if self._identity is not None:
            context.load_cert_chain(*self._identity)
        try:
            with urllib.request.urlopen(request, timeout=30, context=context) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            with error:
                said = error.read().decode(errors="replace").strip()
        raise KubeletFailed(f"{method} {path} of kubelet: {said}")

    def _is_healthy(self) -> bool:
        try:
            return self.get("/healthz") == b"ok"
        except (urllib.error.URLError, OSError):
            return False

    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            raise KubeletFailed("kubelet is not running")
        return self.process


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
