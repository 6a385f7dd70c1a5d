"""docs/cri.md: the calls of CRI v1, what they take and what they answer, from the descriptors of api.proto."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from cri import server
from cri.v1 import api_pb2
from tests.matrix import answers, nested
from tests.matrix.markers import markers
from tests.matrix.table import Row, Section, by_name, page

# Messages that are expanded into rows of their own, and what their members' names begin with.
_EXPANDED: Final[Mapping[str, str]] = {
    "PodSandboxConfig": "",
    "ContainerConfig": "",
    "LinuxPodSandboxConfig": "linux.",
    "LinuxContainerConfig": "",
    "LinuxSandboxSecurityContext": "security_context.",
    "LinuxContainerSecurityContext": "security_context.",
    "Mount": "mounts.",
    "NamespaceOption": "namespace_options.",
}
# Calls whose configurations are those of others, and have their rows there.
_NOT_EXPANDED: Final = frozenset({"RestorePod"})
# What the name of its call says already, other systems' members, and the sandbox's own configuration once more.
_SKIPPED: Final = frozenset({"container_id", "pod_sandbox_id", "windows", "sandbox_config"})
_KEPT: Final = "kept, of no effect: the infra process has nothing that it could be about"
_NOTES: Final[Mapping[str, str]] = {
    **{
        f"RunPodSandbox security_context.{name}": _KEPT
        for name in (
            "run_as_user", "run_as_group", "supplemental_groups", "supplemental_groups_policy", "readonly_rootfs",
            "seccomp", "seccomp_profile_path", "apparmor",
        )
    },
    "RunPodSandbox security_context.selinux_options": "for containers that do not say it themselves",
    "RunPodSandbox namespace_options.target_id": "refused, as no pod joins a container",
    "RunPodSandbox linux.overhead": "kept, and told by PodSandboxStatus",
    "RunPodSandbox linux.resources": "kept, and told by PodSandboxStatus",
    "RunPodSandbox runtime_handler": "`crisp`, none, and those of `runtime_handlers`",
    "UpdateRuntimeConfig runtime_config": "taken and of no effect: CNI's configuration has the addresses",
}  # fmt: skip
_INTRODUCTION: Final = """
Every call of CRI v1 and the members of its request, as `cri/v1/api.proto` has them, with the tests that fail when one
does not work. Rows in words are about what a call does beside its members. What is not supported is answered with the
gRPC code that is given. The members of messages in requests and in answers follow the calls.
"""


def members(call: str) -> list[str]:
    """The names of a call's members that have rows."""
    (method,) = (found for service in _services() for found in service.methods if found.name == call)
    expanded = {} if call in _NOT_EXPANDED else _EXPANDED
    return list(dict.fromkeys(_members(method.input_type, "", expanded)))


def _members(message: Any, prefix: str, expanded: Mapping[str, str]) -> Iterator[str]:
    for field in message.fields:
        if field.name in _SKIPPED:
            continue
        inner = field.message_type.name if field.message_type else ""
        if inner in expanded:
            yield from _members(field.message_type, expanded[inner], expanded)
        else:
            yield prefix + field.name


def _services() -> list[Any]:
    return list(api_pb2.DESCRIPTOR.services_by_name.values())


def sections() -> list[Section]:
    found = markers("cri")
    calls = by_name((marker.arguments[0], marker.test) for marker in found)
    groups = by_name((f"{m.arguments[0]} {name}", m.test) for m in found for name in m.arguments[1:])
    made = []
    for service in _services():
        for method in service.methods:
            prefix, refusal = f"{method.name} ", _refusal(method.name)
            rows = [Row(method.name, calls.get(method.name, ()), refusal)]
            if not refusal:
                known = members(method.name)
                more = [name.removeprefix(prefix) for name in groups if name.startswith(prefix)]
                names = [*known, *(name for name in more if name not in known)]
                rows += [Row(name, groups.get(prefix + name, ()), note=_NOTES.get(prefix + name, "")) for name in names]
            made.append(Section(method.name, tuple(rows)))
    return [*made, *nested.sections(_EXPANDED, groups), *answers.sections()]


def marked() -> list[str]:
    """The calls that markers name."""
    return [marker.arguments[0] for marker in markers("cri")]


def calls() -> list[str]:
    return [method.name for service in _services() for method in service.methods]


def _refusal(call: str) -> str:
    """How a call that no group of services has a method for is answered; "" for the others."""
    groups = [kind for kind in vars(server).values() if getattr(kind, "__module__", "").startswith("cri.services.")]
    return "" if any(hasattr(group, call) for group in groups) else "UNIMPLEMENTED"


def text() -> str:
    return page("CRI v1", _INTRODUCTION, "call or member", sections())
