"""Computes a container's Linux capabilities (CRI `Capability`, capabilities(7))."""

from __future__ import annotations

from collections.abc import Iterable

from pods import rules
from pods.errors import InvalidArgument
from pods.model import ContainerSecurity

DEFAULT = frozenset(
    f"CAP_{name}"
    for name in """
AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP SETUID
SYS_CHROOT
""".split()
)
"""The capabilities of a container without requests: the set that images rely on."""

_FIELD = "config.linux.security_context.capabilities"


def granted(security: ContainerSecurity, available: frozenset[str]) -> tuple[frozenset[str], frozenset[str]]:
    """Return a container's (bounding, ambient) sets; effective and permitted equal the bounding set.

    "ALL" and privileged mean all of `available`. Dropping a name wins over adding it; adding a name wins over dropping
    ALL. Raises InvalidArgument for an added name that is not available.
    """
    add = _named(security.add_capabilities)
    drop = _named(security.drop_capabilities)
    ambient = _named(security.add_ambient_capabilities)
    if security.privileged:
        return available, available & ambient
    bounding = available if "ALL" in add else DEFAULT & available
    if "ALL" in drop:
        bounding = frozenset()
    by_name = (add | ambient) - {"ALL"}
    _refuse_unavailable(by_name - drop, available)
    bounding = (bounding | by_name) - drop
    return bounding, bounding if "ALL" in ambient else ambient & bounding


def _named(names: Iterable[str]) -> frozenset[str]:
    return frozenset(map(rules.capability, names))


def _refuse_unavailable(wanted: frozenset[str], available: frozenset[str]) -> None:
    if missing := wanted - available:
        raise InvalidArgument(f"{_FIELD}: crispd itself does not have {', '.join(sorted(missing))}")
