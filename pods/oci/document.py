"""Builds the OCI configuration (runtime-spec 1.2) of a container from the CRI request and the image.

CreateContainer calls `validate`, then `find_host_objects` (which reads the host and changes nothing), then
`user_request` with its lookup inside the rootfs, then `build_config`, which is pure.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from image.model import ImageConfig
from pods.errors import InvalidArgument
from pods.host import HostFacts
from pods.model import ContainerConfig, NamespaceMode, Sandbox
from pods.oci.cdi import CDIEdits, find_edits, requested
from pods.oci.devices import DeviceNode, host_devices, requested_devices
from pods.oci.hook_files import HookFile, oci_hooks, read_hooks
from pods.oci.host_limits import check_host_limits
from pods.oci.mount_points import are_directories
from pods.oci.mount_sources import check_relabelling, resolve_sources
from pods.oci.mounts import plan_mounts
from pods.oci.namespaces import plan_namespaces
from pods.oci.process import environment, working_directory
from pods.oci.resources import linux_resources
from pods.security.apparmor import apparmor_profile
from pods.security.capabilities import granted
from pods.security.seccomp_profile import BASE, ReadProfile, read_base, read_profile, seccomp_base, seccomp_filter
from pods.security.selinux import SELinuxLabels, selinux_labels
from pods.security.user_namespaces import oci_lines
from runtime.spec.devices import DEFAULT_RULES
from runtime.spec.values import DeviceRule
from runtime.wire.calls import Identity


@dataclass(frozen=True, slots=True)
class HostObjects:
    """What a request names on the host, as it was found there."""

    devices: tuple[DeviceNode, ...] = ()
    mount_sources: tuple[str, ...] = ()  # real paths, in the order of config.mounts
    directories: tuple[bool, ...] = ()  # whether each is a directory, or will be made one
    some_are_missing: bool = False
    seccomp: ReadProfile | None = None
    seccomp_base: ReadProfile | None = None
    apparmor_profile: str = ""
    labels: SELinuxLabels = field(default_factory=SELinuxLabels)
    cdi: CDIEdits = field(default_factory=CDIEdits)
    hooks: tuple[HookFile, ...] = ()  # all, also those for other containers


@dataclass(frozen=True, slots=True)
class ContainerContext:
    """Everything that `build_config` needs, looked up beforehand."""

    container_id: str
    sandbox: Sandbox
    config: ContainerConfig
    image: ImageConfig
    args: Sequence[str]
    hostname: str
    user: Identity  # found inside the rootfs for `user_request`
    infra_pid: int  # holds the pod's namespaces
    target_pid: int  # pid of the container that TARGET names; 0 if none
    sandbox_dir: Path  # holds shm/
    files_dir: Path  # holds resolv.conf, hostname, hosts
    volumes_dir: Path
    volumes: Mapping[str, str]  # the image's volumes: path in the container -> name in volumes_dir
    cgroups_path: str
    host: HostFacts
    found: HostObjects


def find_host_objects(
    config: ContainerConfig,
    sandbox: Sandbox,
    host: HostFacts,
    cdi_spec_dirs: Sequence[Path] = (),
    hooks_dirs: Sequence[Path] = (),
    pulled_profile: bytes | None = None,
) -> HostObjects:
    """Look up devices, mount sources, profiles, labels and hooks. Changes nothing.

    `pulled_profile` is the content of an OCI profile, if it is on the node. Raises InvalidArgument, naming field and
    path, for something missing or invalid; FailedPrecondition for an invalid hook file or a missing OCI profile.
    """
    security = config.security
    check_host_limits(config.resources)
    edits = find_edits(requested(config), cdi_spec_dirs)
    sources = resolve_sources(config.mounts)
    labels = selinux_labels(security, sandbox, host)
    check_relabelling(config.mounts, sources, labels.files)
    devices = (*requested_devices(config.devices), *edits.nodes)
    return HostObjects(
        devices=(*host_devices(), *devices) if security.privileged else devices,
        cdi=edits,
        hooks=read_hooks(hooks_dirs),
        seccomp=read_profile(security, pulled_profile),
        seccomp_base=read_base(security),
        apparmor_profile=apparmor_profile(security, host),
        labels=labels,
        mount_sources=sources,
        directories=are_directories(sources),
        some_are_missing=any(source and not os.path.lexists(source) for source in sources),
    )


def build_config(context: ContainerContext) -> dict[str, Any]:
    """Build the config.json of a container that `validate` accepts.

    Raises InvalidArgument for values beyond the kernel's limits, or impossible in this pod.
    """
    config = context.config
    bounding, ambient = granted(config.security, context.host.capabilities)
    if config.security.namespaces.pid is NamespaceMode.TARGET and not context.target_pid:
        raise InvalidArgument(
            "config.linux.security_context.namespace_options.target_id: "
            f"container {config.security.namespaces.target_id!r} is not running"
        )
    process, annotations = _process(context, bounding, ambient), _annotations(context)
    document: dict[str, Any] = {
        "ociVersion": "1.2.0",
        "process": process,
        "root": {"path": "rootfs", "readonly": config.security.readonly_rootfs},
        "mounts": plan_mounts(
            config,
            context.sandbox,
            sources=context.found.mount_sources,
            sandbox_dir=context.sandbox_dir,
            files_dir=context.files_dir,
            volumes_dir=context.volumes_dir,
            image_volumes=context.volumes,
            more=context.found.cdi.mounts,
        ),
        "annotations": annotations,
        "linux": _linux(context, bounding),
    }
    if hooks := _hooks(context, process["args"][0], annotations):
        document["hooks"] = hooks
    return document


def _hooks(context: ContainerContext, command: str, own: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
    """Return the hooks of CDI devices, then those of hook files, which match annotations of pod and container."""
    config = context.config
    annotations = {**context.sandbox.config.annotations, **config.annotations, **own}
    hooks = oci_hooks(context.found.hooks, annotations, command, bind_mounts=bool(config.mounts))
    for stage, hook in reversed(context.found.cdi.hooks):
        hooks.setdefault(stage, []).insert(0, dict(hook))
    return hooks


def _process(context: ContainerContext, bounding: frozenset[str], ambient: frozenset[str]) -> dict[str, Any]:
    config, image, user = context.config, context.image, context.user
    gids = list(dict.fromkeys((*user.additional_gids, *context.found.cdi.additional_gids)))
    process: dict[str, Any] = {
        "terminal": config.tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": gids},
        "args": list(context.args),
        "env": environment(config, image, hostname=context.hostname, home=user.home, more=context.found.cdi.env),
        "cwd": working_directory(config, image),
        "capabilities": _capabilities(bounding, ambient),
        "noNewPrivileges": config.security.no_new_privs,
        "oomScoreAdj": config.resources.oom_score_adj,
    }
    if context.found.apparmor_profile:
        process["apparmorProfile"] = context.found.apparmor_profile
    if label := context.found.labels.process:
        process["selinuxLabel"] = label
    return process


def _capabilities(bounding: frozenset[str], ambient: frozenset[str]) -> dict[str, list[str]]:
    held, raised = sorted(bounding), sorted(ambient)
    # Inheritable only as far as the ambient set needs it: more would survive the execve of files with inheritable
    # capabilities (CVE-2022-24769).
    return {"bounding": held, "effective": held, "permitted": held, "inheritable": raised, "ambient": raised}


def _linux(context: ContainerContext, bounding: frozenset[str]) -> dict[str, Any]:
    config, security, host = context.config, context.config.security, context.host
    linux: dict[str, Any] = {
        "namespaces": plan_namespaces(
            config, context.sandbox, host, infra_pid=context.infra_pid, target_pid=context.target_pid
        ),
        "cgroupsPath": context.cgroups_path,
        "resources": {"devices": _device_rules(context), **linux_resources(config.resources, host)},
        "devices": list({node.path: node.node() for node in context.found.devices}.values()),
        "maskedPaths": [] if security.privileged else list(security.masked_paths),
        "readonlyPaths": [] if security.privileged else list(security.readonly_paths),
    }
    userns = context.sandbox.config.security.namespaces.userns
    if userns is not None and userns.mode is not NamespaceMode.NODE:
        linux |= {"uidMappings": oci_lines(userns.uids), "gidMappings": oci_lines(userns.gids)}
    if seccomp := seccomp_filter(security, context.found.seccomp, bounding, host):
        linux["seccomp"] = seccomp
    if base := seccomp_base(security, context.found.seccomp_base, bounding, host):
        linux[BASE] = base
    if label := context.found.labels.files:
        linux["mountLabel"] = label
    return linux


def _device_rules(context: ContainerContext) -> list[dict[str, Any]]:
    if context.config.security.privileged:
        return [{"allow": True, "access": "rwm"}]
    present = [_device_rule(rule) for rule in DEFAULT_RULES]
    granted_rules = [node.rule() for node in context.found.devices if node.has_rule]
    return [{"allow": False, "access": "rwm"}, *present, *granted_rules]


def _device_rule(rule: DeviceRule) -> dict[str, Any]:
    members = {"type": rule.type, "major": rule.major, "minor": rule.minor, "access": rule.access}
    return {"allow": rule.allow} | {name: value for name, value in members.items() if value is not None}


def _annotations(context: ContainerContext) -> dict[str, str]:
    metadata = context.sandbox.config.metadata
    image = context.config.image
    prefix = "io.kubernetes.cri"
    return {
        f"{prefix}.container-type": "container",
        f"{prefix}.container-name": context.config.metadata.name,
        f"{prefix}.image-name": image.user_specified_image or image.image,
        f"{prefix}.sandbox-id": context.sandbox.id,
        f"{prefix}.sandbox-name": metadata.name,
        f"{prefix}.sandbox-namespace": metadata.namespace,
        f"{prefix}.sandbox-uid": metadata.uid,
    }
