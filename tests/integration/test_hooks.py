"""OCI hooks of CRI's containers, from directories and from CDI devices."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from tests.daemon import CALL_SECONDS, Daemon, Pod
from tests.waiting import until

# Says in which namespaces it runs, whether /inside is there, and what state it was given.
TELLING = """\
#!/bin/sh
read state
echo "$1 $(readlink /proc/self/ns/mnt) $(test -e /inside && echo inside) $A $state" >>OUT
"""
STAGES = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")


class Hooks:
    """A directory of hooks, and what they said."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "hooks.d"
        self.directory.mkdir()
        self.program = directory / "hook"
        self._said = directory / "said"
        self.program.write_text(TELLING.replace("OUT", str(self._said)))
        self.program.chmod(0o755)

    def add(self, name: str, *stages: str, path: str = "", when: dict[str, Any] | None = None, **hook: Any) -> None:
        document = {
            "version": "1.0.0",
            "hook": {"path": path or str(self.program), "args": ["hook", name], "env": ["A=b", "PATH=/bin"], **hook},
            "when": when or {"always": True},
            "stages": stages,
        }
        (self.directory / f"{name}.json").write_text(json.dumps(document))

    def clear(self) -> None:
        for file in self.directory.iterdir():
            file.unlink()
        self._said.unlink(missing_ok=True)

    def said(self) -> list[tuple[str, str, str, dict[str, Any]]]:
        """Which, its mount namespace, whether it was inside, and the state."""
        if not self._said.exists():
            return []
        lines = [line.split(" ", 4) for line in self._said.read_text().splitlines()]
        assert all(line[3] == "b" for line in lines)
        return [(line[0], line[1], line[2], json.loads(line[4])) for line in lines]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def all_hooks(place: Path) -> Hooks:
    return Hooks(place)


@pytest.fixture(scope="module")
def daemon(place: Path, all_hooks: Hooks) -> Iterator[Daemon]:
    settings = place / "crisp.toml"
    settings.write_text(f'hooks_dirs = ["{all_hooks.directory}"]\ncdi_spec_dirs = ["{place}/cdi"]\n')
    (place / "cdi").mkdir()
    with Daemon.running(f"--config={settings}") as daemon:
        daemon.import_busybox()
        with daemon.pod("first"):
            pass  # makes the bridge, which stays as long as the daemon
        yield daemon


@pytest.fixture
def hooks(all_hooks: Hooks) -> Iterator[Hooks]:
    yield all_hooks
    all_hooks.clear()


@pytest.fixture
def pod(daemon: Daemon) -> Iterator[Pod]:
    with daemon.pod("hooked") as pod:
        yield pod


def _remove(pod: Pod, container_id: str) -> None:
    pod.daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container_id), timeout=CALL_SECONDS)


@pytest.mark.cri("CreateContainer", "annotations")
def test_hooks_run_in_their_order_and_places(hooks: Hooks, pod: Pod, tmp_path: Path) -> None:
    for stage in STAGES:
        hooks.add(stage, stage)
    # This one is a program of the container's, run by its init.
    hooks.add("startContainer", "startContainer", path="/bin/sh", args=["sh", "-c", "cat >/started"])
    hooks.add("others", "prestart", when={"annotations": {"^team$": "red"}})
    (tmp_path / "file").touch()
    mount = cri.Mount(host_path=str(tmp_path / "file"), container_path="/inside")
    container_id = pod.run(
        "sh", "-c", "cat /started; echo; sleep 100", name="main", mounts=[mount], annotations={"team": "blue"}
    )
    (host, *_) = {str(Path("/proc/self/ns/mnt").readlink())}
    said = hooks.said()
    assert [name for name, *_ in said] == ["prestart", "createRuntime", "createContainer", "poststart"]
    assert [namespace == host for _, namespace, *_ in said] == [True, True, False, True]
    assert not any(inside for _, _, inside, _ in said)  # createContainer's paths are the host's
    states = [state for *_, state in said]
    assert [state["status"] for state in states] == ["creating", "creating", "creating", "running"]
    info = pod.daemon.runtime.ContainerStatus(
        cri.ContainerStatusRequest(container_id=container_id, verbose=True), timeout=CALL_SECONDS
    ).info["info"]
    # createContainer's are told how the container sees it.
    prestart, create_runtime, poststart = (state["pid"] for name, *_, state in said if name != "createContainer")
    # In this pod's PID namespace are others: the program's process is born when all is done, by the one of before.
    assert (prestart, poststart) == (create_runtime, json.loads(info)["pid"])
    assert {state["id"] for state in states} == {container_id}
    assert states[0]["annotations"]["io.kubernetes.cri.container-name"] == "main"
    until(lambda: '"status"' in pod.log("main"))
    started = json.loads(pod.log("main").split(" ", 3)[3])
    assert (started["status"], started["id"]) == ("created", container_id)
    _remove(pod, container_id)
    until(lambda: len(hooks.said()) == 5)
    assert hooks.said()[4][0] == "poststop"
    assert hooks.said()[4][3]["status"] == "stopped"


@pytest.mark.parametrize("stage", ["prestart", "createRuntime", "createContainer", "startContainer", "poststart"])
def test_a_hook_that_fails_fails_the_start(hooks: Hooks, pod: Pod, stage: str) -> None:
    hooks.add("bad", stage, path="/bin/sh", args=["sh", "-c", "echo not today; exit 3"])
    hooks.add("last", "poststop")
    with pytest.raises(grpc.RpcError) as raised:
        pod.run("sleep", "100", name="main")
    assert f"error running {stage} hook #0: `/bin/sh`: exit status 3: not today" in str(raised.value.details())
    (container,) = pod.daemon.runtime.ListContainers(cri.ListContainersRequest(), timeout=CALL_SECONDS).containers
    assert container.state == cri.CONTAINER_EXITED
    assert pod.daemon.status(container.id).reason == "StartError"
    _remove(pod, container.id)
    until(lambda: [name for name, *_ in hooks.said()] == ["last"])


def test_a_hook_that_hangs_is_ended_and_keeps_nobody_waiting(hooks: Hooks, pod: Pod) -> None:
    hooks.add("slow", "createRuntime", path="/bin/sleep", args=["sleep", "1000"], timeout=8)
    container_id = pod.create("true", name="slow")
    start = pod.daemon.runtime.StartContainer.future(
        cri.StartContainerRequest(container_id=container_id), timeout=CALL_SECONDS
    )
    (hooks.directory / "slow.json").unlink()
    assert pod.daemon.wait_exited(pod.run("true", name="other")).exit_code == 0
    assert not start.done()
    with pytest.raises(grpc.RpcError) as raised:
        start.result()
    assert "no exit within 8 s" in str(raised.value.details())


def test_a_container_that_is_ended_during_its_hooks(hooks: Hooks, pod: Pod, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    script = f"touch {begun}; while [ -e {begun} ]; do sleep 0.05; done"
    hooks.add("waits", "createRuntime", path="/bin/sh", args=["sh", "-c", script])
    container_id = pod.create("sleep", "100", name="main")
    start = pod.daemon.runtime.StartContainer.future(
        cri.StartContainerRequest(container_id=container_id), timeout=CALL_SECONDS
    )
    until(begun.exists)
    stop = cri.StopPodSandboxRequest(pod_sandbox_id=pod.id)
    pod.daemon.runtime.StopPodSandbox(stop, timeout=CALL_SECONDS)
    assert "died before its program ran" in str(start.exception().details())
    begun.unlink()


def test_a_file_that_is_wrong_fails_the_creation(hooks: Hooks, pod: Pod) -> None:
    (hooks.directory / "wrong.json").write_text("{")
    with pytest.raises(grpc.RpcError) as raised:
        pod.create("true", name="main")
    assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert f"read hook {hooks.directory}/wrong.json: " in str(raised.value.details())
    (hooks.directory / "wrong.json").unlink()
    assert pod.daemon.wait_exited(pod.run("true", name="main")).exit_code == 0


@pytest.mark.cri("CreateContainer", "CDI_devices")
def test_hooks_of_cdi_devices(hooks: Hooks, pod: Pod, place: Path) -> None:
    hook = {
        "hookName": "createRuntime",
        "path": str(hooks.program),
        "args": ["hook", "cdi"],
        "env": ["A=b", "PATH=/bin"],
    }
    device = {"name": "0", "containerEdits": {"hooks": [hook]}}
    (place / "cdi/gpu.json").write_text(
        json.dumps({"cdiVersion": "0.7.0", "kind": "test.org/gpu", "devices": [device]})
    )
    hooks.add("file", "createRuntime")
    devices = [cri.CDIDevice(name="test.org/gpu=0")]
    assert pod.daemon.wait_exited(pod.run("true", name="main", CDI_devices=devices)).exit_code == 0
    assert [name for name, *_ in hooks.said()] == ["cdi", "file"]


_LINES = [cri.IDMapping(host_id=1_000_000, container_id=0, length=65536)]
_USERS = cri.NamespaceOption(
    pid=cri.CONTAINER, userns_options=cri.UserNamespace(mode=cri.POD, uids=_LINES, gids=_LINES)
)


@pytest.mark.trial("hooks-mount", "A hook that enters the container's mounts by its process id mounts in its rootfs.")
@pytest.mark.parametrize("options", [cri.NamespaceOption(pid=cri.CONTAINER), cri.NamespaceOption(), _USERS])
def test_a_hook_that_mounts_in_the_container(
    daemon: Daemon, hooks: Hooks, tmp_path: Path, options: cri.NamespaceOption
) -> None:
    """As GPU toolkits' prestart hooks do: by the process id, and by the rootfs that config.json names."""
    (tmp_path / "driver").mkdir()
    (tmp_path / "driver/file").write_text("of the driver")
    script = tmp_path / "mount"
    script.write_text(
        f"#!/usr/bin/python3\nimport json, subprocess, sys\n"
        f"state = json.load(sys.stdin)\n"
        f"root = state['bundle'] + '/' + json.load(open(state['bundle'] + '/config.json'))['root']['path']\n"
        f"enter = ['nsenter', '-m', '-t', str(state['pid']), 'mount', '--bind']\n"
        f"subprocess.run([*enter, '{tmp_path}/driver', root + '/mnt'], check=True)\n"
    )
    script.chmod(0o755)
    hooks.add("gpu", "prestart", path=str(script))
    config = daemon.sandbox_config("mounting")
    config.linux.security_context.namespace_options.CopyFrom(options)
    linux = cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(namespace_options=options))
    with daemon.pod(config=config) as pod:
        volume = cri.Mount(host_path=str(tmp_path), container_path="/mnt", readonly=True)
        container = pod.run("sleep", "100", name="main", linux=linux, mounts=[volume])
        assert pod.exec(container, "cat", "/mnt/file").stdout == b"of the driver"
        table = pod.exec(container, "cat", "/proc/self/mountinfo").stdout.decode()
        assert not any(line.split()[4].startswith(("/run", "/var")) for line in table.splitlines())


@pytest.mark.trial("hooks-named", "A hook that fails is named by its kind and its own number.")
@pytest.mark.trial("hooks-environment", "A hook without env has the runtime's, in the container its process's.")
def test_hooks_without_an_environment(hooks: Hooks, pod: Pod, tmp_path: Path) -> None:
    said = tmp_path / "said"
    stages = (("createRuntime", 0), ("createContainer", 0), ("poststop", 0), ("poststop", 3))
    for number, (stage, code) in enumerate(stages):
        script = f'echo "{stage} $PATH $ONE $(pwd)" >>{said}; exit {code}'
        hooks.add(f"h{number}", stage, path="/bin/sh", args=["sh", "-c", script], env=None)
    container = pod.run("sleep", "100", name="main", envs=[cri.KeyValue(key="ONE", value=b"two")])
    runtime, inside = (line.split(" ") for line in said.read_text().splitlines())
    assert ("/usr/sbin" in runtime[1].split(":"), runtime[2]) == (True, "")
    assert inside[2] == "two"
    assert inside[3].endswith(f"{container}/rootfs")
    _remove(pod, container)
    until(lambda: said.read_text().count("poststop") == 2)
