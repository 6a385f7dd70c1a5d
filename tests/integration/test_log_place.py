"""Logs of pods while another pod can write to where they are."""

from __future__ import annotations

import os
import socket
import stat
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cri.v1 import api_pb2 as cri
from tests.daemon import Daemon, Pod
from tests.waiting import until

_CALL = {"timeout": 20}
_IN_THE_WAY: dict[str, Callable[[Path, Path], object]] = {
    "a link": lambda place, other: place.symlink_to(other),
    "a hard link": lambda place, other: os.link(other, place),
    "a pipe": lambda place, _other: os.mkfifo(place),
    "a device": lambda place, _other: os.mknod(place, stat.S_IFCHR | 0o666, os.makedev(1, 3)),
}


def _reopen(pod: Pod, container: str) -> None:
    pod.daemon.runtime.ReopenContainerLog(cri.ReopenContainerLogRequest(container_id=container), **_CALL)


@pytest.mark.trial("logs-stay-in-place", "a log is written to a file in the pod's own directory, or not at all")
@pytest.mark.parametrize("what", _IN_THE_WAY)
def test_what_is_no_file_at_a_logs_path_is_refused_and_holds_up_nobody(
    daemon: Daemon, tmp_path: Path, what: str
) -> None:
    other = tmp_path / "ld.so.preload"
    other.touch()
    with daemon.pod(f"logs{list(_IN_THE_WAY).index(what)}") as pod:
        running = pod.run("sh", "-c", "while read line; do echo $line; done; sleep 1000", name="running", stdin=True)
        logs = Path(pod.config.log_directory)
        before, rotated = logs / "running.log", logs / "running.log.1"
        before.rename(rotated)
        for name in ("running.log", "started.log"):
            _IN_THE_WAY[what](logs / name, other)
        with pytest.raises(grpc.RpcError) as refusal:
            _reopen(pod, running)
        assert "running.log" in refusal.value.details()
        assert "it is a" in refusal.value.details()
        created = pod.create("echo", "evil", name="started")
        with pytest.raises(grpc.RpcError) as refusal:
            daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=created), **_CALL)
        assert "it is a" in refusal.value.details()
        assert pod.exec(running, "echo", "alive").stdout == b"alive\n"
        before.unlink()
        _reopen(pod, running)
        assert before.is_file()
        daemon.runtime.StopContainer(cri.StopContainerRequest(container_id=running), **_CALL)
    assert other.read_bytes() == b""


@pytest.mark.trial("logs-stay-in-place", "a log is written to a file in the pod's own directory, or not at all")
@pytest.mark.parametrize("below", ["", "app"])
def test_a_directory_that_becomes_a_link_leads_no_log_elsewhere(daemon: Daemon, tmp_path: Path, below: str) -> None:
    (tmp_path / "app").mkdir()
    with daemon.pod(f"links{len(below)}") as pod:
        directory = Path(pod.config.log_directory, below)
        if not below:
            directory.rename(directory.with_suffix(".away"))
        directory.symlink_to(tmp_path)
        config = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name="app"), image=cri.ImageSpec(image="localhost/busybox:latest"),
            command=["echo", "evil"], log_path="app/0.log",
        )  # fmt: skip
        request = cri.CreateContainerRequest(pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)
        created = daemon.runtime.CreateContainer(request, **_CALL).container_id
        with pytest.raises(grpc.RpcError, match="on the path is a symbolic link"):
            daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=created), **_CALL)
        directory.unlink()
    assert [*tmp_path.rglob("*")] == [tmp_path / "app"]


def test_where_all_logs_are_may_be_a_link(daemon: Daemon, tmp_path: Path) -> None:
    link = tmp_path / "pods"
    link.symlink_to(daemon.logs)
    config = daemon.sandbox_config("linked")
    config.log_directory = f"{link}/linked"
    with daemon.pod(config=config) as pod:
        container = pod.run("echo", "hello")
        daemon.wait_exited(container)
        log = daemon.logs / "linked/main.log"
        until(lambda: "hello" in log.read_text())


def _counted(port: int, unit: str) -> dict[str, float]:
    """What crispd's metrics say of all containers' output, by its fate."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    samples = (sample for family in families for sample in family.samples)
    return {one.labels["fate"]: one.value for one in samples if one.name == f"crisp_container_log_{unit}_total"}


def test_a_log_has_a_rate(tmp_path: Path) -> None:
    """What a container writes above it is dropped and counted; its neighbour in the pod loses nothing."""
    settings = tmp_path / "crisp.toml"
    settings.write_text("container_log_rate = 10000000\ncontainer_log_rate_most = 100000000\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with Daemon.running(f"--config={settings}", f"--metrics-addr=127.0.0.1:{port}") as daemon:
        daemon.import_busybox()
        rates = {"crisp/log-rate": "10000", "log-rate.crisp/quiet": "100000000", "log-rate.crisp/greedy": "100000001"}
        with daemon.pod(config=daemon.sandbox_config("floods", annotations=rates)) as pod:
            with pytest.raises(grpc.RpcError, match=r"log-rate\.crisp/greedy") as refusal:
                pod.create("true", name="greedy")
            assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "100000000 bytes a second at most" in refusal.value.details()
            flood = pod.run("sh", "-c", "yes 0123456789 | head -n 500000", name="flood")
            quiet = pod.run("sh", "-c", "for i in $(seq 100); do echo line $i; done", name="quiet")
            daemon.wait_exited(quiet)
            assert [line.split(" F ")[1] for line in pod.log("quiet").splitlines()] == [
                f"line {number}" for number in range(1, 101)
            ]
            daemon.wait_exited(flood)
            lines = pod.log("flood").splitlines()
            dropped = [int(line.split()[5]) for line in lines if " stderr F crisp dropped " in line]
            written = sum(line.endswith(" stdout F 0123456789") for line in lines)
            assert dropped
            assert written + sum(dropped) == 500_000
            ended = {"written": written + 100, "dropped": sum(dropped), "failed": 0}
            assert _counted(port, "lines") == ended
            assert _counted(port, "bytes")["dropped"] > 10 * sum(dropped)
            running = pod.run("sh", "-c", "echo one; echo two; sleep 1000", name="running")
            until(lambda: _counted(port, "lines") == ended | {"written": written + 102})
            daemon.restart()
            pod.run("echo", "three", name="later")
            until(lambda: _counted(port, "lines")["written"] == 1)  # counted since crispd started
            daemon.runtime.StopContainer(cri.StopContainerRequest(container_id=running), **_CALL)


def test_a_log_has_a_bound(tmp_path: Path) -> None:
    """A container that writes without end takes twice the bound, and its last line is there."""
    settings = tmp_path / "crisp.toml"
    settings.write_text("container_log_limit = 1000000\n")
    with Daemon.running(f"--config={settings}") as daemon:
        daemon.import_busybox()
        with daemon.pod("talks") as pod:
            container = pod.run("sh", "-c", "yes 0123456789 | head -n 400000; echo the end")
            daemon.wait_exited(container)
            logs = sorted(Path(pod.config.log_directory).iterdir())
            assert [log.name for log in logs] == ["main.log", "main.log.1"]
            assert all(0 < log.stat().st_size <= 1_000_000 for log in logs)
            assert pod.log().splitlines()[-1].endswith(" stdout F the end")
            assert logs[1].read_bytes().endswith(b" stdout F 0123456789\n")
