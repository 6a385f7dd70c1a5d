"""Reads the annotations `org.systemd.property.NAME`: properties of a container's scope, in GVariant's text form.

CRI-O and others set some (TimeoutStopUSec, CollectMode). Imported only with --systemd-cgroup.
"""

from __future__ import annotations

import ast
from typing import Any, Final

from runtime.cgroups.systemd import Property
from runtime.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_PREFIX: Final = "org.systemd.property."
_SIGNATURES: Final = {
    "byte": "y", "int16": "n", "uint16": "q", "int32": "i", "uint32": "u", "int64": "x", "uint64": "t", "double": "d",
    "boolean": "b", "string": "s",
}  # fmt: skip
_MICROSECONDS: Final = 1_000_000


def unit_properties(annotations: Mapping[str, str]) -> list[Property]:
    """Return the properties in the annotations. Names in seconds (TimeoutStopSec) become USec. Raises SpecError."""
    found = []
    for name, text in annotations.items():
        if not name.startswith(_PREFIX):
            continue
        where, bare = f"annotations.{name}", name.removeprefix(_PREFIX)
        if not (bare.isascii() and bare.isalpha() and len(bare) > 3):
            raise SpecError(where, "expected the name of a unit's property")
        signature, value = _variant(text, where)
        if bare.endswith("Sec") and not bare.endswith("USec"):
            if type(value) not in (int, float) or value < 0:
                raise SpecError(where, "expected a number of seconds")
            bare, signature, value = f"{bare.removesuffix('Sec')}USec", "t", int(value * _MICROSECONDS)
        found.append((bare, signature, value))
    return found


def _variant(text: str, where: str) -> tuple[str, Any]:
    """Parse "true", "'text'", "['one', 'two']", "7", "uint64 7" into a D-Bus signature and a value."""
    kind, _, rest = text.strip().partition(" ")
    given = _SIGNATURES.get(kind)
    literal = rest if given else text.strip()
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(literal.strip(), literal.strip()))
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise SpecError(where, "expected a value such as true, 'text' or uint64 7") from None
    signature = given or _signature(value)
    if not signature or (given and not _fits(value, given)):
        raise SpecError(where, "expected a value such as true, 'text' or uint64 7")
    return signature, float(value) if signature == "d" else value


def _signature(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        return "as"
    return {bool: "b", int: "i", float: "d", str: "s"}.get(type(value), "")


def _fits(value: Any, signature: str) -> bool:
    if signature in "bs":
        return type(value) is (bool if signature == "b" else str)
    if signature == "d":
        return type(value) in (int, float)
    return type(value) is int and (value >= 0 or signature in "nix")
