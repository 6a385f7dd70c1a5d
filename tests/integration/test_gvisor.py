"""Pods in gVisor's sandboxes: a kernel of their own, on the host a few processes of runsc."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from runtime.cgroups import Cgroup, Hierarchies
from tests import gvisor
from tests.daemon import CALL_SECONDS, Daemon, Pod
from tests.processes import parent_of
from tests.stream_clients import STDIN, STDOUT, Command, WebSocketClient, closing
from tests.waiting import until

V4 = "v4.channel.k8s.io"
MIB = 1 << 20
SERVE = "mkdir /www; echo a page >/www/index.html; exec httpd -f -p 8080 -h /www"
COUNT = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with gvisor.running(tmp_path_factory.mktemp("settings")) as daemon:
        yield daemon


def _pod(daemon: Daemon, name: str, **fields: Any) -> Pod:
    config = daemon.sandbox_config(name, **fields)
    request = cri.RunPodSandboxRequest(config=config, runtime_handler=gvisor.HANDLER)
    return Pod(daemon, daemon.runtime.RunPodSandbox(request, timeout=CALL_SECONDS).pod_sandbox_id, config)


@pytest.fixture
def pod(daemon: Daemon) -> Iterator[Pod]:
    made = _pod(daemon, "inside")
    yield made
    made.remove()


def _lines(log: str) -> list[str]:
    return [line.split(" ", 3)[3] for line in log.splitlines()]


def _state(daemon: Daemon) -> list[str]:
    """What runsc knows."""
    root = daemon.state / "handlers" / gvisor.HANDLER
    return sorted(os.listdir(root)) if root.exists() else []


def _sandbox_process(daemon: Daemon, container: str) -> int:
    request = cri.ContainerStatusRequest(container_id=container, verbose=True)
    return int(json.loads(daemon.runtime.ContainerStatus(request, timeout=CALL_SECONDS).info["info"])["pid"])


def test_containers_have_gvisors_kernel_and_the_pods_network(daemon: Daemon, pod: Pod) -> None:
    script = "dmesg | grep -o 'Starting gVisor'; grep -o gvisor /proc/version; hostname; echo err >&2; exit 3"
    first = pod.run("sh", "-c", script, name="first")
    status = daemon.wait_exited(first)
    assert (status.exit_code, status.reason) == (3, "Error")
    assert sorted(_lines(pod.log("first"))) == ["Starting gVisor", "err", "gvisor", "inside"]
    assert [name for name in _state(daemon) if first in name] == []
    # The next ones share the sandbox, its network and nothing else.
    server = pod.run("sh", "-c", SERVE, name="server")
    client = pod.run("sleep", "1000", name="client")
    until(lambda: pod.exec(client, "wget", "-q", "-O-", "http://127.0.0.1:8080/").stdout == b"a page\n")
    assert pod.status().network.ip.encode() in pod.exec(client, "ip", "address", "show", "eth0").stdout
    assert b"httpd" in pod.exec(client, "ps").stdout  # the pod has one PID namespace
    assert _sandbox_process(daemon, server) == _sandbox_process(daemon, client)
    with urllib.request.urlopen(f"http://{pod.status().network.ip}:8080/", timeout=60) as page:
        assert page.read() == b"a page\n"
    daemon.runtime.StopContainer(cri.StopContainerRequest(container_id=client, timeout=0), timeout=CALL_SECONDS)
    assert daemon.status(client).exit_code == 137
    assert pod.exec(server, "true").exit_code == 0


def test_exec_attach_and_ports(daemon: Daemon, pod: Pod) -> None:
    container = pod.run("sh", "-c", SERVE, name="server")
    answer = pod.exec(container, "sh", "-c", "echo in; echo err >&2; exit 4")
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"in\n", b"err\n", 4)
    with pytest.raises(grpc.RpcError) as raised:
        pod.exec(container, "sleep", "777", timeout=1)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    until(lambda: b"sleep 777" not in pod.exec(container, "ps", "-o", "args").stdout)
    request = cri.ExecRequest(container_id=container, cmd=["sh"], tty=True, stdin=True, stdout=True)
    url = daemon.runtime.Exec(request, timeout=CALL_SECONDS).url
    terminal = Command.over("websocket", url, V4, STDIN, STDOUT)
    with closing(terminal):
        terminal.send(b"test -t 0 && echo on a $((1))terminal; exit 5\n")
        terminal.until(b"on a 1terminal")
        assert terminal.exit_code() == 5

    forward = cri.PortForwardRequest(pod_sandbox_id=pod.id, port=[8080])
    with WebSocketClient(daemon.runtime.PortForward(forward, timeout=CALL_SECONDS).url, V4) as client:
        client.send(0, b"GET /index.html HTTP/1.0\r\n\r\n")
        client.until(lambda: b"a page" in client.data[0])
    reader = pod.run("sh", "-c", "while read line; do echo got $line; done; exit 6", name="reader", stdin=True)
    attach = cri.AttachRequest(container_id=reader, stdin=True, stdout=True, stderr=True)
    one = Command.over("websocket", daemon.runtime.Attach(attach, timeout=CALL_SECONDS).url, V4, STDIN)
    with closing(one):
        one.send(b"words\n")
        one.until(b"got words")


def test_limits_and_stats(daemon: Daemon) -> None:
    """The pod's limits are the sandbox's."""
    resources = cri.LinuxContainerResources(memory_limit_in_bytes=256 * MIB)
    pod = _pod(daemon, "limited", linux=cri.LinuxPodSandboxConfig(resources=resources))
    try:
        hold = "awk 'BEGIN { s = sprintf(\"%64000000s\", 0); while (1) n += length(s) }'"
        script = f"head -c 20000000 /dev/zero >/f; {hold}"
        busy = pod.run("sh", "-c", script, name="busy")
        request = cri.ContainerStatsRequest(container_id=busy)

        def used() -> cri.ContainerStats:
            return daemon.runtime.ContainerStats(request, timeout=CALL_SECONDS).stats

        until(lambda: used().memory.usage_bytes.value > 60 * MIB, pause=0.1)
        until(lambda: used().writable_layer.used_bytes.value > 15_000_000, pause=0.1)
        assert used().cpu.usage_core_nano_seconds.value > 0
        places = Cgroup.at(Hierarchies.detect(), f"/crisp/{pod.id}/{pod.id}")
        memory = Path(places.directory("memory"))
        read = next(memory / name for name in ("memory.limit_in_bytes", "memory.max") if (memory / name).exists())
        assert read.read_text().strip() == str(256 * MIB)
    finally:
        pod.remove()


def test_the_daemon_may_be_killed(tmp_path: Path) -> None:
    with gvisor.running(tmp_path) as daemon:
        pod = _pod(daemon, "survivor")
        container = pod.run("sh", "-c", COUNT)
        daemon.kill9()
        daemon.start()
        counted = pod.log().count("\n")
        until(lambda: pod.log().count("\n") > counted)
        assert pod.exec(container, "echo", "again").stdout == b"again\n"
        pod.remove()
        assert _state(daemon) == []


def test_a_shim_that_dies_takes_nothing_with_it(daemon: Daemon) -> None:
    pod = _pod(daemon, "survives")
    container = pod.run("sh", "-c", "while [ ! -e /end ]; do echo here; sleep 0.1; done; exit 6")
    created = pod.create("sleep", "1000", name="created")
    sandbox = _sandbox_process(daemon, container)
    shim = parent_of(sandbox)
    os.kill(shim, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{shim}").exists())  # a call that it still took would fail
    assert pod.exec(container, "echo", "again").stdout == b"again\n"
    counted = pod.log().count("\n")
    until(lambda: pod.log().count("\n") > counted)
    daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=created), timeout=CALL_SECONDS)
    pod.exec(container, "touch", "/end")
    assert daemon.wait_exited(container).exit_code == 6
    pod.remove()
    until(lambda: not Path(f"/proc/{sandbox}").exists())
    assert _state(daemon) == []


def test_what_is_lost_leaves_nothing(daemon: Daemon) -> None:
    pod = _pod(daemon, "lost")
    container = pod.run("sleep", "1000")
    sandbox = _sandbox_process(daemon, container)
    os.kill(sandbox, signal.SIGKILL)
    assert daemon.wait_exited(container).exit_code != 0
    until(lambda: pod.status().state == cri.SANDBOX_NOTREADY)
    pod.remove()
    until(lambda: not Path(f"/proc/{sandbox}").exists())
    assert _state(daemon) == []


def test_a_pod_on_the_hosts_network(daemon: Daemon) -> None:
    options = cri.NamespaceOption(network=cri.NODE)
    security = cri.LinuxSandboxSecurityContext(namespace_options=options)
    pod = _pod(daemon, "host", linux=cri.LinuxPodSandboxConfig(security_context=security))
    try:
        container = pod.run("sleep", "1000")
        assert daemon.bridge.encode() in pod.exec(container, "ip", "link").stdout
    finally:
        pod.remove()


def test_what_cannot_start_is_told(daemon: Daemon, tmp_path: Path) -> None:
    missing = gvisor.settings().replace(str(gvisor.runsc()), "/bin/false")
    file = tmp_path / "crisp.toml"
    file.write_text(missing)
    with Daemon.running(f"--config={file}") as other:
        with pytest.raises(grpc.RpcError) as raised:
            _pod(other, "nothing")
        assert "/bin/false create: exit status 1" in str(raised.value.details())
        assert list(other.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=CALL_SECONDS).items) == []
