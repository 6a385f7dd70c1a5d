"""Parses what plugins print (CNI specification, section 5), in all versions from 0.1.0 to 1.1.0."""

from __future__ import annotations

import ipaddress
from typing import Any

import msgspec

from network.model import NetworkResult


class _Interface(msgspec.Struct):
    name: str | None = None
    sandbox: str | None = None


class _Address(msgspec.Struct):
    address: str
    interface: int | None = None


class _LegacyAddress(msgspec.Struct):
    ip: str


class _Result(msgspec.Struct):
    """The fields that crisp reads. Plugins, being Go programs, may print null for an empty list."""

    ips: list[_Address] | None = None
    interfaces: list[_Interface] | None = None
    ip4: _LegacyAddress | None = None  # until 0.2.0
    ip6: _LegacyAddress | None = None


class PluginError(msgspec.Struct):
    """The error a plugin printed."""

    code: int = 0
    msg: str = ""
    details: str = ""


def parse_result(stdout: bytes, version: str, ifname: str) -> NetworkResult:
    """Parse a success result of ADD. Raises ValueError, which says what is wrong.

    The raw result always has a `cniVersion`, since the next plugin reads it as `prevResult`: the printed one, else
    the configuration's `version`.
    """
    try:
        raw = msgspec.json.decode(stdout, type=dict[str, Any])
        fields = msgspec.convert(raw, _Result)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"invalid result: {error}") from None
    raw["cniVersion"] = raw.get("cniVersion") or version
    return NetworkResult(tuple(dict.fromkeys(_addresses(fields, ifname))), raw)


def parse_error(stdout: bytes) -> PluginError | None:
    """Return the error result in `stdout`, or None if there is none: the plugin crashed or does not speak CNI."""
    try:
        printed = msgspec.json.decode(stdout, type=dict[str, Any])
        error = msgspec.convert({key: value for key, value in printed.items() if value is not None}, PluginError)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return error if error.code or error.msg else None


def _addresses(fields: _Result, ifname: str) -> list[str]:
    interfaces = fields.interfaces or []
    printed = [legacy.ip for legacy in (fields.ip4, fields.ip6) if legacy is not None]
    for entry in fields.ips or []:
        if entry.interface is not None and not 0 <= entry.interface < len(interfaces):
            raise ValueError(f"invalid result: {entry.address} is on interface {entry.interface} of {len(interfaces)}")
        if entry.interface is None or _is_the_pods(interfaces[entry.interface], ifname):
            printed.append(entry.address)
    return [_without_prefix(address) for address in printed]


def _is_the_pods(interface: _Interface, ifname: str) -> bool:
    # Host interfaces have no sandbox; some plugins omit it on the pod's interface too.
    return bool(interface.sandbox) or interface.name == ifname


def _without_prefix(address: str) -> str:
    try:
        return str(ipaddress.ip_interface(address).ip)
    except ValueError:
        raise ValueError(f'invalid result: "{address}" is not an address') from None
