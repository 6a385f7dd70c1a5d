"""CDI devices (Container Device Interface 1.0): reads vendors' specs and collects their edits of a container.

A device is named "vendor/class=name". The edits of its spec are applied once, then the device's own. A later directory
overrides earlier ones; a device that two specs of one directory define is ambiguous and refused. A file that is no
valid spec contributes no devices, so one vendor's mistake does not affect the others.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pods import rules
from pods.errors import InvalidArgument, Unimplemented
from pods.model import ContainerConfig
from pods.oci.devices import DeviceNode
from pods.oci.hook_files import checked_hook
from runtime.spec.values import HOOK_KINDS

ANNOTATION = "cdi.k8s.io/"
_REFUSED = ("intelRdt", "netDevices")
_FORMATS = frozenset({".json", ".yaml"})
_TYPES = {stat.S_IFCHR: "c", stat.S_IFBLK: "b", stat.S_IFIFO: "p"}


@dataclass(frozen=True, slots=True)
class CDIEdits:
    """The edits that devices make to a container; `mounts` in the form of config.json."""

    env: tuple[str, ...] = ()
    nodes: tuple[DeviceNode, ...] = ()
    mounts: tuple[dict[str, Any], ...] = ()
    additional_gids: tuple[int, ...] = ()
    hooks: tuple[tuple[str, dict[str, Any]], ...] = ()  # (stage, hook)


@dataclass(frozen=True, slots=True)
class _Spec:
    path: Path
    edits: Mapping[str, Any]
    devices: Mapping[str, Mapping[str, Any]]  # by name


def requested(config: ContainerConfig) -> dict[str, str]:
    """Return the requested devices: name -> the field that requests it. CDI_devices come first, then annotations.

    An annotation `cdi.k8s.io/<anything>` has device names separated by commas; older device plugins use it. Raises
    InvalidArgument for a malformed name.
    """
    asked: dict[str, str] = {}
    for index, name in enumerate(config.cdi_devices):
        asked.setdefault(name, f"config.CDI_devices[{index}]")
    for key, names in config.annotations.items():
        if key.startswith(ANNOTATION):
            field = f"config.annotations[{key!r}]"
            for name in names.split(","):
                if not rules.CDI_DEVICE.fits(name):
                    raise InvalidArgument(f"{field}: each name must be {rules.CDI_DEVICE.expected}")
                asked.setdefault(name, field)
    return asked


def find_edits(asked: Mapping[str, str], directories: Iterable[Path]) -> CDIEdits:
    """Collect the edits of the requested devices (name -> field). Reads the directories only if there are devices.

    Raises InvalidArgument for invalid edits, and for a device that no spec or more than one spec defines (the message
    lists broken spec files); Unimplemented for unsupported edits.
    """
    if not asked:
        return CDIEdits()
    wrong: list[str] = []
    specs = _read_all(directories, wrong)
    edits: list[tuple[_Spec, Mapping[str, Any], str]] = []
    seen: set[Path] = set()
    for name, field in asked.items():
        spec = _spec_of(name, specs, wrong, field)
        if spec.path not in seen:
            seen.add(spec.path)
            edits.append((spec, spec.edits, field))
        edits.append((spec, spec.devices[name], field))
    return _merged(edits)


def add_edits(document: dict[str, Any], edits: CDIEdits) -> None:
    """Apply the edits to a config.json."""
    process, linux = document["process"], document["linux"]
    names = {entry.partition("=")[0] for entry in edits.env}
    process["env"] = [*(entry for entry in process["env"] if entry.partition("=")[0] not in names), *edits.env]
    user = process["user"]
    user["additionalGids"] = list(dict.fromkeys((*user.get("additionalGids", ()), *edits.additional_gids)))
    nodes = {node["path"]: node for node in linux.get("devices", ())} | {one.path: one.node() for one in edits.nodes}
    linux["devices"] = list(nodes.values())
    rules = [one.rule() for one in edits.nodes if one.has_rule]
    linux.setdefault("resources", {}).setdefault("devices", []).extend(rules)
    document["mounts"] = [*document.get("mounts", ()), *edits.mounts]
    for stage, hook in edits.hooks:
        document.setdefault("hooks", {}).setdefault(stage, []).append(dict(hook))


def _spec_of(name: str, directories: Sequence[Sequence[_Spec]], wrong: Sequence[str], field: str) -> _Spec:
    for specs in reversed(directories):
        found = [spec for spec in specs if name in spec.devices]
        if len(found) > 1:
            files = ", ".join(str(spec.path) for spec in found)
            raise InvalidArgument(f"{field}: {name!r} is in more than one spec: {files}")
        if found:
            return found[0]
    but = "".join(f"; {reason}" for reason in wrong)
    raise InvalidArgument(f"{field}: no CDI spec on this node defines device {name!r}{but}")


def _read_all(directories: Iterable[Path], wrong: list[str]) -> list[list[_Spec]]:
    """Return the specs of each directory. Appends the reasons why files are no specs to `wrong`."""
    found: list[list[_Spec]] = []
    for directory in filter(Path.is_dir, directories):
        specs = []
        for path in sorted(directory.iterdir()):
            if path.suffix in _FORMATS:
                try:
                    specs.append(_read(path))
                except ValueError as error:
                    wrong.append(str(error))
        found.append(specs)
    return found


def _read(path: Path) -> _Spec:
    """Read a spec. Raises ValueError."""
    try:
        text = path.read_text()
        document = json.loads(text) if path.suffix == ".json" else _yaml(text)
        kind, devices = document["kind"], document["devices"]
        by_name = {f"{kind}={device['name']}": _mapping(device.get("containerEdits")) for device in devices or ()}
        return _Spec(path, _mapping(document.get("containerEdits")), by_name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"CDI spec {str(path)!r} is invalid: {error!r}") from error


def _yaml(text: str) -> Any:
    import yaml  # imported only where there are such specs

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _mapping(value: object) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"containerEdits: expected an object, got {type(value).__name__}")
    return value or {}


def _merged(edits: Sequence[tuple[_Spec, Mapping[str, Any], str]]) -> CDIEdits:
    env: list[str] = []
    nodes: list[DeviceNode] = []
    mounts: list[dict[str, Any]] = []
    gids: list[int] = []
    hooks: list[tuple[str, dict[str, Any]]] = []
    for spec, edit, field in edits:
        for member in _REFUSED:
            if edit.get(member):
                raise Unimplemented(f"{field}: CDI spec {str(spec.path)!r}: {member} is not supported")
        try:
            env += [_variable(index, entry) for index, entry in enumerate(edit.get("env") or ())]
            nodes += [_node(entry) for entry in edit.get("deviceNodes") or ()]
            mounts += [_mount(entry) for entry in edit.get("mounts") or ()]
            hooks += [_hook(entry) for entry in edit.get("hooks") or ()]
            # Specs write 0 for "none".
            gids += [gid for gid in map(int, edit.get("additionalGids") or ()) if gid > 0]
        except (OSError, ValueError, OverflowError, KeyError, TypeError, AttributeError) as error:
            raise InvalidArgument(f"{field}: CDI spec {str(spec.path)!r}: {error}") from error
    return CDIEdits(tuple(env), tuple(nodes), tuple(mounts), tuple(dict.fromkeys(gids)), tuple(hooks))


def _hook(entry: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    name = entry.get("hookName")
    if name not in HOOK_KINDS:
        raise ValueError(f"hooks: hookName: expected one of {', '.join(HOOK_KINDS)}, got {name!r}")
    return name, checked_hook(entry)


def _variable(index: int, entry: str) -> str:
    name, equals, value = entry.partition("=")
    if not equals or not rules.is_variable(name) or not rules.is_text(value):
        raise ValueError(f"env[{index}]: expected NAME=value")
    return entry


def _node(entry: Mapping[str, Any]) -> DeviceNode:
    """Make a device node. Members that the spec omits are taken from the host's node."""
    path = _absolute(entry["path"])
    access = entry.get("permissions") or "rwm"
    if not set(access) <= set("rwm"):
        raise ValueError(f"deviceNodes: {path}: permissions {access!r}")
    kind, major, minor, mode = entry.get("type"), entry.get("major"), entry.get("minor"), entry.get("fileMode")
    if not kind or (major is None and kind != "p"):
        status = os.stat(entry.get("hostPath") or path)
        found = _TYPES.get(stat.S_IFMT(status.st_mode), "")
        if not found or (kind and kind != found):
            raise ValueError(f"deviceNodes: {path}: the host's file is not a device of type {kind or 'b, c or p'}")
        kind, major, minor = found, os.major(status.st_rdev), os.minor(status.st_rdev)
        mode = stat.S_IMODE(status.st_mode) if mode is None else mode
    return DeviceNode(
        path, str(kind), int(major or 0), int(minor or 0), 0o666 if mode is None else int(mode),
        int(entry.get("uid") or 0), int(entry.get("gid") or 0), access,
    )  # fmt: skip


def _mount(entry: Mapping[str, Any]) -> dict[str, Any]:
    source = _absolute(entry["hostPath"])
    options = [str(option) for option in entry.get("options") or ("nosuid", "nodev", "bind")]
    if not {"bind", "rbind"} & set(options):
        options.append("rbind")
    return {"destination": _absolute(entry["containerPath"]), "type": "bind", "source": source, "options": options}


def _absolute(path: str) -> str:
    if not rules.is_below_root(path):
        raise ValueError(f"{path!r} is not {rules.BELOW_ROOT}")
    return os.path.normpath(path)
