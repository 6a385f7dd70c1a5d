"""No member of a configuration is dropped at CRI's door: each, set alone, changes the value or is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cri.convert.container import container_config
from cri.convert.resources import resources
from cri.convert.sandbox import sandbox_config
from cri.v1 import api_pb2
from pods.errors import PodError
from tests.matrix.nested import IGNORED

_CONVERTERS = {
    "PodSandboxConfig": sandbox_config,
    "ContainerConfig": container_config,
    "LinuxContainerResources": resources,
}
_BASE = {
    "PodSandboxConfig": {"metadata": {"name": "n", "uid": "u", "namespace": "s"}},
    "ContainerConfig": {"metadata": {"name": "n"}, "image": {"image": "i"}},
    "LinuxContainerResources": {},
}
# What a member needs beside it, and what it may be.
_BESIDE: dict[str, dict[str, Any]] = {
    "Mount": {"container_path": "/c", "host_path": "/h"},
    "Device": {"container_path": "/c", "host_path": "/h"},
    "IDMapping": {"length": 5},
    "PortMapping": {"container_port": 5},
    "KeyValue": {"key": "k"},
    "HugepageLimit": {"page_size": "2MB"},
    "Mount.image": {"container_path": "/c"},
    "Mount.image_sub_path": {"container_path": "/c", "image": {"image": "i"}},
    "ImageSpec": {"image": "i"},
    "SecurityProfile.localhost_ref": {"profile_type": 2},
    "SecurityProfile.oci_ref": {"profile_type": 3},
    "SecurityProfile.base_profile": {"profile_type": 3, "oci_ref": f"localhost/p@sha256:{'0' * 64}"},
    "SecurityProfileBase.localhost_ref": {"type": 1},
}
# What is refused with the member that it is in, whatever it says.
_REFUSED = (("PodSandboxConfig", "cgroupns_options"),)
_VALUES: dict[str, Any] = {
    "PortMapping.protocol": 1, "PortMapping.host_ip": "::1", "KeyValue.value": b"v", "Mount.image_sub_path": "a",
    "Device.permissions": "r", "HugepageLimit.page_size": "2MB", "SELinuxOption.level": "s0",
    "LinuxContainerSecurityContext.cgroup_mount_mode": 1, "LinuxContainerResources.unified": {"memory.high": "max"},
}  # fmt: skip
_PLAIN = {"string": "x", "bytes": b"x", "bool": True, "int": 7, "double": 0.5}


def _paths(message: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The members that are no messages themselves, each as the fields that lead to it."""
    for field in message.fields:
        inner = field.message_type
        if field.name == "windows":
            continue
        if inner is None or inner.GetOptions().map_entry:
            yield (*path, field)
        elif inner not in [each.message_type for each in path]:
            yield from _paths(inner, (*path, field))


def _value(field: Any) -> Any:
    owner = f"{field.containing_type.name}.{field.name}"
    if owner in _VALUES:
        return _VALUES[owner]
    if field.message_type is not None:
        return {"k": "v"}
    if field.enum_type is not None:
        value: Any = next(number for number in field.enum_type.values_by_number if number)
    else:
        kind = {field.TYPE_STRING: "string", field.TYPE_BYTES: "bytes", field.TYPE_BOOL: "bool",
                field.TYPE_DOUBLE: "double"}.get(field.type, "int")  # fmt: skip
        value = _PLAIN[kind]
    return [value] if field.is_repeated else value


def _with(path: tuple[Any, ...], *, set_it: bool) -> dict[str, Any]:
    """The parents of a member with what they need, and the member itself if `set_it`."""
    field, *more = path
    if not more:
        return {field.name: _value(field)} if set_it else {}
    owner, last = field.message_type.name, more[0].name
    beside = _BESIDE.get(f"{owner}.{last}", _BESIDE.get(owner, {}))
    if len(more) == 1:
        beside = {name: value for name, value in beside.items() if name != last}
    inner = {**beside, **_with(tuple(more), set_it=set_it)}
    return {field.name: [inner] if field.is_repeated else inner}


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    both = {key: _merged(one[key], other[key]) for key in one if isinstance(one[key], dict) and key in other}
    return {**one, **other, **both}


def _refused_whole(message: str, path: tuple[Any, ...]) -> bool:
    names = [field.name for field in path]
    if "apparmor" in names and ("base_profile" in names or "oci_ref" in names):  # seccomp profiles are in registries
        return True
    return (message, names[-2] if names[1:] else "") in _REFUSED


_CASES = [
    (message, path)
    for message in _CONVERTERS
    for path in _paths(api_pb2.DESCRIPTOR.message_types_by_name[message])
    if f"{path[-1].containing_type.name}.{path[-1].name}" not in IGNORED and not _refused_whole(message, path)
]


def _outcome(message: str, members: dict[str, Any]) -> object:
    try:
        kind: Any = getattr(api_pb2, message)
        return _CONVERTERS[message]("config", kind(**_merged(_BASE[message], members)))
    except PodError as error:
        return str(error)


@pytest.mark.parametrize(
    ("message", "path"), _CASES, ids=[f"{message}.{'.'.join(f.name for f in path)}" for message, path in _CASES]
)
def test_no_member_is_dropped(message: str, path: tuple[Any, ...]) -> None:
    without, given = (_outcome(message, _with(path, set_it=set_it)) for set_it in (False, True))
    assert given != without
    if isinstance(given, str):
        assert any(field.name in given for field in path[-2:]), given
