"""Defines the devices that every container has, and their cgroup rules (config-linux.md "Default Devices")."""

from __future__ import annotations

from runtime.spec.values import Device, DeviceRule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

DEFAULT_DEVICES: Final = tuple(
    Device(path=f"/dev/{name}", type="c", major=major, minor=minor, file_mode=0o666)
    for name, major, minor in (
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    )
)
# mknod is allowed for any device; access is allowed to the default devices and terminals (console, ptmx, pts).
DEFAULT_RULES: Final = (
    *(DeviceRule(allow=True, type=kind, access="m") for kind in "cb"),
    *(DeviceRule(allow=True, type=node.type, major=node.major, minor=node.minor) for node in DEFAULT_DEVICES),
    *(DeviceRule(allow=True, type="c", major=major, minor=minor) for major, minor in ((5, 1), (5, 2), (136, None))),
)
