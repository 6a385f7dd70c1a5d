"""What a container must not get hold of: the host through what crisp's own processes have open before an execve."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from tests.daemon import Daemon, Pod
from tests.processes import children_of

_CALL = {"timeout": 120}
_DESCRIPTORS = range(3, 64)


@pytest.fixture(scope="module")
def sandbox(daemon: Daemon) -> Iterator[Pod]:
    with daemon.pod("hardening") as running:
        running.run("true", name="parents")  # makes the pod's cgroup
        yield running


@pytest.fixture
def container(sandbox: Pod) -> Iterator[str]:
    container_id = sandbox.run("sleep", "600", name="target")
    yield container_id
    sandbox.daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container_id), **_CALL)


def test_no_descriptor_of_the_shim_names_a_program(sandbox: Pod, container: str) -> None:
    """CVE-2024-21626: a directory that is open on the host until execve is a path to the host."""
    for number in _DESCRIPTORS:
        program = f"/proc/self/fd/{number}/."
        with pytest.raises(grpc.RpcError) as raised:
            sandbox.exec(container, program)
        assert "no such file" in raised.value.details() or "not a directory" in raised.value.details(), number
        created = sandbox.create(program, name=f"fd{number}")
        with pytest.raises(grpc.RpcError) as raised:
            sandbox.daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=created), **_CALL)
        assert "no such file" in raised.value.details() or "not a directory" in raised.value.details(), number
        sandbox.daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=created), **_CALL)


def test_the_hosts_null_device_cannot_be_changed(sandbox: Pod, container: str) -> None:
    before = os.stat("/dev/null")
    sandbox.exec(container, "sh", "-c", "chmod 0600 /proc/self/fd/0; chown 7:7 /proc/self/fd/0")
    created = sandbox.run("sh", "-c", "chmod 0600 /proc/self/fd/0; chown 7:7 /proc/self/fd/0", name="changer")
    assert sandbox.daemon.wait_exited(created).exit_code == 0
    sandbox.daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=created), **_CALL)
    after = os.stat("/dev/null")
    try:
        assert (after.st_mode, after.st_uid) == (before.st_mode, before.st_uid)
    finally:
        os.chmod("/dev/null", stat.S_IMODE(before.st_mode))
        os.chown("/dev/null", before.st_uid, before.st_gid)


def test_the_hosts_interpreter_cannot_be_written(daemon: Daemon, container: str) -> None:
    """CVE-2019-5736: until its execve a container's process runs the host's python, which /proc/self/exe names."""
    del container
    assert daemon.process is not None
    children = children_of(daemon.process.pid)
    zygotes = [pid for pid in children if Path(f"/proc/{pid}/comm").read_text() == "crisp-zygote\n"]
    shims = [shim for zygote in zygotes for shim in children_of(zygote)]
    assert shims
    for pid in (*zygotes, *shims):
        # That it is busy (ETXTBSY) would protect it only as long as somebody runs it.
        assert os.statvfs(f"/proc/{pid}/exe").f_flag & os.ST_RDONLY


def test_an_exec_has_a_keyring_of_its_own(sandbox: Pod, container: str) -> None:
    """Beside the init's: else it would have the session keyring of whoever started crispd."""
    assert sandbox.exec(container, "grep", "-c", f"_ses.{container}", "/proc/keys").stdout == b"2\n"


def test_a_working_directory_that_only_root_gets_to(sandbox: Pod, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    closed = tmp_path / "closed"
    (closed / "work").mkdir(parents=True)
    closed.chmod(0o700)
    mount = cri.Mount(container_path="/closed", host_path=str(closed))
    user = cri.LinuxContainerConfig(
        security_context=cri.LinuxContainerSecurityContext(
            run_as_user=cri.Int64Value(value=1000), capabilities=cri.Capability(drop_capabilities=["ALL"])
        )
    )
    created = sandbox.run("sh", "-c", "id -u; pwd", name="cwd", working_dir="/closed/work", mounts=[mount], linux=user)
    assert sandbox.daemon.wait_exited(created).exit_code == 0
    assert [line.split(" ", 3)[3] for line in sandbox.log("cwd").splitlines()] == ["1000", "/closed/work"]
    sandbox.daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=created), **_CALL)
