"""The systemd cgroup driver, with a systemd that does no more than make units' cgroups (tests/fake_systemd.py)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from runtime.cgroups import Cgroup, Hierarchies
from runtime.cgroups.systemd import INFINITY
from tests.daemon import Daemon, DaemonFailed
from tests.fake_systemd import FakeSystemd
from tests.processes import parent_of
from tests.sessions import exec_url
from tests.stream_clients import STDERR, STDIN, STDOUT, Command
from tests.waiting import until

MIB = 1 << 20
_CALL = {"timeout": 120}
POD_SLICE = "/kubelet.slice/kubelet-podcrisp.slice"


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeSystemd]:
    with FakeSystemd(tmp_path_factory.mktemp("bus") / "socket") as fake:
        yield fake


@contextmanager
def _running(units: FakeSystemd) -> Iterator[Daemon]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DBUS_SYSTEM_BUS_ADDRESS", units.address)
        with Daemon.running("--cgroup-driver=systemd") as running:
            running.import_busybox()
            with running.pod("first"):
                pass  # makes the bridge, which stays as long as the daemon
            yield running


@pytest.fixture(scope="module")
def daemon(units: FakeSystemd) -> Iterator[Daemon]:
    with _running(units) as running:
        yield running


def _pod(daemon: Daemon, name: str, parent: str = POD_SLICE) -> Any:
    config = daemon.sandbox_config(name)
    config.linux.cgroup_parent = parent
    return daemon.pod(config=config)


def _cgroups_of(pid: int) -> set[str]:
    """Where a process is, in all hierarchies that there are."""
    used = set(Hierarchies.detect().v1) | {""}
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    return {path for _, controllers, path in lines if used.intersection(controllers.split(","))}


def _is_of_streams(cgroup: str) -> bool:
    return cgroup.startswith("/system.slice/crisp-streams-")


def _pid(daemon: Daemon, container: str) -> int:
    request = cri.ContainerStatusRequest(container_id=container, verbose=True)
    info = daemon.runtime.ContainerStatus(request, **_CALL).info["info"]
    return int(info.partition('"pid":')[2].partition(",")[0])


def _file(path: str, controller: str, name: str) -> str:
    return (Path(Cgroup.at(Hierarchies.detect(), path).directory(controller)) / name).read_text().strip()


@pytest.mark.cri("RuntimeConfig", "cgroup_driver")
def test_kubelet_is_told_of_the_driver(daemon: Daemon) -> None:
    driver = daemon.runtime.RuntimeConfig(cri.RuntimeConfigRequest(), **_CALL).linux.cgroup_driver
    assert driver == cri.CgroupDriver.SYSTEMD


@pytest.mark.cri("RunPodSandbox", "cgroup_parent (a slice)")
def test_a_container_is_a_scope_in_its_pods_slice(units: FakeSystemd) -> None:
    resources = cri.LinuxContainerResources(
        cpu_period=50000, cpu_quota=16666, cpu_shares=512, memory_limit_in_bytes=64 * MIB
    )
    with _running(units) as daemon, _pod(daemon, "scoped") as pod:
        container = pod.run("sleep", "100", linux=cri.LinuxContainerConfig(resources=resources))
        path = f"{POD_SLICE}/crisp-{container}.scope"
        pid = _pid(daemon, container)
        assert _cgroups_of(pid) == {path}
        until(lambda: Cgroup.at(Hierarchies.detect(), path).pids() == [pid])  # what held the scope is killed
        (call,) = units.called("StartTransientUnit", f"crisp-{container}.scope")
        told = {name: call.properties[name] for name in ("Slice", "Delegate", "TasksMax", "CPUQuotaPerSecUSec")}
        assert told == {
            "Slice": "kubelet-podcrisp.slice", "Delegate": True, "TasksMax": INFINITY, "CPUQuotaPerSecUSec": 340_000
        }  # fmt: skip
        assert _file(path, "cpu", "cpu.cfs_quota_us") == "16666"  # exactly, where systemd has whole percents
        shim = parent_of(pid)
        (place,) = _cgroups_of(shim)
        assert place.startswith("/system.slice/crisp-shims-")
        scopes = units.called("StartTransientUnit", ".scope")
        workers = next(call for call in scopes if call.unit.startswith("crisp-layers-"))  # they imported the image
        assert workers.properties["Slice"] == "system.slice"
        assert {"MemoryLimit", "MemoryMax"} & workers.properties.keys()

        daemon.kill9()
        daemon.start()
        update = cri.UpdateContainerResourcesRequest(container_id=container)
        update.linux.cpu_quota = 33333
        update.linux.memory_limit_in_bytes = 96 * MIB
        daemon.runtime.UpdateContainerResources(update, **_CALL)
        (call,) = units.called("SetUnitProperties", f"crisp-{container}.scope")
        assert call.properties["CPUQuotaPerSecUSec"] == 670_000
        assert str(96 * MIB) in map(str, call.properties.values())
        assert _file(path, "cpu", "cpu.cfs_quota_us") == "33333"
        assert pod.exec(container, "true").exit_code == 0
        daemon.runtime.StopContainer(cri.StopContainerRequest(container_id=container), **_CALL)
    _gone(path)


def _gone(path: str) -> None:
    cgroup = Cgroup.at(Hierarchies.detect(), path)
    until(lambda: not cgroup.exists())


@pytest.mark.skipif("devices" not in Hierarchies.detect().v1, reason="version 1's devices controller is not here")
def test_execs_follow_a_container_whose_devices_cgroup_systemd_removed(daemon: Daemon) -> None:
    """systemd 252 does that to a privileged container once no neighbour has device rules: moves it up, and rmdir."""
    with _pod(daemon, "moved") as pod:
        container = pod.run("sleep", "100")
        pid = _pid(daemon, container)
        scope = Path(Cgroup.at(Hierarchies.detect(), f"{POD_SLICE}/crisp-{container}.scope").directory("devices"))
        until(lambda: (scope / "cgroup.procs").read_text().split() == [str(pid)])  # what held the scope is killed
        above = scope.parent.parent
        (above / "cgroup.procs").write_text(str(pid))
        for path in (scope, scope.parent):
            with suppress(FileNotFoundError):  # the other systemd of this test was quicker
                path.rmdir()
        said = pod.exec(container, "sh", "-c", "cat /proc/self/cgroup")
        place = next(line for line in said.stdout.decode().splitlines() if ":devices:" in line)
        assert place in Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        later = pod.run("sleep", "100", name="later")
        assert pod.exec(later, "true").exit_code == 0


def test_sessions_are_in_a_scope_of_their_own(units: FakeSystemd) -> None:
    with _running(units) as daemon, _pod(daemon, "sessions") as pod:
        url = exec_url(daemon, pod.run("sleep", "1000"), "cat")
        command = Command.over("spdy", url, "v4.channel.k8s.io", STDIN, STDOUT, STDERR)
        until(lambda: any(map(_is_of_streams, _cgroups_of(daemon.streams_pid()))))
        command.end()
        assert command.exit_code() == 0


def test_a_container_that_never_starts_leaves_no_scope(daemon: Daemon, units: FakeSystemd) -> None:
    with _pod(daemon, "idle") as pod:
        container = pod.create("sleep", "100")
        path = f"{POD_SLICE}/crisp-{container}.scope"
        assert len(Cgroup.at(Hierarchies.detect(), path).pids()) == 1
        daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container), **_CALL)
        _gone(path)


def test_what_systemd_refuses_is_told_and_undone(daemon: Daemon, units: FakeSystemd) -> None:
    with _pod(daemon, "refused") as pod:
        units.refusal = "no more units"
        with pytest.raises(grpc.RpcError) as refusal:
            pod.create("true")
        units.refusal = ""
        assert refusal.value.code() is grpc.StatusCode.INTERNAL
        assert "start unit crisp-" in refusal.value.details()
        assert "no more units" in refusal.value.details()
        assert daemon.wait_exited(pod.run("true")).exit_code == 0


def test_a_pod_without_a_slice_has_one_of_its_own(daemon: Daemon, units: FakeSystemd) -> None:
    with daemon.pod("alone") as pod:
        container = pod.run("sleep", "100")
        assert _cgroups_of(_pid(daemon, container)) == {
            f"/crisp.slice/crisp-{pod.id}.slice/crisp-{container}.scope"
        }
        # systemd need not see a container's cgroup empty before the shim removes it.
        scope = f"crisp-{container}.scope"
        daemon.runtime.StopContainer(cri.StopContainerRequest(container_id=container), **_CALL)
        until(lambda: units.called("StopUnit", scope))
        units.calls.clear()
    assert units.called("StopUnit", scope)
    assert units.called("StopUnit", f"crisp-{pod.id}.slice")


def test_a_parent_that_is_no_slice_is_refused(daemon: Daemon) -> None:
    with pytest.raises(grpc.RpcError) as refusal, _pod(daemon, "path", "/kubepods/pod1"):
        pass
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "config.linux.cgroup_parent: 'pod1' " in refusal.value.details()
    assert "cgroupDriver: systemd" in refusal.value.details()


def test_systemds_own_socket_does_where_there_is_no_bus(tmp_path: Path) -> None:
    (tmp_path / "systemd").mkdir()
    socket = tmp_path / "systemd/private"
    with FakeSystemd(socket, bus=False) as own, _running(own) as daemon, _pod(daemon, "own") as pod:
        container = pod.run("sleep", "100")
        assert _cgroups_of(_pid(daemon, container)) == {f"{POD_SLICE}/crisp-{container}.scope"}


def test_a_daemon_without_systemd_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/none")
    told = pytest.raises(DaemonFailed, match=f"connect to systemd by way of {tmp_path}/none: ")
    with told, Daemon.running("--cgroup-driver=systemd"):
        pass
