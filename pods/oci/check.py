"""Checks a container against its pod and this host, before anything is made.

The doors (`cri/convert`) have already checked each field, and the fields against each other.
"""

from __future__ import annotations

from pods.errors import InvalidArgument, RecursiveReadOnlyUnsupported
from pods.host import HostFacts
from pods.model import CgroupMountMode, ContainerConfig, Mount, NamespaceMode, Sandbox
from pods.oci import mounted_images
from pods.security.user_namespaces import check_container, check_mappings

_SECURITY = "config.linux.security_context"


def validate(config: ContainerConfig, sandbox: Sandbox, host: HostFacts) -> None:
    """Refuse options that contradict the sandbox or the host (InvalidArgument), or are unsupported (Unimplemented).

    The message starts with the path of the CRI field.
    """
    security = config.security
    if security.privileged and not sandbox.config.security.privileged:
        raise InvalidArgument(f"{_SECURITY}.privileged: the sandbox {sandbox.id} is not privileged")
    _validate_namespaces(config, sandbox)
    if security.cgroup_mount_mode is CgroupMountMode.READ_WRITE and not host.nsdelegate():
        version = "version 2 without that option" if host.cgroup_v2 else "version 1"
        raise InvalidArgument(
            f"{_SECURITY}.cgroup_mount_mode: READ_WRITE needs cgroup v2 mounted with nsdelegate, not {version}"
        )
    for index, mount in enumerate(config.mounts):
        _validate_mount(mount, f"config.mounts[{index}]", host)


def _validate_namespaces(config: ContainerConfig, sandbox: Sandbox) -> None:
    field = f"{_SECURITY}.namespace_options"
    options = config.security.namespaces
    check_container(options, sandbox.config.security.namespaces, field)
    if options.pid is NamespaceMode.NODE and sandbox.config.security.namespaces.pid is not NamespaceMode.NODE:
        raise InvalidArgument(f"{field}.pid: NODE, but the sandbox {sandbox.id} is not in the host's PID namespace")


def _validate_mount(mount: Mount, field: str, host: HostFacts) -> None:
    if mount.image is not None:
        mounted_images.check(mount, field)
    if mount.uid_mappings or mount.gid_mappings:
        check_mappings(mount.uid_mappings, f"{field}.uidMappings")
        check_mappings(mount.gid_mappings, f"{field}.gidMappings")
    if mount.recursive_read_only and not host.recursive_read_only:
        kernel = f"{host.kernel[0]}.{host.kernel[1]}"
        raise RecursiveReadOnlyUnsupported(f"{field}.recursive_read_only: needs Linux 5.12, not {kernel}")
