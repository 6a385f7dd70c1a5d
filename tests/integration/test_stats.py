"""What containers that work are told to use."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from tests.daemon import Daemon, Pod
from tests.waiting import until

_until = partial(until, pause=0.1)
_CALL = {"timeout": 120}
_MIB = 1 << 20
# Burns a whole processor; holds 24 MiB in memory and 8 MiB, in two files, on disk; has a peer to talk to.
_WORK = """\
head -c 6291456 /dev/zero > /a; head -c 2097152 /dev/zero > /b; sync
wget -q -O /dev/null http://127.0.0.1:1/ 2>/dev/null
ping -c 3 -i 0.1 -W 1 "$(ip route | awk '/default/ {print $3}')" > /dev/null
echo ready
awk 'BEGIN { s = sprintf("%24000000s", "x"); while (1) n += length(s) }'
"""


@pytest.fixture(scope="module")
def pod(daemon: Daemon) -> Iterator[Pod]:
    config = daemon.sandbox_config("stats")
    config.labels["app"] = "stats"
    with daemon.pod(config=config) as running:
        yield running


@pytest.fixture(scope="module")
def worker(daemon: Daemon, pod: Pod) -> str:
    limits = cri.LinuxContainerResources(memory_limit_in_bytes=128 * _MIB)
    container = pod.run("sh", "-c", _WORK, name="worker", labels={"part": "worker"}, linux={"resources": limits})
    _until(lambda: "ready" in pod.log("worker"))
    _until(lambda: _container(daemon, container).memory.rss_bytes.value > 20 * _MIB)
    return container


def _container(daemon: Daemon, container: str) -> cri.ContainerStats:
    return daemon.runtime.ContainerStats(cri.ContainerStatsRequest(container_id=container), **_CALL).stats


@pytest.mark.cri("ContainerStats", "cpu", "memory", "swap", "writable_layer", "psi")
def test_a_busy_container_is_told_as_it_is(daemon: Daemon, worker: str) -> None:
    first = _container(daemon, worker)
    time.sleep(1.2)
    stats = _container(daemon, worker)
    used = stats.cpu.usage_core_nano_seconds.value - first.cpu.usage_core_nano_seconds.value
    assert used / (stats.cpu.timestamp - first.cpu.timestamp) > 0.01  # the machine may be busy with other things
    assert 0.01e9 < stats.cpu.usage_nano_cores.value < 3e9
    memory = stats.memory
    assert 20 * _MIB < memory.rss_bytes.value <= memory.working_set_bytes.value <= memory.usage_bytes.value < 128 * _MIB
    assert memory.available_bytes.value == 128 * _MIB - memory.working_set_bytes.value
    assert memory.page_faults.value > 1000
    assert stats.HasField("swap")
    assert stats.attributes.id == worker
    assert stats.attributes.metadata.name == "worker"
    assert dict(stats.attributes.labels) == {"part": "worker"}
    _until(lambda: 8 * _MIB <= _container(daemon, worker).writable_layer.used_bytes.value < 9 * _MIB)
    layer = _container(daemon, worker).writable_layer
    assert layer.inodes_used.value >= 3
    (images,) = daemon.images.ImageFsInfo(cri.ImageFsInfoRequest(), **_CALL).image_filesystems
    assert layer.fs_id == images.fs_id


@pytest.mark.cri("PodSandboxStats", "cpu", "memory", "network", "process", "containers")
def test_a_pod_is_told_with_its_network_and_its_containers(daemon: Daemon, pod: Pod, worker: str) -> None:
    stats = daemon.runtime.PodSandboxStats(cri.PodSandboxStatsRequest(pod_sandbox_id=pod.id), **_CALL).stats
    assert stats.attributes.id == pod.id
    assert stats.attributes.metadata == pod.config.metadata
    linux = stats.linux
    assert [container.attributes.id for container in linux.containers] == [worker]
    assert linux.cpu.usage_core_nano_seconds.value >= linux.containers[0].cpu.usage_core_nano_seconds.value
    assert linux.memory.working_set_bytes.value >= 20 * _MIB
    assert linux.process.process_count.value >= 2
    assert linux.network.default_interface.name == "eth0"
    assert linux.network.default_interface.tx_bytes.value >= 3 * 64
    assert [interface.name for interface in linux.network.interfaces] == ["eth0"]


@pytest.mark.answer("ListContainerStatsResponse")
@pytest.mark.answer("ListPodSandboxStatsResponse")
@pytest.mark.answer("StreamContainerStatsResponse")
@pytest.mark.answer("StreamPodSandboxStatsResponse")
@pytest.mark.cri("ListContainerStats", "filter")
@pytest.mark.cri("ListPodSandboxStats", "filter")
@pytest.mark.cri("StreamContainerStats", "filter")
@pytest.mark.cri("StreamPodSandboxStats", "filter")
def test_filters_select_and_streams_tell_the_same(daemon: Daemon, pod: Pod, worker: str) -> None:
    with daemon.pod("quiet") as other:
        idle = other.run("sleep", "100", name="idle")

        def containers(**wanted: object) -> set[str]:
            selected = cri.ContainerStatsFilter(**wanted)
            listed = daemon.runtime.ListContainerStats(cri.ListContainerStatsRequest(filter=selected), **_CALL).stats
            pieces = daemon.runtime.StreamContainerStats(cri.StreamContainerStatsRequest(filter=selected), **_CALL)
            streamed = {stats.attributes.id for piece in pieces for stats in piece.container_stats}
            assert streamed == {stats.attributes.id for stats in listed}
            return streamed

        def pods(**wanted: object) -> set[str]:
            selected = cri.PodSandboxStatsFilter(**wanted)
            listed = daemon.runtime.ListPodSandboxStats(cri.ListPodSandboxStatsRequest(filter=selected), **_CALL).stats
            pieces = daemon.runtime.StreamPodSandboxStats(cri.StreamPodSandboxStatsRequest(filter=selected), **_CALL)
            assert {stats.attributes.id for piece in pieces for stats in piece.pod_sandbox_stats} == {
                stats.attributes.id for stats in listed
            }
            return {stats.attributes.id for stats in listed}

        assert containers() == {worker, idle}
        assert containers(id=idle[:20]) == {idle}
        assert containers(pod_sandbox_id=pod.id) == {worker}
        assert containers(label_selector={"part": "worker"}) == {worker}
        assert containers(label_selector={"part": "other"}) == set()
        assert pods() == {pod.id, other.id}
        assert pods(id=other.id) == {other.id}
        assert pods(label_selector={"app": "stats"}) == {pod.id}


@pytest.mark.cri("ContainerStats", "exited containers")
@pytest.mark.cri("PodSandboxStats", "stopped sandboxes")
def test_what_does_not_run_uses_nothing_but_its_disk(daemon: Daemon) -> None:
    with daemon.pod("ends") as pod:
        created = pod.create("true", name="created")
        ended = pod.run("sh", "-c", "head -c 3000000 /dev/zero > /kept", name="ended")
        daemon.wait_exited(ended)
        stats = _container(daemon, ended)
        assert not stats.HasField("cpu")
        assert not stats.HasField("memory")
        assert stats.writable_layer.used_bytes.value >= 3_000_000
        assert not _container(daemon, created).HasField("cpu")
        daemon.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod.id), **_CALL)
        with pytest.raises(grpc.RpcError) as refusal:
            daemon.runtime.PodSandboxStats(cri.PodSandboxStatsRequest(pod_sandbox_id=pod.id), **_CALL)
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
        listed = daemon.runtime.ListPodSandboxStats(cri.ListPodSandboxStatsRequest(), **_CALL).stats
        assert pod.id not in {stats.attributes.id for stats in listed}
    with pytest.raises(grpc.RpcError) as refusal:
        _container(daemon, ended)
    assert refusal.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.cri("ImageFsInfo", "container_filesystems")
def test_the_filesystem_of_writable_layers_has_what_containers_wrote(daemon: Daemon, worker: str) -> None:
    info = daemon.images.ImageFsInfo(cri.ImageFsInfoRequest(), **_CALL)
    (layers,) = info.container_filesystems
    assert layers.used_bytes.value >= 8 * _MIB
    assert layers.inodes_used.value >= 3
    assert layers.timestamp > 0
    assert info.image_filesystems[0].used_bytes.value > 500_000


@pytest.mark.answer("ListMetricDescriptorsResponse")
@pytest.mark.answer("MetricDescriptor")
@pytest.mark.answer("ListPodSandboxMetricsResponse")
@pytest.mark.answer("PodSandboxMetrics")
@pytest.mark.answer("ContainerMetrics")
@pytest.mark.answer("Metric")
@pytest.mark.answer("DoubleValue")
@pytest.mark.answer("StreamPodSandboxMetricsResponse")
@pytest.mark.cri("ListMetricDescriptors", "descriptors")
@pytest.mark.cri("ListPodSandboxMetrics", "metrics", "container_metrics")
@pytest.mark.cri("StreamPodSandboxMetrics", "pod_sandbox_metrics")
def test_metrics_are_those_of_cadvisor_and_fit_their_descriptors(daemon: Daemon, pod: Pod, worker: str) -> None:
    told = daemon.runtime.ListMetricDescriptors(cri.ListMetricDescriptorsRequest(), **_CALL).descriptors
    keys = {one.name: list(one.label_keys) for one in told}
    assert len(keys) == len(told)
    assert {tuple(names[:6]) for names in keys.values()} == {("container", "id", "image", "name", "namespace", "pod")}
    help_texts = {one.name: one.help for one in told}
    assert help_texts["container_memory_rss"] == "Anonymous memory"
    assert all(help_texts.values())
    answer = daemon.runtime.ListPodSandboxMetrics(cri.ListPodSandboxMetricsRequest(), **_CALL)
    (of_pod,) = (one for one in answer.pod_metrics if one.pod_sandbox_id == pod.id)
    (of_worker,) = of_pod.container_metrics
    assert of_worker.container_id == worker
    values, fractions = {}, {}
    for metric in (*of_pod.metrics, *of_worker.metrics):
        labels = dict(zip(keys[metric.name], metric.label_values, strict=True))
        own = tuple(labels[key] for key in keys[metric.name][6:])
        assert (metric.name, own) not in values  # Prometheus takes no value twice
        values[metric.name, own] = metric.value.value
        if metric.HasField("double_value"):
            fractions[metric.name, own] = metric.double_value.value
            assert int(metric.double_value.value) == metric.value.value
        counter = metric.name.endswith("_failcnt") or (
            metric.name.endswith("_total") and metric.name != "container_fs_inodes_total"
        )
        assert metric.metric_type == (cri.COUNTER if counter else cri.GAUGE), metric.name
        assert metric.timestamp == 0  # the value is of now
        assert labels["name"] == (pod.id if metric in of_pod.metrics else worker)
        assert (labels["pod"], labels["namespace"]) == (pod.config.metadata.name, pod.config.metadata.namespace)
        assert labels["container"] == ("" if metric in of_pod.metrics else "worker")
    assert values["container_network_transmit_bytes_total", ("eth0",)] >= 3 * 64
    assert values["container_memory_rss", ()] > 20 * _MIB
    assert values["container_spec_memory_limit_bytes", ()] == 128 * _MIB
    assert values["container_processes", ()] >= 1
    assert values["container_file_descriptors", ()] >= 3
    assert values["container_ulimits_soft", ("max_open_files",)] > 0
    assert abs(values["container_last_seen", ()] - time.time()) < 60
    usage = _container(daemon, worker).cpu.usage_core_nano_seconds.value
    assert 0 <= usage // 10**9 - values["container_cpu_usage_seconds_total", ("total",)] <= 20
    assert 0 <= usage / 10**9 - fractions["container_cpu_usage_seconds_total", ("total",)] <= 20
    assert fractions["container_start_time_seconds", ()] == daemon.status(worker).started_at / 10**9
    pieces = daemon.runtime.StreamPodSandboxMetrics(cri.StreamPodSandboxMetricsRequest(), **_CALL)
    assert pod.id in {one.pod_sandbox_id for piece in pieces for one in piece.pod_sandbox_metrics}
