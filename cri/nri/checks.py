"""Checks plugins' values by the same rules as CRI's requests (`pods.rules`).

Each check takes the field's name and value, and raises NriError naming the field. Namespaces, rlimits and interfaces
are left to config.json's parser, which names the field as well and sees the result of all plugins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from cri.nri.errors import NriError
from cri.nri.v1alpha1 import api_pb2 as nri
from pods import rules
from pods.oci.execve_limits import name_of
from pods.rules import Form

_SHOWN = 128  # characters of a refused value to show


class _Enum(Protocol):
    def Name(self, number: Any) -> str: ...  # protobuf's
_MOST_OF_CRI = 2**63 - 1  # CRI's numbers are signed, NRI's are not


def refuse(where: str, value: object, reason: str) -> NriError:
    """Return the error that refuses `value`."""
    return NriError(f"{where}: {repr(value)[:_SHOWN]} {reason}")


def unshown(where: str, values: Iterable[str]) -> None:
    """Check strings for NUL; messages do not show them, since they may be secret."""
    for index, value in enumerate(values):
        if not rules.is_text(value):
            raise NriError(f"{where}[{index}]: contains a NUL byte")


def annotation(name: str, value: str) -> None:
    if not name or not rules.is_text(name + value):
        raise NriError(f"annotations {name[:_SHOWN]!r}: must be a name and a value without NUL bytes")


def variable(name: str, value: str) -> None:
    if not rules.is_variable(name) or not rules.is_text(value):
        raise NriError(f"env {name_of(name)!r}: must be the name and value of a variable")


def matching(where: str, value: str, form: Form) -> None:
    """Check a string's form."""
    if not form.fits(value):
        raise refuse(where, value, f"must be {form.expected}")


def below_root(where: str, path: str) -> None:
    """Check a mount point in a container."""
    if not rules.is_text(path) or not rules.is_below_root(path):
        raise refuse(where, path, f"must be {rules.BELOW_ROOT}")
    if fault := rules.fault_of_path(path):
        raise refuse(where, path, fault)


def between(where: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise refuse(where, value, f"must be between {low} and {high}")


def one_of(where: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise refuse(where, value, f"must be one of {', '.join(known)}")


def enum(where: str, kind: _Enum, number: int) -> str:
    """Return the name of a member of an enumeration; proto3 does not check the number."""
    try:
        return kind.Name(number)
    except ValueError:
        raise refuse(where, number, "is unknown in NRI v1alpha1") from None


def sysctls(wanted: Mapping[str, str]) -> None:
    """Check names and values. Config.json's validation checks that each belongs to a namespace of the container."""
    for name, value in wanted.items():
        matching("linux.sysctl", name, rules.SYSCTL)
        matching(f"linux.sysctl.{name}", value, rules.SYSCTL_VALUE)


def resources(where: str, message: nri.LinuxResources) -> None:
    """Check limits: CPU lists, page sizes, names of cgroup files, and numbers below "no limit"."""
    for name in ("limit", "reservation", "swap"):
        _limit(f"{where}.memory.{name}", getattr(message.memory, name).value)
    _limit(f"{where}.cpu.quota", message.cpu.quota.value)
    for name in ("shares", "period"):
        between(f"{where}.cpu.{name}", getattr(message.cpu, name).value, 0, _MOST_OF_CRI)
    for name in ("cpus", "mems"):
        if value := getattr(message.cpu, name):
            matching(f"{where}.cpu.{name}", value, rules.CPU_LIST)
    for limit in message.hugepage_limits:
        matching(f"{where}.hugepage_limits", limit.page_size, rules.PAGE_SIZE)
    for name, value in message.unified.items():
        matching(f"{where}.unified", name, rules.CGROUP_FILE)
        if not rules.is_text(value):
            raise refuse(f"{where}.unified.{name}", value, "contains a NUL byte")


def _limit(where: str, value: int) -> None:
    if value < rules.UNLIMITED:
        raise refuse(where, value, f"must be {rules.UNLIMITED} or more")
