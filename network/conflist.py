"""Finds, reads and validates network configurations (CNI specification, section 1)."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from network.errors import InvalidConfiguration

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
MAX_CONFIGURATION = 1 << 20  # bytes; real ones have a few KiB at most

_T = TypeVar("_T")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*\Z")


@dataclass(frozen=True, slots=True)
class Plugin:
    """One plugin of a list: the name of its binary, the capabilities it asks for, and its whole configuration."""

    type: str
    capabilities: frozenset[str]
    config: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ConfList:
    """A validated network configuration list. `raw` is its JSON, as `parse_conflist` reads it."""

    name: str
    version: str
    plugins: tuple[Plugin, ...]
    disable_check: bool
    disable_gc: bool
    raw: bytes
    source: str

    def at_least(self, version: str) -> bool:
        """Return whether the list has `version` of the specification (one of VERSIONS) or a later one."""
        return VERSIONS.index(self.version) >= VERSIONS.index(version)


class _ListFields(msgspec.Struct):
    name: str
    plugins: list[dict[str, Any]]
    cniVersion: str = ""
    cniVersions: list[str | None] = []
    disableCheck: bool | str = False
    disableGC: bool | str = False


class _PluginFields(msgspec.Struct):
    type: str
    capabilities: dict[str, bool | None] = {}


def parse_conflist(raw: bytes, source: str) -> ConfList:
    """Validate a `.conflist` file. `source` is its name in errors. Raises InvalidConfiguration."""
    fields = _fields(_decode(raw, dict[str, Any], source), _ListFields, source)
    if not _NAME.match(fields.name):
        raise InvalidConfiguration(f'parse {source}: invalid network name "{fields.name}"')
    if not fields.plugins:
        raise InvalidConfiguration(f"parse {source}: no plugins")
    return ConfList(
        name=fields.name,
        version=_version(fields, source),
        plugins=tuple(_plugin(config, f"{source}: plugin {index}") for index, config in enumerate(fields.plugins)),
        disable_check=_flag(fields.disableCheck, "disableCheck", source),
        disable_gc=_flag(fields.disableGC, "disableGC", source),
        raw=raw,
        source=source,
    )


def parse_conf(raw: bytes, source: str) -> ConfList:
    """Validate a single-plugin file (`.conf`, `.json`) and return a list of one. Raises InvalidConfiguration."""
    config = _decode(raw, dict[str, Any], source)
    if "type" not in config and "plugins" in config:
        raise InvalidConfiguration(f"parse {source}: a list of plugins belongs in a .conflist file")
    wrapped = {"name": config.get("name"), "cniVersion": config.get("cniVersion"), "plugins": [config]}
    return parse_conflist(msgspec.json.encode(wrapped), source)


def read_conf_dir(directory: Path) -> tuple[ConfList | None, list[str]]:
    """Return the first valid configuration in order of file names, and the problems of the files before it.

    A missing directory holds no configuration. Raises nothing: a file or directory that cannot be read is a problem.
    """
    problems: list[str] = []
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return None, problems
    except OSError as error:
        return None, [f"list {directory}: {error.strerror}"]
    for name in names:
        parse = _PARSERS.get(os.path.splitext(name)[1])
        if parse is None:
            continue
        path = directory / name
        try:
            return parse(_read(path), str(path)), problems
        except InvalidConfiguration as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"read {path}: {error.strerror}")
    return None, problems


_PARSERS = {".conflist": parse_conflist, ".conf": parse_conf, ".json": parse_conf}


def _read(path: Path) -> bytes:
    # O_NONBLOCK: opening a FIFO would block for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidConfiguration(f"read {path}: not a regular file")
        content = file.read(MAX_CONFIGURATION + 1)
    if len(content) > MAX_CONFIGURATION:
        raise InvalidConfiguration(f"read {path}: larger than {MAX_CONFIGURATION} bytes")
    return content


def _decode(raw: bytes, type: type[_T], source: str) -> _T:
    try:
        return msgspec.json.decode(raw, type=type)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidConfiguration(f"parse {source}: {error}") from None
    except RecursionError:
        raise InvalidConfiguration(f"parse {source}: nested too deep") from None


def _fields(document: dict[str, Any], type: type[_T], source: str) -> _T:
    """Convert the fields that crisp reads. A null counts as a missing field."""
    try:
        return msgspec.convert({key: value for key, value in document.items() if value is not None}, type)
    except msgspec.ValidationError as error:
        raise InvalidConfiguration(f"parse {source}: {error}") from None


def _plugin(config: dict[str, Any], source: str) -> Plugin:
    fields = _fields(config, _PluginFields, source)
    # Plugins are looked up in the plugin directories only.
    if fields.type in ("", ".", "..") or "/" in fields.type or "\0" in fields.type:
        raise InvalidConfiguration(f'parse {source}: invalid plugin type "{fields.type}"')
    return Plugin(fields.type, frozenset(name for name, wanted in fields.capabilities.items() if wanted), config)


def _version(fields: _ListFields, source: str) -> str:
    """Return the highest offered version that crisp knows. A missing `cniVersion` means 0.1.0."""
    offered = [version for version in (fields.cniVersion, *fields.cniVersions) if version] or [VERSIONS[0]]
    spoken = [version for version in VERSIONS if version in offered]
    if not spoken:
        raise InvalidConfiguration(
            f'parse {source}: unknown cniVersion "{", ".join(offered)}"; known are {", ".join(VERSIONS)}'
        )
    return spoken[-1]


def _flag(value: bool | str, name: str, source: str) -> bool:
    # The specification says boolean; before 1.0 it said the strings "true" or "false".
    known = {True: True, False: False, "true": True, "false": False}
    if (flag := known.get(value.lower() if isinstance(value, str) else value)) is None:
        raise InvalidConfiguration(f'parse {source}: {name} is "{value}", neither true nor false')
    return flag
