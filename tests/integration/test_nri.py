"""NRI plugins: what they hear, what they change in a real container, and those that object, hang, die or come late."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cri.nri.v1alpha1 import api_pb2 as nri
from cri.v1 import api_pb2 as cri
from tests.daemon import Daemon
from tests.nri_plugin import HANG, Plugin, objection

_CALL = {"timeout": 30}


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("n") / "nri.sock"


@pytest.fixture(scope="module")
def daemon(socket: Path) -> Iterator[Daemon]:
    with Daemon.running(f"--nri-socket={socket}") as running:
        running.import_busybox()
        with running.pod("first"):
            pass
        yield running


def test_a_plugin_hears_of_a_pods_life_in_order(daemon: Daemon, socket: Path) -> None:
    with Plugin.connected(socket) as plugin:
        with daemon.pod("heard") as pod:
            container = pod.run("sh", "-c", "exit 3")
            daemon.wait_exited(container)
            plugin.wait(lambda: "StopContainer" in plugin.methods())
            daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container), **_CALL)
        assert plugin.methods() == [
            "RunPodSandbox", "CreateContainer", "PostCreateContainer", "StartContainer", "PostStartContainer",
            "StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox",
        ]  # fmt: skip
        assert plugin.request("RunPodSandbox").pod.name == "heard"
        assert plugin.request("StopContainer").container.exit_code == 3
        assert plugin.request("StartContainer").container.args == ["sh", "-c", "exit 3"]


def test_adjustments_take_effect_in_the_container(daemon: Daemon, socket: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from the plugin")
    adjust = nri.ContainerAdjustment(
        annotations={"plugin.example/a": "b"},
        env=[nri.KeyValue(key="FROM", value="plugin"), nri.KeyValue(key="-GONE")],
        mounts=[nri.Mount(destination="/added", source=str(tmp_path), type="bind", options=["rbind", "ro"])],
        rlimits=[nri.POSIXRlimit(type="RLIMIT_NOFILE", hard=77, soft=55)],
    )
    adjust.linux.resources.pids.limit = 37
    with Plugin.connected(socket, CreateContainer=nri.CreateContainerResponse(adjust=adjust)), daemon.pod("adj") as pod:
        container = pod.run("sleep", "1000", envs=[cri.KeyValue(key="GONE", value=b"x")])
        script = "echo $FROM/$GONE; cat /added/file; echo; ulimit -n; touch /added/x 2>/dev/null || echo read-only"
        out = pod.exec(container, "sh", "-c", script).stdout.decode().split("\n")
        assert out[:4] == ["plugin/", "from the plugin", "55", "read-only"]


def test_a_plugin_that_comes_back_is_told_what_there_is(daemon: Daemon, socket: Path) -> None:
    adjust = nri.ContainerAdjustment(annotations={"plugin.example/a": "b"})
    with daemon.pod("synced") as pod:
        with Plugin.connected(socket, CreateContainer=nri.CreateContainerResponse(adjust=adjust)):
            container = pod.run("sleep", "1000")
        with Plugin.connected(socket) as plugin:
            told = plugin.request("Synchronize")
            assert [one.id for one in told.pods] == [pod.id]
            assert [(one.id, one.state) for one in told.containers] == [(container, nri.CONTAINER_RUNNING)]
            assert told.containers[0].annotations["plugin.example/a"] == "b"


def test_limits_that_a_plugin_sets_outlive_an_update_of_others(daemon: Daemon, socket: Path) -> None:
    adjust = nri.ContainerAdjustment()
    adjust.linux.resources.memory.limit.value = 96 << 20
    asked = cri.LinuxContainerConfig(resources=cri.LinuxContainerResources(memory_limit_in_bytes=64 << 20))
    with Plugin.connected(socket, CreateContainer=nri.CreateContainerResponse(adjust=adjust)), daemon.pod("lim") as pod:
        container = pod.run("sleep", "1000", linux=asked)
        assert daemon.status(container).resources.linux.memory_limit_in_bytes == 96 << 20
        shares = cri.LinuxContainerResources(cpu_shares=512)
        daemon.runtime.UpdateContainerResources(
            cri.UpdateContainerResourcesRequest(container_id=container, linux=shares), **_CALL
        )
        limits = daemon.status(container).resources.linux
        assert (limits.memory_limit_in_bytes, limits.cpu_shares) == (96 << 20, 512)
        files = "/sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max"  # of v1, of v2
        seen = pod.exec(container, "sh", "-c", f"cat {files}")
        assert seen.stdout.split() == [str(96 << 20).encode()]


@pytest.mark.parametrize("method", ["RunPodSandbox", "CreateContainer", "StartContainer"])
def test_an_objection_fails_the_call_which_can_be_repeated(daemon: Daemon, socket: Path, method: str) -> None:
    with Plugin.connected(socket, name="strict", index="05") as plugin:
        plugin.answers[method] = objection("not on my watch")
        if method == "RunPodSandbox":
            with pytest.raises(grpc.RpcError, match="05-strict: RunPodSandbox: not on my watch"), daemon.pod("again"):
                pass
        else:
            with daemon.pod("again") as pod, pytest.raises(grpc.RpcError, match=r"05-strict.*not on my watch"):
                pod.run("true")
        del plugin.answers[method]
        with daemon.pod("again") as pod:
            assert daemon.wait_exited(pod.run("true")).exit_code == 0


def test_what_cannot_be_adjusted_and_what_two_plugins_want_is_refused(daemon: Daemon, socket: Path) -> None:
    device = nri.ContainerAdjustment()
    device.linux.devices.add(path="/dev/x")
    mine = nri.ContainerAdjustment(env=[nri.KeyValue(key="A", value="1")])
    with (
        daemon.pod("refused") as pod,
        Plugin.connected(socket, "one", "01", CreateContainer=nri.CreateContainerResponse(adjust=mine)),
        Plugin.connected(socket, "two", "02", CreateContainer=nri.CreateContainerResponse(adjust=device)) as two,
    ):
        with pytest.raises(grpc.RpcError, match=r"02-two: CreateContainer: adjust.linux.devices: crisp cannot adjust"):
            pod.create("true")
        two.answers["CreateContainer"] = nri.CreateContainerResponse(adjust=mine)
        with pytest.raises(grpc.RpcError, match="env A: plugin 01-one has set it already"):
            pod.create("true")
        assert not daemon.runtime.ListContainers(cri.ListContainersRequest(), **_CALL).containers


def test_a_plugin_that_hangs_is_dropped_and_the_pod_runs(daemon: Daemon, socket: Path) -> None:
    with Plugin.connected(socket, RunPodSandbox=HANG) as plugin:
        with daemon.pod("unhurt") as pod:
            assert daemon.wait_exited(pod.run("true")).exit_code == 0
        assert plugin.closed.wait(20)
        assert plugin.methods() == ["RunPodSandbox"]
