"""CheckpointPod and RestorePod, and a single container's checkpoint, by a criu that knows this kernel."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from tests.criu import on_path
from tests.daemon import BUSYBOX, CALL_SECONDS, Daemon, Pod
from tests.processes import parent_of
from tests.stream_clients import RESIZE, STDIN, STDOUT, Command
from tests.waiting import until

# Counts in memory, in its log, and in a file of its root; another variable shows whose memory it is.
COUNT = "i=0; while :; do echo $i; echo $i >/count; i=$((i+1)); sleep 0.05; done"
# No TCP: criu 4.1 asks sockets for an option that they have not since Linux 6.16.
HOLD = "mkfifo /pipe; exec 3<>/pipe; while :; do sleep 1; done"


@pytest.fixture(scope="module")
def criu() -> Iterator[None]:
    """On crispd's PATH."""
    with on_path():
        yield


@pytest.fixture(scope="module")
def daemon(criu: None) -> Iterator[Daemon]:
    with Daemon.running() as running:
        running.import_busybox()
        with running.pod("first"):
            pass  # makes the bridge, which stays as long as the daemon
        yield running


def _linux(pids: str) -> dict[str, Any]:
    options = cri.NamespaceOption(pid=cri.NamespaceMode.Value(pids))
    return {"linux": cri.LinuxContainerConfig(
        security_context=cri.LinuxContainerSecurityContext(namespace_options=options)
    )}  # fmt: skip


def _pod_config(daemon: Daemon, name: str, pids: str) -> cri.PodSandboxConfig:
    options = cri.NamespaceOption(pid=cri.NamespaceMode.Value(pids))
    security = cri.LinuxSandboxSecurityContext(namespace_options=options)
    return daemon.sandbox_config(name, linux=cri.LinuxPodSandboxConfig(security_context=security))


def _config(name: str, script: str, pids: str, **fields: Any) -> cri.ContainerConfig:
    return cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name=name), image=cri.ImageSpec(image=BUSYBOX), command=["sh", "-c", script],
        log_path=f"{name}.log", **_linux(pids), **fields,
    )  # fmt: skip


def _start(pod: Pod, *configs: cri.ContainerConfig) -> list[str]:
    made = []
    for config in configs:
        request = cri.CreateContainerRequest(pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)
        made.append(pod.daemon.runtime.CreateContainer(request, timeout=CALL_SECONDS).container_id)
        start = cri.StartContainerRequest(container_id=made[-1])
        pod.daemon.runtime.StartContainer(start, timeout=CALL_SECONDS)
    return made


def _checkpoint(
    pod: Pod, output: Path, container_ids: list[str], timeout: float | None = CALL_SECONDS, **more: Any
) -> None:
    request = cri.CheckpointPodRequest(
        pod_sandbox_id=pod.id, output_path=str(output), container_ids=container_ids, **more
    )
    pod.daemon.runtime.CheckpointPod(request, timeout=timeout)


@contextmanager
def _restored(
    daemon: Daemon, source: Path, config: cri.PodSandboxConfig, *containers: cri.ContainerConfig, **more: Any
) -> Iterator[tuple[Pod, dict[str, str]]]:
    request = cri.RestorePodRequest(checkpoint_path=str(source), config=config, container_configs=containers, **more)
    answer = daemon.runtime.RestorePod(request, timeout=CALL_SECONDS)
    pod = Pod(daemon, answer.pod_sandbox_id, config)
    try:
        yield pod, {one.name: one.container_id for one in answer.restored_containers}
    finally:
        pod.remove()


def _numbers(pod: Pod, name: str) -> list[int]:
    return [int(line.split()[3]) for line in pod.log(name).splitlines()]


@pytest.mark.answer("RestorePodResponse")
@pytest.mark.answer("RestoredContainer")
@pytest.mark.cri("CheckpointPod", "pod_sandbox_id", "output_path", "container_ids")
@pytest.mark.cri("RestorePod", "checkpoint_path", "config", "container_configs", "runtime_handler")
@pytest.mark.parametrize("pids", ["CONTAINER", "POD"])
def test_a_pod_goes_on_elsewhere(daemon: Daemon, tmp_path: Path, pids: str) -> None:
    output, volume = tmp_path / "checkpoint", tmp_path / "volume"
    for directory in (output, volume):
        directory.mkdir()
    mounts = [cri.Mount(container_path="/volume", host_path=str(volume))]
    counts = _config("counts", COUNT, pids, mounts=mounts, envs=[cri.KeyValue(key="A", value=b"b\xff")])
    holds = _config("holds", HOLD, pids)
    with daemon.pod(config=_pod_config(daemon, f"origin-{pids.lower()}", pids)) as pod:
        made = _start(pod, counts, holds)
        until(lambda: len(pod.log("counts").splitlines()) > 10)
        _checkpoint(pod, output, made)
        counted = _numbers(pod, "counts")[-1]
        until(lambda: _numbers(pod, "counts")[-1] > counted + 5)  # it goes on
        assert sorted(os.listdir(output)) == ["container-0.tar", "container-1.tar", "pod.json"]
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    target = _pod_config(daemon, f"copy-{pids.lower()}", pids)
    with _restored(daemon, output, target, holds, counts, runtime_handler="crisp") as (pod, ids):
        assert sorted(ids) == ["counts", "holds"]
        assert [daemon.status(one).state for one in ids.values()] == [cri.CONTAINER_CREATED] * 2
        assert not Path(target.log_directory, "counts.log").exists()
        assert daemon.status(ids["counts"]).image.image == BUSYBOX
        for container_id in ids.values():
            start = cri.StartContainerRequest(container_id=container_id)
            daemon.runtime.StartContainer(start, timeout=CALL_SECONDS)
        until(lambda: len(pod.log("counts").splitlines()) > 10)
        numbers = _numbers(pod, "counts")
        assert 0 < numbers[0] <= counted + 1
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert b"while :" in pod.exec(ids["holds"], "cat", "/proc/1/cmdline").stdout or pids == "POD"
        seen = pod.exec(ids["holds"], "ip", "-4", "-o", "address", "show", "eth0").stdout
        assert pod.status().network.ip.encode() in seen  # the new pod's network
        assert pod.exec(ids["counts"], "touch", "/volume/here").exit_code == 0
        assert (volume / "here").exists()
        # The same again, as after a lost answer, takes nothing away.
        again = cri.RestorePodRequest(checkpoint_path=str(output), config=target, container_configs=[holds, counts],
                                      runtime_handler="crisp")  # fmt: skip
        with pytest.raises(grpc.RpcError) as raised:
            daemon.runtime.RestorePod(again, timeout=CALL_SECONDS)
        assert raised.value.code() is grpc.StatusCode.ALREADY_EXISTS
        assert daemon.status(ids["counts"]).state == cri.CONTAINER_RUNNING
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


@pytest.mark.cri("CheckpointPod", "options")
@pytest.mark.cri("RestorePod", "options")
def test_what_does_not_fit_is_refused_and_leaves_nothing(daemon: Daemon, tmp_path: Path) -> None:
    output, used = tmp_path / "checkpoint", tmp_path / "used"
    for directory in (output, used):
        directory.mkdir()
    (used / "file").touch()
    runs = _config("runs", COUNT, "CONTAINER")

    def refused(call: Any, code: str, said: str) -> None:
        with pytest.raises(grpc.RpcError) as raised:
            call()
        assert (raised.value.code().name, said in raised.value.details()) == (code, True), raised.value.details()

    with daemon.pod(config=_pod_config(daemon, "source", "CONTAINER")) as pod, daemon.pod("stranger") as stranger:
        (container_id,) = _start(pod, runs)
        other, created = stranger.run("sleep", "1000"), pod.create("true", name="created")
        for ids, code, said in (
            ([], "INVALID_ARGUMENT", "container_ids: is required"),
            ([container_id, container_id], "INVALID_ARGUMENT", f"container_ids[1]: {container_id!r} is repeated"),
            ([container_id, other], "INVALID_ARGUMENT", "is not in pod sandbox"),
            ([container_id, created], "FAILED_PRECONDITION", "is created, not running"),
            (["nothing"], "NOT_FOUND", "nothing"),
        ):
            refused(lambda ids=ids: _checkpoint(pod, output, ids), code, said)
        refused(lambda: _checkpoint(pod, used, [container_id]), "INVALID_ARGUMENT", "is not empty")
        refused(lambda: _checkpoint(pod, tmp_path / "none", [container_id]), "INVALID_ARGUMENT", "No such file")
        refused(
            lambda: _checkpoint(pod, output, [container_id], timeout=None), "INVALID_ARGUMENT", "deadline: is required"
        )
        refused(
            lambda: _checkpoint(pod, output, [container_id], options={"x": "y"}),
            "INVALID_ARGUMENT",
            "'x' is unknown",
        )
        refused(lambda: _checkpoint(pod, output, [container_id], timeout=1.0), "DEADLINE_EXCEEDED", "")
        assert os.listdir(output) == []
        counted = len(_numbers(pod, "runs"))
        until(lambda: len(_numbers(pod, "runs")) > counted)  # none of these left it stopped
        _checkpoint(pod, output, [container_id])
    target = _pod_config(daemon, "target", "CONTAINER")
    for name, wrong, said in (
        ("command", _config("runs", "other", "CONTAINER"), "container_configs['runs'].command: differs from"),
        (
            "env",
            _config("runs", COUNT, "CONTAINER", envs=[cri.KeyValue(key="A", value=b"secret")]),
            ".envs: differs from",
        ),
        ("name", _config("walks", COUNT, "CONTAINER"), "walks are given, but the checkpoint has runs"),
    ):
        with pytest.raises(grpc.RpcError) as raised, _restored(daemon, output, target, wrong):
            pass
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT, name
        assert said in raised.value.details()
        assert "secret" not in raised.value.details()
    with (
        pytest.raises(grpc.RpcError, match="is unknown"),
        _restored(daemon, output, target, runs, options={"a": ""}),
    ):
        pass
    request = cri.RestorePodRequest(checkpoint_path=str(output), config=target, container_configs=[runs])
    refused(lambda: daemon.runtime.RestorePod(request), "INVALID_ARGUMENT", "deadline: is required")
    shared = _pod_config(daemon, "shared", "POD")
    pids_shared = _config("runs", COUNT, "POD")
    with pytest.raises(grpc.RpcError, match="own pid namespace"), _restored(daemon, output, shared, pids_shared):
        pass
    (output / "pod.json").chmod(0o666)
    with pytest.raises(grpc.RpcError, match="only root can write"), _restored(daemon, output, target, runs):
        pass
    filter = cri.PodSandboxFilter(label_selector={})
    assert not daemon.runtime.ListPodSandbox(cri.ListPodSandboxRequest(filter=filter), timeout=CALL_SECONDS).items


def test_a_listener_goes_on_or_is_refused_with_what_to_do(daemon: Daemon, tmp_path: Path) -> None:
    """Which of the two is criu's affair: 4.1 asks TCP sockets for an option that they have not since Linux 6.16."""
    output = tmp_path / "checkpoint"
    output.mkdir()
    listens = _config("listens", "httpd -f -p 7000 -h /etc", "CONTAINER")

    def served(pod: Pod, container_id: str) -> bytes:
        until(lambda: pod.exec(container_id, "wget", "-q", "-O-", "http://127.0.0.1:7000/hostname").exit_code == 0)
        return pod.exec(container_id, "wget", "-q", "-O-", "http://127.0.0.1:7000/hostname").stdout

    with daemon.pod(config=_pod_config(daemon, "listening", "CONTAINER")) as pod:
        made = _start(pod, listens)
        assert served(pod, made[0]) == b"listening\n"
        refusal = ""
        try:
            _checkpoint(pod, output, made)
        except grpc.RpcError as error:
            refusal = error.details()
        assert served(pod, made[0]) == b"listening\n"  # in either case
        if refusal:
            assert "take a later criu or an older kernel" in refusal
            assert os.listdir(output) == []
            return
    target = _pod_config(daemon, "listening-again", "CONTAINER")
    with _restored(daemon, output, target, listens) as (pod, ids):
        start = cri.StartContainerRequest(container_id=ids["listens"])
        daemon.runtime.StartContainer(start, timeout=CALL_SECONDS)
        assert served(pod, ids["listens"]) == b"listening-again\n"


@pytest.mark.cri("Attach", "tty")
def test_a_terminal_is_the_containers_again(daemon: Daemon, tmp_path: Path) -> None:
    output = tmp_path / "checkpoint"
    output.mkdir()
    shell = _config("shell", "while :; do stty size; sleep 0.1; done", "CONTAINER", stdin=True, tty=True)
    with daemon.pod(config=_pod_config(daemon, "typed", "CONTAINER")) as pod:
        _checkpoint(pod, output, _start(pod, shell))
    target = _pod_config(daemon, "typed-again", "CONTAINER")
    with _restored(daemon, output, target, shell) as (_pod, ids):
        daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=ids["shell"]), timeout=CALL_SECONDS)
        for width in (90, 91):
            attach = cri.AttachRequest(container_id=ids["shell"], tty=True, stdin=True, stdout=True)
            url = daemon.runtime.Attach(attach, timeout=CALL_SECONDS).url
            command = Command.over("spdy", url, "v4.channel.k8s.io", STDIN, STDOUT, RESIZE)
            command.resize(width, 33)
            command.until(b"33 %d\r\n" % width)
            command.close()


def test_no_pod_stays_stopped_when_crispd_dies(criu: None, fresh_daemon: Daemon, tmp_path: Path) -> None:
    """Killed at several moments of a checkpoint: the containers count on each time."""
    daemon = fresh_daemon
    with daemon.pod(config=_pod_config(daemon, "victim", "CONTAINER")) as pod:
        made = _start(pod, *(_config(f"counts-{number}", COUNT, "CONTAINER") for number in range(3)))
        for number in range(3):
            output = tmp_path / str(number)
            output.mkdir()
            call = threading.Thread(target=_ignored, args=(pod, output, made))
            call.start()
            # The first archive's work has begun: all three are stopped.
            until(lambda output=output, number=number: len(os.listdir(output)) > number)
            daemon.kill9()
            call.join()
            daemon.start()
            for name in ("counts-0", "counts-1", "counts-2"):
                counted = len(_numbers(pod, name))
                until(lambda name=name, counted=counted: len(_numbers(pod, name)) > counted, 30)


def test_no_process_stays_stopped_when_the_shim_dies(criu: None, fresh_daemon: Daemon, tmp_path: Path) -> None:
    """A successor thaws what the shim has frozen for a checkpoint, and nobody notices."""
    daemon, output = fresh_daemon, tmp_path / "checkpoint"
    output.mkdir()
    with daemon.pod(config=_pod_config(daemon, "orphan", "CONTAINER")) as pod:
        made = _start(pod, *(_config(f"counts-{number}", COUNT, "CONTAINER") for number in range(3)))
        pids = [_pid(daemon, one) for one in made]
        shim = parent_of(pids[0])
        call = threading.Thread(target=_ignored, args=(pod, output, made))
        call.start()
        until(lambda: os.listdir(output))
        os.kill(shim, signal.SIGKILL)
        call.join()
        for container_id, pid in zip(made, pids, strict=True):
            until(partial(_answers, pod, container_id))  # criu may freeze it once more, and then it is thawed again
            assert _pid(daemon, container_id) == pid
        assert os.listdir(output) == []


def _pid(daemon: Daemon, container_id: str) -> int:
    request = cri.ContainerStatusRequest(container_id=container_id, verbose=True)
    return int(json.loads(daemon.runtime.ContainerStatus(request, timeout=CALL_SECONDS).info["info"])["pid"])


def _answers(pod: Pod, container_id: str) -> bool:
    try:
        return pod.exec(container_id, "echo", "here").stdout == b"here\n"
    except grpc.RpcError:
        return False


def _ignored(pod: Pod, output: Path, container_ids: list[str]) -> None:
    with suppress(grpc.RpcError):
        _checkpoint(pod, output, container_ids)


# Its last process has a pid beyond 200, but those before it are gone; then it forks no more.
LATE = "i=0; while [ $i -lt 200 ]; do true & wait; i=$((i+1)); done; sleep 100000 & echo $!; wait"
# Forks nothing until /volume/go is there; then takes some 400 pids, in whatever order the kernel gives them.
CROWD = (
    "while ! test -e /volume/go; do read -t 0.2 line </volume/pipe; done; "
    "i=0; while [ $i -lt 400 ]; do sleep 100000 & i=$((i+1)); done; echo done; wait"
)


def test_no_new_process_takes_the_pid_of_one_that_is_to_continue(daemon: Daemon, tmp_path: Path) -> None:
    output, volume = tmp_path / "checkpoint", tmp_path / "volume"
    for directory in (output, volume):
        directory.mkdir()
    os.mkfifo(volume / "pipe")
    held = os.open(volume / "pipe", os.O_RDWR)  # so that the container's reads wait for content, not for a writer
    try:
        mounts = [cri.Mount(container_path="/volume", host_path=str(volume))]
        crowd, late = _config("crowd", CROWD, "POD", mounts=mounts), _config("late", LATE, "POD")
        with daemon.pod(config=_pod_config(daemon, "crowded", "POD")) as pod:
            made = _start(pod, crowd, late)
            until(lambda: pod.log("late"))
            assert _numbers(pod, "late")[0] > 200
            _checkpoint(pod, output, made)
        (volume / "go").touch()
        target = _pod_config(daemon, "crowded-again", "POD")
        with _restored(daemon, output, target, crowd, late) as (pod, ids):
            for name in ("crowd", "late"):
                start = cri.StartContainerRequest(container_id=ids[name])
                daemon.runtime.StartContainer(start, timeout=CALL_SECONDS)
                if name == "crowd":
                    until(lambda: "done" in pod.log("crowd"))
            assert daemon.status(ids["late"]).state == cri.CONTAINER_RUNNING
    finally:
        os.close(held)


def test_a_pod_is_never_seen_before_its_containers(criu: None, fresh_daemon: Daemon, tmp_path: Path) -> None:
    """Neither by events, nor in lists after a crash of crispd: then nothing of it is left."""
    daemon, output = fresh_daemon, tmp_path / "checkpoint"
    output.mkdir()
    daemon.import_busybox()
    both = [_config(name, COUNT, "CONTAINER") for name in ("one", "two")]
    with daemon.pod(config=_pod_config(daemon, "seen", "CONTAINER")) as pod:
        _checkpoint(pod, output, _start(pod, *both))
    target = _pod_config(daemon, "seen-again", "CONTAINER")
    events = daemon.runtime.GetContainerEvents(cri.GetEventsRequest())
    events.initial_metadata()
    with _restored(daemon, output, target, *both) as (_pod, ids):
        first = next(events)
        assert {one.id for one in first.containers_statuses} == set(ids.values())
        assert first.pod_sandbox_status.state == cri.SANDBOX_READY
    events.cancel()
    call = threading.Thread(target=_ignored_restore, args=(daemon, output, target, both))
    call.start()
    until(lambda: list((daemon.root / "containers").iterdir()))  # the first container is being created
    daemon.kill9()
    call.join()
    daemon.start()
    assert not daemon.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=CALL_SECONDS).items
    assert not daemon.runtime.ListContainers(cri.ListContainersRequest(), timeout=CALL_SECONDS).containers
    until(lambda: not list((daemon.root / "containers").iterdir()))


def _ignored_restore(
    daemon: Daemon, source: Path, config: cri.PodSandboxConfig, containers: list[cri.ContainerConfig]
) -> None:
    request = cri.RestorePodRequest(checkpoint_path=str(source), config=config, container_configs=containers)
    with suppress(grpc.RpcError):
        daemon.runtime.RestorePod(request, timeout=CALL_SECONDS)


@pytest.mark.cri("CheckpointContainer", "timeout")
@pytest.mark.parametrize("whole", [True, False], ids=["pod", "container"])
def test_a_deadline_holds_inside_criu(daemon: Daemon, tmp_path: Path, whole: bool) -> None:
    """criu is stopped, and thereby ended as hard as it can be; the containers run on, and no file stays."""
    output = tmp_path / "checkpoint"
    output.mkdir()
    names = ("first", "second")
    with daemon.pod(config=_pod_config(daemon, f"slow-{whole}", "CONTAINER")) as pod:
        made = _start(pod, *(_config(name, COUNT, "CONTAINER") for name in names))
        until(lambda: all(_numbers(pod, name) for name in names))
        request = cri.CheckpointContainerRequest(container_id=made[0], location=str(output / "archive"), timeout=2)
        error = _error_of_a_stopped(
            daemon,
            output,
            lambda: _checkpoint(pod, output, made, timeout=4.0)
            if whole
            else daemon.runtime.CheckpointContainer(request, timeout=CALL_SECONDS),
        )
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        for name in names:
            counted = len(_numbers(pod, name))
            until(lambda name=name, counted=counted: len(_numbers(pod, name)) > counted + 5)
        until(lambda: not os.listdir(output))
        assert not _criu_of(daemon)
        # The next one succeeds.
        _checkpoint(pod, output, made)


def _error_of_a_stopped(daemon: Daemon, output: Path, checkpoint: Callable[[], object]) -> grpc.RpcError:
    """The error of a checkpoint whose criu was stopped. Others may be done before anybody can look at their criu."""
    stopper = threading.Thread(target=_stop_criu, args=(daemon,))
    stopper.start()
    while stopper.is_alive():
        try:
            checkpoint()
        except grpc.RpcError as error:
            stopper.join()
            return error
        for entry in output.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    raise AssertionError("no criu was stopped, or its checkpoint succeeded")


def _criu_of(daemon: Daemon) -> list[int]:
    """The pids of the criu workers that the daemon runs."""
    children: list[str] = []
    for task in Path("/proc", str(daemon.pid()), "task").iterdir():
        with suppress(FileNotFoundError):
            children += (task / "children").read_text().split()
    found = []
    for pid in children:
        with suppress(FileNotFoundError, ProcessLookupError):
            found += [int(pid)] if b"swrk" in Path("/proc", pid, "cmdline").read_bytes() else []
    return found


def _stop_criu(daemon: Daemon) -> None:
    found: list[int] = []
    until(lambda: found.extend(_criu_of(daemon)) or found, pause=0.001)
    os.kill(found[0], signal.SIGSTOP)
