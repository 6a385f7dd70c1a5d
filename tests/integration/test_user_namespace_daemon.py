"""crispd itself in a user namespace (kubelet's KubeletInUserNamespace): what works there, and what it says does not."""

from __future__ import annotations

import contextlib
import json
import tarfile
from pathlib import Path

import pytest

from cri.admin.v1 import admin_pb2
from cri.v1 import api_pb2 as cri
from runtime.cgroups import Hierarchies
from tests.daemon import CALL_SECONDS
from tests.images import build_image, busybox_layer, entry, layer, write_layout
from tests.user_namespace import FIRST, RootlessDaemon, delegated_cgroups
from tests.waiting import until

LIMIT = 64 << 20


def test_an_image_of_several_layers_in_a_user_namespace() -> None:
    """Whiteouts, opaque directories and devices take rights that its root has not, or in another way."""
    device = entry("odd", type=tarfile.CHRTYPE, devmajor=1, devminor=3)
    above = layer(entry("etc/.wh.group"), entry("www/.wh..wh..opq"), entry("www/new", b"new"), device)
    name = "localhost/layered:latest"
    with RootlessDaemon.running() as daemon:
        daemon.import_image(write_layout(daemon.directory / "layout", {name: build_image([busybox_layer(), above])}))
        with daemon.pod("layered") as pod:
            container_id = pod.run("sleep", "1000", image=name)
            script = "ls /www; ls /etc; ls /odd; rm -r /home; mkdir /home; ls -a /home"
            seen = pod.exec(container_id, "sh", "-c", script)
            assert seen.stdout.split() == [b"new", b"hostname", b"hosts", b"passwd", b"resolv.conf", b".", b".."]
            assert b"/odd: No such file" in seen.stderr


@pytest.mark.parametrize("delegated", [False, True], ids=["without cgroups", "with cgroups"])
def test_a_pod_in_a_user_namespace(delegated: bool) -> None:
    with delegated_cgroups() if delegated else contextlib.nullcontext(), RootlessDaemon.running() as daemon:
        daemon.import_busybox()
        volume = daemon.directory_of_its_own("volume")
        resources = cri.LinuxContainerResources(
            cpu_shares=512, cpu_period=100_000, cpu_quota=50_000, memory_limit_in_bytes=LIMIT, oom_score_adj=-500
        )
        config = daemon.sandbox_config(
            "rootless", linux=cri.LinuxPodSandboxConfig(sysctls={"net.ipv4.ip_unprivileged_port_start": "80"})
        )
        with daemon.pod(config=config) as pod:
            container_id = pod.run(
                "sh", "-c", "id -u; echo >/dev/null && head -c 3 /dev/zero | wc -c; rm /etc/passwd; sleep 1000",
                linux=cri.LinuxContainerConfig(resources=resources),
                mounts=[cri.Mount(container_path="/volume", host_path=str(volume))],
            )  # fmt: skip
            until(lambda: len(pod.log().splitlines()) == 2)
            assert [line.split()[3] for line in pod.log().splitlines()] == ["0", "3"]
            pid = _init(daemon, container_id)
            assert Path(f"/proc/{pid}").stat().st_uid == FIRST
            seen = pod.exec(container_id, "sh", "-c", "ls /etc/passwd; touch /volume/here; cat /proc/1/cmdline; ip a")
            assert b"No such file" in seen.stderr
            assert pod.status().network.ip.encode() in seen.stdout
            assert (volume / "here").stat().st_uid == FIRST
            assert pod.exec(container_id, "sh", "-c", "exit 7").exit_code == 7
            stats = cri.ContainerStatsRequest(container_id=container_id)
            usage = daemon.runtime.ContainerStats(stats, timeout=CALL_SECONDS).stats
            assert bool(usage.memory.usage_bytes.value) == delegated
            if delegated:
                lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
                path = next(line.split(":")[2] for line in lines if ":memory:" in line)
                home = Path(Hierarchies.detect().v1["memory"] + path)
                assert int((home / "memory.limit_in_bytes").read_text()) == LIMIT
            update = cri.UpdateContainerResourcesRequest(
                container_id=container_id, linux=cri.LinuxContainerResources(memory_limit_in_bytes=2 * LIMIT)
            )
            daemon.runtime.UpdateContainerResources(update, timeout=CALL_SECONDS)
            daemon.runtime.StopContainer(cri.StopContainerRequest(container_id=container_id), timeout=CALL_SECONDS)
            assert daemon.status(container_id).exit_code == 137
            told = daemon.admin.Why(admin_pb2.WhyRequest(query=container_id), timeout=CALL_SECONDS).timeline
            assert any("oom_score_adj -500 needs CAP_SYS_RESOURCE" in one.text for one in told)
        log = daemon.log()
        said = "only limits of the delegated controllers" if delegated else "may make no cgroups"
        assert log.count(said) == 1
        assert log.count("oom_score_adj -500 needs CAP_SYS_RESOURCE") == 1


def _init(daemon: RootlessDaemon, container_id: str) -> int:
    request = cri.ContainerStatusRequest(container_id=container_id, verbose=True)
    answer = daemon.runtime.ContainerStatus(request, timeout=CALL_SECONDS)
    return int(json.loads(answer.info["info"])["pid"])
