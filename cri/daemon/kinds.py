"""The types of configuration keys. Each checks a value from TOML or a flag, and describes valid ones in words."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from cri.plugin_policy import FAILURES, PluginPolicy
from runtime.handler import KINDS, OCI, Handler

T = TypeVar("T")

UNIX: Final = "unix://"
_SOCKET_PATH_BYTES: Final = 107  # sun_path of unix(7), less its NUL
_HANDLER: Final = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")  # as in a RuntimeClass
_A_STRING: Final = "a string"
_A_PATH: Final = "an absolute path"
_PATHS: Final = "a list of paths"
_TRUE_OR_FALSE: Final = "true or false"
_AN_ADDRESS: Final = "an address and a port such as 127.0.0.1:0"
_A_TABLE: Final = "a table"


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """A type. `check` converts a value or raises ValueError; `argument` are argparse's options for its flag."""

    words: str
    check: Callable[[object], T]
    argument: Mapping[str, Any] = field(default_factory=dict)


def _string(value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"must be {_A_STRING}")
    return value


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be {_TRUE_OR_FALSE}")
    return value


def _path(value: object) -> Path:
    path = Path(_string(value))
    if not path.is_absolute():
        raise ValueError(f"must be {_A_PATH}")
    return path


def _paths(value: object) -> tuple[Path, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"must be {_PATHS}")
    return tuple([_path(item) for item in value])


def _listen(value: object) -> str:
    path = _path(_string(value).removeprefix(UNIX))
    if len(bytes(path)) > _SOCKET_PATH_BYTES:
        raise ValueError(f"is too long: the path may have {_SOCKET_PATH_BYTES} bytes at most")
    return f"{UNIX}{path}"


def _address(value: object) -> str:
    host, colon, port = _string(value).rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 0xFFFF:
        raise ValueError(f"must be {_AN_ADDRESS}")
    return f"{host}:{port}"


def _runtimes(value: object) -> Mapping[str, Handler]:
    if not isinstance(value, Mapping):
        raise ValueError(f"must be {_A_TABLE}")
    found = {}
    for name, about in value.items():
        if name in ("", "crisp") or not _HANDLER.fullmatch(name):
            raise ValueError(f"has {name!r}: a name has lower-case letters, digits, '-' and '.', and is not crisp")
        if not isinstance(about, Mapping) or "path" not in about or not set(about) <= {"path", "kind", "options"}:
            raise ValueError(f"has {name!r}: must be a table with the key path, and perhaps kind and options")
        found[name] = Handler(_path(about["path"]), _kind(name, about), _options(name, about))
    return found


def _kind(name: str, about: Mapping[str, object]) -> str:
    kind = about.get("kind", OCI)
    if kind not in KINDS:
        raise ValueError(f"has {name!r}: kind must be one of {', '.join(KINDS)}")
    return str(kind)


def _options(name: str, about: Mapping[str, object]) -> tuple[str, ...]:
    options = about.get("options", [])
    if not isinstance(options, list) or not all(str(option).startswith("-") for option in options):
        raise ValueError(f'has {name!r}: options must be a list of flags such as "--platform=systrap"')
    return tuple([_string(option) for option in options])


def _plugins(value: object) -> Mapping[str, PluginPolicy]:
    if not isinstance(value, Mapping):
        raise ValueError(f"must be {_A_TABLE}")
    found = {}
    for name, about in value.items():
        if not isinstance(about, Mapping) or not name or not about.keys() <= _POLICY.keys():
            raise ValueError(f"has {name!r}: must be a table with some of the keys {', '.join(_POLICY)}")
        try:
            found[name] = PluginPolicy(**{key: _POLICY[key].check(one) for key, one in about.items()})
        except ValueError as error:
            raise ValueError(f"has {name!r} with a value that {error}") from None
    return found


def whole(least: int, most: int) -> Kind[int]:
    """A whole number within bounds."""
    words = f"a whole number from {least} to {most}"

    def check(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"must be {words}")
        return value

    return Kind(words, check, {"type": int})


def one_of(*allowed: str) -> Kind[str]:
    """One of the given words."""
    words = f"one of {', '.join(allowed)}"

    def check(value: object) -> str:
        if value not in allowed:
            raise ValueError(f"must be {words}")
        return str(value)

    return Kind(words, check, {"choices": allowed})


STRING: Final = Kind(_A_STRING, _string)
BOOLEAN: Final = Kind(_TRUE_OR_FALSE, _boolean, {"action": "store_const", "const": True})
PATH: Final = Kind(_A_PATH, _path)
PATH_IF_ANY: Final[Kind[Path | None]] = Kind(
    f"{_A_PATH}, or empty", lambda value: None if value == "" else _path(value)
)
PATHS: Final = Kind(_PATHS, _paths, {"action": "append"})
PATHS_IF_ANY: Final[Kind[tuple[Path, ...]]] = Kind(_PATHS, lambda value: () if value == [] else _paths(value))
LISTEN: Final = Kind(_A_PATH, _listen)
ADDRESS: Final = Kind(_AN_ADDRESS, _address)
ADDRESS_IF_ANY: Final = Kind(f"{_AN_ADDRESS}, or empty", lambda value: _address(value) if value else "")
_POLICY: Final[Mapping[str, Kind[Any]]] = {
    "failure": one_of(*FAILURES),
    "seconds": whole(1, 100),
    "wait_seconds": whole(1, 110),
}
NRI_PLUGINS: Final = Kind(_A_TABLE, _plugins)
RUNTIMES: Final = Kind(_A_TABLE, _runtimes)
