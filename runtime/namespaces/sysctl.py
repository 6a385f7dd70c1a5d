"""Writes kernel parameters (sysctl) in a container's namespaces."""

from __future__ import annotations

from linux.sysctls import path_of
from runtime.errors import OperationFailed, failing
from runtime.light import contextlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def write_sysctls(sysctls: Mapping[str, str]) -> None:
    """Write parameters of the caller's namespaces. Raises OperationFailed."""
    for name, value in sysctls.items():
        with failing("set sysctl", f"{name}={value}"), open(f"/proc/sys/{path_of(name)}", "w") as file:
            file.write(value)


def write_defaults(sysctls: Mapping[str, str]) -> None:
    """Write parameters that nobody asked for by name. Those that the kernel lacks or refuses are skipped."""
    for name, value in sysctls.items():
        with contextlib.suppress(OperationFailed):
            write_sysctls({name: value})
