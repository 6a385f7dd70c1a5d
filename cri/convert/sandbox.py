"""Converts pod sandboxes: RunPodSandbox's configuration, statuses and list entries."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from enum import IntEnum

from cri.convert import fields
from cri.convert.resources import resources
from cri.convert.security import namespaces_message, sandbox_security
from cri.v1 import api_pb2
from pods import rules
from pods.model import DNSConfig, NamespaceMode, PortMapping, Sandbox, SandboxConfig, SandboxMetadata, SandboxState

_HIGHEST_PORT = 65535
_STATES = {
    SandboxState.READY: api_pb2.PodSandboxState.SANDBOX_READY,
    SandboxState.NOT_READY: api_pb2.PodSandboxState.SANDBOX_NOTREADY,
}


class Protocol(IntEnum):
    """CRI `Protocol`."""

    TCP = 0
    UDP = 1
    SCTP = 2


def sandbox_config(path: str, message: api_pb2.PodSandboxConfig) -> SandboxConfig:
    """Convert a `PodSandboxConfig`. The Windows part is ignored."""
    linux, at = message.linux, f"{path}.linux"
    return SandboxConfig(
        metadata=_metadata(path, message),
        hostname=_hostname(f"{path}.hostname", message.hostname),
        log_directory=fields.inside(
            f"{path}.log_directory", fields.absolute_if_set(f"{path}.log_directory", message.log_directory)
        ),
        dns=_dns(f"{path}.dns_config", message.dns_config) if message.HasField("dns_config") else None,
        port_mappings=_port_mappings(f"{path}.port_mappings", message.port_mappings),
        labels=fields.label_map(f"{path}.labels", message.labels),
        annotations=fields.annotation_map(f"{path}.annotations", message.annotations),
        cgroup_parent=fields.inside(f"{at}.cgroup_parent", linux.cgroup_parent),
        security=sandbox_security(f"{at}.security_context", linux.security_context),
        sysctls=_sysctls(f"{at}.sysctls", linux),
        overhead=resources(f"{at}.overhead", linux.overhead) if linux.HasField("overhead") else None,
        resources=resources(f"{at}.resources", linux.resources) if linux.HasField("resources") else None,
    )


def _metadata(path: str, message: api_pb2.PodSandboxConfig) -> SandboxMetadata:
    if not message.HasField("metadata"):
        raise fields.missing(f"{path}.metadata")
    metadata = message.metadata
    return SandboxMetadata(
        name=fields.name(f"{path}.metadata.name", metadata.name),
        uid=fields.name(f"{path}.metadata.uid", metadata.uid),
        namespace=fields.name(f"{path}.metadata.namespace", metadata.namespace),
        attempt=metadata.attempt,
    )


def _hostname(path: str, value: str) -> str:
    if value:
        fields.matching(path, value, rules.HOST_NAME)
        fields.between(f"length of {path}", len(value), 1, rules.HOST_NAME_BYTES)
    return value


def _dns(path: str, message: api_pb2.DNSConfig) -> DNSConfig:
    return DNSConfig(
        servers=fields.words(f"{path}.servers", message.servers),
        searches=fields.words(f"{path}.searches", message.searches),
        options=fields.words(f"{path}.options", message.options),
    )


def _port_mappings(path: str, messages: Collection[api_pb2.PortMapping]) -> tuple[PortMapping, ...]:
    few = fields.few(path, messages, _HIGHEST_PORT)
    return tuple([_port_mapping(f"{path}[{index}]", message) for index, message in enumerate(few)])


def _port_mapping(path: str, message: api_pb2.PortMapping) -> PortMapping:
    return PortMapping(
        protocol=fields.choice(f"{path}.protocol", message.protocol, Protocol).name.lower(),
        container_port=fields.between(f"{path}.container_port", message.container_port, 1, _HIGHEST_PORT),
        host_port=fields.between(f"{path}.host_port", message.host_port, 0, _HIGHEST_PORT),
        host_ip=_address(f"{path}.host_ip", message.host_ip),
    )


def _address(path: str, value: str) -> str:
    if value:
        try:
            ipaddress.ip_address(value)
        except ValueError:
            raise fields.invalid(path, value, "must be an IP address") from None
    return value


def _sysctls(path: str, message: api_pb2.LinuxPodSandboxConfig) -> dict[str, str]:
    for name, value in fields.few(path, message.sysctls).items():
        fields.matching(f"{path} key", name, rules.SYSCTL)
        fields.matching(f"{path}[{name!r}]", value, rules.SYSCTL_VALUE)
    return dict(message.sysctls)


def sandbox_state(path: str, number: int) -> SandboxState:
    """Return the state that a filter selects."""
    for state, known in _STATES.items():
        if number == known:
            return state
    raise fields.invalid(path, number, "is not a PodSandboxState of CRI v1")


def sandbox_item(sandbox: Sandbox) -> api_pb2.PodSandbox:
    """Convert a sandbox to an entry of ListPodSandbox."""
    return api_pb2.PodSandbox(
        id=sandbox.id,
        metadata=_metadata_message(sandbox),
        state=_STATES[sandbox.state],
        created_at=sandbox.created_at,
        labels=sandbox.config.labels,
        annotations=sandbox.config.annotations,
        runtime_handler=sandbox.runtime_handler,
    )


def sandbox_status(sandbox: Sandbox) -> api_pb2.PodSandboxStatus:
    """Convert a sandbox for PodSandboxStatus. A pod on the host's network has no address of its own."""
    options = sandbox.config.security.namespaces
    ips = () if options.network is NamespaceMode.NODE else sandbox.ips
    return api_pb2.PodSandboxStatus(
        id=sandbox.id,
        metadata=_metadata_message(sandbox),
        state=_STATES[sandbox.state],
        created_at=sandbox.created_at,
        network=api_pb2.PodSandboxNetworkStatus(
            ip=ips[0] if ips else "", additional_ips=[api_pb2.PodIP(ip=ip) for ip in ips[1:]]
        ),
        linux=api_pb2.LinuxPodSandboxStatus(namespaces=api_pb2.Namespace(options=namespaces_message(options))),
        labels=sandbox.config.labels,
        annotations=sandbox.config.annotations,
        runtime_handler=sandbox.runtime_handler,
    )


def _metadata_message(sandbox: Sandbox) -> api_pb2.PodSandboxMetadata:
    metadata = sandbox.config.metadata
    return api_pb2.PodSandboxMetadata(
        name=metadata.name, uid=metadata.uid, namespace=metadata.namespace, attempt=metadata.attempt
    )
