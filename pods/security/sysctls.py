"""Sysctls of a pod (CRI `LinuxPodSandboxConfig.sysctls`)."""

from __future__ import annotations

from linux.sysctls import namespace_of, path_of
from pods.errors import InvalidArgument
from pods.model import NamespaceMode, SandboxConfig

_FIELD = "config.linux.sysctls"
_LAST_GROUP = 2**31 - 1  # the kernel accepts no larger one
_HOST_NAME = "kernel/hostname"


def check_sysctls(config: SandboxConfig) -> None:
    """Refuse (InvalidArgument) sysctls outside the pod's own namespaces, since they would change the host.

    The host name is refused as well: the containers' /etc/hostname, /etc/hosts and HOSTNAME would differ from it.
    """
    namespaces = config.security.namespaces
    # A pod on the host's network has the host's name, too.
    modes = {"network": namespaces.network, "ipc": namespaces.ipc, "uts": namespaces.network}
    for name in config.sysctls:
        path = path_of(name)
        kind = namespace_of(path)
        if not kind or path == _HOST_NAME:
            where = "here: set config.hostname instead" if kind else "to a namespace of the pod"
            raise InvalidArgument(f"{_FIELD}: {name!r} does not belong {where}")
        if modes[kind] is NamespaceMode.NODE:
            raise InvalidArgument(f"{_FIELD}: {name!r} would change the host, whose {kind} namespace the pod shares")


def sandbox_sysctls(config: SandboxConfig) -> dict[str, str]:
    """Return the sysctls to set in the pod's namespaces, by name with slashes."""
    return {path_of(name): value for name, value in config.sysctls.items()}


def default_sysctls(config: SandboxConfig, *, ports: bool, icmp: bool) -> dict[str, str]:
    """Return defaults for the pod's own network namespace, by name with slashes. The pod's own sysctls win.

    `ports`: anybody may bind ports below 1024. `icmp`: anybody may ping. For that the kernel needs a range of group ids
    in the host's numbering: all of them, or those of the pod's user namespace.
    """
    if config.security.namespaces.network is NamespaceMode.NODE:
        return {}
    wanted = {}
    if ports:
        wanted["net/ipv4/ip_unprivileged_port_start"] = "0"
    if icmp:
        wanted["net/ipv4/ping_group_range"] = _groups(config)
    asked = sandbox_sysctls(config)
    return {name: value for name, value in wanted.items() if name not in asked}


def _groups(config: SandboxConfig) -> str:
    userns = config.security.namespaces.userns
    if userns is None or userns.mode is NamespaceMode.NODE or not userns.gids:
        return f"0 {_LAST_GROUP}"
    last = max(line.host_id + line.length for line in userns.gids) - 1
    return f"{min(line.host_id for line in userns.gids)} {last}"
