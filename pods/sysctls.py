"""Kernel parameters of a pod (CRI `LinuxPodSandboxConfig.sysctls`)."""

from __future__ import annotations

import re

from pods.errors import InvalidArgument
from pods.model import NamespaceMode, SandboxConfig

_FIELD = "config.linux.sysctls"
_NAME = re.compile(r"[a-z0-9][A-Za-z0-9_-]*([./][A-Za-z0-9_:.*-]*[A-Za-z0-9_*-])+")
_IPC = frozenset(
    f"kernel.{name}" for name in "msgmax msgmnb msgmni sem shmall shmmax shmmni shm_rmid_forced".split()
)


def sandbox_sysctls(config: SandboxConfig) -> dict[str, str]:
    """The parameters to write in the pod's namespaces, by name with slashes for separators.

    Only those that belong to a namespace which the pod has for itself: anything else would change the host. Raises
    InvalidArgument for the others.
    """
    return {_path(name, config): value for name, value in config.sysctls.items()}


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
