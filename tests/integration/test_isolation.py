"""What a container may do with its mounts, and what it sees of cgroups: by the members that CRI has for it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from tests.daemon import BUSYBOX, Daemon

SCRIPT = "#!/bin/sh\necho ran\n"


@contextmanager
def _tmpfs(place: Path, options: str) -> Iterator[Path]:
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "crisp-test", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def _flags(mountinfo: str, path: str) -> set[str]:
    (line,) = [line for line in mountinfo.splitlines() if line.split(" ")[4] == path]
    return set(line.split(" ")[5].split(","))


@pytest.mark.cri("CreateContainer", "mounts.mount_options")
@pytest.mark.cri("Status", "features")
def test_options_of_mounts(daemon: Daemon, tmp_path: Path) -> None:
    """They have effect, on image volumes and recursively too, and lift nothing that the host's mount forbids."""
    assert daemon.runtime.Status(cri.StatusRequest()).features.mount_options
    with _tmpfs(tmp_path / "volume", "nosuid,ro") as volume, daemon.pod("options") as pod:
        plain = tmp_path / "plain"
        plain.mkdir()
        (plain / "program").write_text(SCRIPT)
        (plain / "program").chmod(0o755)
        with _tmpfs(plain / "below", "mode=755"):
            mounts = [
                cri.Mount(container_path="/locked", host_path=str(volume), mount_options=["noexec"]),
                cri.Mount(container_path="/free", host_path=str(plain)),
                cri.Mount(container_path="/bound", host_path=str(plain), mount_options=["noexec", "nodev", "nosuid"]),
                cri.Mount(container_path="/deep", host_path=str(plain), mount_options=["rnodev"]),
                cri.Mount(container_path="/image", image=cri.ImageSpec(image=BUSYBOX), mount_options=["noexec"],
                          readonly=True),
                cri.Mount(container_path="/recursive", host_path=str(plain), readonly=True, recursive_read_only=True,
                          mount_options=["rnoexec", "nosuid"]),
            ]  # fmt: skip
            container_id = pod.run("sleep", "1000", mounts=mounts)
            mountinfo = pod.exec(container_id, "cat", "/proc/self/mountinfo").stdout.decode()
            found = {path: _flags(mountinfo, path) & {"ro", "noexec", "nodev", "nosuid"} for path in (
                "/locked", "/free", "/bound", "/deep", "/deep/below", "/bound/below", "/image", "/recursive",
                "/recursive/below",
            )}  # fmt: skip
            assert {"ro", "nosuid", "noexec"} <= found["/locked"]
            assert (found["/free"], found["/bound"]) == (set(), {"noexec", "nodev", "nosuid"})
            assert "nodev" in found["/deep"] & found["/deep/below"]
            assert "noexec" not in found["/bound/below"]
            assert {"ro", "noexec"} <= found["/image"]
            assert found["/recursive"] == {"ro", "noexec", "nosuid"}
            assert {"ro", "noexec"} <= found["/recursive/below"]
            assert pod.exec(container_id, "/free/program").stdout == b"ran\n"
            for program in ("/bound/program", "/image/bin/busybox"):
                answer = pod.exec(container_id, "sh", "-c", f"{program}; true")
                assert b"Permission denied" in answer.stderr, program
            status = daemon.status(container_id)
            assert list(status.mounts[2].mount_options) == ["noexec", "nodev", "nosuid"]
            pod.remove()


@pytest.mark.cri("CreateContainer", "namespace_options.cgroupns_options")
@pytest.mark.cri("Status", "runtime_handlers")
def test_a_cgroup_namespace_or_the_nodes(daemon: Daemon) -> None:
    handlers = daemon.runtime.Status(cri.StatusRequest()).runtime_handlers
    assert all(handler.features.cgroup_namespaces for handler in handlers if handler.name in ("", "crisp"))
    for privileged in (False, True):
        sandbox = cri.LinuxSandboxSecurityContext(privileged=privileged)
        config = daemon.sandbox_config(
            f"cgroups-{privileged}", linux=cri.LinuxPodSandboxConfig(security_context=sandbox)
        )
        with daemon.pod(config=config) as pod:
            for mode, own in ((cri.CONTAINER, True), (cri.NODE, False)):
                options = cri.NamespaceOption(pid=cri.CONTAINER, cgroupns_options=cri.CgroupNamespace(mode=mode))
                security = cri.LinuxContainerSecurityContext(namespace_options=options, privileged=privileged)
                linux = cri.LinuxContainerConfig(security_context=security)
                container_id = pod.run("sleep", "1000", name=f"mode-{mode}", linux=linux)
                shown = pod.exec(container_id, "cat", "/proc/self/cgroup").stdout.decode().splitlines()
                paths = {line.split(":", 2)[2] for line in shown if ":memory:" in line or line.startswith("0::")}
                assert all((path == "/") == own for path in paths), shown


@pytest.mark.cri("CreateContainer", "security_context.cgroup_mount_mode")
def test_a_writable_cgroup_filesystem_is_refused_where_nothing_bounds_it(daemon: Daemon) -> None:
    security = cri.LinuxContainerSecurityContext(cgroup_mount_mode=cri.CGROUP_MOUNT_MODE_READ_WRITE)
    with daemon.pod("writable") as pod:
        if Path("/sys/fs/cgroup/cgroup.controllers").exists():
            pytest.skip("this machine has cgroup v2")
        with pytest.raises(grpc.RpcError) as raised:
            pod.create("true", linux=cri.LinuxContainerConfig(security_context=security))
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "READ_WRITE needs cgroup v2 mounted with nsdelegate, not version 1" in raised.value.details()
