"""CRI's configuration of a container, and its image's, to the OCI runtime-spec's config.json. Nothing is made here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pods.errors import InvalidArgument, Unimplemented
from pods.model import ContainerConfig, NamespaceMode, NamespaceOptions, ProfileType, Sandbox
from pods.oci_mounts import build_mounts
from pods.oci_process import ResolvedUser, UserRequest, build_process, process_args, stop_signal, user_request
from pods.oci_resources import build_resources, cgroup_parent, cgroups_path, device_nodes
from pods.seccomp_default import default_profile
from pods.seccomp_profile import read_profile

if TYPE_CHECKING:
    from image.model import ImageConfig
    from pods.host import HostFacts

OCI_VERSION: Final = "1.2.0"
_NAMESPACES: Final = "config.linux.security_context.namespace_options"


@dataclass(frozen=True, slots=True)
class ContainerContext:
    """Everything that the configuration depends on, looked up before."""

    container_id: str
    sandbox: Sandbox
    config: ContainerConfig
    image: ImageConfig
    user: ResolvedUser
    infra_pid: int  # holds the pod's namespaces
    target_pid: int  # init of the container whose PID namespace is joined, 0 for none
    sandbox_dir: Path
    volumes_dir: Path
    cgroups_path: str
    host: HostFacts


def build_config(context: ContainerContext) -> dict[str, Any]:
    """config.json. Raises InvalidArgument, FailedPrecondition and Unimplemented naming the request's field."""
    config, security = context.config, context.config.security
    _refuse_unsupported(config)
    devices = device_nodes(config)
    process = build_process(config, context.image, context.user, context.host)
    process["env"] = [*process["env"], *_hostname(context, process["env"])]
    linux: dict[str, Any] = {
        "namespaces": _namespaces(context),
        "cgroupsPath": context.cgroups_path,
        "resources": build_resources(config, context.host, devices),
        "devices": devices,
        "maskedPaths": [] if security.privileged else list(security.masked_paths),
        "readonlyPaths": [] if security.privileged else list(security.readonly_paths),
    }
    if (profile := _seccomp(context, process["capabilities"]["bounding"])) is not None:
        linux["seccomp"] = profile
    return {
        "ociVersion": OCI_VERSION,
        "process": process,
        "root": {"path": "rootfs", "readonly": security.readonly_rootfs},
        "mounts": build_mounts(config, context.sandbox_dir, _volumes(context), _ipc_mode(context)),
        "linux": linux,
        "annotations": _annotations(context),
    }


def volume_directories(context: ContainerContext) -> list[Path]:
    """The directories that must exist for the image's volumes."""
    return [directory for _path, directory in _volumes(context)]


def _volumes(context: ContainerContext) -> list[tuple[str, Path]]:
    """The image's anonymous volumes, but for those that the request mounts something on."""
    taken = {mount.container_path.rstrip("/") for mount in context.config.mounts}
    paths = sorted(path for path in context.image.volumes if path.startswith("/") and path.rstrip("/") not in taken)
    return [(path, context.volumes_dir / str(index)) for index, path in enumerate(paths)]


def _refuse_unsupported(config: ContainerConfig) -> None:
    userns = config.security.namespaces.userns
    if userns is not None and userns.mode is NamespaceMode.POD:
        raise Unimplemented(f"{_NAMESPACES}.userns_options: user namespaces are not supported yet")
    if config.cdi_devices:
        raise Unimplemented("config.CDI_devices: not supported yet")


def _pod_options(context: ContainerContext) -> NamespaceOptions:
    return context.sandbox.config.security.namespaces


def _ipc_mode(context: ContainerContext) -> NamespaceMode:
    mode = context.config.security.namespaces.ipc
    return _pod_options(context).ipc if mode is NamespaceMode.POD else mode


def _namespaces(context: ContainerContext) -> list[dict[str, str]]:
    options, pod = context.config.security.namespaces, _pod_options(context)
    found: list[dict[str, str]] = [{"type": "mount"}]
    # A pod whose own mode is NODE has no namespace to share: POD then means the host's.
    if NamespaceMode.NODE not in (options.network, pod.network):
        found += [{"type": kind, "path": f"/proc/{context.infra_pid}/ns/{file}"} for kind, file in _NETWORK]
    if options.ipc is NamespaceMode.CONTAINER:
        found.append({"type": "ipc"})
    elif NamespaceMode.NODE not in (options.ipc, pod.ipc):
        found.append({"type": "ipc", "path": f"/proc/{context.infra_pid}/ns/ipc"})
    found += _pid_namespace(context)
    if context.host.cgroup_v2 and not context.config.security.privileged:
        found.append({"type": "cgroup"})
    return found


_NETWORK: Final = (("network", "net"), ("uts", "uts"))


def _pid_namespace(context: ContainerContext) -> list[dict[str, str]]:
    mode = context.config.security.namespaces.pid
    if mode is NamespaceMode.CONTAINER:
        return [{"type": "pid"}]
    if mode is NamespaceMode.TARGET:
        return [{"type": "pid", "path": f"/proc/{context.target_pid}/ns/pid"}]
    if mode is NamespaceMode.POD:
        pod_mode = _pod_options(context).pid
        if pod_mode is NamespaceMode.CONTAINER:
            raise InvalidArgument(f"{_NAMESPACES}.pid: POD, but the pod sandbox was made with CONTAINER")
        if pod_mode is NamespaceMode.POD:
            return [{"type": "pid", "path": f"/proc/{context.infra_pid}/ns/pid"}]
    return []


def _hostname(context: ContainerContext, environment: list[str]) -> list[str]:
    if any(entry.startswith("HOSTNAME=") for entry in environment):
        return []
    return [f"HOSTNAME={context.sandbox.config.hostname or context.host.hostname}"]


def _seccomp(context: ContainerContext, bounding: list[str]) -> dict[str, Any] | None:
    """The filter's profile: none unless asked for, and never for a privileged container."""
    security = context.config.security
    if security.privileged or security.seccomp is None or security.seccomp.type is ProfileType.UNCONFINED:
        return None
    if security.seccomp.type is ProfileType.RUNTIME_DEFAULT:
        return default_profile(frozenset(bounding), context.host)
    reference = security.seccomp.localhost_ref.removeprefix("localhost/")
    return read_profile(Path(reference), frozenset(bounding), context.host)


def _annotations(context: ContainerContext) -> dict[str, str]:
    metadata = context.sandbox.config.metadata
    return {
        **context.config.annotations,
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.container-name": context.config.metadata.name,
        "io.kubernetes.cri.image-name": context.config.image.image,
        "io.kubernetes.cri.sandbox-id": context.sandbox.id,
        "io.kubernetes.cri.sandbox-name": metadata.name,
        "io.kubernetes.cri.sandbox-namespace": metadata.namespace,
        "io.kubernetes.cri.sandbox-uid": metadata.uid,
    }


__all__ = [
    "ContainerContext",
    "ResolvedUser",
    "UserRequest",
    "build_config",
    "cgroup_parent",
    "cgroups_path",
    "process_args",
    "stop_signal",
    "user_request",
    "volume_directories",
]
