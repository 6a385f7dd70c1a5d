"""Callers that leave, shims and daemons that die, disks that fill: nothing is lost, stuck or left running."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from tests.daemon import BUSYBOX, Daemon, Pod
from tests.processes import parent_of
from tests.waiting import until

_until = partial(until, pause=0.02)
_CALL = {"timeout": 120}
_SYS_PIDFD_GETFD = 438


def _processes(pattern: str) -> list[int]:
    found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True).stdout
    return [int(line) for line in found.split()]


def test_an_exec_without_a_timeout_ends_with_its_caller(daemon: Daemon) -> None:
    with daemon.pod("leaver") as pod:
        container = pod.run("sleep", "600")
        request = cri.ExecSyncRequest(container_id=container, cmd=["sleep", "7654"])
        with pytest.raises(grpc.RpcError):
            daemon.runtime.ExecSync(request, timeout=1)
        _until(lambda: not _processes("^sleep 7654"))


def _slow_start(pod: Pod, **fields: object) -> tuple[str, Path]:
    """A created container whose init will wait, before its program, until somebody opens the pipe for writing."""
    container = pod.create("sleep", "600", name="slow", **fields)
    pipe = pod.daemon.directory / "pipe"
    os.mkfifo(pipe)
    bundle = pod.daemon.state / "containers" / container / "config.json"
    namespaces = f'{{"type": "mount"}}, {{"type": "cgroup", "path": "{pipe}"}}'
    bundle.write_text(bundle.read_text().replace('{"type": "mount"}', namespaces))
    return container, pipe


def _until_it_hangs(pod: Pod, container: str) -> tuple[int, int]:
    """Until there is an init beside the shim, which has its name if it was forked. Returns both."""
    found: list[int] = []

    def look() -> bool:
        found[:] = _processes(f"^crisp-(shim {pod.id}|init {container})")  # in the order of their birth
        return len(found) == 2

    _until(look)
    return found[0], found[1]


listed_and_forked = pytest.mark.parametrize("fields", [{}, {"tty": True}], ids=["listed", "forked"])


@listed_and_forked
def test_a_sandbox_stops_while_a_start_hangs(daemon: Daemon, fields: dict[str, object]) -> None:
    with daemon.pod("hung") as pod:
        container, pipe = _slow_start(pod, **fields)
        start = daemon.runtime.StartContainer.future(cri.StartContainerRequest(container_id=container), **_CALL)
        _until_it_hangs(pod, container)
        assert not start.done()
        daemon.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod.id), **_CALL)
        failure = start.exception()
        assert failure.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert f"pod sandbox {pod.id} is being stopped" in failure.details()
        assert daemon.status(container).state == cri.CONTAINER_EXITED
    pipe.unlink()


@pytest.mark.parametrize("end", ["StopPodSandbox", "RemovePodSandbox", "StopContainer", "RemoveContainer"])
def test_what_an_end_overtakes_is_no_fault_of_the_node(daemon: Daemon, end: str) -> None:
    """Whichever of the calls is first, the others say so: nobody looks for a fault where there is none."""
    for turn in range(_TURNS):
        with daemon.pod(f"overtaken{turn}") as pod:
            running, created = pod.run("sleep", "600", name="runs"), pod.create("sleep", "600", name="made")
            calls = _calls_on(pod, running, created)
            ends = _end(end, pod, (running, created))
            for name, call in calls.items():
                failure = call.exception()
                assert failure is None or failure.code() in _OVERTAKEN, f"{name}: {failure.code()} {failure.details()}"
            assert [one.exception() for one in ends] == [None] * len(ends)


_TURNS = 8
_OVERTAKEN = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND)


def _calls_on(pod: Pod, running: str, created: str) -> dict[str, grpc.Future]:
    """One of each call about the pod or its containers, begun and not waited for."""
    runtime = pod.daemon.runtime
    config = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name="late"), image=cri.ImageSpec(image=BUSYBOX), command=["sleep", "600"]
    )
    limits = cri.LinuxContainerResources(cpu_shares=512)
    requests = (
        (runtime.CreateContainer, cri.CreateContainerRequest(pod_sandbox_id=pod.id, config=config)),
        (runtime.StartContainer, cri.StartContainerRequest(container_id=created)),
        (runtime.ExecSync, cri.ExecSyncRequest(container_id=running, cmd=["sleep", "0.01"], timeout=60)),
        (runtime.UpdateContainerResources, cri.UpdateContainerResourcesRequest(container_id=running, linux=limits)),
        (runtime.ReopenContainerLog, cri.ReopenContainerLogRequest(container_id=running)),
        (runtime.ContainerStatus, cri.ContainerStatusRequest(container_id=running, verbose=True)),
        (runtime.ContainerStats, cri.ContainerStatsRequest(container_id=running)),
        (runtime.PodSandboxStatus, cri.PodSandboxStatusRequest(pod_sandbox_id=pod.id, verbose=True)),
        (runtime.UpdatePodSandboxResources, cri.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod.id)),
        (runtime.ListPodSandboxStats, cri.ListPodSandboxStatsRequest()),
    )
    return {type(request).__name__: call.future(request, **_CALL) for call, request in requests}


def _end(name: str, pod: Pod, containers: Sequence[str]) -> list[grpc.Future]:
    """The call of that name about the pod or each of its containers, begun."""
    kind = getattr(cri, f"{name}Request")
    requests = [kind(container_id=one) for one in containers] if "Container" in name else [kind(pod_sandbox_id=pod.id)]
    return [getattr(pod.daemon.runtime, name).future(one, **_CALL) for one in requests]


@listed_and_forked
def test_a_start_under_way_is_followed_over_a_restart(fresh_daemon: Daemon, fields: dict[str, object]) -> None:
    daemon = fresh_daemon
    with daemon.pod("followed") as pod:
        container, pipe = _slow_start(pod, **fields)
        start = daemon.runtime.StartContainer.future(cri.StartContainerRequest(container_id=container), **_CALL)
        _until_it_hangs(pod, container)
        assert not start.done()
        daemon.kill9()
        daemon.start()
        assert daemon.status(container).state == cri.CONTAINER_CREATED
        os.close(os.open(pipe, os.O_WRONLY))  # the pipe is no namespace: the start fails now
        status = daemon.wait_exited(container)
        assert (status.reason, status.exit_code) == ("StartError", 128)


def test_a_full_disk_hides_no_exit(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    with daemon.pod("full") as pod:
        container = pod.run("sleep", "600", name="ends")
        holder = _lock_database(daemon.root / "crisp.db")
        try:
            daemon.runtime.StopContainer(cri.StopContainerRequest(container_id=container, timeout=0), **_CALL)
            assert daemon.status(container).state == cri.CONTAINER_EXITED
        finally:
            holder.kill()
            holder.wait()


def test_a_start_before_a_removal_that_waits(fresh_daemon: Daemon) -> None:
    """Both wait for an update, the removal first, which has seen that nothing runs; it removes what runs by then."""
    daemon = fresh_daemon
    with daemon.pod("waits") as pod:
        container = pod.create("sleep", "600")
        limits = cri.LinuxContainerResources(cpu_shares=512)
        update = cri.UpdateContainerResourcesRequest(container_id=container, linux=limits)
        holder = _lock_database(daemon.root / "crisp.db")
        try:
            calls = [
                daemon.runtime.UpdateContainerResources.future(update, **_CALL),
                daemon.runtime.RemoveContainer.future(cri.RemoveContainerRequest(container_id=container), **_CALL),
                daemon.runtime.StartContainer.future(cri.StartContainerRequest(container_id=container), **_CALL),
            ]
            daemon.runtime.Version(cri.VersionRequest(), **_CALL)  # all of them have come
            assert not any(call.done() for call in calls)
        finally:
            holder.kill()
            holder.wait()
        _updated, removed, _started = (call.exception() for call in calls)
        assert removed is None
        with pytest.raises(grpc.RpcError, match="not found"):
            daemon.status(container)


def _lock_database(path: Path) -> subprocess.Popen[bytes]:
    """Hold SQLite's write lock, so that writes fail as they do on a full disk."""
    code = (
        "import sqlite3, sys; d = sqlite3.connect(sys.argv[1], isolation_level=None); d.execute('BEGIN IMMEDIATE');"
        "print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    return holder


@listed_and_forked
def test_a_container_whose_start_its_shim_did_not_live_to_answer(
    fresh_daemon: Daemon, fields: dict[str, object]
) -> None:
    daemon = fresh_daemon
    with daemon.pod("orphan") as pod:
        # A shared PID namespace would end with its infra process, and take the init along.
        own = cri.NamespaceOption(pid=cri.CONTAINER)
        linux = cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(namespace_options=own))
        container, _pipe = _slow_start(pod, linux=linux, **fields)
        start = daemon.runtime.StartContainer.future(cri.StartContainerRequest(container_id=container), **_CALL)
        shim, _init = _until_it_hangs(pod, container)
        keeper = parent_of(shim)
        for pid in (keeper, shim):  # it would start a successor, and that the container again
            os.kill(pid, signal.SIGKILL)
        assert isinstance(start.exception(), grpc.RpcError)
        assert daemon.wait_exited(container).reason == "StartError"
        _until(lambda: not _processes(f"^crisp-(shim {pod.id}|init {container})"))


def test_a_living_shim_is_found_again(fresh_daemon: Daemon) -> None:
    """A broken connection is no reason to kill a pod."""
    daemon = fresh_daemon
    with daemon.pod("found") as pod:
        container = pod.run("sleep", "600")
        daemon.restart()  # now the connection is one that crispd made, which tells its peer
        (shim,) = _processes(f"^crisp-shim {pod.id}")
        assert _break_connections(daemon, shim) == 1
        _until(lambda: _answers(pod, container))
        assert pod.status().state == cri.SANDBOX_READY
        assert daemon.status(container).state == cri.CONTAINER_RUNNING


def _answers(pod: Pod, container: str) -> bool:
    try:
        return pod.exec(container, "echo", "ok").stdout == b"ok\n"
    except grpc.RpcError:
        return False


def _break_connections(daemon: Daemon, shim: int) -> int:
    """Shut down crispd's end of its connections to the shim. Returns how many there were."""
    assert daemon.process is not None
    broken = 0
    with _pidfd(daemon.process.pid) as pidfd:
        for name in os.listdir(f"/proc/{daemon.process.pid}/fd"):
            ours = ctypes.CDLL(None).syscall(_SYS_PIDFD_GETFD, pidfd, int(name), 0)
            if ours < 0:
                continue
            if not stat.S_ISSOCK(os.fstat(ours).st_mode):
                os.close(ours)
                continue
            with socket.socket(fileno=ours) as sock:
                if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
                    continue
                peer, _uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                if peer == shim:
                    sock.shutdown(socket.SHUT_RDWR)
                    broken += 1
    return broken


@contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        os.close(pidfd)
