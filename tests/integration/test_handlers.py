"""Pods whose containers another OCI runtime makes, under crisp's shim: Debian's runc.

CRISP_TEST_RUNC names another one instead: youki, say (docs/handlers.md).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from runtime.cgroups import Cgroup, Hierarchies
from tests.daemon import BUSYBOX, CALL_SECONDS, Daemon, Pod
from tests.images import BUSYBOX as BUSYBOX_PROGRAM
from tests.images import build_image, entry, layer, write_layout
from tests.processes import kill_shim, parent_of
from tests.waiting import until

RUNC = os.environ.get("CRISP_TEST_RUNC") or shutil.which("runc", path="/usr/sbin:/usr/bin") or "/usr/sbin/runc"


@contextmanager
def _running(directory: Path, runtime: str = RUNC) -> Iterator[Daemon]:
    settings = directory / "crisp.toml"
    settings.write_text(f'[runtime_handlers.runc]\npath = "{runtime}"\n')
    with Daemon.running(f"--config={settings}") as daemon:
        daemon.import_busybox()
        yield daemon


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with _running(tmp_path_factory.mktemp("settings")) as daemon:
        with daemon.pod("first"):
            pass  # makes the bridge, which stays as long as the daemon
        yield daemon


def _pod(daemon: Daemon, name: str, handler: str = "runc", **fields: Any) -> Pod:
    config = daemon.sandbox_config(name, **fields)
    request = cri.RunPodSandboxRequest(config=config, runtime_handler=handler)
    return Pod(daemon, daemon.runtime.RunPodSandbox(request, timeout=CALL_SECONDS).pod_sandbox_id, config)


@pytest.fixture
def pod(daemon: Daemon) -> Iterator[Pod]:
    made = _pod(daemon, "other")
    yield made
    made.remove()


def _info(pod: Pod, container_id: str) -> dict[str, Any]:
    request = cri.ContainerStatusRequest(container_id=container_id, verbose=True)
    info = pod.daemon.runtime.ContainerStatus(request, timeout=CALL_SECONDS).info["info"]
    return dict(json.loads(info))


def _known_to_runc(daemon: Daemon) -> list[str]:
    root = daemon.state / "handlers/runc"
    return sorted(os.listdir(root)) if root.exists() else []


@pytest.mark.cri("RunPodSandbox", "runtime_handler")
@pytest.mark.cri("Status", "runtime_handlers")
def test_handlers_are_told_and_others_refused(daemon: Daemon) -> None:
    status = daemon.runtime.Status(cri.StatusRequest(), timeout=CALL_SECONDS)
    assert [handler.name for handler in status.runtime_handlers] == ["", "crisp", "runc"]
    with pytest.raises(grpc.RpcError) as raised:
        _pod(daemon, "nothing", "runsc")
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "no handler 'runsc' is configured (there is: crisp, runc)" in str(raised.value.details())


def test_a_container_by_runc(pod: Pod) -> None:
    """Its log, its exit status, its files, its limits and its network are as they are with crisp's own runtime."""
    linux = cri.LinuxContainerConfig(resources=cri.LinuxContainerResources(memory_limit_in_bytes=64 << 20))
    script = "echo out; echo err >&2; hostname; touch /new; sleep 0.1; exit 3"
    container_id = pod.run("sh", "-c", script, name="main", linux=linux)
    assert _known_to_runc(pod.daemon) == [container_id]
    status = pod.daemon.wait_exited(container_id)
    assert (status.exit_code, status.reason) == (3, "Error")
    lines = [line.split(" ", 1)[1] for line in pod.log("main").splitlines()]
    assert sorted(lines) == ["stderr F err", "stdout F other", "stdout F out"]
    assert (Path(_info(pod, container_id)["writableLayer"]) / "new").exists()
    until(lambda: _known_to_runc(pod.daemon) == [])


def test_exec_and_updates(pod: Pod) -> None:
    limits = cri.LinuxContainerResources(memory_limit_in_bytes=64 << 20)
    container_id = pod.run("sleep", "1000", name="main", linux=cri.LinuxContainerConfig(resources=limits))
    answer = pod.exec(container_id, "sh", "-c", "echo in; echo err >&2; exit 4")
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"in\n", b"err\n", 4)
    assert b"eth0" in pod.exec(container_id, "ip", "link").stdout
    with pytest.raises(grpc.RpcError) as raised:
        pod.exec(container_id, "sleep", "777", timeout=1)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    until(lambda: b"sleep 777" not in pod.exec(container_id, "ps", "-o", "args").stdout)
    with pytest.raises(grpc.RpcError) as raised:
        pod.exec(container_id, "nosuch")
    assert "executable file not found in $PATH" in str(raised.value.details())
    more = cri.LinuxContainerResources(memory_limit_in_bytes=96 << 20)
    pod.daemon.runtime.UpdateContainerResources(
        cri.UpdateContainerResourcesRequest(container_id=container_id, linux=more), timeout=CALL_SECONDS
    )
    path = _info(pod, container_id)["runtimeSpec"]["linux"]["cgroupsPath"]
    memory = Path(Cgroup.at(Hierarchies.detect(), path).directory("memory"))
    read = next(memory / name for name in ("memory.limit_in_bytes", "memory.max") if (memory / name).exists())
    assert read.read_text().strip() == str(96 << 20)
    stop = cri.StopContainerRequest(container_id=container_id, timeout=60)
    pod.daemon.runtime.StopContainer(stop, timeout=CALL_SECONDS)
    assert pod.daemon.status(container_id).exit_code == 143


def test_terminals_and_image_volumes(pod: Pod) -> None:
    image = cri.Mount(container_path="/image", image=cri.ImageSpec(image=BUSYBOX), readonly=True)
    script = "test -t 0 && echo terminal; ls /image/bin/busybox; touch /image/x; true"
    container_id = pod.run("sh", "-c", script, name="terminal", tty=True, mounts=[image])
    assert pod.daemon.wait_exited(container_id).exit_code == 0
    tty, found, refused = [line.split(" ", 3)[3] for line in pod.log("terminal").splitlines()]
    assert tty.strip() == "terminal"
    assert found.strip() == "/image/bin/busybox"
    assert "Read-only file system" in refused


def test_user_namespaces_are_crisps_own(daemon: Daemon) -> None:
    lines = [cri.IDMapping(container_id=0, host_id=1 << 20, length=65536)]
    users = cri.UserNamespace(mode=cri.POD, uids=lines, gids=lines)
    options = cri.NamespaceOption(userns_options=users)
    linux = cri.LinuxPodSandboxConfig(security_context=cri.LinuxSandboxSecurityContext(namespace_options=options))
    with pytest.raises(grpc.RpcError) as raised:
        _pod(daemon, "users", linux=linux)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "runtime_handler is 'runc'" in str(raised.value.details())


def test_what_runc_refuses_is_told(pod: Pod) -> None:
    container_id = pod.create("nosuch", name="main")
    with pytest.raises(grpc.RpcError) as raised:
        pod.daemon.runtime.StartContainer(
            cri.StartContainerRequest(container_id=container_id), timeout=CALL_SECONDS
        )
    assert 'exec: "nosuch": executable file not found in $PATH' in str(raised.value.details())
    status = pod.daemon.status(container_id)
    assert (status.state, status.reason) == (cri.CONTAINER_EXITED, "StartError")
    assert _known_to_runc(pod.daemon) == []


def test_a_removal_waits_for_the_runtimes_own(tmp_path: Path) -> None:
    """It needs the bundle, which goes after it."""
    slow = tmp_path / "slow-runc"
    slow.write_text(f'#!/bin/sh\ncase "$*" in *" delete "*) sleep 1;; esac\nexec {RUNC} "$@"\n')
    slow.chmod(0o755)
    with _running(tmp_path, str(slow)) as daemon:
        pod = _pod(daemon, "slow")
        container_id = pod.run("sleep", "100")
        daemon.runtime.StopContainer(cri.StopContainerRequest(container_id=container_id), timeout=CALL_SECONDS)
        daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container_id), timeout=CALL_SECONDS)
        assert _known_to_runc(daemon) == []
        pod.remove()


def test_a_removal_outlasts_a_runtime_whose_own_hangs(tmp_path: Path) -> None:
    hanging = tmp_path / "hanging-runc"
    hanging.write_text(f'#!/bin/sh\ncase "$*" in *" delete "*) exec sleep 3600;; esac\nexec {RUNC} "$@"\n')
    hanging.chmod(0o755)
    with _running(tmp_path, str(hanging)) as daemon:
        pod = _pod(daemon, "hangs")
        container_id = pod.run("sleep", "100")
        daemon.runtime.StopContainer(cri.StopContainerRequest(container_id=container_id), timeout=CALL_SECONDS)
        daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container_id), timeout=CALL_SECONDS)
        assert _known_to_runc(daemon) == []
        until(lambda: not (daemon.root / "containers" / container_id).exists())
        pod.remove()


def test_the_daemon_may_be_killed(tmp_path: Path) -> None:
    with _running(tmp_path) as daemon:
        pod = _pod(daemon, "survivor")
        container_id = pod.run("sh", "-c", "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done", name="main")
        daemon.kill9()
        daemon.start()
        counted = pod.log("main").count("\n")
        until(lambda: pod.log("main").count("\n") > counted)
        assert pod.exec(container_id, "echo", "again").stdout == b"again\n"
        pod.remove()
        assert _known_to_runc(daemon) == []


def test_a_shim_that_dies_takes_nothing_with_it(pod: Pod) -> None:
    container_id = pod.run("sh", "-c", "sleep 98644; exit 6", name="main")
    created = pod.create("sleep", "1000", name="created")
    shim = parent_of(_info(pod, container_id)["pid"])
    os.kill(shim, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{shim}").exists())  # a call that it still took would fail
    assert pod.exec(container_id, "echo", "here").stdout == b"here\n"
    subprocess.run(["pkill", "-f", "^sleep 98644"], check=True)
    assert pod.daemon.wait_exited(container_id).exit_code == 6
    pod.daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=created))


def test_a_container_as_kubelet_asks_for_it_goes_on_without_shim_and_daemon(tmp_path: Path) -> None:
    """With a PID namespace of its own: so youki can do this, too."""
    own = cri.LinuxContainerSecurityContext(namespace_options=cri.NamespaceOption(pid=cri.CONTAINER))
    limits = cri.LinuxContainerResources(memory_limit_in_bytes=64 << 20)
    linux = cri.LinuxContainerConfig(security_context=own, resources=limits)
    script = "trap 'exit 6' TERM; echo ready; while :; do sleep 0.1; done"
    with _running(tmp_path) as daemon:
        pod = _pod(daemon, "own")
        container_id = pod.run("sh", "-c", script, name="main", linux=linux)
        until(lambda: "ready" in pod.log("main"))
        answer = pod.exec(container_id, "sh", "-c", "echo in; exit 4")
        assert (answer.stdout, answer.exit_code) == (b"in\n", 4)
        kill_shim(pod.id)
        assert pod.exec(container_id, "echo", "here").stdout == b"here\n"
        daemon.kill9()
        daemon.start()
        assert pod.exec(container_id, "echo", "again").stdout == b"again\n"
        stop = cri.StopContainerRequest(container_id=container_id, timeout=20)
        daemon.runtime.StopContainer(stop, timeout=CALL_SECONDS)
        assert daemon.status(container_id).exit_code == 6
        pod.remove()
        assert _known_to_runc(daemon) == []


def test_a_shim_that_is_lost_with_its_keeper_leaves_nothing(tmp_path: Path) -> None:
    with _running(tmp_path) as daemon:
        pod = _pod(daemon, "orphan")
        container_id = pod.run("sleep", "1000", name="main")
        pid = _info(pod, container_id)["pid"]
        shim = parent_of(pid)
        for lost in (parent_of(shim), shim):
            os.kill(lost, signal.SIGKILL)
        assert daemon.wait_exited(container_id).exit_code != 0
        pod.remove()
        until(lambda: not Path(f"/proc/{pid}").exists())
        assert str(daemon.state) not in Path("/proc/self/mounts").read_text()
        until(lambda: _known_to_runc(daemon) == [])


@pytest.mark.trial("binary-values", "Values of the environment are bytes, and arrive as they are")
def test_what_another_runtime_cannot_read_does_not_keep_it_from_the_rest(pod: Pod) -> None:
    envs = [cri.KeyValue(key="BIN", value=b"a\xffb"), cri.KeyValue(key="TEXT", value="ä".encode())]
    container_id = pod.run("sleep", "100", envs=envs)
    shown = pod.exec(container_id, "sh", "-c", 'printf "%s %s" "$BIN" "$TEXT"').stdout.decode()
    assert shown == "a\ufffdb ä"


@pytest.mark.trial(
    "volume", "A volume of the image is there, with the image's content, owner and mode, and can be written to"
)
def test_an_images_volumes_with_another_runtime(daemon: Daemon, tmp_path: Path) -> None:
    base = layer(
        entry("bin/"), entry("bin/busybox", BUSYBOX_PROGRAM.read_bytes(), mode=0o755),
        entry("full/", uid=5, mode=0o750), entry("full/f", b"F\n", uid=6),
    )  # fmt: skip
    config = {"Env": ["PATH=/bin"], "Volumes": {"/full": {}, "/missing": {}}}
    daemon.import_image(write_layout(tmp_path / "l", {"localhost/volumes:1": build_image([base], config)}))
    script = (
        "busybox cat /full/f; busybox stat -c '%u %a' /full;"
        "echo x >/full/new && echo x >/missing/new && echo written"
    )
    security = cri.LinuxContainerSecurityContext(readonly_rootfs=True)
    pod = _pod(daemon, "volumes")
    try:
        container = pod.run(
            "busybox", "sh", "-c", script, image="localhost/volumes:1",
            linux=cri.LinuxContainerConfig(security_context=security),
        )  # fmt: skip
        daemon.wait_exited(container)
        assert [line.split(" ", 3)[3] for line in pod.log().splitlines()] == ["F", "5 750", "written"]
    finally:
        pod.remove()
