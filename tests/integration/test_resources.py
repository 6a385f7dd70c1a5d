"""Limits that change: of running, created and exited containers, and of pods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from runtime.cgroups import Cgroup, Hierarchies
from tests.daemon import Daemon, Pod
from tests.waiting import until

MIB = 1 << 20
_CALL = {"timeout": 120}


def _linux(**resources: object) -> cri.LinuxContainerConfig:
    return cri.LinuxContainerConfig(resources=cri.LinuxContainerResources(**resources))


def _update(pod: Pod, container: str, **resources: object) -> None:
    request = cri.UpdateContainerResourcesRequest(
        container_id=container,
        linux=cri.LinuxContainerResources(**resources),
        annotations={"example.com/why": "the test"},
    )
    pod.daemon.runtime.UpdateContainerResources(request, **_CALL)


def _refused(pod: Pod, container: str, **resources: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as refusal:
        _update(pod, container, **resources)
    return refusal.value.code(), refusal.value.details()


def _info(daemon: Daemon, container: str) -> dict[str, Any]:
    request = cri.ContainerStatusRequest(container_id=container, verbose=True)
    return dict(json.loads(daemon.runtime.ContainerStatus(request, **_CALL).info["info"]))


def _kernel(daemon: Daemon, container: str, controller: str, *files: str) -> list[str]:
    path = _info(daemon, container)["runtimeSpec"]["linux"]["cgroupsPath"]
    directory = Path(Cgroup.at(Hierarchies.detect(), path).directory(controller))
    return [(directory / file).read_text().strip() for file in files]


def _memory(daemon: Daemon, container: str) -> list[str]:
    if Hierarchies.detect().pure_v2:
        return _kernel(daemon, container, "memory", "memory.max", "memory.swap.max")
    return _kernel(daemon, container, "memory", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes")


@pytest.mark.cri("UpdateContainerResources", "LinuxContainerResources", "annotations")
@pytest.mark.cri("UpdateContainerResources", "linux")
def test_the_limits_of_a_running_container_go_up_and_down(fresh_daemon: Daemon) -> None:
    with fresh_daemon.pod("resized") as pod:
        before = {"cpu_period": 100000, "cpu_quota": 20000, "cpu_shares": 256, "memory_limit_in_bytes": 64 * MIB}
        container = pod.run("sleep", "100", linux=_linux(**before))
        for size in (128 * MIB, 32 * MIB):  # memory alone, and memory and swap together, bound each other
            _update(pod, container, memory_limit_in_bytes=size)
            assert _memory(fresh_daemon, container) == [str(size), str(size)]
            _update(pod, container, memory_limit_in_bytes=size, memory_swap_limit_in_bytes=2 * size)
            assert _memory(fresh_daemon, container) == [str(size), str(2 * size)]
        _update(pod, container, cpu_quota=50000, cpu_shares=512, cpuset_cpus="0")
        files = ("cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.shares")
        assert _kernel(fresh_daemon, container, "cpu", *files) == ["50000", "100000", "512"]
        assert _kernel(fresh_daemon, container, "cpuset", "cpuset.cpus") == ["0"]
        _update(pod, container, cpu_quota=-1, oom_score_adj=700)
        assert _kernel(fresh_daemon, container, "cpu", *files) == ["-1", "100000", "512"]
        assert Path(f"/proc/{_info(fresh_daemon, container)['pid']}/oom_score_adj").read_text() == "700\n"
        assert pod.exec(container, "cat", "/proc/self/oom_score_adj").stdout == b"700\n"

        fresh_daemon.kill9()
        fresh_daemon.start()
        shown = fresh_daemon.status(container).resources.linux
        assert shown == cri.LinuxContainerResources(
            cpu_period=100000, cpu_quota=-1, cpu_shares=512, cpuset_cpus="0", oom_score_adj=700,
            memory_limit_in_bytes=32 * MIB, memory_swap_limit_in_bytes=64 * MIB,
        )  # fmt: skip


@pytest.mark.cri("UpdateContainerResources", "memory_limit_in_bytes", "cpuset_cpus", "unified")
def test_an_update_that_is_refused_changes_nothing(daemon: Daemon) -> None:
    with daemon.pod("refusals") as pod:
        limits = {"memory_limit_in_bytes": 64 * MIB, "cpu_shares": 256}
        command = "mkfifo /full; sleep 100 < /full & dd if=/dev/zero of=/full bs=32M"  # keeps a buffer of 32 MiB
        container = pod.run("sh", "-c", command, linux=_linux(**limits))
        until(lambda: int(_kernel(daemon, container, "memory", "memory.usage_in_bytes")[0]) >= 32 * MIB)
        code, message = _refused(pod, container, memory_limit_in_bytes=16 * MIB, cpu_shares=512)
        assert code is grpc.StatusCode.INTERNAL
        assert "16777216" in message
        assert "busy" in message
        code, message = _refused(pod, container, memory_swap_limit_in_bytes=8 * MIB)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert message.startswith("linux.memory_swap_limit_in_bytes: 8388608 ")
        code, message = _refused(pod, container, cpu_shares=512, cpuset_cpus="4095")
        assert (code, message.split(":")[0]) == (grpc.StatusCode.INVALID_ARGUMENT, "linux.cpuset_cpus")
        assert _memory(daemon, container) == [str(64 * MIB)] * 2
        assert _kernel(daemon, container, "cpu", "cpu.shares") == ["256"]
        assert daemon.status(container).resources.linux == cri.LinuxContainerResources(**limits)
        assert daemon.status(container).state == cri.CONTAINER_RUNNING
        assert _refused(pod, "nothing")[0] is grpc.StatusCode.NOT_FOUND


@pytest.mark.trial("hybrid-update", "An update on a machine with both cgroup versions asks each only for its own files")
def test_limits_of_both_cgroup_versions_change_together(daemon: Daemon) -> None:
    sizes = [size.name.removeprefix("hugepages-") for size in Path("/sys/kernel/mm/hugepages").iterdir()]
    none = [cri.HugepageLimit(page_size="2MB", limit=0)] if "2048kB" in sizes else []
    with daemon.pod("both") as pod:
        container = pod.run("sleep", "60")
        # As kubelet resizes a container without a CPU limit: a period whose quota is left alone.
        _update(pod, container, cpu_period=50000, cpu_shares=25, hugepage_limits=none)
        if Hierarchies.detect().pure_v2:
            assert _kernel(daemon, container, "cpu", "cpu.max") == ["max 50000"]
        else:
            assert _kernel(daemon, container, "cpu", "cpu.cfs_period_us", "cpu.shares") == ["50000", "25"]


@pytest.mark.cri("UpdateContainerResources", "created and exited containers")
def test_what_does_not_run_is_updated_too(daemon: Daemon) -> None:
    """A created container starts with the new limits; of an exited one they are only told, as containerd does."""
    with daemon.pod("idle") as pod:
        container = pod.create("sleep", "100", linux=_linux(memory_limit_in_bytes=64 * MIB, oom_score_adj=500))
        _update(pod, container, memory_limit_in_bytes=48 * MIB, cpu_shares=300, oom_score_adj=600)
        daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=container), **_CALL)
        assert _memory(daemon, container) == [str(48 * MIB)] * 2
        assert _kernel(daemon, container, "cpu", "cpu.shares") == ["300"]
        assert Path(f"/proc/{_info(daemon, container)['pid']}/oom_score_adj").read_text() == "600\n"
        daemon.runtime.StopContainer(cri.StopContainerRequest(container_id=container), **_CALL)
        _update(pod, container, memory_limit_in_bytes=24 * MIB)
        shown = daemon.status(container).resources.linux
        assert (shown.memory_limit_in_bytes, shown.cpu_shares) == (24 * MIB, 300)


@pytest.mark.cri("UpdatePodSandboxResources", "overhead", "resources")
@pytest.mark.cri("PodSandboxStatus", "verbose")
def test_a_pods_resources_are_kept(fresh_daemon: Daemon) -> None:
    with fresh_daemon.pod("sums") as pod:
        request = cri.UpdatePodSandboxResourcesRequest(
            pod_sandbox_id=pod.id,
            overhead=cri.LinuxContainerResources(memory_limit_in_bytes=MIB),
            resources=cri.LinuxContainerResources(cpu_shares=512),
        )
        fresh_daemon.runtime.UpdatePodSandboxResources(request, **_CALL)
        fresh_daemon.restart()
        status = cri.PodSandboxStatusRequest(pod_sandbox_id=pod.id, verbose=True)
        told = json.loads(fresh_daemon.runtime.PodSandboxStatus(status, **_CALL).info["info"])
        assert (told["overhead"], told["resources"]) == ({"memory_limit_in_bytes": MIB}, {"cpu_shares": 512})
        fresh_daemon.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod.id), **_CALL)
        with pytest.raises(grpc.RpcError, match="is not ready") as refusal:
            fresh_daemon.runtime.UpdatePodSandboxResources(request, **_CALL)
        assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
