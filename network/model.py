"""The values that cross the door of the network room."""

from __future__ import annotations

from typing import Any

import msgspec


class _Value(msgspec.Struct, frozen=True, omit_defaults=True):
    """Base of the immutable, JSON-serialisable values. Cached on disk: a field may be added, never renamed."""


class PortMapping(_Value, frozen=True):
    """A port of the host that leads to a port of the pod."""

    host_port: int  # 0: the mapping asks for no port of the host, and no plugin is told of it
    container_port: int
    protocol: str = "tcp"  # "tcp", "udp" or "sctp"
    host_ip: str = ""


class DNS(_Value, frozen=True):
    """The resolver settings of a pod, for plugins that have the `dns` capability."""

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
    ips: tuple[str, ...] = ()  # addresses asked for, for plugins that have the `ips` capability
    mac: str = ""  # hardware address asked for, for plugins that have the `mac` capability


class NetworkResult(_Value, frozen=True):
    """What the plugins made: the pod's addresses without prefix length, in their order, and their whole answer."""

    ips: tuple[str, ...]
    raw: dict[str, Any]


class NetworkStatus(_Value, frozen=True):
    """Whether pods can be given a network, in the terms of CRI's NetworkReady condition."""

    ready: bool
    reason: str = ""
    message: str = ""
