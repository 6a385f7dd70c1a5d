"""CRI's calls as the model knows them: how each is made, and what its answer means.

A call is a list of parts, each of which happens at once. Of two calls at a time the parts may happen in any order that
keeps each call's own: the answers must be those of one such order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import grpc

from cri.v1 import api_pb2 as cri
from cri.v1 import api_pb2_grpc
from tests.daemon import BUSYBOX, CALL_SECONDS
from tests.model.worlds import (
    ENDED,
    KILLED,
    NO_PROGRAM,
    PROGRAMS,
    TERMINATED,
    TRAPPED,
    UNSEEN,
    ContainerFacts,
    ContainerKind,
    PodKind,
    World,
)

_OK: Final = grpc.StatusCode.OK
_NOT_FOUND: Final = grpc.StatusCode.NOT_FOUND
_PRECONDITION: Final = grpc.StatusCode.FAILED_PRECONDITION
_CALL: Final[Mapping[str, Any]] = {"timeout": CALL_SECONDS}

Stub = api_pb2_grpc.RuntimeServiceStub


@dataclass(frozen=True)
class Answer:
    """How a call ended. `message` is the answer's, if there is one."""

    code: grpc.StatusCode
    text: str = ""
    message: Any = None

    @classmethod
    def of(cls, future: Any) -> Answer:
        error = future.exception()
        return cls(_OK, message=future.result()) if error is None else cls(error.code(), error.details())

    def __str__(self) -> str:
        return f"{self.code.name} {self.text}".strip()


# Applies a part to a world; False if the answer cannot be that world's.
Part = Callable[[World], bool]


class Call(ABC):
    """A call with its arguments."""

    @abstractmethod
    def send(self, stub: Stub) -> Any:
        """Begin the call; gRPC's future."""

    @abstractmethod
    def parts(self, answer: Answer) -> Sequence[Part]: ...

    def again(self, answer: Answer) -> Sequence[Part]:
        """The parts of the same call repeated, after one whose answer nobody has: it may have been made or not."""
        return self.parts(answer)


@dataclass(frozen=True)
class RunPod(Call):
    kind: PodKind
    logs: str

    def send(self, stub: Stub) -> Any:
        directory = Path(self.logs, self.kind.name)
        directory.mkdir(parents=True, exist_ok=True)
        return stub.RunPodSandbox.future(cri.RunPodSandboxRequest(config=self.kind.config(str(directory))), **_CALL)

    def parts(self, answer: Answer) -> Sequence[Part]:
        def run(world: World) -> bool:
            holder = world.pod_named(self.kind)
            if holder is None:
                return answer.code is _OK and world.add_pod(answer.message.pod_sandbox_id, self.kind)
            if holder.kind == self.kind and holder.ready:
                return answer.code is _OK and answer.message.pod_sandbox_id == holder.id
            return answer.code is grpc.StatusCode.ALREADY_EXISTS

        return [run]


@dataclass(frozen=True)
class StopPod(Call):
    pod: str

    def send(self, stub: Stub) -> Any:
        return stub.StopPodSandbox.future(cri.StopPodSandboxRequest(pod_sandbox_id=self.pod), **_CALL)

    def parts(self, answer: Answer) -> Sequence[Part]:
        def refuse(world: World) -> bool:
            if (pod := world.pods.get(self.pod)) is not None:
                world.pods[pod.id] = replace(pod, ready=False)
            return answer.code is _OK

        def end(world: World) -> bool:
            if (pod := world.pods.get(self.pod)) is not None:
                world.end_all(self.pod, KILLED)
                world.pods[pod.id] = replace(pod, stopped=True)
            return True

        return [refuse, end]


@dataclass(frozen=True)
class RemovePod(Call):
    pod: str

    def send(self, stub: Stub) -> Any:
        return stub.RemovePodSandbox.future(cri.RemovePodSandboxRequest(pod_sandbox_id=self.pod), **_CALL)

    def parts(self, answer: Answer) -> Sequence[Part]:
        def remove_containers(world: World) -> bool:
            for container in world.of(self.pod):
                del world.containers[container.id]
            return True

        def remove(world: World) -> bool:
            world.pods.pop(self.pod, None)
            return True

        return [*StopPod(self.pod).parts(answer), remove_containers, remove]


@dataclass(frozen=True)
class UpdatePod(Call):
    pod: str
    shares: int

    def send(self, stub: Stub) -> Any:
        limits = cri.LinuxContainerResources(cpu_shares=self.shares)
        request = cri.UpdatePodSandboxResourcesRequest(pod_sandbox_id=self.pod, resources=limits)
        return stub.UpdatePodSandboxResources.future(request, **_CALL)

    def parts(self, answer: Answer) -> Sequence[Part]:
        def update(world: World) -> bool:
            pod = world.pods.get(self.pod)
            return answer.code is (_NOT_FOUND if pod is None else _OK if pod.ready else _PRECONDITION)

        return [update]


@dataclass(frozen=True)
class Create(Call):
    pod: str
    kind: ContainerKind

    def send(self, stub: Stub) -> Any:
        kind = self.kind
        config = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name=kind.name, attempt=kind.attempt),
            image=cri.ImageSpec(image="localhost/not-there:latest" if kind.program == "no-image" else BUSYBOX),
            command=PROGRAMS[kind.program],
            labels=kind.labels,
            log_path=f"{kind.name}-{kind.attempt}.log",
        )
        if kind.program == "nobody":
            config.linux.security_context.run_as_username = "not-there"
        request = cri.CreateContainerRequest(pod_sandbox_id=self.pod, config=config)
        return stub.CreateContainer.future(request, **_CALL)

    def parts(self, answer: Answer) -> Sequence[Part]:
        def create(world: World) -> bool:
            pod = world.pods.get(self.pod)
            if pod is None:
                return answer.code is _NOT_FOUND
            if not pod.ready:
                return answer.code is _PRECONDITION
            holder = world.container_named(self.pod, self.kind)
            if holder is not None:
                if holder.kind == self.kind and holder.state == cri.CONTAINER_CREATED:
                    return answer.code is _OK and answer.message.container_id == holder.id
                return answer.code is grpc.StatusCode.ALREADY_EXISTS
            if self.kind.program == "no-image":
                return answer.code is _NOT_FOUND
            if self.kind.program == "nobody":
                return answer.code is grpc.StatusCode.INVALID_ARGUMENT
            return answer.code is _OK and world.add_container(answer.message.container_id, self.pod, self.kind)

        return [create]


@dataclass(frozen=True)
class Start(Call):
    container: str

    def send(self, stub: Stub) -> Any:
        return stub.StartContainer.future(cri.StartContainerRequest(container_id=self.container), **_CALL)

    def parts(self, answer: Answer) -> Sequence[Part]:
        def start(world: World) -> bool:
            container = world.containers.get(self.container)
            if container is None:
                return answer.code is _NOT_FOUND
            ending = not world.pods[container.pod].ready and container.state == cri.CONTAINER_CREATED
            if ending:  # refused, or killed by its pod's stop before its program ran
                world.end(container, NO_PROGRAM, UNSEEN, ran=False)
                return answer.code is _PRECONDITION
            if container.state != cri.CONTAINER_CREATED or not world.pods[container.pod].ready:
                return answer.code is _PRECONDITION
            if container.kind.program == "missing":
                world.end(container, NO_PROGRAM, ran=False)
                return answer.code is grpc.StatusCode.INTERNAL
            world.containers[container.id] = replace(container, state=cri.CONTAINER_RUNNING)
            return answer.code is _OK

        def run(world: World) -> bool:
            container = world.containers.get(self.container)
            if container is not None and container.runs and container.kind.program == "ends":
                world.end(container, ENDED)
            return True

        return [start, run]

    def again(self, answer: Answer) -> Sequence[Part]:
        def start(world: World) -> bool:
            container = world.containers.get(self.container)
            if answer.code is _PRECONDITION and container is not None and container.state == cri.CONTAINER_CREATED:
                made = Answer(grpc.StatusCode.INTERNAL if container.kind.program == "missing" else _OK)
                return self.parts(made)[0](world)
            return self.parts(answer)[0](world)

        return [start, *self.parts(answer)[1:]]


def _stopped_by_term(container: ContainerFacts, *, own_pids: bool) -> tuple[int, ...]:
    """The exit codes that a container may have after SIGTERM, and SIGKILL when its grace is over."""
    # SIGTERM is not delivered to the first process of a PID namespace that has no handler for it.
    untrapped = KILLED if own_pids else TERMINATED
    if container.kind.program == "ends":
        return ENDED, untrapped, KILLED
    if container.kind.program == "traps":
        return (TRAPPED,) if container.trap_set else (TRAPPED, untrapped, KILLED)
    return untrapped, KILLED


@dataclass(frozen=True)
class Stop(Call):
    container: str
    timeout: int

    def send(self, stub: Stub) -> Any:
        request = cri.StopContainerRequest(container_id=self.container, timeout=self.timeout)
        return stub.StopContainer.future(request, **_CALL)

    def parts(self, answer: Answer) -> Sequence[Part]:
        def stop(world: World) -> bool:
            container = world.containers.get(self.container)
            if container is not None and container.runs:
                own_pids = world.pods[container.pod].kind.own_pids
                codes = _stopped_by_term(container, own_pids=own_pids) if self.timeout else (KILLED,)
                world.end(container, *codes)
            return answer.code is _OK

        return [stop]


@dataclass(frozen=True)
class Remove(Call):
    container: str

    def send(self, stub: Stub) -> Any:
        return stub.RemoveContainer.future(cri.RemoveContainerRequest(container_id=self.container), **_CALL)

    def parts(self, answer: Answer) -> Sequence[Part]:
        def kill(world: World) -> bool:
            container = world.containers.get(self.container)
            if container is not None and container.runs:
                world.end(container, KILLED)
            return answer.code is _OK

        def remove(world: World) -> bool:
            world.containers.pop(self.container, None)
            return True

        return [kill, remove]


@dataclass(frozen=True)
class Exec(Call):
    container: str
    code: int

    def send(self, stub: Stub) -> Any:
        command = ["sh", "-c", f"echo out; echo err >&2; exit {self.code}"]
        return stub.ExecSync.future(cri.ExecSyncRequest(container_id=self.container, cmd=command, timeout=60), **_CALL)

    def parts(self, answer: Answer) -> Sequence[Part]:
        def begin(world: World) -> bool:
            container = world.containers.get(self.container)
            if container is None:
                return answer.code is _NOT_FOUND
            return container.runs or answer.code is _PRECONDITION

        def end(world: World) -> bool:
            container = world.containers.get(self.container)
            if container is not None and container.runs:
                message = answer.message
                due = (b"out\n", b"err\n", self.code)
                return answer.code is _OK and (message.stdout, message.stderr, message.exit_code) == due
            # The container ended meanwhile, and its command with it.
            killed = answer.code is _OK and answer.message.exit_code in (self.code, KILLED)
            return killed or answer.code in (_PRECONDITION, _NOT_FOUND)

        return [begin, end]


@dataclass(frozen=True)
class Update(Call):
    container: str
    shares: int

    def send(self, stub: Stub) -> Any:
        limits = cri.LinuxContainerResources(cpu_shares=self.shares)
        request = cri.UpdateContainerResourcesRequest(container_id=self.container, linux=limits)
        return stub.UpdateContainerResources.future(request, **_CALL)

    def parts(self, answer: Answer) -> Sequence[Part]:
        def update(world: World) -> bool:
            container = world.containers.get(self.container)
            if container is None:
                return answer.code is _NOT_FOUND
            world.containers[container.id] = replace(container, shares=self.shares)
            return answer.code is _OK

        return [update]


@dataclass(frozen=True)
class Reopen(Call):
    container: str

    def send(self, stub: Stub) -> Any:
        return stub.ReopenContainerLog.future(cri.ReopenContainerLogRequest(container_id=self.container), **_CALL)

    def parts(self, answer: Answer) -> Sequence[Part]:
        def reopen(world: World) -> bool:
            container = world.containers.get(self.container)
            return answer.code is (_NOT_FOUND if container is None else _OK if container.runs else _PRECONDITION)

        return [reopen]


@dataclass(frozen=True)
class PodStatus(Call):
    pod: str

    def send(self, stub: Stub) -> Any:
        request = cri.PodSandboxStatusRequest(pod_sandbox_id=self.pod, verbose=True)
        return stub.PodSandboxStatus.future(request, **_CALL)

    def parts(self, answer: Answer) -> Sequence[Part]:
        def status(world: World) -> bool:
            if (pod := world.pods.get(self.pod)) is None:
                return answer.code is _NOT_FOUND
            if answer.code is not _OK:
                return False
            shown = answer.message.status
            address = pod.kind.own_network and not pod.lost and pod.ready
            if address and not shown.network.ip:
                return False
            shows = shown.id, shown.state == cri.SANDBOX_READY, dict(shown.labels)
            return bool(shows == (pod.id, pod.ready, pod.kind.labels))

        return [status]


@dataclass(frozen=True)
class Status(Call):
    container: str

    def send(self, stub: Stub) -> Any:
        request = cri.ContainerStatusRequest(container_id=self.container, verbose=True)
        return stub.ContainerStatus.future(request, **_CALL)

    def parts(self, answer: Answer) -> Sequence[Part]:
        def status(world: World) -> bool:
            if (container := world.containers.get(self.container)) is None:
                return answer.code is _NOT_FOUND
            return answer.code is _OK and answer.message.status.state == container.state

        return [status]


@dataclass(frozen=True)
class Stats(Call):
    container: str

    def send(self, stub: Stub) -> Any:
        return stub.ContainerStats.future(cri.ContainerStatsRequest(container_id=self.container), **_CALL)

    def parts(self, answer: Answer) -> Sequence[Part]:
        def stats(world: World) -> bool:
            return answer.code is (_OK if self.container in world.containers else _NOT_FOUND)

        return [stats]
