"""AppArmor profile and SELinux label of a container (CRI `SecurityProfile`, `SELinuxOption`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pods.errors import InvalidArgument
from pods.host import HostFacts
from pods.model import ContainerSecurity, ProfileType
from pods.security.apparmor import DEFAULT_PROFILE

_FIELD = "config.linux.security_context.apparmor"
_PROFILES = Path("/sys/kernel/security/apparmor/profiles")


def apparmor_profile(security: ContainerSecurity, host: HostFacts, loaded: Path = _PROFILES) -> str:
    """The profile to confine the process with, "" for none. Reads the list of loaded profiles.

    Who asks for nothing gets the default profile as if asked for, as long as it is loaded. RuntimeDefault means nothing
    where AppArmor is off, and privileged is never confined. Raises InvalidArgument for a named profile where AppArmor
    is off, and for one that is not loaded.
    """
    wanted = security.apparmor
    if security.privileged or (wanted is not None and wanted.type is ProfileType.UNCONFINED):
        return ""
    if wanted is None:
        return DEFAULT_PROFILE if host.apparmor and DEFAULT_PROFILE in _names(loaded) else ""
    if wanted.type is ProfileType.RUNTIME_DEFAULT:
        return _loaded(DEFAULT_PROFILE, loaded) if host.apparmor else ""
    name = wanted.localhost_ref
    if not host.apparmor:
        raise InvalidArgument(f"{_FIELD}: profile {name!r} is asked for, but AppArmor is not enabled on this node")
    return _loaded(name, loaded)


def _names(profiles: Path) -> set[str]:
    try:
        lines = profiles.read_text().splitlines()  # "name (enforce)"
    except FileNotFoundError:  # securityfs is not mounted
        return set()
    return {line.rpartition(" (")[0] for line in lines}


def _loaded(name: str, profiles: Path) -> str:
    if name not in _names(profiles):
        raise InvalidArgument(f"{_FIELD}: profile {name!r} is not loaded on this node (apparmor_parser(8))")
    return name


@dataclass(frozen=True, slots=True)
class SELinuxLabels:
    """What SELinux knows a container's process by, and what is the container's alone; "" for none."""

    process: str = ""
    files: str = ""


def selinux_labels(security: ContainerSecurity, host: HostFacts) -> SELinuxLabels:
    """The labels that a container gets; none without SELinux, options, or confinement."""
    options = security.selinux
    if options is None or not host.selinux or security.privileged:
        return SELinuxLabels()
    user, role = options.user or "system_u", options.role or "system_r"
    level = options.level or "s0"
    return SELinuxLabels(
        process=f"{user}:{role}:{options.type or 'container_t'}:{level}",
        files=f"{user}:object_r:container_file_t:{level}",
    )
