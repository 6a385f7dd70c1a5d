"""kubelets of several versions, by what they asked of a runtime (tests/e2e/record.py): every byte of it once more."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from tests import cgroups, recorded
from tests.daemon import CALL_SECONDS, Daemon
from tests.e2e import ground
from tests.images import busybox_image
from tests.recorded import Call
from tests.registry import Registry
from tests.stream_clients import STDOUT, Command
from tests.waiting import SECONDS

VERSIONS = ("1.34", "1.35", "1.36", "1.37")
FILES = ("/etc/hosts", "/dev/termination-log")  # volumes that are one file


class Node:
    """What answers the recorded calls, and the names that things have there."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.names: dict[str, str] = {}
        self._channel = grpc.insecure_channel(daemon.listen)
        self._methods = recorded.methods()

    def close(self) -> None:
        self._channel.close()

    def repeat(self, call: Call) -> bytes:
        """Ask it again, until the answer has all that it had; that answer."""
        request = recorded.renamed(call.request, self.names)
        if call.name == "CreateContainer":
            _make_sources(cri.CreateContainerRequest.FromString(request))
        deadline = time.monotonic() + SECONDS
        while True:
            code, answer = self._ask(call, request)
            now = recorded.made(call.method, request, code, answer)
            missing = set(call.told) - set(now.told)
            if now.code == call.code and not missing:
                self.names.update(zip(call.ids, now.ids, strict=True))
                return answer
            late = not call.reads or time.monotonic() > deadline
            assert not late, f"{call.name}: {code}, not {call.code}, without {sorted(missing)}"
            time.sleep(0.01)

    def _ask(self, call: Call, request: bytes) -> tuple[str, bytes]:
        try:
            if self._methods[call.method].server_streaming:
                stream = self._channel.unary_stream(call.method)(request)
                stream.cancel()
                return "OK", b""
            return "OK", self._channel.unary_unary(call.method)(request, timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            return error.code().name, b""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """An empty one, where a node's directories, cgroup and registry are as they were recorded."""
    (tmp_path / "node").mkdir()
    with ExitStack() as undo:
        undo.enter_context(ground.covered_directories(tmp_path / "node"))
        undo.enter_context(cgroups.tree(recorded.CGROUP))
        daemon = undo.enter_context(Daemon.running())
        registry = undo.enter_context(Registry(tmp_path / "registry"))
        registry.push("recorded/busybox", "1", busybox_image())
        daemon.registries_conf.write_text(recorded.registries(registry.host))
        made = Node(daemon)
        undo.callback(made.close)
        yield made


@pytest.mark.parametrize("version", VERSIONS)
def test_what_a_kubelet_asks_is_answered(node: Node, version: str) -> None:
    """Its pods run and end as they did, and its commands say what they said."""
    calls = recorded.load(recorded.DIRECTORY / f"kubelet-{version}.jsonl")
    said = []
    for call in calls:
        answer = node.repeat(call)
        match call.name:
            case "ExecSync":
                said.append(cri.ExecSyncResponse.FromString(answer).stdout)
            case "Exec":
                command = Command.over("websocket", cri.ExecResponse.FromString(answer).url, "v5.channel.k8s.io")
                command.until(b"hello\n", STDOUT)
                command.close()
            case "Attach":
                command = Command.over("websocket", cri.AttachResponse.FromString(answer).url, "v5.channel.k8s.io")
                command.send(b"echo $((6*7))\n")
                command.until(b"42", STDOUT)
                command.close()
    assert b"uid=1000(app) gid=3000 groups=2000(extra),3000,4000\n" in said
    assert {"Exec", "Attach", "ReopenContainerLog", "RemovePodSandbox", "GetContainerEvents"} <= {c.name for c in calls}
    assert not list(node.daemon.state.joinpath("sandboxes").iterdir())


def _make_sources(request: cri.CreateContainerRequest) -> None:
    """What a kubelet has made before: the volumes."""
    for mount in request.config.mounts:
        source = Path(mount.host_path)
        if source.exists():
            continue
        if mount.container_path in FILES:
            source.parent.mkdir(parents=True, exist_ok=True)
            source.touch()
        else:
            source.mkdir(parents=True)
