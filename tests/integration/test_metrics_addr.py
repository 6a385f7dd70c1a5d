"""crispd's own metrics, as a Prometheus server reads them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import urllib.request
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cri.v1 import api_pb2 as cri
from pods.diagnosis.bulletin import NAMES
from tests.daemon import Daemon
from tests.images import build_image, busybox_image, busybox_layer, compress
from tests.integration.test_dashboard import assert_shows_only
from tests.registry import Registry
from tests.stream_clients import STDERR, STDIN, STDOUT, Command, Refused
from tests.waiting import until


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_shims_that_have_successors_are_counted() -> None:
    port = _free_port()
    with Daemon.running(f"--metrics-addr=127.0.0.1:{port}") as daemon, daemon.pod("survives") as pod:
        shim = subprocess.run(["pgrep", "-f", f"^crisp-shim {pod.id}"], capture_output=True, text=True).stdout
        os.kill(int(shim), signal.SIGKILL)
        until(lambda: _samples(port)["crisp_shim_successions_total", frozenset()] == 1)


_EXEC = frozenset({("kind", "exec"), ("transport", "websocket")})
_NOT_FOUND = frozenset({("status", "404")})


def _text(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def _samples(port: int) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = _text(port)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_calls_errors_steps_and_objects_are_counted() -> None:
    port = _free_port()
    with Daemon.running(f"--metrics-addr=127.0.0.1:{port}") as daemon:
        daemon.import_busybox()
        events = daemon.runtime.GetContainerEvents(cri.GetEventsRequest(), timeout=30)
        events.initial_metadata()
        with daemon.pod("counted") as pod:
            pod.run("sleep", "100")
            daemon.wait_exited(pod.run("sh", "-c", "exit 3", name="ends"))
            with pytest.raises(grpc.RpcError):
                pod.run("/no/such", name="refused")
            with pytest.raises(grpc.RpcError):
                daemon.status("nothing")
            samples = _samples(port)
        events.cancel()

    def value(name: str, **labels: str) -> float:
        return samples[name, frozenset(labels.items())]

    assert value("crisp_cri_calls_total", rpc="RunPodSandbox") == 1
    assert value("crisp_cri_call_seconds_count", rpc="RunPodSandbox") == 1
    causes = {dict(key[1])["cause"]: number for key, number in samples.items() if key[0] == "crisp_causes_total"}
    assert {cause for cause, number in causes.items() if number} == {"exit-code", "program-missing"}
    assert causes["exit-code"] == causes["program-missing"] == 1
    assert set(causes) == NAMES  # as many time series as there are names, whatever happens
    assert 0 < value("crisp_cri_call_seconds_sum", rpc="StartContainer") < 20
    assert value("crisp_cri_errors_total", rpc="ContainerStatus", code="NOT_FOUND") == 1
    assert value("crisp_start_step_seconds_count", operation="run_pod_sandbox", step="network added") == 1
    assert value("crisp_start_step_seconds_count", operation="start_container", step="program runs") == 2
    assert value("crisp_pods", state="ready") == 1
    assert value("crisp_containers", state="running") == 1
    assert (value("crisp_shims"), value("crisp_images"), value("crisp_event_listeners")) == (1, 1, 1)
    assert value("crisp_shim_successions_total") == 0
    assert value("crisp_shims_of_other_versions") == 0
    assert value("crisp_nri_plugins_apart") == 0
    assert value("process_resident_memory_bytes") > 0


def test_streams_are_counted_told_of_and_shown() -> None:
    port = _free_port()
    with Daemon.running(f"--metrics-addr=127.0.0.1:{port}") as daemon:
        daemon.import_busybox()
        with daemon.pod("streams") as pod:
            container = pod.run("sleep", "100")
            request = cri.ExecRequest(container_id=container, cmd=["cat"], stdin=True, stdout=True, stderr=True)
            url = daemon.runtime.Exec(request, timeout=30).url
            command = Command.over("websocket", url, "v5.channel.k8s.io", STDIN, STDOUT, STDERR)
            with pytest.raises(Refused):
                Command.over("websocket", url, "v5.channel.k8s.io", STDIN, STDOUT, STDERR)
            with pytest.raises(grpc.RpcError):
                daemon.status("nothing")
            until(lambda: ("crisp_streams_refused_total", _NOT_FOUND) in _samples(port))  # crispd is told of it
            during, text = _samples(port), _text(port)
            command.end()
            assert command.exit_code() == 0
            failing = cri.ExecRequest(container_id=container, cmd=["no-such-program"], stdout=True)
            url = daemon.runtime.Exec(failing, timeout=30).url
            Command.over("websocket", url, "v5.channel.k8s.io", STDOUT).finish()
            until(lambda: ("crisp_streams", _EXEC) not in _samples(port))
        (line,) = [line for line in daemon.log().splitlines() if "streaming command failed" in line]
        assert f"container={container}" in line
        assert "stream=exec" in line
    assert during["crisp_streams", _EXEC] == during["crisp_streams_opened_total", _EXEC] == 1
    assert during["crisp_streams_refused_total", _NOT_FOUND] == 1
    assert during["crisp_streams_processes", frozenset()] == 1
    assert_shows_only(text)


def test_pulls_are_counted(tmp_path: Path) -> None:
    port = _free_port()
    with Daemon.running(f"--metrics-addr=127.0.0.1:{port}") as daemon, Registry(tmp_path / "registry") as registry:
        registry.push("busybox", "1", busybox_image())
        registry.push("busybox", "2", build_image([busybox_layer()], {"Cmd": ["sh", "-c", "another"]}))
        for name in ("busybox:1", "busybox:2", "busybox:absent"):
            request = cri.PullImageRequest(image=cri.ImageSpec(image=f"{registry.host}/{name}"))
            with contextlib.suppress(grpc.RpcError):
                daemon.images.PullImage(request, timeout=30)
        samples = {(name, *sorted(labels)): value for (name, labels), value in _samples(port).items()}
    assert samples["crisp_image_pulls_total", ("result", "succeeded")] == 2
    assert samples["crisp_image_pulls_total", ("result", "failed")] == 1
    assert samples["crisp_image_pulls_total", ("result", "cancelled")] == 0
    assert samples["crisp_image_layers_total", ("how", "fetched")] == 1
    assert samples["crisp_image_layers_total", ("how", "shared")] == 1
    assert samples["crisp_image_pull_bytes_total",] == len(compress(busybox_layer()))
    assert samples["crisp_image_pulls_in_progress",] == 0


def test_an_address_that_is_taken_is_told(daemon: Daemon) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(Exception, match=f"listen on metrics_addr {address}"), Daemon.running(
            f"--metrics-addr={address}"
        ):
            pass
