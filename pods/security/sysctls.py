"""Kernel parameters of a pod (CRI `LinuxPodSandboxConfig.sysctls`)."""

from __future__ import annotations

import re

from pods.errors import InvalidArgument
from pods.model import NamespaceMode, SandboxConfig

_FIELD = "config.linux.sysctls"
_NAME = re.compile(r"[a-z0-9][A-Za-z0-9_-]*([./][A-Za-z0-9_:.*-]*[A-Za-z0-9_*-])+")
_LAST_GROUP = 2**31 - 1  # the kernel takes no larger one
_IPC = frozenset(
    f"kernel.{name}" for name in "msgmax msgmnb msgmni sem shmall shmmax shmmni shm_rmid_forced".split()
)


def sandbox_sysctls(config: SandboxConfig) -> dict[str, str]:
    """The parameters to write in the pod's namespaces, by name with slashes for separators.

    Only those that belong to a namespace which the pod has for itself: anything else would change the host. Raises
    InvalidArgument for the others.
    """
    return {_path(name, config): value for name, value in config.sysctls.items()}


def default_sysctls(config: SandboxConfig, *, ports: bool, icmp: bool) -> dict[str, str]:
    """What a network namespace of the pod's own begins with, by name with slashes: the pod's own sysctls win.

    `ports`: anybody may bind those below 1024. `icmp`: anybody may ping, which takes the groups that may do so, as the
    host counts them: all, or those of the pod's user namespace.
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


def _path(name: str, config: SandboxConfig) -> str:
    if not _NAME.fullmatch(name) or ".." in name:
        raise InvalidArgument(f"{_FIELD}: {name!r} is not the name of a kernel parameter")
    # sysctl(8): whichever of '.' and '/' comes first is the separator, and the other one stands for itself swapped.
    slashed = name if name.find("/") >= 0 and (name.find(".") < 0 or name.find("/") < name.find(".")) else _swap(name)
    dotted = slashed.replace("/", ".")
    namespaces = config.security.namespaces
    if dotted in _IPC or slashed.startswith("fs/mqueue/"):
        needs, mode = "ipc", namespaces.ipc
    elif slashed.startswith("net/"):
        needs, mode = "network", namespaces.network
    elif dotted == "kernel.domainname":
        needs, mode = "uts", namespaces.network  # a pod on the host's network has the host's names
    else:
        raise InvalidArgument(f"{_FIELD}: {name!r} does not belong to a namespace of the pod")
    if mode is NamespaceMode.NODE:
        raise InvalidArgument(f"{_FIELD}: {name!r} would change the host, whose {needs} namespace the pod shares")
    return slashed


def _swap(name: str) -> str:
    return name.translate(str.maketrans("./", "/."))
