"""The model: pods and containers as CRI says they are, and whether what the daemon shows agrees with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from cri.v1 import api_pb2 as cri

KILLED: Final = 128 + 9
TERMINATED: Final = 128 + 15
TRAPPED: Final = 7  # of a program that ends at SIGTERM by itself
ENDED: Final = 3  # of a program that ends by itself
NO_PROGRAM: Final = 128
UNSEEN: Final = 255
_START_ERROR: Final = "StartError"


@dataclass(frozen=True)
class PodKind:
    """What a pod is asked for with."""

    name: str
    attempt: int
    own_network: bool
    own_pids: bool  # a PID namespace for each container
    flavour: str  # a label

    def config(self, logs: str) -> cri.PodSandboxConfig:
        option = cri.NamespaceOption(
            network=cri.POD if self.own_network else cri.NODE, pid=cri.CONTAINER if self.own_pids else cri.POD
        )
        security = cri.LinuxSandboxSecurityContext(namespace_options=option)
        return cri.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(
                name=self.name, uid=f"{self.name}-uid", namespace="model", attempt=self.attempt
            ),
            log_directory=logs,
            labels=self.labels,
            annotations={"made-by": "model"},
            linux=cri.LinuxPodSandboxConfig(security_context=security),
        )

    @property
    def labels(self) -> dict[str, str]:
        return {"pod": self.name, "flavour": self.flavour}


@dataclass(frozen=True)
class ContainerKind:
    """What a container is asked for with. `program` is a key of PROGRAMS."""

    name: str
    attempt: int
    program: str
    flavour: str

    @property
    def labels(self) -> dict[str, str]:
        return {"container": self.name, "flavour": self.flavour}


PROGRAMS: Final = {
    "sleeps": ("sleep", "1000"),
    "traps": ("sh", "-c", f"trap 'exit {TRAPPED}' TERM; echo set; while :; do sleep 1000 & wait $!; done"),
    "ends": ("sh", "-c", f"exit {ENDED}"),
    "missing": ("/no/such/program",),
    "nobody": ("true",),  # as a user that the image does not have
    "no-image": ("true",),
}


@dataclass(frozen=True)
class PodFacts:
    id: str
    kind: PodKind
    ready: bool = True
    lost: bool = False  # its shim was killed
    stopped: bool = False


@dataclass(frozen=True)
class ContainerFacts:
    """`codes` are the exit codes that it may end with: a race leaves more than one."""

    id: str
    pod: str
    kind: ContainerKind
    state: int = cri.CONTAINER_CREATED
    codes: frozenset[int] = frozenset()
    ran: bool | None = False  # None: perhaps
    trap_set: bool = False
    shares: int = 0

    @property
    def runs(self) -> bool:
        return self.state == cri.CONTAINER_RUNNING


@dataclass
class World:
    """One state that the node may be in."""

    pods: dict[str, PodFacts] = field(default_factory=dict)
    containers: dict[str, ContainerFacts] = field(default_factory=dict)

    def copy(self) -> World:
        return World(dict(self.pods), dict(self.containers))

    def pod_named(self, kind: PodKind) -> PodFacts | None:
        same = (one for one in self.pods.values() if (one.kind.name, one.kind.attempt) == (kind.name, kind.attempt))
        return next(same, None)

    def container_named(self, pod: str, kind: ContainerKind) -> ContainerFacts | None:
        names = (kind.name, kind.attempt)
        same = (one for one in self.of(pod) if (one.kind.name, one.kind.attempt) == names)
        return next(same, None)

    def add_pod(self, pod: str, kind: PodKind) -> bool:
        """Add a pod; False if its id is another one's."""
        new = pod not in self.pods
        self.pods[pod] = PodFacts(pod, kind)
        return new

    def add_container(self, container: str, pod: str, kind: ContainerKind) -> bool:
        """Add a created container; False if its id is another one's."""
        new = container not in self.containers
        self.containers[container] = ContainerFacts(container, pod, kind)
        return new

    def of(self, pod: str) -> list[ContainerFacts]:
        return [one for one in self.containers.values() if one.pod == pod]

    def end(self, container: ContainerFacts, *codes: int, ran: bool | None = True) -> None:
        """The container exits; nothing if it has."""
        if container.state != cri.CONTAINER_EXITED:
            self.containers[container.id] = replace(
                container, state=cri.CONTAINER_EXITED, codes=frozenset(codes), ran=ran
            )

    def end_all(self, pod: str, code: int) -> None:
        """What runs in the pod ends with the code; what was never started will never run."""
        for container in self.of(pod):
            if container.runs:
                self.end(container, code)
            else:
                self.end(container, UNSEEN, ran=False)

    def lose(self, pod: PodFacts) -> None:
        """The pod's shim dies."""
        self.pods[pod.id] = replace(pod, ready=False, lost=True)
        self.end_all(pod.id, UNSEEN)

    def disagreement(self, seen: Seen) -> str:
        """What the daemon shows other than this; "" if nothing."""
        for kind, ours, theirs in (("pods", self.pods, seen.pods), ("containers", self.containers, seen.containers)):
            if ours.keys() != theirs.keys():
                return f"{kind} {_short(theirs)} are listed, not {_short(ours)}"
        pods = (_pod_differs(pod, seen.pods[pod.id]) for pod in self.pods.values())
        containers = (_container_differs(one, *seen.containers[one.id]) for one in self.containers.values())
        return next((text for text in (*pods, *containers) if text), "")


@dataclass(frozen=True)
class Seen:
    """What the daemon shows."""

    pods: Mapping[str, cri.PodSandbox]
    containers: Mapping[str, tuple[cri.Container, cri.ContainerStatus]]


def _short(ids: Mapping[str, object]) -> list[str]:
    return sorted(one[:8] for one in ids)


def _differs(whose: str, /, **pairs: tuple[object, object]) -> str:
    return next((f"{whose}: {what} {got!r}, not {due!r}" for what, (got, due) in pairs.items() if got != due), "")


def _pod_differs(pod: PodFacts, seen: cri.PodSandbox) -> str:
    return _differs(
        f"pod {pod.id[:8]}",
        state=(seen.state, cri.SANDBOX_READY if pod.ready else cri.SANDBOX_NOTREADY),
        name=((seen.metadata.name, seen.metadata.attempt), (pod.kind.name, pod.kind.attempt)),
        labels=(dict(seen.labels), pod.kind.labels),
    )


def _container_differs(container: ContainerFacts, item: cri.Container, status: cri.ContainerStatus) -> str:
    kind, name = container.kind, f"container {container.id[:8]}"
    differs = _differs(
        name,
        listed_state=(item.state, container.state),
        state=(status.state, container.state),
        pod=(item.pod_sandbox_id, container.pod),
        name=((item.metadata.name, item.metadata.attempt), (kind.name, kind.attempt)),
        labels=(dict(item.labels), kind.labels),
        shares=(status.resources.linux.cpu_shares, container.shares),
    )
    over = container.state == cri.CONTAINER_EXITED
    started = container.ran is not False if over else container.runs
    if differs:
        return differs
    if over and status.exit_code not in container.codes:
        return f"{name}: exit code {status.exit_code}, not one of {set(container.codes)}"
    if container.ran is not None and bool(status.started_at) is not started:
        return f"{name}: started at {status.started_at}"
    if over is not bool(status.finished_at) or (over and status.finished_at < status.started_at):
        return f"{name}: started at {status.started_at}, finished at {status.finished_at}"
    reason = {0: "Completed", NO_PROGRAM: _START_ERROR}.get(status.exit_code, "Error") if over else ""
    return _differs(name, reason=(status.reason, reason))
