"""Seccomp profiles: RuntimeDefault, Unconfined, and files in Docker's format (CRI `SecurityProfile`).

A file has the members of runtime-spec's `linux.seccomp`, plus rules for certain architectures, kernels or capabilities.
This module reduces it to what applies to one container on one host.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from pods.errors import FailedPrecondition, InvalidArgument, Unimplemented
from pods.host import HostFacts
from pods.model import ContainerSecurity, ProfileType
from pods.security.seccomp_default import ARCHITECTURES, default_profile
from runtime.seccomp.compile import ACTIONS, FLAGS, OPERATORS

_MAX_BYTES: Final = 1 << 20
_MAX_RULES: Final = 4096
_MAX_NAMES: Final = 16384
_SECCOMP: Final = "config.linux.security_context.seccomp"
_FIELD: Final = f"{_SECCOMP}.localhost_ref"
BASE: Final = "crispSeccompBase"  # member of config.json's `linux`: the profile to intersect linux.seccomp with
_NAME: Final = re.compile(r"[a-z_][a-z0-9_]*")
_ARCHITECTURE: Final = re.compile(r"SCMP_ARCH_[A-Z0-9_]+")
_NEVER: Final = (100_000, 0)  # newer than any kernel
_MAX_ERRNO: Final = 4095
_MAX_ARGUMENT: Final = 2**64 - 1


@dataclass(frozen=True, slots=True)
class ReadProfile:
    """A profile as read from a file or pulled from a registry."""

    path: str  # or the reference of a pulled one
    document: Mapping[str, Any]
    field: str = _FIELD  # the request's field that names it


@dataclass(frozen=True, slots=True)
class _Host:
    """The facts that a rule's `includes` and `excludes` are compared with."""

    capabilities: frozenset[str]
    architecture: str
    kernel: tuple[int, int]


def read_profile(security: ContainerSecurity, pulled: bytes | None) -> ReadProfile | None:
    """Read a Localhost profile's file, or an OCI profile; None if the request has neither, or is privileged.

    `pulled` is the content of an OCI profile, if it is on the node. Raises InvalidArgument, naming path or reference,
    for one that cannot be read, is too large, or is not a JSON object; FailedPrecondition for a missing OCI profile.
    """
    wanted = security.seccomp
    if wanted is None or security.privileged:
        return None
    if wanted.type is ProfileType.LOCALHOST:
        return _read_file(wanted.localhost_ref, _FIELD)
    if wanted.type is not ProfileType.OCI:
        return None
    if pulled is None:
        raise FailedPrecondition(absent(wanted.oci_ref))
    return parse_profile(wanted.oci_ref, pulled, f"{_SECCOMP}.oci_ref")


def absent(reference: str) -> str:
    """Return the message about an OCI profile that was not pulled."""
    return f"{_SECCOMP}.oci_ref: {reference!r} is not on this node: pull it by PullSecurityProfile first"


def read_base(security: ContainerSecurity) -> ReadProfile | None:
    """Read the file of an OCI profile's base; None if the base is the runtime's default or there is none."""
    wanted = security.seccomp
    if wanted is None or not wanted.base or security.privileged:
        return None
    return _read_file(wanted.base, f"{_SECCOMP}.base_profile.localhost_ref")


def parse_profile(name: str, content: bytes, field: str) -> ReadProfile:
    """Parse a profile, a JSON object. Raises InvalidArgument."""
    if len(content) > _MAX_BYTES:
        raise InvalidArgument(f"{field}: {name!r} is larger than {_MAX_BYTES} bytes")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{field}: {name!r} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidArgument(f"{field}: {name!r} does not hold a JSON object")
    return ReadProfile(name, document, field)


def _read_file(path: str, field: str) -> ReadProfile:
    try:
        content = _read_regular(path)
    except OSError as error:
        raise InvalidArgument(f"{field}: read {path!r}: {error.strerror}") from error
    return parse_profile(path, content, field)


def _read_regular(path: str) -> bytes:
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return file.read(_MAX_BYTES + 1)


def seccomp_filter(
    security: ContainerSecurity, read: ReadProfile | None, capabilities: frozenset[str], host: HostFacts
) -> dict[str, Any] | None:
    """Return the container's `linux.seccomp`; None for no filter: privileged, Unconfined, or no profile requested.

    `capabilities` is its bounding set. Raises InvalidArgument, naming file and member, for a malformed profile.
    """
    wanted = security.seccomp
    if wanted is None or wanted.type is ProfileType.UNCONFINED or security.privileged:
        return None
    if wanted.type is ProfileType.RUNTIME_DEFAULT:
        return default_profile(capabilities, host.architecture, host.kernel)
    if read is None:
        raise InvalidArgument(f"{_SECCOMP}: {wanted.localhost_ref or wanted.oci_ref!r} was not read")
    return reduce_profile(read, capabilities, host)


def seccomp_base(
    security: ContainerSecurity, base: ReadProfile | None, capabilities: frozenset[str], host: HostFacts
) -> dict[str, Any] | None:
    """Return the profile that an OCI profile is intersected with, as `linux.seccomp`; None without an OCI profile."""
    wanted = security.seccomp
    if wanted is None or wanted.type is not ProfileType.OCI or security.privileged:
        return None
    if base is None:
        return default_profile(capabilities, host.architecture, host.kernel)
    return reduce_profile(base, capabilities, host)


def reduce_profile(profile: ReadProfile, capabilities: frozenset[str], facts: HostFacts) -> dict[str, Any]:
    """Reduce a profile to the rules for a container with `capabilities` on this host, as `linux.seccomp`.

    Raises InvalidArgument, Unimplemented.
    """
    host = _Host(capabilities, facts.architecture, facts.kernel)
    document = _Member(profile.document, profile.path, "", profile.field)
    reduced: dict[str, Any] = {
        "defaultAction": _action(document, "defaultAction"),
        "architectures": _architectures(document, host.architecture),
        "syscalls": _rules(document, host),
    }
    if (number := _errno(document, "defaultErrnoRet", "defaultErrno")) is not None:
        reduced["defaultErrnoRet"] = number
    if flags := document.strings("flags"):
        for flag in flags:
            if flag not in FLAGS:
                document.refuse("flags", f"unknown flag {flag!r}")
        reduced["flags"] = flags
    if document.strings("listenerPath", one=True):
        raise Unimplemented(f"{profile.field}: {profile.path!r}: listenerPath: notification is not supported yet")
    return reduced


@dataclass(frozen=True, slots=True)
class _Member:
    """A JSON object within a profile, with its path for error messages."""

    value: Mapping[str, Any]
    file: str
    path: str
    field: str

    def refuse(self, name: str, reason: str) -> NoReturn:
        raise InvalidArgument(f"{self.field}: {self.file!r}: {self.at(name)}: {reason}")

    def strings(self, name: str, *, one: bool = False) -> list[str]:
        """Return a list of strings; of one string if `one`. Absent and null mean empty."""
        value = self.value.get(name)
        listed = [] if value is None or value == "" else [value] if one else value
        if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
            self.refuse(name, "expected a string" if one else "expected a list of strings")
        return listed

    def number(self, name: str, largest: int) -> int | None:
        value = self.value.get(name)
        if value is not None and (type(value) is not int or not 0 <= value <= largest):
            self.refuse(name, f"expected an integer between 0 and {largest}")
        return value

    def child(self, name: str) -> _Member:
        return self._object(self.value.get(name), name)

    def children(self, name: str, at_most: int) -> list[_Member]:
        value = self.value.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or len(value) > at_most:
            self.refuse(name, f"expected a list of at most {at_most} objects")
        return [self._object(item, f"{name}[{index}]") for index, item in enumerate(value)]

    def _object(self, value: object, name: str) -> _Member:
        if value is not None and not isinstance(value, dict):
            self.refuse(name, "expected an object")
        return _Member(value or {}, self.file, self.at(name), self.field)

    def at(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name


def _action(member: _Member, name: str) -> str:
    action = "".join(member.strings(name, one=True))
    if action == "SCMP_ACT_NOTIFY":
        raise Unimplemented(f"{member.field}: {member.file!r}: {member.at(name)}: SCMP_ACT_NOTIFY is not supported yet")
    if action not in ACTIONS:
        member.refuse(name, f"unknown action {action!r}")
    return action


def _errno(member: _Member, number: str, name: str) -> int | None:
    """Return the error number, given as a number in one member or as a name ("EPERM") in another."""
    if (value := member.number(number, _MAX_ERRNO)) is not None:
        return value
    for text in member.strings(name, one=True):
        value = getattr(errno, text, None)
        if not isinstance(value, int):
            member.refuse(name, f"unknown error {text!r}")
        return value
    return None


def _architectures(document: _Member, native: str) -> list[str]:
    """Return the ABIs to cover: those listed, or those of the host's entry in `archMap`; none means the host's own."""
    listed = document.strings("architectures")
    own = ARCHITECTURES.get(native, ())[:1]
    for entry in document.children("archMap", 64):
        if listed:
            document.refuse("archMap", "not together with architectures")
        name = entry.strings("architecture", one=True)
        if tuple(name) == own:
            return _known_architectures(entry, "subArchitectures", [*name, *entry.strings("subArchitectures")])
    return _known_architectures(document, "architectures", listed)


def _known_architectures(member: _Member, name: str, architectures: list[str]) -> list[str]:
    for architecture in architectures:
        if not _ARCHITECTURE.fullmatch(architecture):
            member.refuse(name, f"unknown architecture {architecture!r}")
    return architectures


def _rules(document: _Member, host: _Host) -> list[dict[str, Any]]:
    members = document.children("syscalls", _MAX_RULES)
    # Check every rule, even if it does not apply here: a file is valid or not, whatever the container.
    checked = [(member, _rule(member)) for member in members]
    if sum(len(rule["names"]) for _, rule in checked) > _MAX_NAMES:
        document.refuse("syscalls", f"more than {_MAX_NAMES} names")
    return [rule for member, rule in checked if _holds(member, host)]


def _rule(member: _Member) -> dict[str, Any]:
    names = member.strings("names") or member.strings("name", one=True)
    if not names:
        member.refuse("names", "no system call is named")
    for name in names:
        if not _NAME.fullmatch(name):
            member.refuse("names", f"{name!r} is not the name of a system call")
    rule: dict[str, Any] = {"names": names, "action": _action(member, "action")}
    if (number := _errno(member, "errnoRet", "errno")) is not None:
        rule["errnoRet"] = number
    if arguments := [_argument(argument) for argument in member.children("args", 6)]:
        rule["args"] = arguments
    return rule


def _argument(member: _Member) -> dict[str, Any]:
    index, value = member.number("index", 5), member.number("value", _MAX_ARGUMENT)
    operator = "".join(member.strings("op", one=True))
    if operator not in OPERATORS:
        member.refuse("op", f"unknown operator {operator!r}")
    value_two = member.number("valueTwo", _MAX_ARGUMENT)
    return {"index": index or 0, "value": value or 0, "valueTwo": value_two or 0, "op": operator}


def _holds(member: _Member, host: _Host) -> bool:
    includes, excludes = member.child("includes"), member.child("excludes")
    needed = set(includes.strings("caps")) <= host.capabilities
    architectures = includes.strings("arches")
    right_architecture = not architectures or host.architecture in architectures
    if not (needed and right_architecture and host.kernel >= _kernel(includes, (0, 0))):
        return False
    barred = host.capabilities.intersection(excludes.strings("caps"))
    wrong_architecture = host.architecture in excludes.strings("arches")
    return not (barred or wrong_architecture or host.kernel >= _kernel(excludes, _NEVER))


def _kernel(member: _Member, absent: tuple[int, int]) -> tuple[int, int]:
    for text in member.strings("minKernel", one=True):
        match = re.fullmatch(r"(\d{1,5})\.(\d{1,5})(\.\d+)?", text, re.ASCII)
        if match is None:
            member.refuse("minKernel", f"{text!r} is not a version such as '4.8'")
        return int(match[1]), int(match[2])
    return absent
