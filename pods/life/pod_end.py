"""Ends a pod, step by step: for StopPodSandbox, and to undo a RunPodSandbox."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from network.model import DNS, Attachment
from network.model import PortMapping as NetworkPort
from pods import handlers, log_fields

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
    """Removes what pods are made of. Methods raise NetworkError, RuntimeCoreError, PodError, OSError."""

    state: State
    shims: Shims
    network: Network
    exits: Exits
    cgroups: Cgroups

    async def tear_down(self, record: SandboxRecord) -> None:
        """Remove the network, shim, infra process and pinned namespace, as far as they exist. May be repeated."""
        sandbox = record.sandbox
        if record.network:
            other = sandbox.runtime_handler not in handlers.BUILT_IN
            await self.network.remove(attachment_of(sandbox), taken_over=other)
        await self.shims.end(sandbox.id)
        if sandbox.netns:
            self.shims.unpin(sandbox.netns)
        await self.exits.clear_cgroups(sandbox)
        if sandbox.runtime_handler not in handlers.BUILT_IN:
            handlers.forget(sandbox.id, self.state.settings.state)
        await self.cgroups.remove_pod(sandbox)

    async def erase(self, sandbox_id: str) -> None:
        """Remove the files and the record of a pod after its tear-down."""
        shutil.rmtree(self.state.settings.sandbox_dir(sandbox_id), ignore_errors=True)
        await self.state.forget_sandbox(sandbox_id)

    def register(self, record: SandboxRecord, undo: Undo) -> None:
        """Register the clean-up of a new pod. If its tear-down fails the pod stays, not ready, for a later stop."""
        undo.register("forget the pod sandbox", self._forget, record, undo)
        undo.register("tear the pod sandbox down", self._tear_down_begun, record)

    async def _tear_down_begun(self, record: SandboxRecord) -> None:
        # Call no network plugin if none was called before: a missing plugin must not keep the sandbox.
        network = record.network and self.network.was_begun(attachment_of(record.sandbox))
        await self.tear_down(msgspec.structs.replace(record, network=network))

    async def _forget(self, record: SandboxRecord, undo: Undo) -> None:
        if not undo.failed:
            await self.erase(record.sandbox.id)
            return
        fields = log_fields.of_sandbox(record.sandbox)
        _log.error("could not undo the pod sandbox: it stays NotReady until kubelet's next stop", extra=fields)
        await self.state.save_sandbox(msgspec.structs.replace(record, finished=True))


def attachment_of(sandbox: Sandbox) -> Attachment:
    """Describe the sandbox to the network room."""
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
