"""Builds the `info` of verbose answers: one member whose value is a JSON document, as crictl shows it.

The configurations of pods and containers have the names of CRI's fields.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pods.model import ContainerConfig, ContainerSecurity, NamespaceOptions, SandboxConfig, SandboxSecurity
from pods.octets import all_shown

_LINUX = ("cgroup_parent", "sysctls", "overhead", "resources")  # members of a pod that CRI has in the message `linux`
_RENAMED = {
    "selinux": "selinux_options",
    "uid_mappings": "uidMappings",
    "gid_mappings": "gidMappings",
    "groups_policy": "supplemental_groups_policy",
}


def info(document: Any) -> dict[str, str]:
    """Return the map for `document`, which may hold anything that msgspec encodes; other objects become text."""
    try:
        encoded = msgspec.json.encode(document, enc_hook=str)
    except UnicodeEncodeError:  # an environment value that is not UTF-8
        encoded = msgspec.json.encode(all_shown(msgspec.to_builtins(document, enc_hook=str)))
    return {"info": encoded.decode()}


def sandbox_document(config: SandboxConfig) -> dict[str, Any]:
    """Convert RunPodSandbox's request (CRI `PodSandboxConfig`)."""
    document = _plain(config)
    dns = document.pop("dns", None)
    linux = {name: document.pop(name) for name in _LINUX if name in document}
    document.pop("security", None)
    return document | ({"dns_config": dns} if dns else {}) | {"linux": linux | _security(config.security)}


def container_document(config: ContainerConfig) -> dict[str, Any]:
    """Convert CreateContainer's request (CRI `ContainerConfig`)."""
    document = _plain(config)
    linux = {"resources": document.pop("resources", {})}
    document.pop("security", None)
    if config.envs:
        document["envs"] = [{"key": key, "value": value} for key, value in config.envs]
    if config.mounts:
        document["mounts"] = [_named(_plain(mount)) for mount in config.mounts]
    if config.cdi_devices:
        document["CDI_devices"] = [{"name": name} for name in document.pop("cdi_devices")]
    return document | {"linux": linux | _security(config.security)}


def _security(security: SandboxSecurity | ContainerSecurity) -> dict[str, Any]:
    document = _named(_plain(security))
    capabilities = {
        name: document.pop(name)
        for name in ("add_capabilities", "drop_capabilities", "add_ambient_capabilities")
        if name in document
    }
    if capabilities:
        document["capabilities"] = capabilities
    for name in ("run_as_user", "run_as_group"):
        if name in document:
            document[name] = {"value": document[name]}
    for name in ("seccomp", "apparmor"):
        if name in document:
            document[name] = {"profile_type": document[name].pop("type")} | document[name]
    document.pop("namespaces", None)
    return {"security_context": document | {"namespace_options": _namespaces(security.namespaces)}}


def _namespaces(options: NamespaceOptions) -> dict[str, Any]:
    document = _plain(options)
    if userns := document.pop("userns", None):
        document["userns_options"] = userns
    return document


def _named(document: dict[str, Any]) -> dict[str, Any]:
    return {_RENAMED.get(name, name): value for name, value in document.items()}


def _plain(value: msgspec.Struct) -> dict[str, Any]:
    return dict(msgspec.to_builtins(value))
