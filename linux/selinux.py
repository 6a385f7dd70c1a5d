"""Reads how the machine's SELinux policy labels containers."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ContainerContexts:
    """The labels that an SELinux policy has for a container's processes and for its files."""

    process: str
    files: str


def container_contexts(etc: str | os.PathLike[str] = "/etc") -> ContainerContexts | None:
    """Return what the machine's SELinux policy says of containers (lxc_contexts(5)); None if it says nothing.

    Raises OSError if it cannot be read, as by a daemon that the policy does not know.
    """
    try:
        settings = _assignments(os.path.join(etc, "selinux/config"))
        policy = settings.get("SELINUXTYPE", "targeted")
        found = _assignments(os.path.join(etc, "selinux", policy, "contexts/lxc_contexts"))
        return ContainerContexts(found["process"], found["file"])
    except (FileNotFoundError, KeyError):
        return None


def _assignments(path: str) -> dict[str, str]:
    with open(path, errors="replace") as file:
        return dict(re.findall(r'^\s*(\w+)\s*=\s*"?([^"\s]+)"?\s*$', file.read(), re.MULTILINE))
