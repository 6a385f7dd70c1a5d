"""RunPodSandbox. `PodCreation.run` lists the steps; each registers its clean-up by name."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from pods import bundle, handlers, log_place, pod_files
from pods.cgroups.places import container_cgroup, places_of
from pods.errors import InvalidArgument
from pods.life.pod_end import attachment_of
from pods.model import NamespaceMode, Sandbox, SandboxState
from pods.oci import pod_contents
from pods.oci.sandbox import sandbox_document
from pods.security import user_namespaces
from pods.security.sysctls import check_sysctls, default_sysctls, sandbox_sysctls
from pods.state.plugins import PluginEvent
from pods.state.store import SandboxRecord
from runtime.client import ShimGone
from runtime.errors import OperationFailed
from runtime.wire.calls import EXITS, MakePod, MakeSandbox

if TYPE_CHECKING:
    from pods.host import HostFacts
    from pods.life.pod_end import PodEnd
    from pods.model import SandboxConfig
    from pods.state.store import ContainerRecord
    from pods.trace import Trace
    from pods.undo import Undo

_SHM_SIZE: Final = 64 << 20
_HOST_RESOLV_CONF: Final = Path("/etc/resolv.conf")
_HOST_HOSTS: Final = Path("/etc/hosts")


@dataclass(frozen=True, slots=True)
class _Texts:
    """Texts and settings for the pod, computed from the request."""

    hostname: str
    resolv_conf: str
    sysctls: Mapping[str, str]


class Content(Protocol):
    """The containers that a pod is created with. They become durable and visible together with it."""

    last_pid: int  # of the processes that will continue in the pod's PID namespace

    async def prepare(self, sandbox: Sandbox, undo: Undo) -> None:
        """Create the containers, as far as plugins need not hear of it."""

    async def finish(self) -> Sequence[ContainerRecord]:
        """Create the rest, inside the plugins' gate, and return the containers' records."""

    async def created(self, records: Sequence[ContainerRecord]) -> None:
        """Tell of the containers, which have become visible."""


class PodCreation:
    """The creation of one pod sandbox."""

    def __init__(
        self,
        end: PodEnd,
        host: HostFacts,
        sandbox_id: str,
        config: SandboxConfig,
        handler: str,
        level: str,
        trace: Trace,
        undo: Undo,
        content: Content | None = None,
    ) -> None:
        self._end = end
        self._state, self._shims, self._network = end.state, end.shims, end.network
        self._settings = end.state.settings
        self._config = config
        self._trace = trace
        self._undo = undo
        self._content = content
        self._host = host
        self._users = user_namespaces.mappings_of(config)
        self._infra_pid = 0
        self.lost = False  # its shim or infra process ended before anybody knew of the sandbox
        self._has_network = config.security.namespaces.network is not NamespaceMode.NODE
        self.sandbox = Sandbox(
            id=sandbox_id,
            config=config,
            runtime_handler=handler,
            state=SandboxState.NOT_READY,
            created_at=time.time_ns(),
            netns=str(self._settings.netns_path(sandbox_id)) if self._has_network else "",
            cgroup_driver=self._settings.cgroup_driver,
            selinux_level=level,
        )

    async def run(self) -> Sandbox:
        """Take all steps. Raises what RunPodSandbox answers; the caller's `Undo` then cleans up."""
        texts = self._plan()
        # The record must be on disk before a plugin runs; it and the files are written while the shim makes the pod.
        intent = self._intend()
        self._make_directories()
        making = asyncio.create_task(self._make_pod(texts))
        try:
            await asyncio.sleep(0)  # the shim gets its call
            self._write_files(texts)
        except BaseException:
            await asyncio.gather(making, return_exceptions=True)  # or it would go on after it was undone
            raise
        await making
        await self._wait_for(intent)
        ips = await self._add_network()
        self._write_hosts(texts.hostname, ips)
        await self._make_sandbox(texts)
        made = msgspec.structs.replace(
            self.sandbox, state=SandboxState.READY, ips=ips, infra_pid=self._infra_pid, created_at=time.time_ns()
        )
        if self._content is not None:
            await self._content.prepare(made, self._undo)
        await self._state.require_plugins(wait=True)
        # Plugins hear of the pod until it is in the lists: see `PluginGate`.
        async with self._state.gate.passing():
            await self._tell_plugins(made)
            self._require_alive()
            records = await self._content.finish() if self._content is not None else ()
            await self._publish(made, records)
        if self._content is not None:
            await self._content.created(records)
        return made

    def _plan(self) -> _Texts:
        """Refuse what can never work, before anything is made."""
        config = self._config
        user_namespaces.check_pod(
            config.security.namespaces,
            "config.linux.security_context.namespace_options",
            self._shims.idmap_refusal,
        )
        places_of(self._settings.cgroup_driver).pod(self.sandbox.id, config)
        check_sysctls(config)
        return _Texts(
            hostname=pod_contents.hostname(self.sandbox.id, config, self._host.hostname),
            resolv_conf=pod_contents.resolv_conf(config.dns, _read(_HOST_RESOLV_CONF)),
            sysctls=sandbox_sysctls(config),
        )

    def _intend(self) -> Future[None]:
        record = SandboxRecord(sandbox=self.sandbox, network=self._has_network)
        self._end.register(record, self._undo)
        return self._state.store.begin_put(record)

    async def _wait_for(self, intent: Future[None]) -> None:
        await asyncio.wrap_future(intent)
        self._trace.step("intent durable")

    def _make_directories(self) -> None:
        directory = self._settings.sandbox_dir(self.sandbox.id)
        directory.mkdir(parents=True, mode=0o700)
        (directory / EXITS).mkdir()

    def _write_files(self, texts: _Texts) -> None:
        directory, config = self._settings.sandbox_dir(self.sandbox.id), self._config
        place = pod_files.make(directory, len(texts.resolv_conf) + _size(_HOST_HOSTS))
        (place / "hostname").write_text(texts.hostname + "\n")
        (place / "resolv.conf").write_text(texts.resolv_conf, errors="surrogateescape")
        for name in ("hostname", "resolv.conf"):
            user_namespaces.give(place / name, self._users)
        if config.log_directory:
            log_place.make_log_directory(config.log_directory)
        self._trace.step("files written")

    async def _make_pod(self, texts: _Texts) -> None:
        """Have a shim make the namespaces and the infra process."""
        try:
            made = await self._shims.make_pod(self._pod_call(texts))
        except OperationFailed as error:
            if error.operation == "set sysctl":  # only the kernel knows which sysctls and values it accepts
                raise InvalidArgument(f"config.linux.sysctls: {error}") from error
            raise
        self.lost = False  # if a first shim was lost, this is another one
        self._trace.step("shim and infra process made")
        self._infra_pid = made.infra_pid

    def _pod_call(self, texts: _Texts) -> MakePod:
        config, options = self._config, self._config.security.namespaces
        new = [
            kind
            for kind, mode in (("network", options.network), ("uts", options.network), ("ipc", options.ipc))
            if mode is not NamespaceMode.NODE
        ]
        if options.pid is NamespaceMode.POD:
            new.append("pid")
        return MakePod(
            sandbox=self.sandbox.id,
            directory=str(self._settings.sandbox_dir(self.sandbox.id)),
            hostname=texts.hostname,
            sysctls=texts.sysctls,
            default_sysctls=default_sysctls(
                config,
                ports=self._settings.enable_unprivileged_ports,
                icmp=self._settings.enable_unprivileged_icmp,
            ),
            new=tuple(new),
            netns=self.sandbox.netns,
            shm_size=0 if options.ipc is NamespaceMode.NODE else _SHM_SIZE,
            users=user_namespaces.shim_argument(self._users),
            last_pid=self._content.last_pid if self._content is not None else 0,
        )

    async def _add_network(self) -> tuple[str, ...]:
        if not self._has_network:
            return ()
        ips = (await self._network.add(attachment_of(self.sandbox))).ips
        self._trace.step("network added")
        return ips

    def _write_hosts(self, hostname: str, addresses: tuple[str, ...]) -> None:
        """Write the /etc/hosts for containers without kubelet's: the host's own, or the pod's name and addresses."""
        text = pod_contents.hosts(hostname, addresses) if self._has_network else _read(_HOST_HOSTS)
        hosts = pod_files.place(self._settings.sandbox_dir(self.sandbox.id)) / "hosts"
        hosts.write_text(text, errors="surrogateescape")
        user_namespaces.give(hosts, self._users)

    async def _make_sandbox(self, texts: _Texts) -> None:
        """Have the shim let another runtime make its sandbox. It takes over the pod's network, so that comes first."""
        handler = handlers.handler_of(self.sandbox, self._settings.runtime_handlers)
        if handler is None or not handler.has_sandboxes:
            return
        place = self._settings.sandbox_dir(self.sandbox.id) / "sandbox"
        place.mkdir(mode=0o700)
        bundle.write_config(place, sandbox_document(self.sandbox, self._infra_pid, texts.hostname, self._host))
        call = MakeSandbox(
            sandbox=self.sandbox.id,
            bundle=str(place),
            runtime=handlers.runtime_of(self.sandbox, handler, self._settings.state),
            flags=(*handler.options, *(() if self._has_network else ("--network=host",))),
            cgroup=container_cgroup(self.sandbox, self.sandbox.id),
        )
        await self._shims.of(self.sandbox.id).call(call)
        self._trace.step("sandbox of the runtime made")

    async def _tell_plugins(self, sandbox: Sandbox) -> None:
        await self._state.require_plugins(wait=False)
        if self._state.plugins is None:
            return
        self._undo.register(
            "tell plugins of the pod's removal", self._state.happened, PluginEvent.REMOVE_SANDBOX, sandbox
        )
        self._undo.register("tell plugins of the pod's stop", self._state.happened, PluginEvent.STOP_SANDBOX, sandbox)
        await self._state.happens(PluginEvent.RUN_SANDBOX, sandbox)

    def _require_alive(self) -> None:
        self._shims.of(self.sandbox.id)
        if self.lost:
            raise ShimGone(f"the infra process of pod sandbox {self.sandbox.id} is gone")

    async def _publish(self, sandbox: Sandbox, containers: Sequence[ContainerRecord]) -> None:
        record = SandboxRecord(sandbox=sandbox, finished=True, network=self._has_network)
        await self._state.save_sandbox(record, containers)
        self._trace.step("sandbox durable")


def _size(path: Path) -> int:
    """Return a file's size in bytes; /etc/hosts may be large, for example with a list of blocked hosts."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="surrogateescape")
    except FileNotFoundError:
        return ""
