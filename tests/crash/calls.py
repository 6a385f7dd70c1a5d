"""The mutating calls of the matrix: what each needs, how it is made, and what is true once it was repeated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from cri.v1 import api_pb2 as cri
from tests.crash.killable import CrashDaemon
from tests.daemon import BUSYBOX, CALL_SECONDS

_CALL = {"timeout": CALL_SECONDS}
_MAYBE_DONE = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND)


@dataclass
class Stage:
    """A daemon, the pod that the call is about, and its container."""

    daemon: CrashDaemon
    name: str
    pod: str = ""
    container: str = ""
    config: cri.PodSandboxConfig = field(default_factory=cri.PodSandboxConfig)

    def run_pod(self) -> str:
        self.config = self.daemon.sandbox_config(self.name)
        request = cri.RunPodSandboxRequest(config=self.config)
        self.pod = self.daemon.runtime.RunPodSandbox(request, **_CALL).pod_sandbox_id
        return self.pod

    def create(self, command: tuple[str, ...] = ("sleep", "1000"), user: str = "") -> str:
        config = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name="main"),
            image=cri.ImageSpec(image=BUSYBOX),
            command=command,
            log_path="main.log",
        )
        if user:
            config.linux.security_context.run_as_username = user
        request = cri.CreateContainerRequest(pod_sandbox_id=self.pod, config=config, sandbox_config=self.config)
        self.container = self.daemon.runtime.CreateContainer(request, **_CALL).container_id
        return self.container

    def start(self) -> None:
        self.daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=self.container), **_CALL)

    def end(self) -> None:
        """Stop and remove the pod, whichever it is."""
        for pod in self.daemon.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), **_CALL).items:
            self.daemon.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod.id), **_CALL)
            self.daemon.runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod.id), **_CALL)


def _nothing(_stage: Stage) -> None: ...


def _pod(stage: Stage) -> None:
    stage.run_pod()


def _created(stage: Stage) -> None:
    stage.run_pod()
    stage.create()


def _running(stage: Stage) -> None:
    _created(stage)
    stage.start()


def _one_pod(stage: Stage) -> None:
    (pod,) = stage.daemon.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), **_CALL).items
    assert (pod.id, pod.state) == (stage.pod, cri.SANDBOX_READY)
    stage.create()
    stage.start()


def _no_pod(stage: Stage) -> None:
    assert not stage.daemon.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), **_CALL).items


def _state(stage: Stage) -> int:
    (container,) = stage.daemon.runtime.ListContainers(cri.ListContainersRequest(), **_CALL).containers
    assert container.id == stage.container
    return int(container.state)


def _is(state: int) -> Callable[[Stage], None]:
    def check(stage: Stage) -> None:
        assert _state(stage) == state

    return check


def _no_container(stage: Stage) -> None:
    assert not stage.daemon.runtime.ListContainers(cri.ListContainersRequest(), **_CALL).containers
    stage.create()  # its name is free


@dataclass(frozen=True)
class Row:
    """A call. `after` holds once the call was repeated, which may be answered with one of `refusals`."""

    name: str
    before: Callable[[Stage], None]
    call: Callable[[Stage], object]
    after: Callable[[Stage], None]
    refusals: tuple[grpc.StatusCode, ...] = ()


def _broken_network(stage: Stage) -> None:
    """The last plugin of the list fails every ADD."""
    plugin = stage.daemon.plugins / "fails"
    plugin.parent.mkdir(exist_ok=True)
    answer = '{"code": 100, "msg": "refused"}'
    plugin.write_text(f"#!/bin/sh\n[ $CNI_COMMAND = DEL ] && exit 0\necho '{answer}'\nexit 1\n")
    plugin.chmod(0o755)
    conflist = stage.daemon.cni_conf_dir / "10-test.conflist"
    if not conflist.with_suffix(".aside").exists():
        well = conflist.read_text()
        conflist.with_suffix(".aside").write_text(well)
        conflist.write_text(well.replace('{"type": "portmap"', '{"type": "fails"}, {"type": "portmap"'))


def _mended_network(stage: Stage) -> None:
    conflist = stage.daemon.cni_conf_dir / "10-test.conflist"
    conflist.with_suffix(".aside").replace(conflist)
    _no_pod(stage)
    stage.run_pod()


def _limits(stage: Stage) -> None:
    limits = cri.LinuxContainerResources(cpu_shares=512)
    request = cri.UpdateContainerResourcesRequest(container_id=stage.container, linux=limits)
    stage.daemon.runtime.UpdateContainerResources(request, **_CALL)


def _limited(stage: Stage) -> None:
    request = cri.ContainerStatusRequest(container_id=stage.container)
    assert stage.daemon.runtime.ContainerStatus(request, **_CALL).status.resources.linux.cpu_shares == 512


def _reopen(stage: Stage) -> None:
    log = Path(stage.config.log_directory, "main.log")
    if log.exists():
        log.rename(log.with_suffix(".1"))
    stage.daemon.runtime.ReopenContainerLog(cri.ReopenContainerLogRequest(container_id=stage.container), **_CALL)


def _reopened(stage: Stage) -> None:
    assert Path(stage.config.log_directory, "main.log").exists()


def _exec(stage: Stage) -> None:
    request = cri.ExecSyncRequest(container_id=stage.container, cmd=["true"], timeout=60)
    assert stage.daemon.runtime.ExecSync(request, **_CALL).exit_code == 0


def _by_container(method: str, request: type[object]) -> Callable[[Stage], object]:
    return lambda stage: getattr(stage.daemon.runtime, method)(request(container_id=stage.container), **_CALL)


def _by_pod(method: str, request: type[object]) -> Callable[[Stage], object]:
    return lambda stage: getattr(stage.daemon.runtime, method)(request(pod_sandbox_id=stage.pod), **_CALL)


def _stopped_pod(stage: Stage) -> None:
    (pod,) = stage.daemon.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), **_CALL).items
    assert pod.state == cri.SANDBOX_NOTREADY
    assert _state(stage) == cri.CONTAINER_EXITED


ROWS = (
    Row("RunPodSandbox", _nothing, Stage.run_pod, _one_pod),
    Row("RunPodSandbox that fails", _broken_network, Stage.run_pod, _mended_network, (grpc.StatusCode.INTERNAL,)),
    Row("CreateContainer", _pod, Stage.create, _is(cri.CONTAINER_CREATED)),
    Row("CreateContainer that fails", _pod, lambda stage: stage.create(user="nobody-there"), _no_container,
        (grpc.StatusCode.INVALID_ARGUMENT,)),
    Row("StartContainer", _created, Stage.start, _is(cri.CONTAINER_RUNNING), _MAYBE_DONE),
    Row("ExecSync", _running, _exec, _is(cri.CONTAINER_RUNNING)),
    Row("UpdateContainerResources", _running, _limits, _limited),
    Row("ReopenContainerLog", _running, _reopen, _reopened),
    Row("StopContainer", _running, _by_container("StopContainer", cri.StopContainerRequest),
        _is(cri.CONTAINER_EXITED)),
    Row("RemoveContainer", _running, _by_container("RemoveContainer", cri.RemoveContainerRequest), _no_container),
    Row("StopPodSandbox", _running, _by_pod("StopPodSandbox", cri.StopPodSandboxRequest), _stopped_pod),
    Row("RemovePodSandbox", _running, _by_pod("RemovePodSandbox", cri.RemovePodSandboxRequest), _no_pod),
)  # fmt: skip
