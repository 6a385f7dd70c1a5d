"""What answers tell is so: whole answers against what was asked, what the kernel counts, and what the image is."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from cri.version import crisp_version
from tests.answers import Told, between
from tests.daemon import BUSYBOX, CALL_SECONDS, Daemon, Pod
from tests.images import build_image, busybox_layer
from tests.registry import Registry
from tests.waiting import until

_CALL = {"timeout": CALL_SECONDS}
_MIB = 1 << 20
# Uses the processor, writes 3 MiB, talks to its gateway, holds 24 MB of memory and another process, and waits.
_WORK = """\
head -c 3145728 /dev/zero > /written
ping -c 2 -W 1 "$(ip route | awk '/default/ {print $3}')" > /dev/null
sleep 1000 &
exec awk 'BEGIN { s = sprintf("%24000000s", "x"); while (i++ < 3000000) n += i; print "done"; fflush(); getline }'
"""


def _verbose(answer: Any) -> dict[str, Any]:
    assert list(answer.info) == ["info"]
    found: dict[str, Any] = json.loads(answer.info["info"])
    return found


@pytest.mark.answer("VersionResponse")
@pytest.mark.answer("RunPodSandboxResponse")
@pytest.mark.answer("PodSandboxStatusResponse")
@pytest.mark.answer("ListPodSandboxResponse")
@pytest.mark.answer("StreamPodSandboxesResponse")
@pytest.mark.answer("PodSandbox")
@pytest.mark.answer("CreateContainerResponse")
@pytest.mark.answer("ContainerStatusResponse")
@pytest.mark.answer("ContainerStatus", "id", "metadata", "state", "created_at", "started_at", "finished_at")
@pytest.mark.answer("ContainerStatus", "image", "image_ref", "image_id", "reason", "labels", "annotations", "mounts")
@pytest.mark.answer("ContainerStatus", "log_path", "resources", "user", "stop_signal", "exit_code")
@pytest.mark.answer("LinuxContainerUser")
@pytest.mark.answer("ListContainersResponse")
@pytest.mark.answer("StreamContainersResponse")
@pytest.mark.answer("Container")
@pytest.mark.answer("ExecSyncResponse")
@pytest.mark.answer("ContainerEventResponse")
def test_a_pod_and_its_container_are_told_whole(told: Told, tmp_path: Path) -> None:
    with Daemon.running(ipv6=True) as daemon:
        image_id = daemon.import_busybox()
        version = cri.VersionResponse(
            version="0.1.0", runtime_name="crisp", runtime_version=crisp_version(), runtime_api_version="v1"
        )
        told(daemon.runtime.Version(cri.VersionRequest(), **_CALL), version)
        events = daemon.runtime.GetContainerEvents(cri.GetEventsRequest(), timeout=CALL_SECONDS)
        events.initial_metadata()
        _live(daemon, told, tmp_path, image_id, events)
        events.cancel()


def _live(
    daemon: Daemon, told: Told, volume: Path, image_id: str, events: Iterator[cri.ContainerEventResponse]
) -> None:
    runtime, before = daemon.runtime, time.time_ns()
    config = daemon.sandbox_config("whole", labels={"a": "b"}, annotations={"c": "d"})
    config.metadata.attempt = 2
    asked = cri.RunPodSandboxRequest(config=config, runtime_handler="crisp")
    run = runtime.RunPodSandbox(asked, **_CALL)
    pod = Pod(daemon, run.pod_sandbox_id, config)
    (listed,) = runtime.ListPodSandbox(cri.ListPodSandboxRequest(), **_CALL).items
    told(run, cri.RunPodSandboxResponse(pod_sandbox_id=listed.id))
    created_pod_at = between(listed.created_at, before, time.time_ns())

    limits = cri.LinuxContainerResources(cpu_shares=512, memory_limit_in_bytes=64 * _MIB, oom_score_adj=100)
    mount = cri.Mount(container_path="/v", host_path=str(volume), readonly=True, mount_options=["noexec"])
    context = cri.LinuxContainerSecurityContext(
        run_as_user=cri.Int64Value(value=1000), run_as_group=cri.Int64Value(value=1001), supplemental_groups=[1002]
    )
    spec = cri.ImageSpec(image=BUSYBOX, user_specified_image="typed", annotations={"e": "f"})
    wanted = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name="main", attempt=3), image=spec, labels={"g": "h"}, annotations={"i": "j"},
        command=["sh", "-c", "trap 'exit 5' USR1; echo on; while :; do sleep 0.1; done"], log_path="main.log",
        mounts=[mount], linux=cri.LinuxContainerConfig(resources=limits, security_context=context),
        stop_signal=cri.SIGNAL_SIGUSR1,
    )  # fmt: skip
    before = time.time_ns()
    made = runtime.CreateContainer(cri.CreateContainerRequest(pod_sandbox_id=pod.id, config=wanted), **_CALL)
    created_at = between(daemon.status(made.container_id).created_at, before, time.time_ns())
    before = time.time_ns()
    runtime.StartContainer(cri.StartContainerRequest(container_id=made.container_id), **_CALL)
    started_at = between(daemon.status(made.container_id).started_at, before, time.time_ns())
    until(lambda: "on" in pod.log())
    container = cri.Container(
        id=made.container_id, pod_sandbox_id=pod.id, metadata=wanted.metadata, image_ref=image_id, image_id=image_id,
        image=cri.ImageSpec(image="typed", user_specified_image="typed", annotations={"e": "f"}),
        state=cri.CONTAINER_RUNNING, created_at=created_at, labels={"g": "h"}, annotations={"i": "j"},
    )  # fmt: skip
    found = runtime.ListContainers(cri.ListContainersRequest(), **_CALL)
    told(found, cri.ListContainersResponse(containers=[container]))
    told(made, cri.CreateContainerResponse(container_id=found.containers[0].id))
    (page,) = runtime.StreamContainers(cri.StreamContainersRequest(), **_CALL)
    told(page, cri.StreamContainersResponse(containers=[container]))

    ids = "id -u; id -g; id -G"
    seen = pod.exec(made.container_id, "sh", "-c", f"{ids}; ip -o addr show dev eth0 scope global >&2; exit 7")
    addresses = re.findall(rb"inet6? (\S+)/", seen.stderr)
    told(seen, cri.ExecSyncResponse(stdout=b"1000\n1001\n1001 1002\n", stderr=seen.stderr, exit_code=7))
    assert len(addresses) == 2
    pod_status = cri.PodSandboxStatus(
        id=pod.id, metadata=config.metadata, created_at=created_pod_at, labels={"a": "b"}, annotations={"c": "d"},
        runtime_handler="crisp",
        network=cri.PodSandboxNetworkStatus(
            ip=addresses[0].decode(), additional_ips=[cri.PodIP(ip=addresses[1].decode())]
        ),
        linux=cri.LinuxPodSandboxStatus(namespaces=cri.Namespace(options=cri.NamespaceOption())),
    )  # fmt: skip
    answer = runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod.id, verbose=True), **_CALL)
    assert _verbose(answer)["config"]["metadata"]["name"] == "whole"
    told(answer, cri.PodSandboxStatusResponse(status=pod_status, info=dict(answer.info)))

    before = time.time_ns()
    runtime.StopContainer(cri.StopContainerRequest(container_id=made.container_id, timeout=60), **_CALL)
    ended = daemon.wait_exited(made.container_id)
    status = cri.ContainerStatus(
        id=made.container_id, metadata=wanted.metadata, state=cri.CONTAINER_EXITED, created_at=created_at,
        started_at=started_at, finished_at=between(ended.finished_at, before, time.time_ns()), exit_code=5,
        image=container.image, image_ref=image_id, image_id=image_id, reason="Error", labels={"g": "h"},
        annotations={"i": "j"}, mounts=[mount], log_path=f"{config.log_directory}/main.log",
        resources=cri.ContainerResources(linux=limits), stop_signal=cri.SIGNAL_SIGUSR1,
        user=cri.ContainerUser(linux=cri.LinuxContainerUser(uid=1000, gid=1001, supplemental_groups=[1001, 1002])),
    )  # fmt: skip
    asked_status = cri.ContainerStatusRequest(container_id=made.container_id, verbose=True)
    answer = runtime.ContainerStatus(asked_status, **_CALL)
    assert _verbose(answer)["config"]["metadata"] == {"name": "main", "attempt": 3}
    told(answer, cri.ContainerStatusResponse(status=status, info=dict(answer.info)))

    runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod.id), **_CALL)
    item = cri.PodSandbox(
        id=pod.id, metadata=config.metadata, state=cri.SANDBOX_NOTREADY, created_at=created_pod_at, labels={"a": "b"},
        annotations={"c": "d"}, runtime_handler="crisp",
    )  # fmt: skip
    told(runtime.ListPodSandbox(cri.ListPodSandboxRequest(), **_CALL), cri.ListPodSandboxResponse(items=[item]))
    (page,) = runtime.StreamPodSandboxes(cri.StreamPodSandboxesRequest(), **_CALL)
    told(page, cri.StreamPodSandboxesResponse(pod_sandboxes=[item]))
    stopped = [next(events) for _ in range(5)][-1]
    told(
        stopped,
        cri.ContainerEventResponse(
            container_id=made.container_id, container_event_type=cri.CONTAINER_STOPPED_EVENT,
            created_at=between(stopped.created_at, before, time.time_ns()), pod_sandbox_status=pod_status,
            containers_statuses=[status],
        ),
    )  # fmt: skip
    pod.remove()


@pytest.mark.answer("ContainerStatus", "reason", "message", "exit_code")
def test_a_container_that_cannot_start_says_why(told: Told, daemon: Daemon) -> None:
    with daemon.pod("misspelt") as pod:
        container_id = pod.create("/no/such/program")
        with pytest.raises(grpc.RpcError, match="no such file"):
            daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=container_id), **_CALL)
        status = daemon.status(container_id)
        said = cri.ContainerStatus(message=status.message, reason=status.reason, exit_code=status.exit_code)
        why = 'exec: "/no/such/program": stat /no/such/program: no such file or directory'
        told(said, cri.ContainerStatus(message=why, reason="StartError", exit_code=128))


def _cgroup(pid: int, controller: str) -> Path:
    """The cgroup of a process in the hierarchy of a controller, or in the unified one for "" or if that has it."""
    found = dict(line.split(":", 2)[1:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines())
    root = Path("/sys/fs/cgroup")
    if controller in found and controller:
        return root / controller / found[controller].lstrip("/")
    return (root / "unified" if (root / "unified").is_dir() else root) / found[""].lstrip("/")


def _number(path: Path) -> int | None:
    if not path.exists():
        return None
    text = path.read_text().strip()
    return int(text) if text.isdigit() and int(text) < 1 << 62 else None


def _counters(pid: int, *, of_pod: bool) -> dict[str, int | None]:
    """What the kernel says of a container, by the name of CRI's members; or of the pod that it is in."""
    cpu, memory, pids, unified = (_cgroup(pid, controller) for controller in ("cpuacct", "memory", "pids", ""))
    if of_pod:
        cpu, memory, pids, unified = (path.parent for path in (cpu, memory, pids, unified))
    v1 = (memory / "memory.usage_in_bytes").exists()
    stat = dict(line.split() for line in (memory / "memory.stat").read_text().splitlines())
    used = _number(memory / ("memory.usage_in_bytes" if v1 else "memory.current"))
    limit = _number(memory / ("memory.limit_in_bytes" if v1 else "memory.max"))
    total = "total_" if v1 else ""
    usage = re.search(r"usage_usec (\d+)", (unified / "cpu.stat").read_text())
    assert used is not None
    assert usage is not None
    working = used - int(stat[f"{total}inactive_file"])
    both = _number(memory / "memory.memsw.limit_in_bytes")
    swap = int(stat.get("total_swap", 0)) if v1 else _number(memory / "memory.swap.current") or 0
    swap_limit = (None if None in (both, limit) else both - limit) if v1 else _number(memory / "memory.swap.max")  # type: ignore[operator]
    return {
        "usage_core_nano_seconds": _number(cpu / "cpuacct.usage") or int(usage[1]) * 1000,
        "usage_bytes": used,
        "working_set_bytes": working,
        "available_bytes": None if limit is None else limit - working,
        "rss_bytes": int(stat["total_rss" if v1 else "anon"]),
        "page_faults": int(stat[f"{total}pgfault"]),
        "major_page_faults": int(stat[f"{total}pgmajfault"]),
        "swap_usage_bytes": swap,
        "swap_available_bytes": None if swap_limit is None else swap_limit - swap,
        "process_count": _number(pids / "pids.current"),
        **{f"{kind}_psi": _stalled(unified / f"{kind}.pressure") for kind in ("cpu", "memory", "io")},
    }


def _stalled(pressure: Path) -> int | None:
    """The total of "some", in nanoseconds."""
    found = re.search(r"some .*total=(\d+)", pressure.read_text()) if pressure.exists() else None
    return int(found[1]) * 1000 if found else None


class _Bounds:
    """What the kernel said before and after an answer."""

    def __init__(self, before: dict[str, int | None], after: dict[str, int | None]) -> None:
        self._before, self._after = before, after

    def __call__(self, told: Any, *members: str) -> dict[str, cri.UInt64Value]:
        """The members of an expected message, each between what the kernel said."""
        found = {}
        for member in members:
            low, high = self._before[member], self._after[member]
            if low is not None and high is not None:
                value = between(getattr(told, member).value, min(low, high), max(low, high))
                found[member] = cri.UInt64Value(value=value)
        return found

    def psi(self, told: cri.PsiStats, kind: str) -> cri.PsiStats | None:
        low, high = self._before[f"{kind}_psi"], self._after[f"{kind}_psi"]
        if low is None or high is None:
            return None
        between(told.Some.Total, low, high)
        return told  # its averages fade


def _used(told: Any, bounds: _Bounds, clock: tuple[int, int], rate: int | None) -> dict[str, Any]:
    """The members that a pod's and a container's stats have in common."""
    faults = ("working_set_bytes", "available_bytes", "usage_bytes", "rss_bytes", "page_faults", "major_page_faults")
    cpu = cri.CpuUsage(
        timestamp=between(told.cpu.timestamp, *clock), psi=bounds.psi(told.cpu.psi, "cpu"),
        usage_nano_cores=None if rate is None else cri.UInt64Value(value=rate),
        **bounds(told.cpu, "usage_core_nano_seconds"),
    )  # fmt: skip
    memory = cri.MemoryUsage(
        timestamp=between(told.memory.timestamp, *clock), psi=bounds.psi(told.memory.psi, "memory"),
        **bounds(told.memory, *faults),
    )  # fmt: skip
    io = bounds.psi(told.io.psi, "io")
    return {
        "cpu": cpu, "memory": memory,
        "io": cri.IoUsage(timestamp=between(told.io.timestamp, *clock), psi=io) if io else None,
    }  # fmt: skip


@pytest.mark.answer("ContainerStatsResponse")
@pytest.mark.answer("ContainerStats", "attributes", "cpu", "memory", "writable_layer", "swap")
@pytest.mark.answer("CpuUsage", "timestamp", "usage_core_nano_seconds", "usage_nano_cores")
@pytest.mark.answer("MemoryUsage", "timestamp", "working_set_bytes", "available_bytes", "usage_bytes", "rss_bytes")
@pytest.mark.answer("MemoryUsage", "page_faults", "major_page_faults")
@pytest.mark.answer("PodSandboxStatsResponse")
@pytest.mark.answer("PodSandboxStats", "attributes", "linux")
@pytest.mark.answer("LinuxPodSandboxStats", "cpu", "memory", "network", "process", "containers")
@pytest.mark.answer("NetworkInterfaceUsage")
@pytest.mark.answer("ProcessUsage")
def test_use_is_told_as_the_kernel_counts_it(told: Told, daemon: Daemon) -> None:
    config = daemon.sandbox_config("counted", labels={"a": "b"}, annotations={"c": "d"})
    limits = cri.LinuxContainerResources(memory_limit_in_bytes=128 * _MIB)
    with daemon.pod(config=config) as pod:
        container = pod.run("sh", "-c", _WORK, stdin=True, labels={"e": "f"}, linux={"resources": limits})
        until(lambda: "done" in pod.log())
        request = cri.ContainerStatsRequest(container_id=container)
        # A rate takes a second; and a count of the disk is due again after ten.
        until(lambda: daemon.runtime.ContainerStats(request, **_CALL).stats.writable_layer.used_bytes.value > 3 * _MIB,
              pause=0.2)  # fmt: skip
        until(lambda: daemon.runtime.ContainerStats(request, **_CALL).stats.cpu.HasField("usage_nano_cores"), pause=0.2)
        info = daemon.runtime.ContainerStatus(
            cri.ContainerStatusRequest(container_id=container, verbose=True), **_CALL
        )
        pid, started_at = int(_verbose(info)["pid"]), info.status.started_at

        clock, before = time.time_ns(), _counters(pid, of_pod=False)
        answer = daemon.runtime.ContainerStats(request, **_CALL)
        bounds, stats = _Bounds(before, _counters(pid, of_pod=False)), answer.stats
        mean = stats.cpu.usage_core_nano_seconds.value * 10**9 // (stats.cpu.timestamp - started_at)
        rate = between(stats.cpu.usage_nano_cores.value, mean * 9 // 10, mean * 11 // 10 + 1)
        upper = daemon.root / "containers" / container / "upper"
        written = [upper, *upper.rglob("*"), *(upper.parent / "volumes").glob("**")]
        used = _used(stats, bounds, (clock, time.time_ns()), rate)
        swap = bounds(stats.swap, "swap_usage_bytes", "swap_available_bytes")
        (images,) = daemon.images.ImageFsInfo(cri.ImageFsInfoRequest(), **_CALL).image_filesystems
        attributes = cri.ContainerAttributes(
            id=container, metadata=cri.ContainerMetadata(name="main"), labels={"e": "f"}
        )
        expected = cri.ContainerStats(
            attributes=attributes, swap=cri.SwapUsage(timestamp=stats.memory.timestamp, **swap), **used,
            writable_layer=cri.FilesystemUsage(
                timestamp=between(stats.writable_layer.timestamp, started_at, time.time_ns()), fs_id=images.fs_id,
                used_bytes=cri.UInt64Value(value=sum(path.lstat().st_blocks * 512 for path in written)),
                inodes_used=cri.UInt64Value(value=len(written)),
            ),
        )  # fmt: skip
        told(answer, cri.ContainerStatsResponse(stats=expected))

        clock, before, lines = time.time_ns(), _counters(pid, of_pod=True), _interface(pid)
        pod_answer = daemon.runtime.PodSandboxStats(cri.PodSandboxStatsRequest(pod_sandbox_id=pod.id), **_CALL)
        bounds, linux = _Bounds(before, _counters(pid, of_pod=True)), pod_answer.stats.linux
        eth0, after = linux.network.default_interface, _interface(pid)
        ways = {
            name: cri.UInt64Value(value=between(getattr(eth0, name).value, lines[name], after[name])) for name in lines
        }
        expected_interface = cri.NetworkInterfaceUsage(name="eth0", **ways)
        assert lines["tx_bytes"] > 2 * 64
        (inner,) = linux.containers
        inner_rate = inner.cpu.usage_nano_cores
        assert (inner.attributes, inner.writable_layer) == (attributes, expected.writable_layer)
        assert inner_rate.value <= rate + 1
        (clock_end, taken_at) = (time.time_ns(), linux.process.timestamp)
        told(
            pod_answer,
            cri.PodSandboxStatsResponse(
                stats=cri.PodSandboxStats(
                    attributes=cri.PodSandboxAttributes(
                        id=pod.id, metadata=config.metadata, labels={"a": "b"}, annotations={"c": "d"}
                    ),
                    linux=cri.LinuxPodSandboxStats(
                        network=cri.NetworkUsage(
                            timestamp=taken_at, default_interface=expected_interface, interfaces=[expected_interface]
                        ),
                        process=cri.ProcessUsage(
                            timestamp=between(taken_at, clock, clock_end), **bounds(linux.process, "process_count")
                        ),
                        containers=[inner],
                        **_used(linux, bounds, (clock, clock_end), linux.cpu.usage_nano_cores.value),
                    ),
                )
            ),
        )  # fmt: skip


def _interface(pid: int) -> dict[str, int]:
    """eth0's counters, in the network namespace of a process."""
    (line,) = re.findall(r"eth0:(.*)", Path(f"/proc/{pid}/net/dev").read_text())
    counts = [int(word) for word in line.split()]
    return {"rx_bytes": counts[0], "rx_errors": counts[2], "tx_bytes": counts[8], "tx_errors": counts[10]}


@pytest.mark.answer("PullImageResponse")
@pytest.mark.answer("ImageStatusResponse")
@pytest.mark.answer("ListImagesResponse")
@pytest.mark.answer("StreamImagesResponse")
@pytest.mark.answer("Image", "id", "repo_tags", "repo_digests", "size", "username", "pinned")
@pytest.mark.answer("ImageFsInfoResponse")
def test_an_image_is_told_whole(told: Told, tmp_path: Path) -> None:
    built = build_image([busybox_layer()], {"User": "www:7", "Labels": {"a": "b"}})
    name = "pinned.test/kept"
    # The registry ends first, and takes the daemon's connections to it with it.
    running = Daemon.running(f"--pause-image={name}:1", "--image-layers=unpacked")
    with running as daemon, Registry(tmp_path / "registry") as registry:
        conf = f'[[registry]]\nprefix = "pinned.test"\nlocation = "{registry.host}"\ninsecure = true\n'
        daemon.registries_conf.write_text(conf)
        digest, spec = registry.push("kept", "1", built), cri.ImageSpec(image=f"{name}:1")
        told(
            daemon.images.PullImage(cri.PullImageRequest(image=spec), **_CALL),
            cri.PullImageResponse(image_ref=built.id),
        )
        pinned = cri.PullImageRequest(image=cri.ImageSpec(image=f"{name}@{digest}"))
        told(daemon.images.PullImage(pinned, **_CALL), cri.PullImageResponse(image_ref=built.id))
        answer = daemon.images.ImageStatus(cri.ImageStatusRequest(image=spec, verbose=True), **_CALL)
        detailed = _verbose(answer)
        assert detailed["labels"] == {"a": "b"}
        assert detailed["manifest"] == json.loads(built.manifest)
        layers = sum(layer["bytes"] for layer in detailed["layers"])
        layer_bytes = _blocks(daemon.root / "image")
        documents = len(built.manifest) + len(built.blobs[built.id])
        image = cri.Image(
            id=built.id, repo_tags=[f"{name}:1"], repo_digests=[f"{name}@{digest}"], username="www", pinned=True,
            size=between(answer.image.size, len(busybox_layer()) // 2 + documents, layer_bytes + documents),
        )  # fmt: skip
        assert answer.image.size == layers + documents
        told(answer, cri.ImageStatusResponse(image=image, info=dict(answer.info)))
        told(daemon.images.ListImages(cri.ListImagesRequest(), **_CALL), cri.ListImagesResponse(images=[image]))
        (page,) = daemon.images.StreamImages(cri.StreamImagesRequest(), **_CALL)
        told(page, cri.StreamImagesResponse(images=[image]))
        usage, before = daemon.images.ImageFsInfo(cri.ImageFsInfoRequest(), **_CALL), time.time_ns() - 60 * 10**9
        (images,), (containers,) = usage.image_filesystems, usage.container_filesystems
        store = cri.FilesystemIdentifier(mountpoint=os.fspath(daemon.root / "image"))
        told(
            usage,
            cri.ImageFsInfoResponse(
                image_filesystems=[
                    cri.FilesystemUsage(
                        timestamp=between(images.timestamp, before, time.time_ns()), fs_id=store,
                        used_bytes=cri.UInt64Value(
                            value=between(images.used_bytes.value, layers, layer_bytes + _MIB)
                        ),
                        inodes_used=cri.UInt64Value(value=between(images.inodes_used.value, 5, 10_000)),
                    )
                ],
                container_filesystems=[
                    cri.FilesystemUsage(
                        timestamp=between(containers.timestamp, before, time.time_ns()), fs_id=store,
                        used_bytes=cri.UInt64Value(), inodes_used=cri.UInt64Value(),
                    )
                ],
            ),
        )  # fmt: skip


def _blocks(directory: Path) -> int:
    """The bytes on disk of all files in a directory."""
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*"))
