"""Implements `crisp-oci update`: changes a running container's limits."""

from __future__ import annotations

import json
import sys

from runtime.command.cgroup_driver import driver_of
from runtime.command.flags import Flag, Options, UsageError
from runtime.command.invocation import Context, only
from runtime.command.removal import current_status
from runtime.errors import NotSupported, RuntimeCoreError, SpecError, failing
from runtime.light import replace
from runtime.spec.parse import parse_resources, spelled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Final

# Flag -> (object, member) of linux.resources.
_NUMBERS: Final = {
    "blkio-weight": ("blockIO", "weight"),
    "cpu-period": ("cpu", "period"),
    "cpu-quota": ("cpu", "quota"),
    "cpu-burst": ("cpu", "burst"),
    "cpu-share": ("cpu", "shares"),
    "cpu-rt-period": ("cpu", "realtimePeriod"),
    "cpu-rt-runtime": ("cpu", "realtimeRuntime"),
    "cpu-idle": ("cpu", "idle"),
    "memory": ("memory", "limit"),
    "memory-reservation": ("memory", "reservation"),
    "memory-swap": ("memory", "swap"),
    "kernel-memory": ("memory", "kernel"),
    "kernel-memory-tcp": ("memory", "kernelTCP"),
    "pids-limit": ("pids", "limit"),
}
_TEXTS: Final = {"cpuset-cpus": ("cpu", "cpus"), "cpuset-mems": ("cpu", "mems")}
_PARTNERS: Final = (
    ("memory", ("limit", "checkBeforeUpdate")),
    ("memory", ("limit", "swap")),
    ("memory", ("swap", "limit")),
    ("cpu", ("idle", "shares")),
    ("cpu", ("shares", "idle")),
)
_UNITS: Final = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_OF_RESCTRL: Final = ("l3-cache-schema", "mem-bw-schema")
FLAGS: Final = (
    Flag("resources", short="r", argument="FILE", help="linux.resources as JSON, - for standard input; no other flags"),
    *(Flag(name, argument="N", help=f"linux.resources.{'.'.join(member)}") for name, member in _NUMBERS.items()),
    *(Flag(name, argument="SCHEMA", help="not supported") for name in _OF_RESCTRL),
    *(Flag(name, argument="LIST", help=f"linux.resources.{'.'.join(member)}") for name, member in _TEXTS.items()),
)
ARGUMENTS: Final = "ID"


def run(context: Context, options: Options, operands: list[str]) -> int:
    entry = context.store.existing(only(operands, "ID"))
    for name in _OF_RESCTRL:
        if options.text(name):
            raise NotSupported("use", f"--{name}", "crisp does not support resctrl")
    document = _from_file(options.text("resources")) if "resources" in options else _from_flags(options)
    _ = parse_resources(document)
    with entry.locked():
        record = entry.load()
        if current_status(entry, record) == "stopped":
            raise RuntimeCoreError(f"container not running: {record.id}")
        if not record.cgroup:
            raise NotSupported("update", record.id, "it has no cgroup of its own")
        config = dict(spelled(entry.config()))
        linux = config["linux"] = dict(spelled(config.get("linux") or {}))
        limits = linux["resources"] = dict(spelled(linux.get("resources") or {}))
        # As runc: an update changes limits, not device rules.
        driver_of(record).update(replace(parse_resources(with_partners(document, limits)), devices=()))
        _merge(limits, document)
        entry.write("config.json", json.dumps(config).encode())
    return 0


def with_partners(document: Mapping[str, Any], limits: Mapping[str, Any]) -> dict[str, Any]:
    """Add to `document` the present limits that its values depend on."""
    whole = dict(document)
    for group, (name, partner) in _PARTNERS:
        given, present = whole.get(group) or {}, limits.get(group) or {}
        if given.get(name) is None or given.get(partner) is not None or present.get(partner) is None:
            continue
        if (name, given[name]) != ("limit", -1):  # -1 removes the memory limit, and with it the swap limit
            whole[group] = {**given, partner: present[partner]}
    return whole


def _from_file(path: str) -> dict[str, Any]:
    with failing("read", path):
        text = sys.stdin.read() if path == "-" else _read(path)
    try:
        document = json.loads(text)
    except ValueError as error:
        raise SpecError("linux.resources", f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise SpecError("linux.resources", f"expected an object, got {document!r}")
    members = {key: value for key, value in spelled(document).items() if value is not None}
    return {key: dict(spelled(value)) if isinstance(value, dict) else value for key, value in members.items()}


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _from_flags(options: Options) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for name, (group, member) in _NUMBERS.items():
        if name in options:
            document.setdefault(group, {})[member] = _amount(name, options.text(name))
    for name, (group, member) in _TEXTS.items():
        if name in options:
            document.setdefault(group, {})[member] = options.text(name)
    return document


def _amount(name: str, text: str) -> int:
    """Parse a number. For bytes it may have a fraction and a unit: 64m, 1.5GiB, 64 MB."""
    digits, unit = text.lower().replace(" ", ""), 1
    if "memory" in name:
        digits = digits.removesuffix("b").removesuffix("i")
        if digits and digits[-1] in _UNITS:
            digits, unit = digits[:-1], _UNITS[digits[-1]]
    try:
        return int(digits) * unit if unit == 1 or digits.isdecimal() else int(float(digits) * unit)
    except (ValueError, OverflowError):  # float() accepts "inf"
        raise UsageError(f"--{name}: expected a number, got {text!r}") from None


def _merge(old: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            old[key].update(value)
        else:
            old[key] = value
