"""Debian's containerd on crisp-oci, by way of its runc shim."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from cri.v1 import api_pb2_grpc as services
from runtime.cgroups import Cgroup, Hierarchies
from tests.bench.layouts import BUSYBOX, PAUSE, busybox_tar, pause_tar
from tests.images import busybox_layout, tar_of
from tests.oci import CRISP_OCI, Finished

IMAGE = "docker.io/library/busybox:latest"
NAMESPACE = f"crisp-test-{os.getpid()}"  # also the parent of its containers' cgroups


@dataclass
class Containerd:
    """A containerd below `directory`, spoken to by ctr."""

    directory: Path

    def ctr(self, *arguments: str, status: int = 0) -> Finished:
        command = ["ctr", "-a", str(self.directory / "socket"), "-n", NAMESPACE, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
        assert done.returncode == status, done.stderr
        return done

    def run(self, *options: str, id: str, command: tuple[str, ...], status: int = 0) -> Finished:
        runtime = ("--runtime", "io.containerd.runc.v2", "--runc-binary", str(CRISP_OCI), "--snapshotter", "native")
        return self.ctr("run", *runtime, *options, IMAGE, id, *command, status=status)

    def status(self, id: str) -> str:
        lines = [line.split() for line in self.ctr("task", "ls").stdout.splitlines()]
        return next((words[2] for words in lines if words[0] == id), "")

    def log(self) -> str:
        return (self.directory / "log").read_text()


@pytest.fixture(scope="module")
def containerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    made = Containerd(tmp_path_factory.mktemp("containerd"))
    config = made.directory / "config.toml"
    config.write_text(
        f'version = 2\nroot = "{made.directory}/root"\nstate = "{made.directory}/state"\n'
        f'[grpc]\n  address = "{made.directory}/socket"\n'
        f'[plugins."io.containerd.grpc.v1.cri"]\n  sandbox_image = "{PAUSE}"\n  stream_server_port = "0"\n'
        f"  restrict_oom_score_adj = true\n"
        f'  [plugins."io.containerd.grpc.v1.cri".containerd]\n    snapshotter = "native"\n'
        f'    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]\n'
        f'      runtime_type = "io.containerd.runc.v2"\n'
        f'      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]\n'
        f'        BinaryName = "{CRISP_OCI}"\n'
    )
    with open(made.directory / "log", "wb") as log:
        process = subprocess.Popen(["containerd", "--config", str(config)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while "successfully booted" not in made.log():
            assert time.monotonic() < deadline, made.log()
            time.sleep(0.05)
        layout = busybox_layout(made.directory / "layout")
        made.ctr("images", "import", "--snapshotter", "native", str(tar_of(layout, made.directory / "busybox.tar")))
        for archive in (busybox_tar(made.directory), pause_tar(made.directory)):
            made.ctr("-n", "k8s.io", "images", "import", "--snapshotter", "native", str(archive))
        yield made
    finally:
        process.terminate()
        process.wait(60)


def test_run_in_the_foreground(containerd: Containerd) -> None:
    done = containerd.run("--rm", id="fg", command=("sh", "-c", "echo out; exit 3"), status=3)
    assert done.stdout == "out\n"
    done = containerd.run("--rm", id="no", command=("nosuch",), status=1)
    assert 'exec: "nosuch": executable file not found in $PATH' in done.stderr


def test_life_of_a_task(containerd: Containerd) -> None:
    containerd.run("-d", "--memory-limit", str(64 << 20), id="one", command=("sleep", "100"))
    try:
        assert containerd.status("one") == "RUNNING"
        done = containerd.ctr("task", "exec", "--exec-id", "e", "one", "sh", "-c", "echo in; exit 4", status=4)
        assert done.stdout == "in\n"
        assert "one" in containerd.ctr("task", "metrics", "one").stdout
        containerd.ctr("task", "pause", "one")
        assert containerd.status("one") == "PAUSED"
        containerd.ctr("task", "resume", "one")
        assert containerd.status("one") == "RUNNING"
        assert len(containerd.ctr("task", "ps", "one").stdout.splitlines()) == 2
    finally:
        containerd.ctr("task", "kill", "-s", "KILL", "one")
        deadline = time.monotonic() + 60
        while containerd.status("one") != "STOPPED":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        containerd.ctr("task", "delete", "one")
        containerd.ctr("container", "delete", "one")


def _limit(path: str, controller: str, *names: str) -> str:
    """The first word of the first of these files that there is."""
    directory = Path(Cgroup.at(Hierarchies.detect(), path).directory(controller))
    return next((directory / name).read_text().split()[0] for name in names if (directory / name).exists())


def test_limits_are_updated_by_its_cri(containerd: Containerd) -> None:
    """In a pod of the host's network, so that no plugin is needed; kubelet's resize comes to this."""
    parent = f"/{NAMESPACE}"
    host = cri.NamespaceOption(network=cri.NODE)
    pod = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name="pod", uid="uid", namespace="default"),
        linux=cri.LinuxPodSandboxConfig(
            cgroup_parent=parent, security_context=cri.LinuxSandboxSecurityContext(namespace_options=host)
        ),
    )
    limits = cri.LinuxContainerResources(memory_limit_in_bytes=64 << 20, cpu_quota=50_000, cpu_period=100_000)
    container = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name="main"),
        image=cri.ImageSpec(image=BUSYBOX),
        command=["sleep", "100"],
        linux=cri.LinuxContainerConfig(
            resources=limits, security_context=cri.LinuxContainerSecurityContext(namespace_options=host)
        ),
    )
    with grpc.insecure_channel(f"unix:{containerd.directory}/socket") as channel:
        runtime = services.RuntimeServiceStub(channel)
        sandbox = runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=pod), timeout=120).pod_sandbox_id
        try:
            request = cri.CreateContainerRequest(pod_sandbox_id=sandbox, config=container, sandbox_config=pod)
            id = runtime.CreateContainer(request, timeout=120).container_id
            runtime.StartContainer(cri.StartContainerRequest(container_id=id), timeout=120)
            more = cri.LinuxContainerResources(memory_limit_in_bytes=96 << 20, cpu_quota=75_000)
            runtime.UpdateContainerResources(
                cri.UpdateContainerResourcesRequest(container_id=id, linux=more), timeout=120
            )
            assert _limit(f"{parent}/{id}", "memory", "memory.limit_in_bytes", "memory.max") == str(96 << 20)
            assert _limit(f"{parent}/{id}", "cpu", "cpu.cfs_quota_us", "cpu.max") == "75000"
            execution = cri.ExecSyncRequest(container_id=id, cmd=["echo", "hello"], timeout=10)
            answer = runtime.ExecSync(execution, timeout=120)
            assert answer.stdout == b"hello\n"
        finally:
            runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=sandbox), timeout=120)
            runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=sandbox), timeout=120)
