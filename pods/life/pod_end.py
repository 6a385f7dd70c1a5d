"""What ends a pod, step by step: on StopPodSandbox, and where a RunPodSandbox is undone."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from network.model import DNS, Attachment
from network.model import PortMapping as NetworkPort
from pods import log_fields

if TYPE_CHECKING:
    from network.network import Network
    from pods.cgroups.driver import Cgroups
    from pods.life.exit import Exits
    from pods.life.shims import Shims
    from pods.model import Sandbox
    from pods.state.memory import State
    from pods.state.store import SandboxRecord
    from pods.undo import Undo

_log = logging.getLogger("crisp.pods")


@dataclass(frozen=True, slots=True)
class PodEnd:
    """Takes away what pods are made of. What fails raises NetworkError, RuntimeCoreError, PodError, OSError."""

    state: State
    shims: Shims
    network: Network
    exits: Exits
    cgroups: Cgroups

    async def tear_down(self, record: SandboxRecord) -> None:
        """Network, shim, infra process, pinned namespace: whatever of these there is. Can be repeated."""
        sandbox = record.sandbox
        if record.network:
            await self.network.remove(attachment_of(sandbox))
        await self.shims.end(sandbox.id)
        if sandbox.netns:
            self.shims.unpin(sandbox.netns)
        await self.exits.clear_cgroups(sandbox)
        await self.cgroups.remove_pod(sandbox)

    async def erase(self, sandbox_id: str) -> None:
        """Remove the files and the record of a pod that is torn down."""
        shutil.rmtree(self.state.settings.sandbox_dir(sandbox_id), ignore_errors=True)
        await self.state.forget_sandbox(sandbox_id)

    def register(self, record: SandboxRecord, undo: Undo) -> None:
        """Have a pod that was begun undone; one that cannot be torn down stays, not ready, for a stop to try again."""
        undo.register("forget the pod sandbox", self._forget, record, undo)
        undo.register("tear the pod sandbox down", self._tear_down_begun, record)

    async def _tear_down_begun(self, record: SandboxRecord) -> None:
        # Where no plugin was run none is needed: a missing one must not keep the sandbox.
        network = record.network and self.network.was_begun(attachment_of(record.sandbox))
        await self.tear_down(msgspec.structs.replace(record, network=network))

    async def _forget(self, record: SandboxRecord, undo: Undo) -> None:
        if not undo.failed:
            await self.erase(record.sandbox.id)
            return
        _log.error("pod sandbox stays, not ready: its undoing failed", extra=log_fields.of_sandbox(record.sandbox))
        await self.state.save_sandbox(msgspec.structs.replace(record, finished=True))


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
