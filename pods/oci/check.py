"""What a container cannot be, found before anything is made for it."""

from __future__ import annotations

from pods.errors import InvalidArgument
from pods.host import HostFacts
from pods.model import CgroupMountMode, ContainerConfig, Mount, NamespaceMode, Propagation, Sandbox
from pods.oci import mounted_images
from pods.oci.execve_limits import name_of
from pods.security.user_namespaces import check_container, check_mappings

_SECURITY = "config.linux.security_context"


def validate(config: ContainerConfig, sandbox: Sandbox, host: HostFacts) -> None:
    """Refuse options that contradict each other or the sandbox (InvalidArgument), or are not there yet (Unimplemented).

    The message starts with the path of the CRI field.
    """
    security = config.security
    if security.privileged and not sandbox.config.security.privileged:
        raise InvalidArgument(f"{_SECURITY}.privileged: the sandbox {sandbox.id} is not privileged")
    for path in (*security.masked_paths, *security.readonly_paths):
        if not path.startswith("/"):
            raise InvalidArgument(f"{_SECURITY}.masked_paths, readonly_paths: {path!r} is not absolute")
    if config.working_dir and not config.working_dir.startswith("/"):
        raise InvalidArgument(f"config.working_dir: {config.working_dir!r} is not absolute")
    if not -1000 <= config.resources.oom_score_adj <= 1000:
        raise InvalidArgument(
            f"config.linux.resources.oom_score_adj: {config.resources.oom_score_adj} is not between -1000 and 1000"
        )
    _validate_texts(config)
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
    if options.pid is NamespaceMode.TARGET and not options.target_id:
        raise InvalidArgument(f"{field}.target_id: TARGET needs the id of a container")


def _validate_texts(config: ContainerConfig) -> None:
    for name, value in config.envs:
        if not name or "=" in name or "\0" in name + value:
            raise InvalidArgument(f"config.envs: {name_of(name)!r} is not the name of a variable, or holds a NUL")
    for field, words in (
        ("command", config.command), ("args", config.args), ("working_dir", (config.working_dir,))
    ):  # fmt: skip
        if any("\0" in word for word in words):
            raise InvalidArgument(f"config.{field}: holds a NUL")


def _validate_mount(mount: Mount, field: str, host: HostFacts) -> None:
    if mount.image is not None:
        mounted_images.check(mount, field)
    if mount.uid_mappings or mount.gid_mappings:
        check_mappings(mount.uid_mappings, f"{field}.uidMappings")
        check_mappings(mount.gid_mappings, f"{field}.gidMappings")
    if mount.image is None and not mount.host_path.startswith("/"):
        raise InvalidArgument(f"{field}.host_path: {mount.host_path!r} is not absolute")
    parts = mount.container_path.split("/")
    if not mount.container_path.startswith("/") or ".." in parts or not any(part not in ("", ".") for part in parts):
        raise InvalidArgument(
            f"{field}.container_path: {mount.container_path!r} is not an absolute path below '/' without '..'"
        )
    if mount.recursive_read_only:
        _validate_recursive_read_only(mount, field, host)


def _validate_recursive_read_only(mount: Mount, field: str, host: HostFacts) -> None:
    if not mount.readonly or mount.propagation is not Propagation.PRIVATE:
        raise InvalidArgument(f"{field}.recursive_read_only: needs readonly, and private propagation")
    if not host.recursive_read_only:
        raise InvalidArgument(f"{field}.recursive_read_only: needs Linux 5.12, not {host.kernel[0]}.{host.kernel[1]}")
