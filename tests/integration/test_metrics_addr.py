"""crispd's own metrics, as a Prometheus server reads them."""

from __future__ import annotations

import socket
import urllib.request

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cri.v1 import api_pb2 as cri
from tests.daemon import Daemon


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _samples(port: int) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
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
            with pytest.raises(grpc.RpcError):
                daemon.status("nothing")
            samples = _samples(port)
        events.cancel()

    def value(name: str, **labels: str) -> float:
        return samples[name, frozenset(labels.items())]

    assert value("crisp_cri_calls_total", rpc="RunPodSandbox") == 1
    assert value("crisp_cri_call_seconds_count", rpc="RunPodSandbox") == 1
    assert 0 < value("crisp_cri_call_seconds_sum", rpc="StartContainer") < 20
    assert value("crisp_cri_errors_total", rpc="ContainerStatus", code="NOT_FOUND") == 1
    assert value("crisp_start_step_seconds_count", operation="run_pod_sandbox", step="network added") == 1
    assert value("crisp_start_step_seconds_count", operation="start_container", step="program runs") == 1
    assert value("crisp_pods", state="ready") == 1
    assert value("crisp_containers", state="running") == 1
    assert (value("crisp_shims"), value("crisp_images"), value("crisp_event_listeners")) == (1, 1, 1)
    assert value("process_resident_memory_bytes") > 0


def test_an_address_that_is_taken_is_told(daemon: Daemon) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(Exception, match=f"listen on metrics_addr {address}"), Daemon.running(
            f"--metrics-addr={address}"
        ):
            pass
