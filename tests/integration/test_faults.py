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
from tests import cgroups
from tests.daemon import CALL_SECONDS, CNI_BIN_DIRS, Daemon
from tests.faults.fuse import dead_directory
from tests.faults.kinds import pid_of, shim_of
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
        with _stopped(shim_of(pod)):
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
            os.kill(pid_of(daemon, ends), signal.SIGTERM)
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


def test_a_pod_whose_shim_does_not_answer_can_be_ended(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    with daemon.pod("held") as pod:
        container = pod.run("sleep", "1000")
        with _stopped(shim_of(pod)):
            pod.remove()
        assert not _containers(daemon)
        with pytest.raises(grpc.RpcError, match="not found"):
            daemon.status(container)


def test_a_stopped_zygote_is_replaced(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    zygote = subprocess.run(["pgrep", "-f", "crisp zygote"], capture_output=True, text=True).stdout
    with _stopped(int(zygote.split()[0])):
        _others_answer(daemon, new_pod=False)
        _others_answer(daemon)  # its shim was there
        _others_answer(daemon)


def test_volumes_on_a_dead_file_system(fresh_daemon: Daemon, tmp_path: Path) -> None:
    """More of them than the daemon's pool has threads."""
    daemon = fresh_daemon
    with dead_directory(tmp_path), daemon.pod("dead") as pod:
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
        with cgroups.frozen(pid_of(daemon, container)):
            with pytest.raises(grpc.RpcError) as refusal:
                pod.exec(container, "true", timeout=1)
            assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION  # "it is paused"
            _others_answer(daemon)
            pod.remove()


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
