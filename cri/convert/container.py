"""Converts and validates CreateContainer's configuration (CRI `ContainerConfig`)."""

from __future__ import annotations

from collections.abc import Iterable

from cri.convert import fields
from cri.convert.image import image_spec
from cri.convert.resources import resources
from cri.convert.security import container_security, id_mappings
from cri.convert.signals import stop_signal
from cri.v1 import api_pb2
from pods import rules
from pods.errors import InvalidArgument
from pods.model import ContainerConfig, ContainerMetadata, Device, Mount, Propagation
from pods.oci.execve_limits import name_of
from pods.octets import text_of

# Flags that restrict a mount. Left out are options with a CRI field of their own, and those that would restore what
# the host's mount forbids (exec, dev, suid, rw).
_MOUNT_OPTIONS = (
    "noexec", "nodev", "nosuid", "nosymfollow", "noatime", "nodiratime", "relatime", "strictatime",
    "rnoexec", "rnodev", "rnosuid", "rnosymfollow",
)  # fmt: skip


def container_config(path: str, message: api_pb2.ContainerConfig) -> ContainerConfig:
    """Convert a `ContainerConfig`. The Windows part is ignored."""
    if not message.HasField("metadata"):
        raise fields.missing(f"{path}.metadata")
    linux = message.linux
    return ContainerConfig(
        metadata=ContainerMetadata(
            name=fields.name(f"{path}.metadata.name", message.metadata.name), attempt=message.metadata.attempt
        ),
        image=image_spec(f"{path}.image", message.image),
        command=fields.texts(f"{path}.command", message.command),
        args=fields.texts(f"{path}.args", message.args),
        working_dir=fields.absolute_if_set(f"{path}.working_dir", message.working_dir),
        envs=_envs(f"{path}.envs", message.envs),
        mounts=_mounts(f"{path}.mounts", fields.few(f"{path}.mounts", message.mounts)),
        devices=_devices(f"{path}.devices", fields.few(f"{path}.devices", message.devices)),
        cdi_devices=_cdi_devices(f"{path}.CDI_devices", fields.few(f"{path}.CDI_devices", message.CDI_devices)),
        labels=fields.label_map(f"{path}.labels", message.labels),
        annotations=fields.annotation_map(f"{path}.annotations", message.annotations),
        log_path=_log_path(f"{path}.log_path", message.log_path),
        stdin=message.stdin,
        stdin_once=message.stdin_once,
        tty=message.tty,
        resources=resources(f"{path}.linux.resources", linux.resources),
        security=container_security(f"{path}.linux.security_context", linux.security_context),
        stop_signal=stop_signal(f"{path}.stop_signal", message.stop_signal),
    )


def _log_path(path: str, value: str) -> str:
    if value and not rules.names_file(value):
        raise fields.invalid(path, value, "must end in a file name")
    return fields.relative_if_set(path, value)


def _envs(path: str, messages: Iterable[api_pb2.KeyValue]) -> tuple[tuple[str, str], ...]:
    return tuple([_env(f"{path}[{index}]", message) for index, message in enumerate(messages)])


def _env(path: str, message: api_pb2.KeyValue) -> tuple[str, str]:
    key = fields.unshown(f"{path}.key", message.key)
    if not key:
        raise fields.missing(f"{path}.key")
    if not rules.is_variable(key):
        raise InvalidArgument(f"{path}.key: {name_of(key)!r} must not contain '='")
    return key, fields.unshown(f"{path}.value", text_of(message.value))


def _mounts(path: str, messages: Iterable[api_pb2.Mount]) -> tuple[Mount, ...]:
    return tuple([_mount(f"{path}[{index}]", message) for index, message in enumerate(messages)])


def _mount(path: str, message: api_pb2.Mount) -> Mount:
    mount = Mount(
        container_path=fields.below_root(f"{path}.container_path", message.container_path),
        host_path=_host_path(path, message),
        readonly=message.readonly,
        recursive_read_only=message.recursive_read_only,
        selinux_relabel=message.selinux_relabel,
        propagation=fields.choice(f"{path}.propagation", message.propagation, Propagation),
        uid_mappings=id_mappings(f"{path}.uidMappings", message.uidMappings),
        gid_mappings=id_mappings(f"{path}.gidMappings", message.gidMappings),
        image=image_spec(f"{path}.image", message.image) if message.HasField("image") else None,
        image_sub_path=fields.relative_if_set(f"{path}.image_sub_path", message.image_sub_path),
        mount_options=_mount_options(f"{path}.mount_options", message.mount_options),
    )
    if mount.recursive_read_only and not mount.readonly:
        raise InvalidArgument(f"{path}.recursive_read_only: needs {path}.readonly")
    if mount.recursive_read_only and mount.propagation is not Propagation.PRIVATE:
        raise InvalidArgument(
            f"{path}.recursive_read_only: needs {path}.propagation PRIVATE, not {mount.propagation.name}"
        )
    return mount


def _mount_options(path: str, values: Iterable[str]) -> tuple[str, ...]:
    for index, value in enumerate(values):
        if value not in _MOUNT_OPTIONS:
            raise fields.invalid(f"{path}[{index}]", value, f"must be one of {', '.join(_MOUNT_OPTIONS)}")
    return tuple(dict.fromkeys(values))


def _host_path(path: str, message: api_pb2.Mount) -> str:
    if not message.HasField("image"):
        return fields.absolute(f"{path}.host_path", message.host_path)
    if message.host_path:
        raise fields.invalid(f"{path}.host_path", message.host_path, f"cannot be set together with {path}.image")
    return ""


def _devices(path: str, messages: Iterable[api_pb2.Device]) -> tuple[Device, ...]:
    return tuple([_device(f"{path}[{index}]", message) for index, message in enumerate(messages)])


def _device(path: str, message: api_pb2.Device) -> Device:
    permissions = message.permissions or "rwm"
    return Device(
        container_path=fields.below_root(f"{path}.container_path", message.container_path),
        host_path=fields.absolute(f"{path}.host_path", message.host_path),
        permissions=fields.matching(f"{path}.permissions", permissions, rules.DEVICE_ACCESS),
    )


def _cdi_devices(path: str, messages: Iterable[api_pb2.CDIDevice]) -> tuple[str, ...]:
    return tuple(
        [
            fields.matching(f"{path}[{index}].name", message.name, rules.CDI_DEVICE)
            for index, message in enumerate(messages)
        ]
    )
