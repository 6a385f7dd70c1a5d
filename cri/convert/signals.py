"""Converts stop signals between CRI's enumeration (SIGNAL_SIGRTMINPLUS3) and their usual names (SIGRTMIN+3)."""

from __future__ import annotations

from cri.convert import fields
from cri.v1 import api_pb2


def _usual(name: str) -> str:
    return name.removeprefix("SIGNAL_").replace("PLUS", "+").replace("MINUS", "-")


_NAMES: dict[int, str] = {
    value.number: _usual(value.name) for value in api_pb2.Signal.DESCRIPTOR.values if value.number
}
_NUMBERS: dict[str, int] = {name: number for number, name in _NAMES.items()}


def stop_signal(path: str, number: int) -> str:
    """Return the usual name of a CRI `Signal`; "" for SIGNAL_RUNTIME_DEFAULT."""
    if number == api_pb2.SIGNAL_RUNTIME_DEFAULT:
        return ""
    if number not in _NAMES:
        raise fields.invalid(path, number, "is not a Signal of CRI v1")
    return _NAMES[number]


def signal_message(name: str) -> api_pb2.Signal.ValueType:
    """Return CRI's `Signal` for a usual name; SIGNAL_RUNTIME_DEFAULT if CRI does not have it."""
    return api_pb2.Signal.ValueType(_NUMBERS.get(name, api_pb2.SIGNAL_RUNTIME_DEFAULT))
