"""One bad pod, plugin or file system: every other call is answered while the fault lasts, and nothing stays after it.

No test looks at the clock: that the fault still lasts when the answers are there shows that they did not wait for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from tests.daemon import CALL_SECONDS, CNI_BIN_DIRS, Daemon, Pod
from tests.waiting import until

_CALL = {"timeout": CALL_SECONDS}


def _others_answer(daemon: Daemon, *, new_pod: bool = True) -> None:
    """Every call that is not about the fault: lists, stats, the node's status, and the whole life of another pod."""
    runtime = daemon.runtime
    runtime.ListPodSandbox(cri.ListPodSandboxRequest(), **_CALL)
    runtime.ListContainers(cri.ListContainersRequest(), **_CALL)
    runtime.ListContainerStats(cri.ListContainerStatsRequest(), **_CALL)
    runtime.ListPodSandboxStats(cri.ListPodSandboxStatsRequest(), **_CALL)
    runtime.ListPodSandboxMetrics(cri.ListPodSandboxMetricsRequest(), **_CALL)
    runtime.Status(cri.StatusRequest(verbose=True), **_CALL)
    daemon.images.ImageFsInfo(cri.ImageFsInfoRequest(), **_CALL)
    if new_pod:
        with daemon.pod("calm") as pod:
            container = pod.run("sleep", "1000")
            assert pod.exec(container, "echo", "here").stdout == b"here\n"
            runtime.StopContainer(cri.StopContainerRequest(container_id=container, timeout=0), **_CALL)


def _shim_of(pod: Pod) -> int:
    found = subprocess.run(["pgrep", "-f", f"^crisp-shim {pod.id}"], capture_output=True, text=True).stdout
    return int(found.split()[0])


@contextlib.contextmanager
def _stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _condition(daemon: Daemon) -> cri.RuntimeCondition:
    conditions = daemon.runtime.Status(cri.StatusRequest(), **_CALL).status.conditions
    return next(one for one in conditions if one.type == "ShimsAnswer")


def test_a_stopped_shim(fresh_daemon: Daemon) -> None:
    """It is set apart; what was asked of it fails; when it goes on, it is caught up with."""
    daemon = fresh_daemon
    with daemon.pod("stopped") as pod:
        runs = pod.run("sleep", "1000", name="runs")
        ends = pod.run("sh", "-c", "trap 'exit 5' TERM; echo set; while :; do sleep 0.01; done", name="ends")
        until(lambda: "set" in pod.log("ends"))
        assert _condition(daemon).status
        with _stopped(_shim_of(pod)):
            asked = daemon.runtime.ExecSync.future(
                cri.ExecSyncRequest(container_id=runs, cmd=["touch", "/late"], timeout=100), **_CALL
            )
            created = daemon.runtime.CreateContainer.future(
                cri.CreateContainerRequest(
                    pod_sandbox_id=pod.id,
                    config=cri.ContainerConfig(
                        metadata=cri.ContainerMetadata(name="late"),
                        image=cri.ImageSpec(image="localhost/busybox:latest"),
                    ),
                    sandbox_config=pod.config,
                ),
                **_CALL,
            )
            _others_answer(daemon)
            for call in (asked, created):
                failure = call.exception()
                assert failure.code() is grpc.StatusCode.UNAVAILABLE, failure
                assert "does not answer" in failure.details()
            condition = _condition(daemon)
            assert not condition.status
            assert "default/stopped/" in condition.message
            details = json.loads(daemon.runtime.Status(cri.StatusRequest(verbose=True), **_CALL).info["info"])
            assert [one["sandbox"] for one in details["silentShims"]] == [pod.id]
            # A new daemon is up while it lasts, and keeps what it knew.
            daemon.kill9()
            daemon.start()
            assert pod.status().state == cri.SANDBOX_READY
            assert not _condition(daemon).status
            os.kill(_pid_of(daemon, ends), signal.SIGTERM)
            with pytest.raises(grpc.RpcError, match="does not answer"):
                pod.exec(runs, "true")
            _others_answer(daemon)
        until(lambda: _condition(daemon).status)
        assert daemon.wait_exited(ends).exit_code == 5
        assert pod.exec(runs, "true").exit_code == 0
        assert {one.metadata.name for one in _containers(daemon)} == {"runs", "ends"}
        assert pod.run("true", name="late")


def _containers(daemon: Daemon) -> list[cri.Container]:
    return list(daemon.runtime.ListContainers(cri.ListContainersRequest(), **_CALL).containers)


def _pid_of(daemon: Daemon, container: str) -> int:
    request = cri.ContainerStatusRequest(container_id=container, verbose=True)
    return int(json.loads(daemon.runtime.ContainerStatus(request, **_CALL).info["info"])["pid"])


def test_a_pod_whose_shim_does_not_answer_can_be_ended(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    with daemon.pod("held") as pod:
        container = pod.run("sleep", "1000")
        with _stopped(_shim_of(pod)):
            pod.remove()
        assert not _containers(daemon)
        with pytest.raises(grpc.RpcError, match="not found"):
            daemon.status(container)


def test_a_stopped_zygote_is_replaced(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    zygote = subprocess.run(["pgrep", "-f", "crisp zygote"], capture_output=True, text=True).stdout
    with _stopped(int(zygote.split()[0])):
        _others_answer(daemon, new_pod=False)
        _others_answer(daemon)


def test_volumes_on_a_dead_file_system(fresh_daemon: Daemon, tmp_path: Path) -> None:
    """More of them than the daemon's pool has threads."""
    daemon = fresh_daemon
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
    subprocess.run(["mount", "-i", "-t", "fuse", "-o", options, "dead", tmp_path], check=True, pass_fds=[device])
    with contextlib.ExitStack() as undo:
        undo.callback(subprocess.run, ["umount", "-l", tmp_path], check=True)
        undo.callback(os.close, device)  # nobody ever read it; now its file system is known to be dead
        pod = undo.enter_context(daemon.pod("dead"))
        mount = cri.Mount(host_path=str(tmp_path), container_path="/data")
        calls = [
            daemon.runtime.CreateContainer.future(
                cri.CreateContainerRequest(
                    pod_sandbox_id=pod.id,
                    config=cri.ContainerConfig(
                        metadata=cri.ContainerMetadata(name=f"dead{number}"),
                        image=cri.ImageSpec(image="localhost/busybox:latest"),
                        mounts=[mount],
                    ),
                    sandbox_config=pod.config,
                ),
                **_CALL,
            )
            for number in range(12)
        ]
        _others_answer(daemon)
        for call in calls:
            failure = call.exception()
            assert failure.code() is grpc.StatusCode.UNAVAILABLE, failure
            assert "FUSE" in failure.details()
        daemon.stop()  # threads are held in the kernel still
        daemon.start()


def test_a_frozen_container(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    with daemon.pod("frozen") as pod:
        container = pod.run("sleep", "1000")
        with _frozen(_pid_of(daemon, container)):
            with pytest.raises(grpc.RpcError) as refusal:
                pod.exec(container, "true", timeout=1)
            assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION  # "it is paused"
            _others_answer(daemon)
            pod.remove()


@contextlib.contextmanager
def _frozen(pid: int) -> Iterator[None]:
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    places = {kinds: path for _, kinds, path in lines}
    if "freezer" in places:
        file, on, off = Path(f"/sys/fs/cgroup/freezer{places['freezer']}/freezer.state"), "FROZEN", "THAWED"
    else:
        file, on, off = Path(f"/sys/fs/cgroup{places['']}/cgroup.freeze"), "1", "0"
    file.write_text(on)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            file.write_text(off)


def test_a_network_plugin_that_hangs(tmp_path: Path) -> None:
    plugin = tmp_path / "hangs"
    pids = tmp_path / "pids"
    plugin.write_text(f'#!/bin/sh\necho $$ >>{pids}\n[ "$CNI_COMMAND" = DEL ] || exec sleep 86399\n')
    plugin.chmod(plugin.stat().st_mode | stat.S_IXUSR)
    with Daemon.running("--cni-bin-dir", str(tmp_path), *(f"--cni-bin-dir={path}" for path in CNI_BIN_DIRS)) as daemon:
        daemon.import_busybox()
        with daemon.pod("first"):
            pass
        conflist = daemon.cni_conf_dir / "10-test.conflist"
        well = conflist.read_text()
        network = json.loads(well)
        network["plugins"].append({"type": "hangs"})
        conflist.write_text(json.dumps(network))
        calls = [
            daemon.runtime.RunPodSandbox.future(
                cri.RunPodSandboxRequest(config=daemon.sandbox_config(f"hung{number}")), **_CALL
            )
            for number in range(8)
        ]
        until(lambda: pids.exists() and len(pids.read_text().split()) == len(calls))
        conflist.write_text(well)
        _others_answer(daemon)
        assert not any(call.done() for call in calls)
        for pid in pids.read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        for call in calls:
            assert "killed by signal 9" in call.exception().details()
        assert not daemon.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), **_CALL).items
