"""Builds the environment and standard input of plugins (CNI specification, section 2). Runs nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from network.capability import capability_args
from network.conflist import ConfList, Plugin
from network.errors import InvalidAttachment
from network.model import Attachment

_CONTAINER_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*\Z")
_IFNAME = re.compile(r"[^/:\s\0]{1,15}\Z")
_ARGUMENT = re.compile(r"[^;=\x00-\x1f\x7f]*\Z")


@dataclass(frozen=True, slots=True)
class Verb:
    """A command for all plugins of a list: ADD, DEL or CHECK of an attachment; GC or STATUS of the whole list."""

    command: str
    conflist: ConfList
    attachment: Attachment | None
    environment: dict[str, str]
    offered: dict[str, Any]  # runtimeConfig values; each plugin gets those of its capabilities
    extra: dict[str, Any]  # added to every plugin's configuration

    def stdin(self, plugin: Plugin, prev_result: dict[str, Any] | None) -> bytes:
        """Return the configuration for `plugin` to read: its own, the list's name and version, and the verb's keys."""
        config = {**plugin.config, "name": self.conflist.name, "cniVersion": self.conflist.version, **self.extra}
        if prev_result is not None:
            config["prevResult"] = prev_result
        if wanted := {key: value for key, value in self.offered.items() if key in plugin.capabilities}:
            config["runtimeConfig"] = wanted
        return msgspec.json.encode(config)


def attachment_verb(
    command: str, conflist: ConfList, attachment: Attachment, bin_dirs: Sequence[Path], path: str
) -> Verb:
    """Plan ADD, DEL or CHECK. `path` is the plugins' PATH. Raises InvalidAttachment."""
    require_valid(attachment)
    environment = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": attachment.sandbox_id,
        "CNI_NETNS": attachment.netns,
        "CNI_IFNAME": attachment.ifname,
        "CNI_ARGS": cni_args(attachment),
        "CNI_PATH": _search_path(bin_dirs),
        "PATH": path,
    }
    return Verb(command, conflist, attachment, environment, capability_args(attachment), {})


def list_verb(
    command: str, conflist: ConfList, bin_dirs: Sequence[Path], path: str, valid: Iterable[Attachment] | None = None
) -> Verb:
    """Plan GC or STATUS of the whole list. `valid` are the attachments that GC keeps."""
    environment = {"CNI_COMMAND": command, "CNI_PATH": _search_path(bin_dirs), "PATH": path}
    extra: dict[str, Any] = {}
    if valid is not None:
        stay = [{"containerID": attachment.sandbox_id, "ifname": attachment.ifname} for attachment in valid]
        # The specification was first published with the second key, and some plugins read only that one.
        extra = {"cni.dev/valid-attachments": stay, "cni.dev/attachments": stay}
    return Verb(command, conflist, None, environment, {}, extra)


def cni_args(attachment: Attachment) -> str:
    """Return CNI_ARGS with the keys by which Calico, Multus and others find the pod. Raises InvalidAttachment."""
    values = {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": attachment.pod_namespace,
        "K8S_POD_NAME": attachment.pod_name,
        "K8S_POD_INFRA_CONTAINER_ID": attachment.sandbox_id,
        "K8S_POD_UID": attachment.pod_uid,
    }
    for key, value in values.items():
        if not _ARGUMENT.match(value):
            raise InvalidAttachment(f'pass {key} to plugins: "{value}" contains ; or = or a control character')
    return ";".join(f"{key}={value}" for key, value in values.items())


def require_valid(attachment: Attachment) -> None:
    """Check the fields that identify `attachment` and name its cache file. Raises InvalidAttachment."""
    if not _CONTAINER_ID.match(attachment.sandbox_id):
        raise InvalidAttachment(f'pass CNI_CONTAINERID to plugins: invalid sandbox id "{attachment.sandbox_id}"')
    if not _IFNAME.match(attachment.ifname) or attachment.ifname in (".", ".."):
        raise InvalidAttachment(f'pass CNI_IFNAME to plugins: invalid interface name "{attachment.ifname}"')
    if "\0" in attachment.netns:
        raise InvalidAttachment(f"pass CNI_NETNS to plugins: {attachment.netns!r} contains a NUL")


def _search_path(bin_dirs: Sequence[Path]) -> str:
    return ":".join(str(directory) for directory in bin_dirs)
