"""What answers tell, member by member: each value here is another, so none can stand in another's place."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cri.convert.container import container_config
from cri.convert.container_status import container_status
from cri.convert.image import image_message
from cri.convert.sandbox import sandbox_config, sandbox_status
from cri.convert.stats import sandbox_stats
from cri.v1 import api_pb2 as cri
from cri.v1 import api_pb2_grpc
from image.model import Image, ImageConfig
from pods.model import Container, ContainerState, ContainerUser, MountedImage, Sandbox, SandboxState
from pods.stats.interfaces import Interface
from pods.stats.stats import ContainerStats, SandboxStats
from pods.stats.writable_layers import DiskUse
from runtime.cgroups.usage import CpuUse, MemoryUse, Pressure, Stall, Usage
from tests.answers import Told
from tests.unit.cri_fakes import FakeNode, serving

LINES = [cri.IDMapping(host_id=65536, container_id=1, length=7), cri.IDMapping(host_id=99, container_id=8, length=1)]
OTHER_LINES = [cri.IDMapping(host_id=75536, container_id=2, length=9)]
POD = cri.PodSandboxConfig(
    metadata=cri.PodSandboxMetadata(name="web", uid="u-1", namespace="default", attempt=4),
    labels={"a": "b"},
    annotations={"c": "d"},
    linux=cri.LinuxPodSandboxConfig(
        security_context=cri.LinuxSandboxSecurityContext(
            namespace_options=cri.NamespaceOption(
                network=cri.NODE, pid=cri.CONTAINER, ipc=cri.NODE,
                userns_options=cri.UserNamespace(mode=cri.NODE, uids=LINES, gids=OTHER_LINES),
            )
        )
    ),
)  # fmt: skip
SPEC = cri.ImageSpec(image="id", user_specified_image="busybox", runtime_handler="crisp", annotations={"g": "h"})
LIMITS = cri.LinuxContainerResources(
    cpu_period=1001, cpu_quota=2002, cpu_shares=3003, memory_limit_in_bytes=4004, memory_swap_limit_in_bytes=5005,
    oom_score_adj=6, cpuset_cpus="0-7", cpuset_mems="0-8", unified={"memory.high": "9"},
    hugepage_limits=[cri.HugepageLimit(page_size="2MB", limit=10), cri.HugepageLimit(page_size="1GB", limit=11)],
)  # fmt: skip
MOUNTS = [
    cri.Mount(container_path="/a", host_path="/b", readonly=True, recursive_read_only=True, uidMappings=LINES,
              gidMappings=OTHER_LINES),
    cri.Mount(container_path="/c", host_path="/d", selinux_relabel=True, propagation=cri.PROPAGATION_BIDIRECTIONAL,
              mount_options=["noexec", "nodev"]),
    cri.Mount(container_path="/e", image=cri.ImageSpec(image="volume"), image_sub_path="f"),
]  # fmt: skip


def _container(**members: Any) -> Container:
    config = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name="app", attempt=5), image=SPEC, labels={"i": "j"}, annotations={"k": "l"},
        mounts=MOUNTS, linux=cri.LinuxContainerConfig(resources=LIMITS),
    )  # fmt: skip
    return Container(
        id="c1", sandbox_id="s1", config=container_config("config", config), image_id="sha256:1",
        image_ref="busybox@sha256:2", **members,
    )  # fmt: skip


@pytest.mark.answer("PodSandboxStatus")
@pytest.mark.answer("PodSandboxMetadata")
@pytest.mark.answer("LinuxPodSandboxStatus")
@pytest.mark.answer("Namespace")
@pytest.mark.answer("NamespaceOption")
@pytest.mark.answer("UserNamespace")
@pytest.mark.answer("IDMapping")
@pytest.mark.answer("PodSandboxNetworkStatus")
@pytest.mark.answer("PodIP")
def test_a_pods_status(told: Told) -> None:
    for network, addresses in ((cri.NODE, ()), (cri.POD, ("1.2.3.4", "::1", "::2"))):  # the node's are not the pod's
        config = cri.PodSandboxConfig()
        config.CopyFrom(POD)
        config.linux.security_context.namespace_options.network = network
        sandbox = Sandbox(
            id="s1", config=sandbox_config("config", config), runtime_handler="crisp", state=SandboxState.NOT_READY,
            created_at=12, ips=("1.2.3.4", "::1", "::2"),
        )  # fmt: skip
        options = config.linux.security_context.namespace_options
        status = cri.PodSandboxStatus(
            id="s1", metadata=POD.metadata, state=cri.SANDBOX_NOTREADY, created_at=12, labels={"a": "b"},
            annotations={"c": "d"}, runtime_handler="crisp",
            network=cri.PodSandboxNetworkStatus(
                ip="".join(addresses[:1]), additional_ips=[cri.PodIP(ip=ip) for ip in addresses[1:]]
            ),
            linux=cri.LinuxPodSandboxStatus(namespaces=cri.Namespace(options=options)),
        )  # fmt: skip
        told(sandbox_status(sandbox), status)


@pytest.mark.answer("ContainerStatus")
@pytest.mark.answer("ContainerMetadata")
@pytest.mark.answer("ImageSpec")
@pytest.mark.answer("Mount")
@pytest.mark.answer("ContainerResources")
@pytest.mark.answer("LinuxContainerResources")
@pytest.mark.answer("HugepageLimit")
@pytest.mark.answer("ContainerUser")
@pytest.mark.answer("LinuxContainerUser")
def test_a_containers_status(told: Told) -> None:
    container = _container(
        state=ContainerState.EXITED, created_at=1, started_at=2, finished_at=3, exit_code=4, reason="Error",
        message="because", log_path="/var/log/x", user=ContainerUser(uid=5, gid=6, additional_gids=(7, 8)),
        stop_signal="SIGUSR1", mounted_images=(MountedImage(mount=2, image_id="sha256:3"),),
    )  # fmt: skip
    mounts = [*MOUNTS[:2], cri.Mount(container_path="/e", image_sub_path="f",
                                     image=cri.ImageSpec(image="sha256:3", image_ref="sha256:3"))]  # fmt: skip
    user = cri.LinuxContainerUser(uid=5, gid=6, supplemental_groups=[7, 8])
    told(
        container_status(container),
        cri.ContainerStatus(
            id="c1", metadata=cri.ContainerMetadata(name="app", attempt=5), state=cri.CONTAINER_EXITED, created_at=1,
            started_at=2, finished_at=3, exit_code=4, reason="Error", message="because", image_ref="busybox@sha256:2",
            image=cri.ImageSpec(image="busybox", user_specified_image="busybox", runtime_handler="crisp",
                                annotations={"g": "h"}),
            image_id="sha256:1", labels={"i": "j"}, annotations={"k": "l"}, mounts=mounts, log_path="/var/log/x",
            resources=cri.ContainerResources(linux=LIMITS), user=cri.ContainerUser(linux=user),
            stop_signal=cri.SIGNAL_SIGUSR1,
        ),
    )  # fmt: skip


@pytest.mark.answer("Image")
@pytest.mark.answer("Int64Value")
def test_an_image(told: Told) -> None:
    image = Image(
        id="sha256:1", repo_tags=("busybox:1", "busybox:2"), repo_digests=("busybox@sha256:2",), size=9, created=7,
        config=ImageConfig(user="33:44"), pinned=True,
    )  # fmt: skip
    expected = cri.Image(
        id="sha256:1", repo_tags=["busybox:1", "busybox:2"], repo_digests=["busybox@sha256:2"], size=9, pinned=True,
        uid=cri.Int64Value(value=33),
    )  # fmt: skip
    told(image_message(image), expected)
    expected.ClearField("uid")
    expected.username = "www"
    told(image_message(msgspec.structs.replace(image, config=ImageConfig(user="www:44"))), expected)


def _pressure(first: int) -> tuple[Pressure, cri.PsiStats]:
    some, full = Stall(first, 0.5, 1.5, 2.5), Stall(first + 1, 3.5, 4.5, 5.5)
    return Pressure(some, full), cri.PsiStats(
        Some=cri.PsiData(Total=first, Avg10=0.5, Avg60=1.5, Avg300=2.5),
        Full=cri.PsiData(Total=first + 1, Avg10=3.5, Avg60=4.5, Avg300=5.5),
    )


def _counted(value: int) -> cri.UInt64Value:
    return cri.UInt64Value(value=value)


@pytest.mark.answer("PodSandboxStats")
@pytest.mark.answer("PodSandboxAttributes")
@pytest.mark.answer("LinuxPodSandboxStats")
@pytest.mark.answer("NetworkUsage")
@pytest.mark.answer("NetworkInterfaceUsage")
@pytest.mark.answer("ProcessUsage")
@pytest.mark.answer("ContainerStats")
@pytest.mark.answer("ContainerAttributes")
@pytest.mark.answer("CpuUsage")
@pytest.mark.answer("PsiStats")
@pytest.mark.answer("PsiData")
@pytest.mark.answer("UInt64Value")
@pytest.mark.answer("MemoryUsage")
@pytest.mark.answer("SwapUsage")
@pytest.mark.answer("IoUsage")
@pytest.mark.answer("FilesystemUsage")
@pytest.mark.answer("FilesystemIdentifier")
def test_statistics(told: Told) -> None:
    (cpu, cpu_psi), (memory, memory_psi), (io, io_psi) = map(_pressure, (100, 200, 300))
    usage = Usage(
        cpu=CpuUse(total=11),
        memory=MemoryUse(usage=1000, limit=5000, swap=12, swap_limit=90, anon=13, inactive_file=300, faults=14,
                         major_faults=15, file=16, mapped=17, kernel=18, active_file=19),
        tasks=20, tasks_limit=21, oom_kills=22, devices=(), hugetlb={}, cpu_pressure=cpu, memory_pressure=memory,
        io_pressure=io,
    )  # fmt: skip

    def use(taken_at: int, rate: int) -> dict[str, Any]:
        return {
            "cpu": cri.CpuUsage(
                timestamp=taken_at, usage_core_nano_seconds=_counted(11), usage_nano_cores=_counted(rate), psi=cpu_psi
            ),
            "memory": cri.MemoryUsage(
                timestamp=taken_at, working_set_bytes=_counted(700), available_bytes=_counted(4300),
                usage_bytes=_counted(1000), rss_bytes=_counted(13), page_faults=_counted(14),
                major_page_faults=_counted(15), psi=memory_psi,
            ),
            "io": cri.IoUsage(timestamp=taken_at, psi=io_psi),
        }  # fmt: skip

    inner = _container(state=ContainerState.RUNNING, created_at=1)
    of_container = cri.ContainerStats(
        attributes=cri.ContainerAttributes(
            id="c1", metadata=cri.ContainerMetadata(name="app", attempt=5), labels={"i": "j"}, annotations={"k": "l"}
        ),
        swap=cri.SwapUsage(timestamp=31, swap_available_bytes=_counted(78), swap_usage_bytes=_counted(12)),
        writable_layer=cri.FilesystemUsage(
            timestamp=35, fs_id=cri.FilesystemIdentifier(mountpoint="/layers"), used_bytes=_counted(33),
            inodes_used=_counted(34),
        ),
        **use(31, 32),
    )  # fmt: skip
    sandbox = Sandbox(
        id="s1", config=sandbox_config("config", POD), runtime_handler="", state=SandboxState.READY, created_at=1
    )
    interfaces = (Interface("eth0", 40, 41, 42, 43, 44, 45, 46, 47), Interface("net1", 50, 51, 52, 53, 54, 55, 56, 57))
    stats = SandboxStats(
        sandbox, 61, "/pod", usage, 62, interfaces,
        (ContainerStats(inner, 31, "/pod/c1", usage, 32, DiskUse(33, 34, 35)),),
    )  # fmt: skip
    first, second = (
        cri.NetworkInterfaceUsage(
            name=one.name, rx_bytes=_counted(base), rx_errors=_counted(base + 2), tx_bytes=_counted(base + 4),
            tx_errors=_counted(base + 6),
        )
        for one, base in zip(interfaces, (40, 50), strict=True)
    )  # fmt: skip
    told(
        sandbox_stats(stats, "/layers"),
        cri.PodSandboxStats(
            attributes=cri.PodSandboxAttributes(
                id="s1", metadata=POD.metadata, labels={"a": "b"}, annotations={"c": "d"}
            ),
            linux=cri.LinuxPodSandboxStats(
                network=cri.NetworkUsage(timestamp=61, default_interface=first, interfaces=[first, second]),
                process=cri.ProcessUsage(timestamp=61, process_count=_counted(20)),
                containers=[of_container],
                **use(61, 62),
            ),
        ),
    )


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[tuple[FakeNode, Any]]:
    node = FakeNode()
    async with serving(node, tmp_path, cgroup_driver="cgroupfs") as channel:
        yield node, api_pb2_grpc.RuntimeServiceStub(channel)


@pytest.mark.answer("StatusResponse")
@pytest.mark.answer("RuntimeStatus")
@pytest.mark.answer("RuntimeCondition")
@pytest.mark.answer("RuntimeHandler")
@pytest.mark.answer("RuntimeHandlerFeatures")
@pytest.mark.answer("RuntimeFeatures")
@pytest.mark.answer("RuntimeConfigResponse")
@pytest.mark.answer("LinuxRuntimeConfiguration")
@pytest.mark.parametrize("able", [True, False])
async def test_the_runtimes_status(runtime: tuple[FakeNode, Any], told: Told, able: bool) -> None:
    node, stub = runtime
    answer = await stub.Status(cri.StatusRequest(verbose=True))
    info = dict(answer.info)
    assert json.loads(info["info"])["config"]["cgroup_driver"] == "cgroupfs"
    features = cri.RuntimeHandlerFeatures(
        recursive_read_only_mounts=True, user_namespaces=True, cgroup_namespaces=True
    )
    expected = cri.StatusResponse(
        status=cri.RuntimeStatus(
            conditions=[
                cri.RuntimeCondition(type="RuntimeReady", status=True),
                cri.RuntimeCondition(
                    type="NetworkReady", reason="NoConfiguration", message="nothing in /etc/cni/net.d"
                ),
                cri.RuntimeCondition(type="ShimsAnswer", status=True),
            ]
        ),
        runtime_handlers=[
            cri.RuntimeHandler(name="", features=features), cri.RuntimeHandler(name="crisp", features=features),
            cri.RuntimeHandler(name="runc"),
        ],
        features=cri.RuntimeFeatures(
            supplemental_groups_policy=True, user_namespaces_host_network=True, mount_options=True,
            cgroup_mount_mode=True, seccomp_profile_oci=True,
        ),
        info=info,
    )  # fmt: skip
    told(answer, expected)
    driver = cri.LinuxRuntimeConfiguration(cgroup_driver=cri.CGROUPFS)
    told(await stub.RuntimeConfig(cri.RuntimeConfigRequest()), cri.RuntimeConfigResponse(linux=driver))
    node.user_namespaces = able
    features.user_namespaces = expected.features.user_namespaces_host_network = able
    for handler in expected.runtime_handlers[:2]:
        handler.features.CopyFrom(features)
    told(await stub.Status(cri.StatusRequest(verbose=True)), expected)
