"""NRI plugins: what they hear, what they change in a real container, and those that object, hang, die or come late."""

from __future__ import annotations

import socket as sockets
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import Message

from cri.daemon.config import KEYS
from cri.nri.v1alpha1 import api_pb2 as nri
from cri.v1 import api_pb2 as cri
from cri.v1.api_pb2_grpc import RuntimeServiceStub
from tests.daemon import Daemon, DaemonFailed, Pod
from tests.nri_plugin import HANG, Plugin, objection
from tests.stream_clients import WebSocketClient
from tests.waiting import until

_CALL = {"timeout": 120}


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
            "RunPodSandbox", "CreateContainer", "ValidateContainerAdjustment", "PostCreateContainer", "StartContainer",
            "PostStartContainer", "StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox",
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


def test_an_interface_of_the_host_is_moved(daemon: Daemon, socket: Path) -> None:
    adjust = nri.ContainerAdjustment()
    adjust.linux.net_devices["crispnri0"].name = "moved0"
    subprocess.run(["ip", "link", "add", "crispnri0", "type", "veth", "peer", "name", "crispnri1"], check=True)
    try:
        answer = nri.CreateContainerResponse(adjust=adjust)
        with Plugin.connected(socket, CreateContainer=answer), daemon.pod("links") as pod:
            assert b" moved0@" in pod.exec(pod.run("sleep", "1000"), "ip", "link").stdout
    finally:
        subprocess.run(["ip", "link", "delete", "crispnri1"], capture_output=True)  # it may have gone with the pod


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


def _told(plugin: Plugin, object_id: str) -> list[str]:
    """The methods that told of a pod (and of nothing in it) or a container."""
    return [
        method
        for method, request in plugin.calls
        if method not in ("Configure", "Synchronize")
        and (request.container.id if _has_container(request) else request.pod.id) == object_id
    ]


def _has_container(request: Message) -> bool:
    return "container" in request.DESCRIPTOR.fields_by_name


def test_a_removal_is_told_of_as_the_container_was(daemon: Daemon, socket: Path) -> None:
    with Plugin.connected(socket) as plugin, daemon.pod("spec") as pod:
        container = pod.run("sleep", "1000")
        daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container), **_CALL)
        told = plugin.request("RemoveContainer").container
        assert told.args == ["sleep", "1000"]
        assert told.linux.cgroups_path == plugin.request("StartContainer").container.linux.cgroups_path
        wrong = nri.ContainerAdjustment(annotations={"plugin.example/a": "b"})
        wrong.linux.namespaces.add(type="moon")
        plugin.answers["CreateContainer"] = nri.CreateContainerResponse(adjust=wrong)
        with pytest.raises(grpc.RpcError, match="as plugins adjusted it"):
            pod.create("true", "never")
        told = plugin.request("RemoveContainer").container
        assert (told.args, told.annotations["plugin.example/a"]) == (["true", "never"], "b")


def test_plugins_hear_of_removals_of_what_they_heard_of_and_of_nothing_else(daemon: Daemon, socket: Path) -> None:
    with (
        daemon.pod("partly") as pod,
        Plugin.connected(socket, "asked", "01") as asked,
        Plugin.connected(socket, "strict", "02", CreateContainer=objection("no")) as strict,
        Plugin.connected(socket, "late", "03") as late,
    ):
        nobody = cri.LinuxContainerSecurityContext(run_as_username="nobody-of-this-name")
        with pytest.raises(grpc.RpcError, match="nobody-of-this-name"):
            pod.create("true", linux=cri.LinuxContainerConfig(security_context=nobody))
        assert [one.methods() for one in (asked, strict, late)] == [[], [], []]
        with pytest.raises(grpc.RpcError, match="02-strict: CreateContainer: no"):
            pod.create("true")
        assert asked.methods() == strict.methods() == ["CreateContainer", "RemoveContainer"]
        assert late.methods() == []


def test_a_pod_that_a_plugin_refuses_ends_for_those_that_heard_of_it(daemon: Daemon, socket: Path) -> None:
    with (
        Plugin.connected(socket, "asked", "01", StopPodSandbox=objection("too late to object")) as asked,
        Plugin.connected(socket, "strict", "02", RunPodSandbox=objection("no")) as strict,
        Plugin.connected(socket, "late", "03") as late,
    ):
        with pytest.raises(grpc.RpcError, match="02-strict: RunPodSandbox: no"), daemon.pod("refused"):
            pass
        assert asked.methods() == strict.methods() == ["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"]
        assert late.methods() == []


def test_a_plugin_hears_of_the_removal_of_a_container_whose_pod_was_stopped_meanwhile(
    daemon: Daemon, socket: Path
) -> None:
    with Plugin.connected(socket) as plugin, ThreadPoolExecutor(2) as threads:
        stopped = plugin.answers["CreateContainer"] = threading.Event()
        with daemon.pod("stopped") as pod:
            creating = threads.submit(pod.create, "true")
            plugin.wait(lambda: "CreateContainer" in plugin.methods())
            request = cri.StopPodSandboxRequest(pod_sandbox_id=pod.id)
            stopping = threads.submit(daemon.runtime.StopPodSandbox, request, **_CALL)
            plugin.wait(lambda: "StopPodSandbox" in plugin.methods())
            stopped.set()
            stopping.result()
            with pytest.raises(grpc.RpcError, match="was stopped while"):
                creating.result()
            container = plugin.request("CreateContainer").container.id
            assert [one for one in _told(plugin, container) if one != "ValidateContainerAdjustment"] == [
                "CreateContainer", "RemoveContainer",
            ]  # fmt: skip


def test_an_end_is_told_to_all_though_one_objects(daemon: Daemon, socket: Path) -> None:
    ends = ("StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox")
    with (
        Plugin.connected(socket, "strict", "01", **{method: objection("never") for method in ends}),
        Plugin.connected(socket, "other", "02") as other,
    ):
        with daemon.pod("objected") as pod:
            pod.run("sleep", "1000")
        assert [method for method in other.methods() if method in ends] == [
            "StopContainer", "StopPodSandbox", "RemoveContainer", "RemovePodSandbox",
        ]  # fmt: skip


def test_what_cannot_be_adjusted_and_what_two_plugins_want_is_refused(daemon: Daemon, socket: Path) -> None:
    rdt = nri.ContainerAdjustment()
    rdt.linux.rdt.clos_id.value = "gold"
    wrong = nri.ContainerAdjustment()
    wrong.linux.namespaces.add(type="moon")
    outside = nri.ContainerAdjustment()
    outside.linux.resources.unified["../cgroup.procs"] = "1"
    mine = nri.ContainerAdjustment(env=[nri.KeyValue(key="A", value="1")])
    with (
        daemon.pod("refused") as pod,
        Plugin.connected(socket, "one", "01", CreateContainer=nri.CreateContainerResponse(adjust=mine)),
        Plugin.connected(socket, "two", "02", CreateContainer=nri.CreateContainerResponse(adjust=rdt)) as two,
    ):
        with pytest.raises(grpc.RpcError, match=r"02-two: CreateContainer: adjust.linux.rdt: crisp cannot adjust"):
            pod.create("true")
        two.answers["CreateContainer"] = nri.CreateContainerResponse(adjust=mine)
        with pytest.raises(grpc.RpcError, match="env A: already set by plugin 01-one"):
            pod.create("true")
        two.answers["CreateContainer"] = nri.CreateContainerResponse(adjust=outside)
        with pytest.raises(grpc.RpcError, match=r"adjust\.linux\.resources\.unified: '\.\./cgroup\.procs' must be"):
            pod.create("true")
        two.answers["CreateContainer"] = nri.CreateContainerResponse(adjust=wrong)
        with pytest.raises(grpc.RpcError, match=r"as plugins adjusted it: .*linux.namespaces.*moon"):
            pod.create("true")
        assert not daemon.runtime.ListContainers(cri.ListContainersRequest(), **_CALL).containers


def test_the_rest_of_config_json_is_adjusted(daemon: Daemon, socket: Path, tmp_path: Path) -> None:
    """Devices, hooks, sysctls, seccomp, scheduler and I/O priority take effect in the container."""
    told = tmp_path / "told"
    adjust = nri.ContainerAdjustment()
    adjust.linux.devices.add(path="/dev/nil", type="c", major=1, minor=3)
    adjust.linux.sysctl["net.ipv4.ip_local_port_range"] = "42000 43000"
    adjust.linux.scheduler.policy, adjust.linux.scheduler.nice = nri.SCHED_BATCH, 5
    adjust.linux.io_priority.priority = 6
    setattr(adjust.linux.io_priority, "class", nri.IOPRIO_CLASS_BE)
    policy = adjust.linux.seccomp_policy
    policy.default_action = "SCMP_ACT_ALLOW"
    refused = policy.syscalls.add(names=["mkdir", "mkdirat"], action="SCMP_ACT_ERRNO")
    refused.errno_ret.value = 95  # EOPNOTSUPP
    adjust.hooks.create_runtime.add(path="/bin/sh", args=["sh", "-c", f"cat >{told}"])
    answer = nri.CreateContainerResponse(adjust=adjust)
    with Plugin.connected(socket, CreateContainer=answer), daemon.pod("rest") as pod:
        container = pod.run("sleep", "1000")
        script = (
            "echo x >/dev/nil && stat -c %t.%T /dev/nil; cat /proc/sys/net/ipv4/ip_local_port_range;"
            "mkdir /d 2>&1; cut -d' ' -f19,41 /proc/$(pidof sleep)/stat; ionice -p $(pidof sleep)"
        )
        lines = pod.exec(container, "sh", "-c", script).stdout.decode().splitlines()
        assert lines[0] == "1.3"
        assert lines[1].split() == ["42000", "43000"]
        assert "not supported" in lines[2]
        assert lines[3:] == ["5 3", "best-effort: prio 6"]
        assert container in told.read_text()


def test_cdi_devices_of_a_plugin(tmp_path: Path) -> None:
    socket = tmp_path / "nri.sock"
    (tmp_path / "crisp.toml").write_text(f'cdi_spec_dirs = ["{tmp_path}"]\n')
    (tmp_path / "example.yaml").write_text(
        "cdiVersion: '0.6.0'\nkind: example.com/thing\ndevices:\n- name: one\n  containerEdits:\n"
        "    env: [THING=one]\n    deviceNodes: [{path: /dev/thing, hostPath: /dev/null}]\n"
    )
    adjust = nri.ContainerAdjustment(CDI_devices=[nri.CDIDevice(name="example.com/thing=one")])
    answer = nri.CreateContainerResponse(adjust=adjust)
    with Daemon.running(f"--nri-socket={socket}", f"--config={tmp_path}/crisp.toml") as daemon:
        daemon.import_busybox()
        with Plugin.connected(socket, CreateContainer=answer), daemon.pod("cdi") as pod:
            container = pod.run("sleep", "1000")
            seen = pod.exec(container, "sh", "-c", "echo $THING; stat -c %t.%T /dev/thing").stdout
            assert seen == b"one\n1.3\n"


def test_judges_are_told_who_wants_what_and_may_reject_it(daemon: Daemon, socket: Path) -> None:
    mine = nri.ContainerAdjustment(env=[nri.KeyValue(key="A", value="1")])
    mine.linux.oom_score_adj.value = 500
    with (
        daemon.pod("judged") as pod,
        Plugin.connected(socket, "one", "01", CreateContainer=nri.CreateContainerResponse(adjust=mine)),
        Plugin.connected(socket, "judge", "99") as judge,
    ):
        pod.create("true")
        request = judge.request("ValidateContainerAdjustment")
        assert request.adjust.env[0].key == "A"
        owners = request.owners.owners[request.container.id]
        assert owners.simple[nri.OomScoreAdj] == "01-one"
        assert owners.compound[nri.Env].owners["A"] == "01-one"
        assert [(one.index, one.name) for one in request.plugins] == [("01", "one"), ("99", "judge")]
        judge.answers["ValidateContainerAdjustment"] = nri.ValidateContainerAdjustmentResponse(
            reject=True, reason="not that A"
        )
        with pytest.raises(grpc.RpcError, match=r"99-judge: ValidateContainerAdjustment: rejected: not that A"):
            pod.run("true", name="another")


def _memory(container: str, mebibytes: int, **fields: bool) -> nri.ContainerUpdate:
    update = nri.ContainerUpdate(container_id=container, **fields)
    update.linux.resources.memory.limit.value = mebibytes << 20
    return update


def _limit(daemon: Daemon, container: str) -> int:
    return daemon.status(container).resources.linux.memory_limit_in_bytes >> 20


def test_updates_pass_plugins_which_may_change_them_and_others(daemon: Daemon, socket: Path) -> None:
    with Plugin.connected(socket) as plugin, daemon.pod("updated") as pod:
        first, second = pod.run("sleep", "1000"), pod.run("sleep", "1000", name="second")
        wanted = [_memory(first, 80), _memory(second, 48)]
        plugin.answers["UpdateContainer"] = nri.UpdateContainerResponse(update=wanted)
        asked = cri.LinuxContainerResources(memory_limit_in_bytes=64 << 20, cpu_shares=512)
        daemon.runtime.UpdateContainerResources(
            cri.UpdateContainerResourcesRequest(container_id=first, linux=asked), **_CALL
        )
        assert plugin.request("UpdateContainer").linux_resources.memory.limit.value == 64 << 20
        assert plugin.request("PostUpdateContainer").container.linux.resources.memory.limit.value == 80 << 20
        assert (_limit(daemon, first), _limit(daemon, second)) == (80, 48)
        assert daemon.status(first).resources.linux.cpu_shares == 512
        files = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max"
        assert pod.exec(second, "sh", "-c", files).stdout.split() == [str(48 << 20).encode()]
        plugin.answers["UpdateContainer"] = objection("no changes today")
        with pytest.raises(grpc.RpcError, match="no changes today"):
            daemon.runtime.UpdateContainerResources(
                cri.UpdateContainerResourcesRequest(container_id=first, linux=asked), **_CALL
            )
        assert _limit(daemon, first) == 80
        sums = cri.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod.id, resources=asked)
        daemon.runtime.UpdatePodSandboxResources(sums, **_CALL)
        assert plugin.request("UpdatePodSandbox").linux_resources.cpu.shares.value == 512
        assert plugin.methods()[-1] == "PostUpdatePodSandbox"


def test_a_creation_and_an_end_change_other_containers(daemon: Daemon, socket: Path) -> None:
    with Plugin.connected(socket) as plugin, daemon.pod("others") as pod:
        first = pod.run("sleep", "1000")
        victim = pod.run("sleep", "1000", name="victim")
        eviction = nri.ContainerEviction(container_id=victim, reason="room is needed")
        plugin.answers["CreateContainer"] = nri.CreateContainerResponse(update=[_memory(first, 48)], evict=[eviction])
        second = pod.run("sleep", "1000", name="second")
        assert _limit(daemon, first) == 48
        assert daemon.wait_exited(victim).exit_code == 137
        plugin.answers["CreateContainer"] = nri.CreateContainerResponse(update=[_memory("f" * 64, 48)])
        with pytest.raises(grpc.RpcError, match=r"f{64}"):
            pod.run("true", name="third")
        gone = nri.CreateContainerResponse(update=[_memory("f" * 64, 48, ignore_failure=True)])
        plugin.answers["CreateContainer"] = gone
        pod.run("true", name="third")
        plugin.answers["StopContainer"] = nri.StopContainerResponse(update=[_memory(first, 96)])
        daemon.runtime.StopContainer(cri.StopContainerRequest(container_id=second, timeout=0), **_CALL)
        until(lambda: _limit(daemon, first) == 96)


def test_a_plugin_changes_containers_unasked(daemon: Daemon, socket: Path) -> None:
    with Plugin.connected(socket) as plugin, daemon.pod("unasked") as pod:
        container = pod.run("sleep", "1000")
        pids = nri.ContainerUpdate(container_id=container)
        pids.linux.resources.pids.limit = 3
        answer = plugin.update(_memory(container, 48), _memory("f" * 64, 48), pids)
        assert [one.container_id for one in answer.failed] == ["f" * 64, container]
        assert _limit(daemon, container) == 48
        assert "UpdateContainer" not in plugin.methods()
        assert not plugin.update(evict=(container,)).failed
        assert daemon.wait_exited(container).exit_code == 137


def test_a_plugin_that_hangs_is_dropped_and_the_pod_runs(daemon: Daemon, socket: Path) -> None:
    with Plugin.connected(socket, RunPodSandbox=HANG) as plugin:
        with daemon.pod("unhurt") as pod:
            assert daemon.wait_exited(pod.run("true")).exit_code == 0
        assert plugin.closed.wait(20)
        assert plugin.methods() == ["RunPodSandbox"]


def test_a_plugin_that_hangs_and_connects_again_is_set_apart_for_a_while(tmp_path: Path) -> None:
    """It costs one container its time limit, not every one; what was made meanwhile it is told when it is back."""
    path, settings = tmp_path / "nri.sock", tmp_path / "crisp.toml"
    settings.write_text("[nri_plugins.hasty]\nseconds = 1\n")
    with Daemon.running(f"--nri-socket={path}", f"--config={settings}") as daemon:
        daemon.import_busybox()
        assert _condition(daemon, "NRIPluginsAnswer").status
        with daemon.pod("apart") as pod:
            with Plugin.connected(path, name="hasty", CreateContainer=HANG) as plugin:
                pod.create("true", name="delayed")
                assert plugin.closed.wait(60)
            told = _condition(daemon, "NRIPluginsAnswer")
            assert (told.status, told.reason) == (False, "NRIPluginsSilent")
            assert "10-hasty (CreateContainer; asked again in " in told.message
            with Plugin.connected(path, name="hasty", apart=True) as plugin:
                unasked = pod.create("true", name="unasked")
                assert not plugin.calls
                plugin.wait(plugin.knows_all)
                assert unasked in [one.id for one in plugin.request("Synchronize").containers]
                assert _condition(daemon, "NRIPluginsAnswer").status
                pod.create("true", name="judged")
                assert plugin.methods()[0] == "CreateContainer"


def test_the_default_socket_may_be_anothers_any_other_must_be_free(
    socket: Path, daemon: Daemon, tmp_path: Path
) -> None:
    default = Path(KEYS["nri_socket"].default)
    with Daemon.running(f"--nri-socket={default}"), Daemon.running(f"--nri-socket={default}") as second:
        assert f"listen on {default}: another process listens" in second.log()
    assert not default.exists()
    with pytest.raises(DaemonFailed, match="another process listens"), Daemon.running(f"--nri-socket={socket}"):
        pass
    with Plugin.connected(socket):  # the first one still serves it
        pass
    (tmp_path / "file").touch()
    with pytest.raises(DaemonFailed, match="nri_socket: remove the old socket"), Daemon.running(
        f"--nri-socket={tmp_path}/file/nri.sock"
    ):
        pass


_PODS = pytest.mark.trial(
    "nri-pods", "NRI plugins find a pod's namespaces, cgroup and resources in what they are told of it"
)


def _network(pod: nri.PodSandbox) -> list[str]:
    return [one.path for one in pod.linux.namespaces if one.type == "network"]


@_PODS
def test_a_pod_tells_its_namespaces_cgroup_and_resources(daemon: Daemon, socket: Path) -> None:
    config = daemon.sandbox_config("full")
    config.linux.cgroup_parent = "/crisp-nri-full"
    config.linux.overhead.memory_limit_in_bytes = 1 << 20
    config.linux.resources.cpu_shares = 512
    with Plugin.connected(socket) as plugin:
        with daemon.pod(config=config) as pod:
            pinned = f"/run/netns/crisp-{pod.id}"
            container = pod.run("sleep", "100")
            with Plugin.connected(socket, name="late", index="20") as late:
                (synchronized,) = late.request("Synchronize").pods
            limits = cri.LinuxContainerResources(cpu_shares=256)
            daemon.runtime.UpdatePodSandboxResources(
                cri.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod.id, resources=limits), **_CALL
            )
            daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container), **_CALL)
            pid = synchronized.pid
            kinds = {one.type: one.path for one in synchronized.linux.namespaces}
            assert kinds == {"network": pinned} | {kind: f"/proc/{pid}/ns/{kind}" for kind in ("uts", "ipc", "pid")}
        told = {method: request.pod for method, request in plugin.calls if hasattr(request, "pod")}
        for method, message in told.items():
            assert _network(message) == ([] if method == "RemovePodSandbox" else [pinned]), method
            linux = message.linux
            assert (linux.cgroup_parent, linux.cgroups_path) == ("/crisp-nri-full", "/crisp-nri-full"), method
            assert linux.pod_overhead.memory.limit.value == 1 << 20, method
        assert told["RunPodSandbox"].linux.pod_resources.cpu.shares.value == 512
        assert told["PostUpdatePodSandbox"].linux.pod_resources.cpu.shares.value == 256
        assert told["StopPodSandbox"].linux.resources.cpu.shares.value == 256
        assert {"CreateContainer", "StopContainer", "RemoveContainer"} <= told.keys()


@_PODS
def test_a_pod_on_the_hosts_network_and_one_whose_namespace_is_gone_have_none(daemon: Daemon, socket: Path) -> None:
    config = daemon.sandbox_config("onhost")
    config.linux.security_context.namespace_options.network = cri.NODE
    with daemon.pod(config=config), daemon.pod("stopped") as stopped:
        daemon.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=stopped.id), **_CALL)
        with Plugin.connected(socket) as plugin:
            pods = {pod.name: pod for pod in plugin.request("Synchronize").pods}
        assert {one.type for one in pods["onhost"].linux.namespaces} == {"ipc", "pid"}
        assert not pods["stopped"].linux.namespaces
        assert pods["stopped"].linux.cgroups_path == f"/crisp/{stopped.id}"


@pytest.mark.trial("nri-socket", "crispd's end leaves an NRI socket that another runtime has put in its place")
def test_the_socket_of_another_runtime_stays(tmp_path: Path) -> None:
    path = tmp_path / "nri.sock"
    with Daemon.running(f"--nri-socket={path}") as daemon:
        path.unlink()
        with sockets.socket(sockets.AF_UNIX) as other:
            other.bind(str(path))
            daemon.stop()
            assert path.is_socket()
        path.unlink()
        daemon.start()
        daemon.stop()
        assert not path.exists()  # its own is gone with it


@pytest.mark.trial("quiet-stop", "An orderly stop, and a look at a socket, leave no error in crispd's log")
def test_a_stop_with_clients_of_all_kinds_logs_no_error(tmp_path: Path) -> None:
    path = tmp_path / "nri.sock"
    with Daemon.running(f"--nri-socket={path}", "--metrics-addr=127.0.0.1:0") as daemon:
        daemon.import_busybox()
        with sockets.socket(sockets.AF_UNIX) as looker:  # as a second daemon does
            looker.connect(str(path))
        until(lambda: "a client left without registering" in daemon.log())
        with daemon.pod("clients") as pod, Plugin.connected(path), Plugin.connected(path, name="two", index="20"):
            container = pod.run("sleep", "1000")
            with grpc.insecure_channel(daemon.listen) as channel:
                events = RuntimeServiceStub(channel).GetContainerEvents(cri.GetEventsRequest())
                attach = cri.AttachRequest(container_id=container, stdout=True)
                with WebSocketClient(daemon.runtime.Attach(attach, **_CALL).url, "v4.channel.k8s.io"):
                    daemon.stop()
                with pytest.raises(grpc.RpcError):
                    list(events)
            log = daemon.log()
            daemon.start()
        assert "stopping" in log
        assert "level=error" not in log
        assert "Traceback" not in log


@pytest.mark.trial("binary-values", "Values of the environment are bytes, and arrive as they are")
def test_a_plugin_leaves_the_bytes_of_others_values_alone(daemon: Daemon, socket: Path) -> None:
    adjust = nri.ContainerAdjustment(env=[nri.KeyValue(key="FROM", value="plugin")])
    with Plugin.connected(socket, CreateContainer=nri.CreateContainerResponse(adjust=adjust)) as plugin:
        with daemon.pod("bytes") as pod:
            container = pod.run("sleep", "1000", envs=[cri.KeyValue(key="BIN", value=b"\xff\xfe")])
            assert pod.exec(container, "sh", "-c", 'printf %s "$FROM$BIN"').stdout == b"plugin\xff\xfe"
        assert "BIN=\\xff\\xfe" in plugin.request("CreateContainer").container.env


@pytest.fixture
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose pods need the plugin "judge", and wait for "slow"."""
    place = tmp_path_factory.mktemp("strict")
    settings = place / "crisp.toml"
    settings.write_text(
        '[nri_plugins.judge]\nfailure = "fail"\nseconds = 3\n[nri_plugins.slow]\nfailure = "wait"\nwait_seconds = 100\n'
    )
    with Daemon.running(f"--nri-socket={place}/nri.sock", f"--config={settings}") as running:
        running.import_busybox()
        yield running


def _condition(daemon: Daemon, name: str) -> cri.RuntimeCondition:
    conditions = daemon.runtime.Status(cri.StatusRequest(), **_CALL).status.conditions
    return next(one for one in conditions if one.type == name)


def _plugins_ready(daemon: Daemon) -> cri.RuntimeCondition:
    return _condition(daemon, "NRIPluginsReady")


def test_pods_that_need_a_plugin(strict: Daemon) -> None:
    """Without it, or without its answer, none is made; one that may be waited for is."""
    daemon, socket = strict, Path(next(flag for flag in strict._arguments if "nri" in flag).partition("=")[2])
    assert "judge, slow" in _plugins_ready(daemon).message
    with Plugin.connected(socket, name="slow"):
        with pytest.raises(grpc.RpcError, match=r"not connected: judge: start") as refusal, daemon.pod("refused"):
            pass
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
    with Plugin.connected(socket, name="judge"):
        until(lambda: "judge" not in _plugins_ready(daemon).message)
        asked = daemon.runtime.RunPodSandbox.future(
            cri.RunPodSandboxRequest(config=daemon.sandbox_config("patient")), **_CALL
        )
        until(lambda: list((daemon.root / "network").iterdir()))  # all that comes before plugins is made
        assert not asked.done()
        with Plugin.connected(socket, name="slow"):
            sandbox = asked.result().pod_sandbox_id
            assert _plugins_ready(daemon).status
            pod = Pod(daemon, sandbox, daemon.sandbox_config("patient"))
            assert pod.run("sleep", "1000", name="well")
            with Plugin.connected(socket, name="other", CreateContainer=HANG):
                assert pod.run("sleep", "1000", name="well-too")  # others that hang are dropped as ever
    with Plugin.connected(socket, name="slow"), Plugin.connected(socket, name="judge", CreateContainer=HANG):
        until(lambda: _plugins_ready(daemon).status)
        with pytest.raises(grpc.RpcError, match="which pods need: CreateContainer: no answer in 3 s"):
            pod.create("true", name="unjudged")
    # One that pods need is not set apart: they wait for it.
    assert "-judge" not in _condition(daemon, "NRIPluginsAnswer").message
    with Plugin.connected(socket, name="slow"), Plugin.connected(socket, name="judge"):
        pod.create("true", name="judged-at-once")
    with pytest.raises(grpc.RpcError, match="not connected"):
        pod.create("true", name="alone")
    pod.remove()  # an end needs none
