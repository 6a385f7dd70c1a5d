"""What the node team of Kubernetes accepts as a CRI runtime: critest, and crictl as the client that operators have."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.daemon import BUSYBOX, Daemon
from tests.e2e import critest
from tests.registry import Registry

SPECS_AT_LEAST = 120


@dataclass(frozen=True, slots=True)
class Node:
    daemon: Daemon
    nri_socket: Path


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    nri_socket = tmp_path_factory.mktemp("nri") / "nri.sock"
    # The registry ends first, and takes the daemon's connections to it with it.
    daemons, registry = Daemon.running(f"--nri-socket={nri_socket}"), Registry(tmp_path_factory.mktemp("registry"))
    with daemons as daemon, registry:
        critest.fill(registry)
        daemon.registries_conf.write_text(critest.registries(registry))
        yield Node(daemon, nri_socket)


def test_critest_passes(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    skip = [critest.IMPOSSIBLE]
    outcome = critest.run(node.daemon, node.nri_socket, skip=skip).explained(critest.SKIPPED)
    with capsys.disabled():
        print(f"\n{outcome.summary('critest')}")
    assert outcome.failed == {}
    assert [name for name, why in outcome.skipped.items() if why not in critest.SKIPPED.values()] == []
    assert len(outcome.passed) >= SPECS_AT_LEAST


def test_crictl_is_a_client(node: Node) -> None:
    """What operators type: a pod from files, its lists, inspection, a command, logs, stats, and its end."""
    daemon, directory = node.daemon, node.daemon.directory
    daemon.import_busybox()

    def crictl(*arguments: str) -> str:
        command = [critest.programs() / "crictl", "--runtime-endpoint", daemon.listen, "--image-endpoint",
                   daemon.listen, *arguments]  # fmt: skip
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout.strip()

    logs = directory / "crictl-logs"
    logs.mkdir()
    pod = {"metadata": {"name": "typed", "namespace": "default", "uid": "u"}, "log_directory": str(logs), "linux": {}}
    container = {
        "metadata": {"name": "main"}, "image": {"image": BUSYBOX}, "log_path": "main.log",
        "command": ["sh", "-c", "echo from the container; sleep 1000"],
    }  # fmt: skip
    (directory / "pod.json").write_text(json.dumps(pod))
    (directory / "container.json").write_text(json.dumps(container))
    pod_id = crictl("runp", str(directory / "pod.json"))
    container_id = crictl("create", pod_id, str(directory / "container.json"), str(directory / "pod.json"))
    assert crictl("start", container_id) == container_id
    assert crictl("pods", "-q", "--no-trunc") == pod_id
    assert crictl("ps", "-q", "--no-trunc") == container_id
    assert crictl("exec", container_id, "echo", "by SPDY") == "by SPDY"
    assert crictl("exec", "--transport", "websocket", container_id, "echo", "by WebSocket") == "by WebSocket"
    assert crictl("exec", "-s", container_id, "echo", "at once") == "at once"
    assert "from the container" in crictl("logs", container_id)
    inspected = json.loads(crictl("inspect", container_id))
    assert inspected["status"]["state"] == "CONTAINER_RUNNING"
    assert json.loads(crictl("inspectp", pod_id))["status"]["state"] == "SANDBOX_READY"
    assert json.loads(crictl("stats", "-o", "json"))["stats"][0]["attributes"]["id"] == container_id
    assert json.loads(crictl("info"))["status"]["conditions"]
    assert BUSYBOX.partition(":")[0] in crictl("images")
    crictl("update", "--memory", str(64 << 20), container_id)
    limits = json.loads(crictl("inspect", container_id))["status"]["resources"]["linux"]
    assert limits["memoryLimitInBytes"] == str(64 << 20)
    crictl("stopp", pod_id)
    crictl("rmp", pod_id)
    assert crictl("pods", "-q") == ""
