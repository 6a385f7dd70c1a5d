"""The life of pod sandboxes: RunPodSandbox, StopPodSandbox, RemovePodSandbox."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from network.errors import NetworkError
from network.model import DNS, Attachment
from network.model import PortMapping as NetworkPort
from pods import log_fields, log_place, pod_files
from pods.cgroups.places import places_of
from pods.errors import AlreadyExists, InvalidArgument, NotFound, PodError
from pods.handlers import check_handler
from pods.inflight import Background, Flights
from pods.log_fields import pod_name
from pods.model import NamespaceMode, Sandbox, SandboxConfig, SandboxState
from pods.oci import pod_contents as files
from pods.security import user_namespaces
from pods.security.sysctls import check_sysctls, default_sysctls, sandbox_sysctls
from pods.state.plugins import Moment
from pods.state.store import SandboxRecord
from runtime.errors import OperationFailed, RuntimeCoreError
from runtime.wire.calls import EXITS, Made, MakePod

if TYPE_CHECKING:
    from network.network import Network
    from pods.cgroups.driver import Cgroups
    from pods.host import HostFacts
    from pods.life.exit import Exits
    from pods.life.removal import Removals
    from pods.life.shims import Shims
    from pods.life.stop import Stops
    from pods.state.memory import State
    from pods.trace import Trace

_log = logging.getLogger("crisp.pods")
_SHM_SIZE: Final = 64 << 20
_HOST_RESOLV_CONF: Final = Path("/etc/resolv.conf")
_HOST_HOSTS: Final = Path("/etc/hosts")


class Sandboxes:
    """All changes to sandboxes go through here; each is idempotent and finishes although its caller leaves."""

    def __init__(
        self,
        state: State,
        shims: Shims,
        network: Network,
        exits: Exits,
        stops: Stops,
        removals: Removals,
        host: HostFacts,
        cgroups: Cgroups,
        background: Background,
    ) -> None:
        self._host = host
        self._cgroups = cgroups
        self._state = state
        self._shims = shims
        self._network = network
        self._exits = exits
        self._stops = stops
        self._removals = removals
        self._background = background
        self._flights = Flights(background)

    # -- run ----------------------------------------------------------------------------------------------------------

    async def run(self, config: SandboxConfig, handler: str, trace: Trace) -> str:
        """Make a sandbox and return its id; see `Flights` for repeated and abandoned requests."""
        check_handler(handler, config, self._state.settings.runtime_handlers)
        self._validate(config)
        return await self._flights.run(
            pod_name(config),
            (config, handler),
            lambda: self._make(config, handler, trace),
            self._undo,
            made=lambda: self._made(config),
        )

    def is_known(self, config: SandboxConfig) -> bool:
        """Whether there is such a pod, or one in the making, which is another request's to undo."""
        return self._holder(config) is not None or self._flights.is_under_way(pod_name(config))

    def _made(self, config: SandboxConfig) -> str | None:
        """The id of the sandbox that the same request made before. Raises AlreadyExists when another has the name."""
        held = self._holder(config)
        if held is None:
            return None
        if held.sandbox.config == config and held.sandbox.state is SandboxState.READY:
            return held.sandbox.id
        raise AlreadyExists(f"name {pod_name(config)!r} is held by pod sandbox {held.sandbox.id} until it is removed")

    def _validate(self, config: SandboxConfig) -> None:
        """Refuse what can never work, before anything is made."""
        options = config.security.namespaces
        user_namespaces.check_pod(
            options, "config.linux.security_context.namespace_options", self._shims.idmap_refusal
        )
        places_of(self._state.settings.cgroup_driver).pod("new", config)
        check_sysctls(config)
        files.resolv_conf(config.dns, "")

    def _write_hosts(self, sandbox: Sandbox, addresses: tuple[str, ...]) -> None:
        """/etc/hosts of containers for which kubelet brings none: the host's own, or the pod's name and addresses."""
        on_host_network = sandbox.config.security.namespaces.network is NamespaceMode.NODE
        name = files.hostname(sandbox.id, sandbox.config, self._host.hostname)
        text = _read(_HOST_HOSTS) if on_host_network else files.hosts(name, addresses)
        hosts = pod_files.place(self._state.settings.sandbox_dir(sandbox.id)) / "hosts"
        hosts.write_text(text, errors="surrogateescape")
        user_namespaces.give(hosts, user_namespaces.mappings_of(sandbox.config))

    def _holder(self, config: SandboxConfig) -> SandboxRecord | None:
        metadata = config.metadata
        return next((r for r in self._state.sandboxes.values() if r.sandbox.config.metadata == metadata), None)

    async def _make(self, config: SandboxConfig, handler: str, trace: Trace) -> str:
        sandbox_id = secrets.token_hex(32)
        on_host_network = config.security.namespaces.network is NamespaceMode.NODE
        sandbox = Sandbox(
            id=sandbox_id,
            config=config,
            runtime_handler=handler,
            state=SandboxState.NOT_READY,
            created_at=time.time_ns(),
            netns="" if on_host_network else str(self._state.settings.netns_path(sandbox_id)),
            cgroup_driver=self._state.settings.cgroup_driver,
        )
        record = SandboxRecord(sandbox=sandbox, network=not on_host_network)
        # The intent must be on disk before a plugin runs; it gets there while the shim is made.
        intent = self._state.store.begin_put(record)
        try:
            self._write_files(sandbox)
            trace.step("files written")
            made = await self._make_pod(sandbox)
            trace.step("shim and infra process made")
            await asyncio.wrap_future(intent)
            trace.step("intent durable")
            ips: tuple[str, ...] = ()
            if not on_host_network:
                ips = (await self._network.add(attachment_of(sandbox))).ips
                trace.step("network added")
            self._write_hosts(sandbox, ips)
            sandbox = msgspec.structs.replace(
                sandbox, state=SandboxState.READY, ips=ips, infra_pid=made.infra_pid, created_at=time.time_ns()
            )
            finished = SandboxRecord(sandbox=sandbox, finished=True, network=not on_host_network)
            async with self._state.gate.passing():
                await self._state.happens(Moment.RUN_SANDBOX, sandbox)
                try:
                    await self._state.save_sandbox(finished)
                except BaseException:
                    await self._state.happened(Moment.REMOVE_SANDBOX, sandbox)
                    raise
            trace.step("sandbox durable")
        except BaseException as failure:
            with contextlib.suppress(PodError):
                await asyncio.wrap_future(intent)
            await self._undo_make(record, failure)
            raise
        _log.info("pod sandbox made", extra=log_fields.of_sandbox(sandbox) | {"ips": ",".join(ips)})
        return sandbox_id

    async def _make_pod(self, sandbox: Sandbox) -> Made:
        try:
            return await self._shims.make_pod(self._pod_call(sandbox))
        except OperationFailed as error:
            if error.operation == "set sysctl":  # the kernel knows which exist, and what they may be
                raise InvalidArgument(f"config.linux.sysctls: {error}") from error
            raise

    async def _undo_make(self, record: SandboxRecord, failure: BaseException) -> None:
        """Undo; if a plugin fails even at DEL, keep the sandbox as NOT_READY so that Stop is tried again."""
        sandbox_id = record.sandbox.id
        # Where no plugin was run none is needed: a missing one must not keep the sandbox.
        network = record.network and self._network.was_begun(attachment_of(record.sandbox))
        try:
            await self._tear_down(msgspec.structs.replace(record, network=network))
            await self._erase(sandbox_id)
        except (NetworkError, RuntimeCoreError, OSError) as error:
            fields = log_fields.of_sandbox(record.sandbox) | {"undo": error, "after": failure}
            _log.error("pod sandbox stays, not ready: its undoing failed", extra=fields)
            await self._state.save_sandbox(msgspec.structs.replace(record, finished=True))

    async def _undo(self, sandbox_id: str) -> None:
        """Undo a sandbox whose id nobody has learnt. It is unfinished from here on: its name is not held by a crash."""
        record = self._state.sandboxes[sandbox_id]
        await self._state.save_sandbox(msgspec.structs.replace(record, finished=False))
        try:
            await self.remove(sandbox_id)
        except (NetworkError, RuntimeCoreError, PodError, OSError) as error:
            record = self._state.sandboxes[sandbox_id]
            fields = log_fields.of_sandbox(record.sandbox) | {"undo": error}
            _log.error("pod sandbox stays, not ready: its undoing failed", extra=fields)
            await self._state.save_sandbox(msgspec.structs.replace(record, finished=True))

    def _write_files(self, sandbox: Sandbox) -> None:
        settings, config = self._state.settings, sandbox.config
        directory = settings.sandbox_dir(sandbox.id)
        directory.mkdir(parents=True, mode=0o700)
        (directory / EXITS).mkdir()
        hostname = files.hostname(sandbox.id, config, self._host.hostname)
        resolv_conf = files.resolv_conf(config.dns, _read(_HOST_RESOLV_CONF))
        place = pod_files.make(directory, len(resolv_conf) + _size(_HOST_HOSTS))
        (place / "hostname").write_text(hostname + "\n")
        (place / "resolv.conf").write_text(resolv_conf, errors="surrogateescape")
        for name in ("hostname", "resolv.conf"):
            user_namespaces.give(place / name, user_namespaces.mappings_of(config))
        if config.log_directory:
            log_place.make_log_directory(config.log_directory)

    def _pod_call(self, sandbox: Sandbox) -> MakePod:
        config = sandbox.config
        options = config.security.namespaces
        new = [
            kind
            for kind, mode in (("network", options.network), ("uts", options.network), ("ipc", options.ipc))
            if mode is not NamespaceMode.NODE
        ]
        if options.pid is NamespaceMode.POD:
            new.append("pid")
        return MakePod(
            sandbox=sandbox.id,
            directory=str(self._state.settings.sandbox_dir(sandbox.id)),
            hostname=files.hostname(sandbox.id, config, self._host.hostname),
            sysctls=sandbox_sysctls(config),
            default_sysctls=default_sysctls(
                config,
                ports=self._state.settings.enable_unprivileged_ports,
                icmp=self._state.settings.enable_unprivileged_icmp,
            ),
            new=tuple(new),
            netns=sandbox.netns,
            shm_size=0 if options.ipc is NamespaceMode.NODE else _SHM_SIZE,
            users=user_namespaces.shim_argument(user_namespaces.mappings_of(config)),
        )

    # -- stop ---------------------------------------------------------------------------------------------------------

    async def stop(self, sandbox_id: str) -> None:
        """Kill the containers and take away all that the sandbox has in the kernel. Unknown ids succeed."""
        try:
            found = self._state.find_sandbox(sandbox_id).sandbox.id
        except NotFound:
            return
        await self._background.shielded(self._stop(found))

    async def _stop(self, sandbox_id: str) -> None:
        async with self._state.lock(sandbox_id):
            record = self._state.sandboxes.get(sandbox_id)
            if record is None or record.stopped:
                return
            if record.sandbox.state is SandboxState.READY:
                sandbox = msgspec.structs.replace(record.sandbox, state=SandboxState.NOT_READY)
                record = msgspec.structs.replace(record, sandbox=sandbox)
                await self._state.save_sandbox(record)
            await self._stops.stop_all(sandbox_id)
            await self._state.happened(Moment.STOP_SANDBOX, record.sandbox)
            await self._tear_down(record)
            sandbox = msgspec.structs.replace(record.sandbox, infra_pid=0, netns="")
            await self._state.save_sandbox(
                msgspec.structs.replace(record, sandbox=sandbox, network=False, stopped=True)
            )
            _log.info("pod sandbox stopped", extra=log_fields.of_sandbox(sandbox))

    async def _tear_down(self, record: SandboxRecord) -> None:
        """Network, shim, infra process, pinned namespace: whatever of these there is. Can be repeated."""
        sandbox = record.sandbox
        if record.network:
            await self._network.remove(attachment_of(sandbox))
        await self._shims.end(sandbox.id)
        if sandbox.netns:
            self._shims.unpin(sandbox.netns)
        await self._exits.clear_cgroups(sandbox)
        await self._cgroups.remove_pod(sandbox)

    async def lost(self, sandbox_id: str) -> None:
        """The shim or the infra process is gone: the sandbox is not ready, and nothing in it runs any more."""
        record = self._state.sandboxes.get(sandbox_id)
        if record is not None and record.sandbox.state is SandboxState.READY:
            sandbox = msgspec.structs.replace(record.sandbox, state=SandboxState.NOT_READY)
            await self._state.save_sandbox(msgspec.structs.replace(record, sandbox=sandbox))
            _log.error("pod sandbox lost its shim or infra process", extra=log_fields.of_sandbox(sandbox))

    # -- remove -------------------------------------------------------------------------------------------------------

    async def remove(self, sandbox_id: str) -> None:
        """Stop the sandbox if it is not, remove its containers, its files and its name. Unknown ids succeed."""
        try:
            found = self._state.find_sandbox(sandbox_id).sandbox.id
        except NotFound:
            return
        await self._background.shielded(self._remove(found))

    async def _remove(self, sandbox_id: str) -> None:
        await self._stop(sandbox_id)
        for container in list(self._state.containers_of(sandbox_id)):
            await self._removals.remove(container.id)
        async with self._state.lock(sandbox_id):
            if (record := self._state.sandboxes.get(sandbox_id)) is not None:
                await self._erase(sandbox_id)
                await self._state.happened(Moment.REMOVE_SANDBOX, record.sandbox)
                _log.info("pod sandbox removed", extra=log_fields.of_sandbox(record.sandbox))

    async def _erase(self, sandbox_id: str) -> None:
        shutil.rmtree(self._state.settings.sandbox_dir(sandbox_id), ignore_errors=True)
        await self._state.forget_sandbox(sandbox_id)

    async def discard(self, record: SandboxRecord) -> None:
        """Undo a sandbox that an earlier daemon did not finish."""
        await self._undo_make(record, PodError("crispd ended before the sandbox was finished"))


def attachment_of(sandbox: Sandbox) -> Attachment:
    """How the network room knows the sandbox."""
    config = sandbox.config
    dns = config.dns
    return Attachment(
        sandbox_id=sandbox.id,
        netns=sandbox.netns,
        pod_name=config.metadata.name,
        pod_namespace=config.metadata.namespace,
        pod_uid=config.metadata.uid,
        port_mappings=tuple(
            NetworkPort(port.host_port, port.container_port, port.protocol, port.host_ip)
            for port in config.port_mappings
        ),
        dns=DNS(dns.servers, dns.searches, dns.options) if dns else None,
        cgroup_path=config.cgroup_parent,
        annotations=config.annotations,
    )


def _size(path: Path) -> int:
    """In bytes; many a machine has a long list of blocked hosts."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="surrogateescape")
    except FileNotFoundError:
        return ""
