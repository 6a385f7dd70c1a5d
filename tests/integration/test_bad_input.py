"""What crispd says to requests, images, registries and plugins that are wrong: code, words, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from grpc import StatusCode
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cri.v1 import api_pb2 as cri
from cri.v1 import api_pb2_grpc
from tests import faulty_registry
from tests.daemon import BUSYBOX, Daemon, Pod
from tests.faulty_registry import FaultyRegistry
from tests.images import build_image, busybox_layer, digest, entry, layer, write_layout
from tests.waiting import until

_until = partial(until, pause=0.02)
_CALL = {"timeout": 120}
_PYTHON = re.compile(r"Traceback|\b[A-Z][a-z]\w*(Error|Exception)\b|\[Errno|<class|object at 0x")
_GHOST = "f" * 64
_names = itertools.count()


@pytest.fixture(scope="module")
def sandbox(daemon: Daemon) -> Iterator[Pod]:
    """A running pod with a running container `bystander`, which no test may harm."""
    with daemon.pod("bystander") as running:
        running.run("sleep", "100000", name="bystander")
        yield running


@pytest.fixture(autouse=True)
def unharmed(daemon: Daemon, sandbox: Pod) -> Iterator[None]:
    """After a test the daemon has what it had, serves, and has met nothing that it did not expect."""
    before = _holdings(daemon)
    yield
    with contextlib.suppress(AssertionError):  # files go after the answer to their removal
        _until(lambda: _holdings(daemon) == before)
    assert _holdings(daemon) == before
    (bystander,) = _containers(sandbox)
    assert sandbox.exec(bystander, "echo", "alive").stdout == b"alive\n"
    _assert_no_surprise(daemon)


@pytest.fixture
def pod(sandbox: Pod) -> Iterator[Pod]:
    """The module's pod; what a test creates in it is removed."""
    kept = _containers(sandbox)
    yield sandbox
    for container in set(_containers(sandbox)) - set(kept):
        sandbox.daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container), **_CALL)


def _containers(pod: Pod) -> list[str]:
    request = cri.ListContainersRequest(filter=cri.ContainerFilter(pod_sandbox_id=pod.id))
    return [item.id for item in pod.daemon.runtime.ListContainers(request, **_CALL).containers]


def _sandboxes(daemon: Daemon) -> list[str]:
    return [item.id for item in daemon.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), **_CALL).items]


def _holdings(daemon: Daemon) -> Counter[str]:
    places = ("state/sandboxes", "state/containers", "root/containers", "root/network", "root/image/tmp")
    files = [path for place in places if (daemon.directory / place).is_dir() for path in _entries(daemon, place)]
    containers = daemon.runtime.ListContainers(cri.ListContainersRequest(), **_CALL).containers
    return Counter([*_sandboxes(daemon), *(item.id for item in containers), *files])


def _entries(daemon: Daemon, place: str) -> list[str]:
    return [f"{place}/{path.name}" for path in (daemon.directory / place).iterdir()]


def _assert_no_surprise(daemon: Daemon) -> None:
    log = (daemon.directory / "crispd.log").read_text(errors="replace")
    assert "Traceback" not in log
    assert "failed by a bug in crisp" not in log


@contextmanager
def _refused(code: StatusCode, *words: str) -> Iterator[None]:
    """The block's call is answered with that code, by a message for people that has all the words."""
    with pytest.raises(grpc.RpcError) as raised:
        yield
    assert _complaint(raised.value, code, *words) == ""


def _complaint(error: grpc.RpcError, code: StatusCode, *words: str) -> str:
    """What is wrong with a refusal: its code, or its words; "" when nothing is."""
    details = error.details()
    if error.code() is not code or _PYTHON.search(details) or any(word not in details for word in words):
        return f"{error.code().name} {details!r}, not {code.name} {words}"
    return ""


def _assert_invalid(requests: dict[str, tuple[Callable[[], object], tuple[str, ...]]]) -> None:
    """Each call is refused as INVALID_ARGUMENT, with all its words."""
    wrong = {}
    for what, (call, words) in requests.items():
        try:
            call()
            wrong[what] = "was not refused"
        except grpc.RpcError as error:
            wrong[what] = _complaint(error, StatusCode.INVALID_ARGUMENT, *words)
    assert {what: complaint for what, complaint in wrong.items() if complaint} == {}


def _start(daemon: Daemon, container: str) -> None:
    daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=container), **_CALL)


def _run(daemon: Daemon, config: cri.PodSandboxConfig, timeout: float = 30, handler: str = "") -> str:
    request = cri.RunPodSandboxRequest(config=config, runtime_handler=handler)
    return str(daemon.runtime.RunPodSandbox(request, timeout=timeout).pod_sandbox_id)


# -- secrets -----------------------------------------------------------------------------------------------------------


def _leaks(daemon: Daemon, pod: Pod, bystander: str) -> dict[str, Callable[[], object]]:
    """Calls that fail, each with the word hunter2 where a Secret may be."""
    value = cri.KeyValue

    def started(name: str, *command: str, **fields: Any) -> None:
        _start(daemon, pod.create(*command, name=name, **fields))

    def executed(*command: str) -> None:
        answer = pod.exec(bystander, *command, timeout=1)
        assert b"hunter2" not in answer.stderr

    return {
        "too long a variable": lambda: pod.create("true", envs=[value(key="A", value=b"hunter2" * 40_000)]),
        "variables that are too long together": lambda: pod.create(
            "true", envs=[value(key=f"A{number}", value=b"hunter2" * 15_000) for number in range(60)]
        ),
        "a NUL in a variable": lambda: pod.create("true", envs=[value(key="A", value=b"hunter2\0")]),
        "a variable in the name": lambda: pod.create("true", envs=[value(key="A=hunter2", value=b"")]),
        "too long an argument": lambda: pod.create("sh", "-c", "hunter2" * 40_000),
        "too long a program": lambda: pod.create("hunter2" * 1000),
        "a NUL in an argument": lambda: pod.create("sh", "hunter2\0"),
        "a program that is not there": lambda: started(
            "missing", "/no/such", "hunter2", envs=[value(key="A", value=b"hunter2")]
        ),
        "a command that is not there": lambda: executed("/no/such", "hunter2"),
        "a command that does not end": lambda: executed("sh", "-c", "sleep 100", "hunter2"),
        "too long a command": lambda: executed("echo", "hunter2" * 40_000),
        "a NUL in a command": lambda: executed("echo", "hunter2\0"),
        "an annotation": lambda: pod.create("true", annotations={"k": "hunter2\0"}),
    }


@pytest.mark.trial("secrets-stay-unsaid", "no error, log line or trace repeats an environment's value or an argument")
def test_no_message_and_no_line_of_the_log_repeats_what_may_be_a_secret(daemon: Daemon, pod: Pod) -> None:
    (bystander,) = _containers(pod)
    said = {}
    for what, call in _leaks(daemon, pod, bystander).items():
        with pytest.raises(grpc.RpcError) as refusal:
            call()
        said[what] = refusal.value.details()
    messages = [daemon.status(container).message for container in _containers(pod)]
    assert {what: text for what, text in said.items() if "hunter2" in text} == {}
    assert "hunter2" not in "".join(messages)
    assert "hunter2" not in (daemon.directory / "crispd.log").read_text(errors="replace")
    for log in (daemon.state / "sandboxes").glob("*/shim.log"):
        assert "hunter2" not in log.read_text(errors="replace")


# -- ids and states ----------------------------------------------------------------------------------------------------


def _calls_by_id(daemon: Daemon, id: str) -> dict[str, Callable[[], Any]]:
    """Every call that takes the id of a sandbox or container and must find it."""
    runtime = daemon.runtime
    config = cri.ContainerConfig(metadata=cri.ContainerMetadata(name="x"), image=cri.ImageSpec(image=BUSYBOX))
    requests = {
        "PodSandboxStatus": cri.PodSandboxStatusRequest(pod_sandbox_id=id),
        "CreateContainer": cri.CreateContainerRequest(pod_sandbox_id=id, config=config),
        "StartContainer": cri.StartContainerRequest(container_id=id),
        "ContainerStatus": cri.ContainerStatusRequest(container_id=id),
        "ExecSync": cri.ExecSyncRequest(container_id=id, cmd=["true"]),
        "ReopenContainerLog": cri.ReopenContainerLogRequest(container_id=id),
    }
    return {name: lambda n=name, r=request: getattr(runtime, n)(r, **_CALL) for name, request in requests.items()}


def _endings_by_id(daemon: Daemon, id: str) -> dict[str, Callable[[], Any]]:
    """The calls that succeed for what is not there."""
    requests = {
        "StopPodSandbox": cri.StopPodSandboxRequest(pod_sandbox_id=id),
        "RemovePodSandbox": cri.RemovePodSandboxRequest(pod_sandbox_id=id),
        "StopContainer": cri.StopContainerRequest(container_id=id),
        "RemoveContainer": cri.RemoveContainerRequest(container_id=id),
    }
    runtime = daemon.runtime
    return {name: lambda n=name, r=request: getattr(runtime, n)(r, **_CALL) for name, request in requests.items()}


def test_ids_that_nothing_has(daemon: Daemon) -> None:
    for call in _calls_by_id(daemon, _GHOST).values():
        with _refused(StatusCode.NOT_FOUND, _GHOST):
            call()
    for call in _endings_by_id(daemon, _GHOST).values():
        call()
    for id, words in (("", "is required"), ("a\0b", "NUL")):
        for call in (_calls_by_id(daemon, id) | _endings_by_id(daemon, id)).values():
            with _refused(StatusCode.INVALID_ARGUMENT, "_id", words):
                call()
    with _refused(StatusCode.NOT_FOUND, "pod sandbox", "... ", "not found"):
        _calls_by_id(daemon, "e" * 100_000)["PodSandboxStatus"]()


def test_the_beginning_of_several_ids(pod: Pod) -> None:
    created = [pod.create("true", name=f"many{number}") for number in range(17)]
    digit = Counter(id[0] for id in created).most_common(1)[0][0]
    calls = _calls_by_id(pod.daemon, digit) | _endings_by_id(pod.daemon, digit)
    for name in ("StartContainer", "ContainerStatus", "ExecSync", "StopContainer", "RemoveContainer"):
        with _refused(StatusCode.INVALID_ARGUMENT, f"'{digit}'", "ids"):
            calls[name]()
    assert set(created) < set(_containers(pod))


def test_wrong_states(pod: Pod) -> None:
    daemon = pod.daemon
    created = pod.create("sleep", "100", name="created")
    calls = _calls_by_id(daemon, created)
    for name in ("ExecSync", "ReopenContainerLog"):
        with _refused(StatusCode.FAILED_PRECONDITION, created, "created"):
            calls[name]()
    _start(daemon, created)
    with _refused(StatusCode.FAILED_PRECONDITION, created, "running"):
        _start(daemon, created)
    daemon.runtime.StopContainer(cri.StopContainerRequest(container_id=created), **_CALL)
    for name in ("StartContainer", "ExecSync", "ReopenContainerLog"):
        with _refused(StatusCode.FAILED_PRECONDITION, created, "exited"):
            calls[name]()


def test_a_stopped_pod_takes_no_container_and_starts_none(daemon: Daemon) -> None:
    with daemon.pod("stopped") as pod:
        created = pod.create("true")
        daemon.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod.id), **_CALL)
        with _refused(StatusCode.FAILED_PRECONDITION, pod.id, "not ready"):
            pod.create("true", name="late")
        with _refused(StatusCode.FAILED_PRECONDITION, "not"):
            _start(daemon, created)


# -- containers --------------------------------------------------------------------------------------------------------


def _linux(**security: Any) -> cri.LinuxContainerConfig:
    return cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(**security))


def _limits(**limits: Any) -> cri.LinuxContainerConfig:
    return cri.LinuxContainerConfig(resources=cri.LinuxContainerResources(**limits))


def _mount(container_path: str = "/c", host_path: str = "/tmp", **fields: Any) -> list[cri.Mount]:
    return [cri.Mount(container_path=container_path, host_path=host_path, **fields)]


def _device(host_path: str, container_path: str = "/dev/x", permissions: str = "r") -> list[cri.Device]:
    return [cri.Device(host_path=host_path, container_path=container_path, permissions=permissions)]


def _profile(reference: str) -> cri.SecurityProfile:
    return cri.SecurityProfile(profile_type=cri.SecurityProfile.Localhost, localhost_ref=reference)


_LONG = "/" + "/".join(["x" * 200] * 21)
_INVALID_CONTAINERS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "no metadata": ({"metadata": None}, ("config.metadata",)),
    "no name": ({"metadata": cri.ContainerMetadata()}, ("config.metadata.name",)),
    "a long name": ({"metadata": cri.ContainerMetadata(name="n" * 5000)}, ("config.metadata.name", "253")),
    "a NUL in the name": ({"metadata": cri.ContainerMetadata(name="a\0b")}, ("config.metadata.name", "NUL")),
    "no image": ({"image": None}, ("config.image.image",)),
    "a NUL in the command": ({"command": ["a\0b"]}, ("config.command[0]", "NUL")),
    "a program without end": ({"command": ["p" * 70_000]}, ("config.command", "4095")),
    "an argument without end": ({"args": ["p" * 200_000]}, ("config.command, args", "200000")),
    "arguments without end": ({"args": ["p" * 100_000] * 70}, ("config.command, args", "bytes, more than")),
    "a value without end": ({"envs": [cri.KeyValue(key="A", value=b"v" * 200_000)]}, ("config.envs", "200002")),
    "a NUL in a value": ({"envs": [cri.KeyValue(key="A", value=b"\xff\0")]}, ("config.envs[0].value", "NUL")),
    "a name with =": ({"envs": [cri.KeyValue(key="A=B")]}, ("config.envs[0].key", "'A'")),
    "a relative directory": ({"working_dir": "here"}, ("config.working_dir", "'here'")),
    "a log outside": ({"log_path": "../x"}, ("config.log_path", "'../x'")),
    "an absolute log": ({"log_path": "/x"}, ("config.log_path", "'/x'")),
    "a log that is a directory": ({"log_path": "x/."}, ("config.log_path", "'x/.'")),
    "a long name of a log": ({"log_path": "x" * 256}, ("config.log_path", "255")),
    "an unknown signal": ({"stop_signal": 999}, ("config.stop_signal", "999")),
    "an empty mount": ({"mounts": _mount("")}, ("config.mounts[0].container_path",)),
    "a relative mount": ({"mounts": _mount("c")}, ("config.mounts[0].container_path", "'c'")),
    "a mount outside": ({"mounts": _mount("/a/../../b")}, ("config.mounts[0].container_path", "'/a/../../b'")),
    "a mount on the root": ({"mounts": _mount("/./")}, ("config.mounts[0].container_path", "'/./'")),
    "a mount too deep": ({"mounts": _mount(_LONG)}, ("config.mounts[0].container_path", "4095")),
    "a mount of nothing": ({"mounts": _mount("/c", "")}, ("config.mounts[0].host_path",)),
    "a relative source": ({"mounts": _mount("/c", "h")}, ("config.mounts[0].host_path", "'h'")),
    "a NUL in a source": ({"mounts": _mount("/c", "/h\0")}, ("config.mounts[0].host_path", "NUL")),
    "a source below a file": ({"mounts": _mount("/c", "/dev/null/x/y")}, ("config.mounts[0].host_path", "/dev/null/x")),
    "a source in /proc": ({"mounts": _mount("/c", "/proc/nothing")}, ("config.mounts[0].host_path", "/proc/nothing")),
    "a propagation": ({"mounts": _mount(propagation=7)}, ("config.mounts[0].propagation", "7")),
    "negative memory": ({"linux": _limits(memory_limit_in_bytes=-2)}, ("memory_limit_in_bytes", "-2")),
    "a byte of memory": ({"linux": _limits(memory_limit_in_bytes=1)}, ("memory_limit_in_bytes", "1 is less than")),
    "swap alone": ({"linux": _limits(memory_swap_limit_in_bytes=1 << 30)}, ("memory_swap_limit_in_bytes",)),
    "negative shares": ({"linux": _limits(cpu_shares=-1)}, ("cpu_shares", "-1")),
    "a tiny quota": ({"linux": _limits(cpu_quota=1)}, ("cpu_quota", "1")),
    "a tiny period": ({"linux": _limits(cpu_period=1)}, ("cpu_period", "1")),
    "a CPU that is not there": ({"linux": _limits(cpuset_cpus="99999")}, ("cpuset_cpus", "'99999'")),
    "CPUs backwards": ({"linux": _limits(cpuset_cpus="1-0")}, ("cpuset_cpus", "'1-0'")),
    "no CPUs": ({"linux": _limits(cpuset_cpus="all")}, ("cpuset_cpus", "'all'")),
    "a node that is not there": ({"linux": _limits(cpuset_mems="63")}, ("cpuset_mems", "'63'")),
    "no size of page": (
        {"linux": _limits(hugepage_limits=[cri.HugepageLimit(page_size="big", limit=1)])},
        ("hugepage_limits[0].page_size", "'big'"),
    ),
    "an unknown size of page": (
        {"linux": _limits(hugepage_limits=[cri.HugepageLimit(page_size="3MB", limit=1)])},
        ("hugepage_limits", "'3MB'"),
    ),
    "an OOM score": ({"linux": _limits(oom_score_adj=1001)}, ("oom_score_adj", "1001")),
    "a cgroup file elsewhere": ({"linux": _limits(unified={"../x": "1"})}, ("unified", "'../x'")),
    "a capability": (
        {"linux": _linux(capabilities=cri.Capability(add_capabilities=["CAP_FLY"]))}, ("add_capabilities", "'CAP_FLY'"),
    ),
    "a device that is not there": ({"devices": _device("/dev/none")}, ("config.devices[0].host_path", "/dev/none")),
    "a device that is none": ({"devices": _device("/etc/passwd")}, ("config.devices[0].host_path", "/etc/passwd")),
    "a device at the root": ({"devices": _device("/dev/null", "/")}, ("config.devices[0].container_path", "'/'")),
    "permissions": ({"devices": _device("/dev/null", permissions="z")}, ("config.devices[0].permissions", "'z'")),
    "a negative user": ({"linux": _linux(run_as_user=cri.Int64Value(value=-1))}, ("run_as_user", "-1")),
    "a group alone": ({"linux": _linux(run_as_group=cri.Int64Value(value=5))}, ("run_as_group", "5")),
    "a long user": ({"linux": _linux(run_as_username="u" * 300)}, ("run_as_username", "256")),
    "a user that is not there": ({"linux": _linux(run_as_username="ghost")}, (BUSYBOX, "`ghost`")),
    "a privileged one": ({"linux": _linux(privileged=True)}, ("privileged",)),
    "a profile that is not there": ({"linux": _linux(seccomp=_profile("/no/file"))}, ("seccomp", "'/no/file'")),
    "a profile that is a directory": ({"linux": _linux(seccomp=_profile("/etc"))}, ("seccomp", "'/etc'")),
    "a profile that is none": ({"linux": _linux(seccomp=_profile("/etc/passwd"))}, ("seccomp", "not JSON")),
    "a target that is not there": (
        {"linux": _linux(namespace_options=cri.NamespaceOption(pid=cri.TARGET, target_id=_GHOST))},
        ("target_id", _GHOST),
    ),
    "the host's processes": (
        {"linux": _linux(namespace_options=cri.NamespaceOption(pid=cri.NODE))}, ("namespace_options.pid",),
    ),
}  # fmt: skip


@pytest.mark.cri("CreateContainer", "refusals")
def test_containers_that_cannot_be(pod: Pod) -> None:
    valid = {"metadata": cri.ContainerMetadata(name="bad"), "image": cri.ImageSpec(image=BUSYBOX), "command": ["true"]}

    def create(fields: dict[str, Any]) -> None:
        config = cri.ContainerConfig(**(valid | fields))
        request = cri.CreateContainerRequest(pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)
        pod.daemon.runtime.CreateContainer(request, **_CALL)

    _assert_invalid({what: (partial(create, fields), words) for what, (fields, words) in _INVALID_CONTAINERS.items()})


@pytest.mark.skipif(
    Path("/sys/module/apparmor/parameters/enabled").exists(), reason="AppArmor may be on: profiles can be asked for"
)
@pytest.mark.cri("CreateContainer", "security_context.apparmor")
def test_apparmor_where_there_is_none(pod: Pod) -> None:
    with _refused(StatusCode.INVALID_ARGUMENT, "apparmor", "'mine'", "not enabled"):
        pod.create("true", name="confined", linux=_linux(apparmor=_profile("localhost/mine")))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"User": "ghost", "Cmd": ["sh"]}, ("`ghost`", "/etc/passwd")),
        ({"User": "root:ghosts", "Cmd": ["sh"]}, ("`ghosts`", "/etc/group")),
        ({"User": "99999999999", "Cmd": ["sh"]}, ("`99999999999`",)),
        ({"Env": ["A=B"]}, ("config.command", "entrypoint")),
        ({"Cmd": ["x" * 70_000]}, ("cmd", "4095")),
        ({"Cmd": ["sh"], "WorkingDir": "/" + "x" * 70_000}, ("working directory",)),
        ({"Cmd": ["sh"], "StopSignal": "SIGNOPE"}, ("StopSignal", "SIGNOPE")),
    ],
    ids=["user", "group", "id", "command", "program", "directory", "signal"],
)
def test_an_image_that_cannot_run(config: dict[str, Any], words: tuple[str, ...], pod: Pod, tmp_path: Path) -> None:
    name = f"localhost/odd{next(_names)}:1"
    pod.daemon.import_image(write_layout(tmp_path / "image", {name: build_image([busybox_layer()], config)}))
    with _refused(StatusCode.INVALID_ARGUMENT, name, *words):
        pod.create(name="odd", image=name)
    pod.daemon.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=name)), **_CALL)


def test_a_log_that_cannot_be_written(daemon: Daemon, tmp_path: Path) -> None:
    with _tmpfs(tmp_path, "ro"):
        config = daemon.sandbox_config("readonly")
        config.log_directory = f"{tmp_path}/pod"
        with _refused(StatusCode.INVALID_ARGUMENT, "config.log_directory", config.log_directory, "Read-only"):
            _run(daemon, config)
        config.log_directory = str(tmp_path)
        with daemon.pod(config=config) as pod:
            container = pod.create("true")
            with _refused(StatusCode.INTERNAL, container, f"{tmp_path}/main.log", "Read-only"):
                _start(daemon, container)
            status = daemon.status(container)
            assert (status.state, status.reason, status.exit_code) == (cri.CONTAINER_EXITED, "StartError", 128)
            assert f"{tmp_path}/main.log" in status.message


@pytest.mark.cri("RunPodSandbox", "log_directory")
def test_missing_directories_of_logs_are_made_and_a_pipe_stops_nobody(daemon: Daemon, tmp_path: Path) -> None:
    config = daemon.sandbox_config("logs")
    config.log_directory = str(tmp_path / "a/b")
    with daemon.pod(config=config) as pod:
        shutil.rmtree(tmp_path / "a")
        pod.run("true")
        assert (tmp_path / "a/b/main.log").exists()
        os.mkfifo(tmp_path / "a/b/pipe.log")
        with _refused(StatusCode.INTERNAL, "pipe.log"):
            pod.run("true", name="pipe")
        running = pod.run("sleep", "100", name="gone")
        shutil.rmtree(tmp_path / "a")
        with _refused(StatusCode.INTERNAL, running, f"{tmp_path}/a/b/gone.log", "No such file"):
            _calls_by_id(daemon, running)["ReopenContainerLog"]()


def test_a_container_whose_files_are_deeper_than_pythons_stack_can_be_removed(pod: Pod) -> None:
    container = pod.run("mkdir", "-p", "/tmp/" + "d/" * 1100, name="deep")
    assert pod.daemon.wait_exited(container).exit_code == 0
    pod.daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container), **_CALL)


def test_an_exec_that_cannot_be(pod: Pod) -> None:
    container = pod.run("sleep", "100", name="target")
    for command, words in (
        ([], ("cmd",)),
        (["a\0b"], ("cmd[0]", "NUL")),
        (["p" * 70_000], ("cmd", "4095")),
        (["echo", "\1" * 13_000_000], ("cmd", "13000000")),
    ):
        with _refused(StatusCode.INVALID_ARGUMENT, *words):
            pod.exec(container, *command)
    with _refused(StatusCode.INVALID_ARGUMENT, "timeout", "-1"):
        pod.exec(container, "true", timeout=-1)
    assert pod.exec(container, "true").exit_code == 0


# -- pods --------------------------------------------------------------------------------------------------------------


def _metadata(**fields: Any) -> dict[str, Any]:
    return {"metadata": cri.PodSandboxMetadata(**({"name": "bad", "uid": "u", "namespace": "n"} | fields))}


def _pod_linux(**fields: Any) -> dict[str, Any]:
    return {"linux": cri.LinuxPodSandboxConfig(**fields)}


_HOST_NETWORK = cri.LinuxSandboxSecurityContext(namespace_options=cri.NamespaceOption(network=cri.NODE))
_INVALID_PODS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "no metadata": ({}, ("config.metadata",)),
    "no name": (_metadata(name=""), ("config.metadata.name",)),
    "no uid": (_metadata(uid=""), ("config.metadata.uid",)),
    "no namespace": (_metadata(namespace=""), ("config.metadata.namespace",)),
    "a long name": (_metadata(name="n" * 5000), ("config.metadata.name", "253")),
    "a name of several lines": (_metadata(name="a\nb"), ("K8S_POD_NAME",)),
    "a host name": (_metadata() | {"hostname": "-x-"}, ("config.hostname", "'-x-'")),
    "a long host name": (_metadata() | {"hostname": "x" * 65}, ("config.hostname", "64")),
    "relative logs": (_metadata() | {"log_directory": "logs"}, ("config.log_directory", "'logs'")),
    "logs outside": (_metadata() | {"log_directory": "/a/../b"}, ("config.log_directory", "'/a/../b'")),
    "logs below a file": (_metadata() | {"log_directory": "/dev/null/x"}, ("config.log_directory", "'/dev/null/x'")),
    "logs in /proc": (_metadata() | {"log_directory": "/proc/nothing"}, ("config.log_directory", "'/proc/nothing'")),
    "two servers in one": (
        _metadata() | {"dns_config": cri.DNSConfig(servers=["1.1.1.1\nnameserver 2.2.2.2"])},
        ("config.dns_config.servers[0]",),
    ),
    "a port": (
        _metadata() | {"port_mappings": [cri.PortMapping(container_port=65536)]},
        ("config.port_mappings[0].container_port", "65536"),
    ),
    "a long label": (_metadata() | {"labels": {"k": "v" * 5000}}, ("config.labels['k']", "4096")),
    "a label without key": (_metadata() | {"labels": {"": "v"}}, ("config.labels key",)),
    "a relative cgroup": (_metadata() | _pod_linux(cgroup_parent="x"), ("cgroup_parent", "'x'")),
    "a cgroup outside": (_metadata() | _pod_linux(cgroup_parent="/../x"), ("cgroup_parent", "'/../x'")),
    "a slice": (_metadata() | _pod_linux(cgroup_parent="/pods.slice"), ("cgroup_parent", "cgroupDriver")),
    "the host's sysctl": (_metadata() | _pod_linux(sysctls={"vm.swappiness": "1"}), ("sysctls", "vm.swappiness")),
    "the host network's sysctl": (
        _metadata() | _pod_linux(sysctls={"net.ipv4.ip_forward": "1"}, security_context=_HOST_NETWORK),
        ("sysctls", "net.ipv4.ip_forward", "host"),
    ),
    "an unknown sysctl": (_metadata() | _pod_linux(sysctls={"net.nope": "1"}), ("config.linux.sysctls", "net/nope")),
    "a sysctl's value": (
        _metadata() | _pod_linux(sysctls={"net.ipv4.ip_forward": "maybe"}), ("config.linux.sysctls", "maybe"),
    ),
    "a sysctl's value without end": (
        _metadata() | _pod_linux(sysctls={"net.ipv4.ip_forward": "\1" * 13_000_000}), ("sysctls", "4095"),
    ),
    "a namespace mode": (
        _metadata() | _pod_linux(security_context=cri.LinuxSandboxSecurityContext(
            namespace_options=cri.NamespaceOption(network=cri.TARGET))),
        ("namespace_options.network", "TARGET"),
    ),
    "bandwidth": (
        _metadata() | {"annotations": {"kubernetes.io/ingress-bandwidth": "fast"}}, ("ingress-bandwidth", '"fast"'),
    ),
}  # fmt: skip


@pytest.mark.cri("RunPodSandbox", "refusals")
def test_pods_that_cannot_be(daemon: Daemon) -> None:
    _assert_invalid({
        what: (partial(_run, daemon, cri.PodSandboxConfig(**fields)), words)
        for what, (fields, words) in _INVALID_PODS.items()
    })  # fmt: skip
    with _refused(StatusCode.INVALID_ARGUMENT, "runtime_handler", "'kata'"):
        _run(daemon, daemon.sandbox_config("handler"), handler="kata")


@pytest.mark.cri("CreateContainer", "annotations")
@pytest.mark.cri("PodSandboxStatus")
def test_much_that_is_allowed(daemon: Daemon) -> None:
    """Thousands of labels and annotations, names in any script."""
    config = daemon.sandbox_config(
        "much",
        labels={f"label-{number}": "v" * 100 for number in range(3000)},
        annotations={f"annotation-{number}": "v" * 1000 for number in range(3000)},
    )
    config.metadata.name = "прослойка-🚀-" + "ü" * 240
    with daemon.pod(config=config) as pod:
        container = pod.run("sleep", "100", name="контейнер", annotations=dict(config.annotations))
        assert daemon.status(container).metadata.name == "контейнер"
        assert len(daemon.status(container).annotations) == 3000
        assert pod.status().labels == config.labels
        assert pod.status().metadata == config.metadata


# -- images and registries ---------------------------------------------------------------------------------------------


def _pull(daemon: Daemon, name: str, **auth: str) -> str:
    request = cri.PullImageRequest(image=cri.ImageSpec(image=name), auth=cri.AuthConfig(**auth) if auth else None)
    return str(daemon.images.PullImage(request, **_CALL).image_ref)


def test_references_that_are_none(daemon: Daemon) -> None:
    names = ("a b", "UPPER", "x@sha256:12", "x:", "//x", "x" * 5000, "host:port/x", "x:y:z", "x\0")
    _assert_invalid({name[:20]: (partial(_pull, daemon, name), (repr(name)[:20].rstrip("'"),)) for name in names})
    _assert_invalid({"no name": (partial(_pull, daemon, ""), ("image.image",))})


def test_an_image_that_is_not_here(daemon: Daemon, pod: Pod) -> None:
    absent = cri.ImageSpec(image="localhost/absent:1")
    with _refused(StatusCode.NOT_FOUND, "'localhost/absent:1'"):
        pod.create("true", name="absent", image=absent.image)
    assert not daemon.images.ImageStatus(cri.ImageStatusRequest(image=absent), **_CALL).HasField("image")
    daemon.images.RemoveImage(cri.RemoveImageRequest(image=absent), **_CALL)


@pytest.mark.cri("PullImage", "image")
def test_a_registry_that_is_not_there(daemon: Daemon) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        name = f"127.0.0.1:{free.getsockname()[1]}/x:1"
        with _refused(StatusCode.UNKNOWN, "RegistryUnavailable: ", name.removesuffix(":1"), "Connection refused"):
            _pull(daemon, name)


async def test_registries_that_misbehave(daemon: Daemon) -> None:
    big = layer(entry("file", os.urandom(300_000)))
    good, other = build_image([busybox_layer(), big]), build_image([layer(entry("other", b"o"))])
    lying = build_image([layer(entry("file", b"content"))], diff_ids=[digest(b"something else")])
    registry = FaultyRegistry(images={"good:1": good, "lying:1": lying, "other:1": other})
    blob = registry.blob_path("good", list(good.blobs)[2])
    manifest, by_digest = "/v2/good/manifests/1", f"/v2/good/manifests/{good.digest}"
    wrong = faulty_registry.status

    async def instead(request: Any, content: bytes) -> Any:
        return faulty_registry.web.Response(body=other.manifest, content_type=other.media_type)

    async def flipped(request: Any, content: bytes) -> Any:
        return faulty_registry.web.Response(body=content[:-1] + bytes([content[-1] ^ 1]))

    async def cut(request: Any, content: bytes) -> Any:
        return faulty_registry.web.Response(body=content[:-10])

    async def garbage(request: Any, content: bytes) -> Any:
        return faulty_registry.web.Response(body=b"<html>\xff\0", content_type="text/html")

    kept = _images(daemon)
    async with registry.running():
        cases = [
            ("absent:1", "", [], StatusCode.NOT_FOUND, ("absent", "404")),
            ("good:1", manifest, [wrong(404)], StatusCode.NOT_FOUND, ("404",)),
            ("good:1", manifest, [wrong(401)] * 2, StatusCode.UNAUTHENTICATED, ("authentication",)),
            ("good:1", manifest, [wrong(403)], StatusCode.UNAUTHENTICATED, ("403",)),
            ("good:1", manifest, [wrong(500)] * 3, StatusCode.UNKNOWN, ("RegistryUnavailable: ", "500")),
            ("good:1", manifest, [garbage], StatusCode.FAILED_PRECONDITION, ("manifest",)),
            (f"good@{good.digest}", by_digest, [instead], StatusCode.FAILED_PRECONDITION, (good.digest, other.digest)),
            ("good:1", blob, [flipped], StatusCode.FAILED_PRECONDITION, (list(good.blobs)[2],)),
            ("good:1", blob, [cut] * 3, StatusCode.FAILED_PRECONDITION, (list(good.blobs)[2],)),
            ("good:1", blob, [wrong(404)], StatusCode.NOT_FOUND, (list(good.blobs)[2], "404")),
            ("lying:1", "", [], StatusCode.FAILED_PRECONDITION, (digest(b"something else"),)),
        ]
        for name, path, faults, code, words in cases:
            registry.faults = {path: list(faults)}
            with _refused(code, *words):
                await asyncio.to_thread(_pull, daemon, f"{registry.host}/{name}")
            assert _images(daemon) == kept
        registry.faults = {}
        with _refused(StatusCode.UNAUTHENTICATED):
            await asyncio.to_thread(_pull, daemon, f"{registry.host}/good:1", auth="%%%")
        assert await asyncio.to_thread(_pull, daemon, f"{registry.host}/good:1") == good.id
    daemon.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=good.id)), **_CALL)


def _images(daemon: Daemon) -> list[str]:
    return [image.id for image in daemon.images.ListImages(cri.ListImagesRequest(), **_CALL).images]


@contextmanager
def _tmpfs(directory: Path, options: str) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", directory], check=True)


async def test_a_full_disk(tmp_path: Path) -> None:
    with _tmpfs(tmp_path, "size=12m"), Daemon.running(f"--root={tmp_path}") as daemon:
        small = build_image([busybox_layer()], {"Cmd": ["true"]})
        large = build_image([busybox_layer(), layer(entry("large", os.urandom(20_000_000)))])
        async with FaultyRegistry(images={"small:1": small, "large:1": large}).running() as registry:
            free = os.statvfs(tmp_path).f_bfree
            with _refused(StatusCode.RESOURCE_EXHAUSTED, str(tmp_path)):
                await asyncio.to_thread(_pull, daemon, f"{registry.host}/large:1")
            assert os.statvfs(tmp_path).f_bfree >= free - 64
            await asyncio.to_thread(_pull, daemon, f"{registry.host}/small:1")
            image = f"{registry.host}/small:1"
        (tmp_path / "ballast").write_bytes(bytes(os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_bsize))
        config = daemon.sandbox_config("full", annotations={"large": "x" * 1_000_000})
        with _refused(StatusCode.INTERNAL, "full"):
            _run(daemon, config)
        assert _sandboxes(daemon) == []
        assert list((daemon.state / "sandboxes").iterdir()) == []
        (tmp_path / "ballast").unlink()
        with daemon.pod(config=config) as pod:
            assert daemon.wait_exited(pod.run(image=image)).exit_code == 0
        _assert_no_surprise(daemon)


# -- plugins -----------------------------------------------------------------------------------------------------------

_GOOD_PLUGIN = """#!/bin/sh
cat >/dev/null
echo '{"cniVersion":"1.0.0","ips":[{"address":"10.9.9.9/24"}]}'
"""


@pytest.fixture(scope="module")
def plugin(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Path]]:
    """A daemon whose network has one plugin, the script at the path."""
    directory = tmp_path_factory.mktemp("plugins")
    with Daemon.running(f"--cni-bin-dir={directory}") as running:
        (running.cni_conf_dir / "10-test.conflist").write_text(
            '{"cniVersion":"1.0.0","name":"odd","plugins":[{"type":"odd"}]}'
        )
        _until(lambda: 'find plugin' in str(running.runtime.Status(cri.StatusRequest(), **_CALL).status))
        _write_plugin(directory / "odd", _GOOD_PLUGIN)
        yield running, directory / "odd"


def _write_plugin(path: Path, text: str) -> None:
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").chmod(0o755)
    path.with_suffix(".new").rename(path)


def _assert_as_good_as_new(daemon: Daemon, path: Path, config: cri.PodSandboxConfig) -> None:
    """Nothing is held, and the same request succeeds once the plugin works."""
    assert _holdings(daemon) == Counter()
    _write_plugin(path, _GOOD_PLUGIN)
    with daemon.pod(config=config) as pod:
        assert pod.status().network.ip == "10.9.9.9"
    _until(lambda: _holdings(daemon) == Counter())
    _assert_no_surprise(daemon)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo '{\"code\": 7, \"msg\": \"no cheese\"}'; exit 1", ("no cheese", "7")),
        ("echo garbage; printf '\\377\\0'", ("invalid result",)),
        ("echo '[]'", ("invalid result",)),
        ("echo '{\"cniVersion\":\"1.0.0\",\"ips\":[{\"address\":\"here\"}]}'", ("here",)),
        ("yes", ("1048576",)),
        ("echo oh no >&2; exit 3", ("exit status 3", "oh no")),
        ("kill -9 $$", ("signal 9",)),
        ("true", ("invalid result",)),
    ],
    ids=["error", "garbage", "list", "address", "endless", "crash", "killed", "silent"],
)
def test_a_plugin_that_fails(script: str, words: tuple[str, ...], plugin: tuple[Daemon, Path]) -> None:
    daemon, path = plugin
    config = daemon.sandbox_config("unlucky")
    _write_plugin(path, f"#!/bin/sh\ncat >/dev/null\n[ $CNI_COMMAND = DEL ] && exit 0\n{script}\n")
    with _refused(StatusCode.INTERNAL, '"odd"', "ADD", *words):
        _run(daemon, config)
    _assert_as_good_as_new(daemon, path, config)


def test_a_plugin_that_is_not_there(plugin: tuple[Daemon, Path]) -> None:
    daemon, path = plugin
    path.unlink()
    config = daemon.sandbox_config("missing")
    with _refused(StatusCode.UNAVAILABLE, '"odd"', str(path.parent)):
        _run(daemon, config)
    _assert_as_good_as_new(daemon, path, config)


def test_a_plugin_that_is_no_program(plugin: tuple[Daemon, Path]) -> None:
    daemon, path = plugin
    config = daemon.sandbox_config("noexec")
    _write_plugin(path, "\0\1\2")
    with _refused(StatusCode.INTERNAL, '"odd"', "Exec format error"):
        _run(daemon, config)
    # What no plugin takes back stays, not ready, so that Stop is tried again.
    (held,) = _sandboxes(daemon)
    with _refused(StatusCode.INTERNAL, '"odd"', "DEL"):
        _endings_by_id(daemon, held)["StopPodSandbox"]()
    _write_plugin(path, _GOOD_PLUGIN)
    _endings_by_id(daemon, held)["RemovePodSandbox"]()
    _assert_as_good_as_new(daemon, path, config)


def test_a_plugin_that_hangs_longer_than_its_caller_waits(plugin: tuple[Daemon, Path], tmp_path: Path) -> None:
    daemon, path = plugin
    config = daemon.sandbox_config("patient")
    hang = f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; exec sleep 600"
    _write_plugin(path, f"#!/bin/sh\ncat >/dev/null\n[ $CNI_COMMAND = DEL ] && exit 0\n{hang}\n")
    request = daemon.runtime.RunPodSandbox.future(cri.RunPodSandboxRequest(config=config), **_CALL)
    _until(lambda: (tmp_path / "pid").exists())
    request.cancel()
    assert _sandboxes(daemon) == []
    other = daemon.sandbox_config("patient", labels={"another": "config"})
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    _until(lambda: _holdings(daemon) == Counter())
    _assert_as_good_as_new(daemon, path, other)


# -- the wire ----------------------------------------------------------------------------------------------------------


def test_requests_that_are_none(daemon: Daemon) -> None:
    with grpc.insecure_channel(daemon.listen) as channel:

        def call(method: str, raw: bytes) -> Any:
            return channel.unary_unary(f"/runtime.v1.RuntimeService/{method}")(raw, **_CALL)

        with _refused(StatusCode.INVALID_ARGUMENT, "RunPodSandboxRequest"):
            call("RunPodSandbox", b"\xff\xff\xff")
        with _refused(StatusCode.INVALID_ARGUMENT, "RunPodSandboxRequest", "UTF-8"):
            call("RunPodSandbox", b"\x12\x02\xff\xfe")
        with _refused(StatusCode.RESOURCE_EXHAUSTED, "16777216"):
            call("RunPodSandbox", bytes(17 << 20))
        for unknown in ("Nothing", "../Version", ""):
            with _refused(StatusCode.UNIMPLEMENTED):
                call(unknown, b"")
    with pytest.raises(grpc.RpcError) as raised:
        daemon.runtime.Version(cri.VersionRequest(version="v" * (17 << 20)), **_CALL)
    assert raised.value.code() is StatusCode.RESOURCE_EXHAUSTED


def test_garbage_and_crowds_at_the_socket(daemon: Daemon) -> None:
    path = daemon.listen.removeprefix("unix://")

    def connect(said: bytes) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(60)
        client.connect(path)
        client.sendall(said)
        return client

    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for said in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(100_000), preface + b"\xff" * 1000, b"\0"):
        with connect(b"") as client, contextlib.suppress(OSError):  # thrown out
            client.sendall(said)
            client.shutdown(socket.SHUT_WR)
            while client.recv(65536):
                pass
    with ExitStack() as crowd:
        for _ in range(400):
            crowd.enter_context(connect(b"PRI * HTTP/2.0\r\n"))
        with ThreadPoolExecutor(50) as pool:
            answers = list(pool.map(lambda _: _version(daemon.listen), range(200)))
        assert set(answers) == {"v1"}
    _until(lambda: _descriptors(daemon) < 100)


def _version(address: str) -> str:
    with grpc.insecure_channel(address, options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
        return str(api_pb2_grpc.RuntimeServiceStub(channel).Version(cri.VersionRequest(), **_CALL).runtime_api_version)


def _descriptors(daemon: Daemon) -> int:
    assert daemon.process is not None
    return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))


# -- anything ----------------------------------------------------------------------------------------------------------

_NUMBERS = {
    FieldDescriptor.TYPE_INT32: (0, 1, -1, 2, 999, 2**31 - 1, -(2**31)),
    FieldDescriptor.TYPE_INT64: (0, 1, -1, 2, 999, 2**21, 2**31, 2**32 - 1, 2**63 - 1, -(2**63)),
    FieldDescriptor.TYPE_UINT32: (0, 1, 2**31, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 1, 2**63, 2**64 - 1),
}
_WORDS = (
    "", " ", "\0", "a\nb", ".", "..", "/", "//", "/..", "/.", "-1", "0", "a=b;c", "$(true)", "%s%n", "ü🚀", "\u202e",
    "true", "x" * 300, "x" * 5000, "/" + "x/" * 2040, "/dev/null", "/dev/null/x", "/proc/1/root", "net.nope", "2MB",
)  # fmt: skip
_PLACES = ("", "relative", "/proc/nothing", "/dev/null/x", "\0", "/" + "x" * 5000)


def _fields(message: Message) -> list[FieldDescriptor]:
    return [field for field in message.DESCRIPTOR.fields if field.name != "windows"]


def _mutate(draw: st.DrawFn, message: Message, scratch: Path) -> None:
    """Change one field, at any depth."""
    field = draw(st.sampled_from(_fields(message)))
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        pairs = getattr(message, field.name)
        value = draw(st.text(max_size=20) | st.sampled_from(_WORDS))
        if isinstance(value, str) and field.message_type.fields_by_name["value"].message_type is None:
            pairs[draw(st.sampled_from(_WORDS) | st.just("net.ipv4.ip_forward"))] = value
    elif field.is_repeated:
        values = getattr(message, field.name)
        if field.message_type is not None:
            _mutate(draw, values.add(), scratch)
        else:
            values.extend([_scalar(draw, field, scratch)] * draw(st.sampled_from((1, 2, 1000))))
    elif field.message_type is not None:
        if draw(st.integers(0, 9)) == 0:
            message.ClearField(field.name)
        else:
            getattr(message, field.name).SetInParent()
            if _fields(getattr(message, field.name)):
                _mutate(draw, getattr(message, field.name), scratch)
    else:
        setattr(message, field.name, _scalar(draw, field, scratch))


def _scalar(draw: st.DrawFn, field: FieldDescriptor, scratch: Path) -> Any:
    if field.type == FieldDescriptor.TYPE_BOOL:
        return draw(st.booleans())
    if field.type == FieldDescriptor.TYPE_ENUM:
        return draw(st.integers(-1, 9))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return draw(st.binary(max_size=20))
    if field.type == FieldDescriptor.TYPE_STRING:
        text = st.text(max_size=20)
        if field.name in ("host_path", "log_directory", "cgroup_parent"):  # nothing is made outside of these
            base = "/crisp-test" if field.name == "cgroup_parent" else str(scratch)
            return draw(st.sampled_from(_PLACES) | text.map(lambda end: f"{base}/{end.replace('..', '')}"))
        return draw(st.sampled_from(_WORDS) | text)
    return draw(st.sampled_from(_NUMBERS[field.type]))


@st.composite
def _mutated(draw: st.DrawFn, message: Message, scratch: Path) -> Any:
    changed = type(message)()
    changed.CopyFrom(message)
    for _ in range(draw(st.integers(1, 3))):
        _mutate(draw, changed, scratch)
    return changed


_FIT = frozenset({
    StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND, StatusCode.ALREADY_EXISTS, StatusCode.FAILED_PRECONDITION,
    StatusCode.UNIMPLEMENTED, StatusCode.INTERNAL,
})  # fmt: skip


@contextmanager
def _answered() -> Iterator[None]:
    """A success, or a refusal with one of the codes for it and without words of Python's."""
    refusals = []
    try:
        yield
    except grpc.RpcError as error:
        refusals = [f"{error.code().name}: {error.details()}"]
        if error.code() in _FIT and not _PYTHON.search(error.details()):
            refusals = []
    assert refusals == []


_ANYTHING = settings(
    max_examples=75, deadline=None, database=None, print_blob=True,
    phases=(Phase.generate,), suppress_health_check=list(HealthCheck),
)  # fmt: skip


def test_any_pod(daemon: Daemon, tmp_path: Path) -> None:
    """Random changes to a valid RunPodSandbox, on the host's network since plugins take most of a pod's time."""
    config = daemon.sandbox_config("any", labels={"k": "v"}, dns_config=cri.DNSConfig(servers=["10.0.0.10"]))
    config.linux.security_context.namespace_options.network = cri.NODE
    config.linux.resources.cpu_shares = 2

    @_ANYTHING
    @given(_mutated(cri.RunPodSandboxRequest(config=config), tmp_path))
    def run(request: cri.RunPodSandboxRequest) -> None:
        with _answered():
            made = daemon.runtime.RunPodSandbox(request, **_CALL).pod_sandbox_id
            pod = Pod(daemon, made, request.config)
            try:
                with _answered():
                    pod.run("true")
            finally:
                pod.remove()

    run()


def test_any_container(pod: Pod, tmp_path: Path) -> None:
    """Random changes to a valid CreateContainer, and what can be created is started."""
    runtime = pod.daemon.runtime
    config = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name="any"), image=cri.ImageSpec(image=BUSYBOX), command=["true"],
        log_path="any.log", envs=[cri.KeyValue(key="A", value=b"B")], mounts=_mount("/c", str(tmp_path)),
        devices=_device("/dev/null"), linux=_limits(memory_limit_in_bytes=64 << 20, cpu_quota=10_000),
    )  # fmt: skip
    config.linux.security_context.run_as_user.value = 1000

    @_ANYTHING
    @given(_mutated(config, tmp_path))
    def create(config: cri.ContainerConfig) -> None:
        request = cri.CreateContainerRequest(pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)
        with _answered():
            made = runtime.CreateContainer(request, **_CALL).container_id
            with _answered():
                _start(pod.daemon, made)
            runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=made), **_CALL)

    create()
