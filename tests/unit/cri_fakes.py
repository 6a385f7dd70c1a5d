"""A node made of dictionaries, and a real server of it on a unix socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

from cri.daemon.config import Configuration
from cri.server import create_server
from cri.streaming.address import StreamAddress
from cri.streaming.server import StreamingServer
from image.model import Credentials, FilesystemUsage, Image, PullPhase, PullProgress
from image.profiles import ProfileInfo
from image.shelf.verify import Verdict
from network.model import NetworkStatus
from pods.check.check import Disagreement
from pods.diagnosis.bulletin import Bulletins
from pods.diagnosis.inquiry import Diagnosis
from pods.errors import NotFound
from pods.model import (
    ApartPlugin,
    Container,
    ContainerConfig,
    ContainerState,
    ExecResult,
    Resources,
    Sandbox,
    SandboxConfig,
    SandboxState,
    SilentShim,
)
from pods.security.denials import Denials, DeniedIn
from pods.state.events import Events
from pods.stats.holdings import Holding
from pods.stats.stats import ContainerStats, SandboxStats
from pods.stats.writable_layers import DiskUse
from pods.streams.places import ContainerPlace, PodPlace
from runtime.handler import Handler


@dataclass
class FakeProfiles:
    """Security profiles, all of which are there."""

    pulls: list[tuple[str, Credentials | None]] = field(default_factory=list)

    def all(self) -> list[ProfileInfo]:
        return []

    async def pull_seccomp(self, reference: str, credentials: Credentials | None) -> bool:
        self.pulls.append((reference, credentials))
        return True

    async def remove(self, digest: str) -> None: ...


@dataclass
class FakeImages:
    """An image store; `failure` is raised by the next change."""

    layer_kind: str = "unpacked"
    unmountable: str = ""
    stored: dict[str, Image] = field(default_factory=dict)
    pulls: list[tuple[str, Credentials | None]] = field(default_factory=list)
    failure: Exception | None = None

    def images(self) -> list[Image]:
        return list(self.stored.values())

    def find(self, name: str) -> Image | None:
        return self.stored.get(name)

    async def documents(self, image: Image) -> tuple[bytes, bytes]:
        return b"{}", b'{"config": {"Cmd": ["sh"], "User": "33"}, "history": [{"created_by": "a test"}]}'

    def layer_sizes(self, image: Image) -> list[dict[str, str | int]]:
        return []

    async def pull(
        self,
        reference: str,
        credentials: Credentials | None = None,
        progress: Callable[[PullProgress], None] | None = None,
        auth_file: Path | None = None,
    ) -> Image:
        self.pulls.append((reference, credentials))
        if progress:
            progress(PullProgress(layer="sha256:1", offset=1, total=2, phase=PullPhase.PULLING))
        if self.failure:
            raise self.failure
        return self.stored[reference]

    async def import_archive(self, path: Path, name: str | None = None) -> list[Image]:
        return [self.stored[name or path.name]]

    async def export(self, name: str, path: Path, form: str) -> str:
        raise NotImplementedError

    async def verify(self, name: str = "") -> list[Verdict]:
        raise NotImplementedError

    async def repair(self, name: str = "") -> list[Verdict]:
        raise NotImplementedError

    async def tag(self, name: str, new: str) -> Image:
        raise NotImplementedError

    async def remove(self, name: str) -> None:
        if self.failure:
            raise self.failure
        self.stored.pop(name, None)

    def usage(self) -> tuple[FilesystemUsage, ...]:
        return (FilesystemUsage(mountpoint="/", bytes=5, inodes=6),)


class FakeStats:
    """Nothing runs; the writable layers take some room."""

    async def containers(self, containers: Sequence[Container]) -> list[ContainerStats]:
        return [ContainerStats(container, 1, "/c", None, None, DiskUse(3, 2, 1)) for container in containers]

    async def sandboxes(self, sandboxes: Sequence[Sandbox], *, detailed: bool = False) -> list[SandboxStats]:
        return [SandboxStats(sandbox, 1, "/p", None, None, (), ()) for sandbox in sandboxes]

    async def disk(self) -> DiskUse:
        return DiskUse(3, 2, 1)


class FakeNetwork:
    """A network that has no configuration yet."""

    def status(self) -> NetworkStatus:
        return NetworkStatus(ready=False, reason="NoConfiguration", message="nothing in /etc/cni/net.d")


@dataclass
class FakeSettings:
    """Of a node with one other runtime."""

    root: Path = Path("/")
    cgroup_driver: str = "cgroupfs"
    seccomp_denials: bool = False
    runtime_handlers: Mapping[str, Handler] = field(default_factory=lambda: {"runc": Handler(Path("/usr/sbin/runc"))})


@dataclass(frozen=True)
class FakeHost:
    """A new kernel's."""

    recursive_read_only: bool = True


@dataclass
class FakeNode:
    """A node whose objects are in memory; `calls` is what was asked of it, `failure` what the next change raises."""

    images: FakeImages = field(default_factory=FakeImages)
    profiles: FakeProfiles = field(default_factory=FakeProfiles)
    network: FakeNetwork = field(default_factory=FakeNetwork)
    events: Events = field(default_factory=Events)
    denials: Denials = field(default_factory=lambda: Denials(lambda _id: False, lambda *_call: None))
    bulletins: Bulletins = field(default_factory=Bulletins)
    stats: FakeStats = field(default_factory=FakeStats)
    settings: FakeSettings = field(default_factory=FakeSettings)
    pods: dict[str, Sandbox] = field(default_factory=dict)
    held: dict[str, Container] = field(default_factory=dict)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    failure: BaseException | None = None
    execution: ExecResult = field(default_factory=lambda: ExecResult(stdout=b"out", stderr=b"err", exit_code=3))
    closed: bool = False
    recorder: None = None  # nobody remembers its calls

    async def close(self) -> None:
        self.closed = True

    async def _change(self, *call: Any) -> None:
        self.calls.append(call)
        if self.failure:
            raise self.failure

    async def run_sandbox(self, config: SandboxConfig, handler: str) -> str:
        await self._change("run_sandbox", handler)
        sandbox_id = f"{len(self.pods):02}-pod"
        self.pods[sandbox_id] = Sandbox(
            id=sandbox_id,
            config=config,
            runtime_handler=handler,
            state=SandboxState.READY,
            created_at=1,
            ips=("1.2.3.4",),
        )
        return sandbox_id

    def why(self, query: str) -> Diagnosis:
        raise NotFound(f"nothing is recorded of {query!r}")

    async def check(self, *, repair: bool) -> list[Disagreement]:
        return []

    def missing_plugins(self) -> list[str] | None:
        return None

    def apart_plugins(self) -> list[ApartPlugin] | None:
        return None

    def silent_shims(self) -> list[SilentShim]:
        return []

    async def survey(self, *, everything: bool) -> list[Diagnosis]:
        return []

    def denied(self, container_id: str = "") -> list[DeniedIn]:
        return []

    async def holdings(self) -> list[Holding]:
        return [Holding("own", "databases and caches", 1)]

    async def stop_sandbox(self, sandbox_id: str) -> None:
        await self._change("stop_sandbox", sandbox_id)

    async def remove_sandbox(self, sandbox_id: str) -> None:
        await self._change("remove_sandbox", sandbox_id)

    def sandbox(self, sandbox_id: str) -> Sandbox:
        if sandbox_id not in self.pods:
            raise NotFound(f"find sandbox {sandbox_id}: there is none")
        return self.pods[sandbox_id]

    def pod_place(self, sandbox_id: str) -> PodPlace:
        return PodPlace(self.sandbox(sandbox_id).id, "/nowhere")

    def sandboxes(self) -> list[Sandbox]:
        return list(self.pods.values())

    async def create_container(self, sandbox_id: str, config: ContainerConfig) -> str:
        await self._change("create_container", sandbox_id)
        container_id = f"{len(self.held):02}-container"
        self.held[container_id] = Container(
            id=container_id,
            sandbox_id=sandbox_id,
            config=config,
            image_id="sha256:1",
            image_ref="busybox@sha256:2",
            state=ContainerState.CREATED,
            created_at=1,
        )
        return container_id

    async def start_container(self, container_id: str) -> None:
        await self._change("start_container", container_id)

    async def stop_container(self, container_id: str, timeout: float) -> None:
        await self._change("stop_container", container_id, timeout)

    async def update_container(self, container_id: str, wanted: Resources) -> None:
        await self._change("update_container", container_id, wanted)

    async def checkpoint_container(self, container_id: str, location: str, timeout: int) -> None:
        await self._change("checkpoint_container", container_id, location, timeout)

    async def checkpoint_sandbox(
        self, sandbox_id: str, output: Path, container_ids: Sequence[str], seconds: float
    ) -> None:
        raise NotImplementedError

    async def restore_sandbox(
        self,
        directory: Path,
        config: SandboxConfig,
        handler: str,
        containers: Sequence[ContainerConfig],
        seconds: float,
    ) -> tuple[str, dict[str, str]]:
        raise NotImplementedError

    async def update_sandbox(self, sandbox_id: str, overhead: Resources | None, resources: Resources | None) -> None:
        await self._change("update_sandbox", sandbox_id, overhead, resources)

    async def remove_container(self, container_id: str) -> None:
        await self._change("remove_container", container_id)

    def container(self, container_id: str) -> Container:
        if container_id not in self.held:
            raise NotFound(f"find container {container_id}: there is none")
        return self.held[container_id]

    def container_place(self, container_id: str) -> ContainerPlace:
        return ContainerPlace(self.container(container_id).id, "/nowhere")

    def containers(self) -> list[Container]:
        return list(self.held.values())

    async def exec_sync(self, container_id: str, argv: Sequence[str], timeout: float) -> ExecResult:
        await self._change("exec_sync", container_id, tuple(argv), timeout)
        return self.execution

    async def place_streams(self, pid: int) -> None: ...

    async def reopen_log(self, container_id: str) -> None:
        await self._change("reopen_log", container_id)

    def sandbox_info(self, sandbox_id: str) -> dict[str, Any]:
        return {"pid": 7, "netns": Path("/run/netns/x")}

    def container_info(self, container_id: str) -> dict[str, Any]:
        return {"pid": 8}

    host = FakeHost()
    user_namespaces = True


@asynccontextmanager
async def serving(node: FakeNode, directory: Path, **configuration: Any) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server of `node`. The channel takes messages of any size; kubelet takes 16 MiB."""
    streaming = StreamingServer(StreamAddress("127.0.0.1:0"), directory, node.place_streams)
    configured = Configuration(**configuration)
    node.settings.cgroup_driver = configured.cgroup_driver
    server = create_server(node, streaming, configured.values())
    address = f"unix:{directory}/crisp.sock"
    server.add_insecure_port(address)
    await server.start()
    await streaming.start()
    try:
        async with grpc.aio.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:
            yield channel
    finally:
        await streaming.close()
        await server.stop(None)
