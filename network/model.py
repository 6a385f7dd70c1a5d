"""Values that callers of the network package pass in and get back."""

from __future__ import annotations

from typing import Any

import msgspec


class _Value(msgspec.Struct, frozen=True, omit_defaults=True):
    """Base of the immutable values. They are cached on disk as JSON: fields may be added, never renamed."""


class PortMapping(_Value, frozen=True):
    """A host port that is forwarded to a port of the pod."""

    host_port: int  # 0: no host port; such a mapping is not passed to plugins
    container_port: int
    protocol: str = "tcp"  # "tcp", "udp" or "sctp"
    host_ip: str = ""


class DNS(_Value, frozen=True):
    """The DNS settings of a pod, for plugins with the `dns` capability."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Attachment(_Value, frozen=True):
    """One interface of one pod. `sandbox_id` and `ifname` identify it."""

    sandbox_id: str
    netns: str  # path of the network namespace; "" when it is gone (DEL only)
    pod_name: str
    pod_namespace: str
    pod_uid: str
    ifname: str = "eth0"
    port_mappings: tuple[PortMapping, ...] = ()
    dns: DNS | None = None
    cgroup_path: str = ""
    annotations: dict[str, str] = msgspec.field(default_factory=dict)
    ips: tuple[str, ...] = ()  # requested addresses, for plugins with the `ips` capability
    mac: str = ""  # requested hardware address, for plugins with the `mac` capability


class NetworkResult(_Value, frozen=True):
    """The result of ADD: the pod's addresses, without prefix length and in the plugins' order, and the raw result."""

    ips: tuple[str, ...]
    raw: dict[str, Any]


class NetworkStatus(_Value, frozen=True):
    """Whether pods can get a network, in the terms of CRI's NetworkReady condition."""

    ready: bool
    reason: str = ""
    message: str = ""
