"""Where the cgroups of a pod and of its containers are. All of this is pure.

Who makes a pod's cgroups decides about their names, so there is one `Places` for each cgroup driver. A pod keeps those
of the driver that it was made with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from pods.errors import InvalidArgument
from pods.model import Sandbox, SandboxConfig
from runtime.cgroups.systemd import Scope, slice_path
from runtime.errors import SpecError

CGROUPFS: Final = "cgroupfs"
SYSTEMD: Final = "systemd"
_NO_PARENT: Final = "/crisp"
_FIELD: Final = "config.linux.cgroup_parent"


class Places(Protocol):
    """How one cgroup driver names cgroups. Paths are absolute, relative to the hierarchies' mount points."""

    @property
    def by_systemd(self) -> bool:
        """Whether other OCI runtimes have to ask systemd for their cgroups (`--systemd-cgroup`)."""

    def pod(self, sandbox_id: str, config: SandboxConfig) -> str:
        """The cgroup that a pod's containers go into. Raises InvalidArgument for a parent that cannot be."""

    def container(self, sandbox: Sandbox, container_id: str) -> str:
        """A container's own cgroup, under its pod's. Raises what `pod` does."""

    def oci_path(self, sandbox: Sandbox, container_id: str) -> str:
        """The same as other OCI runtimes are told of it, in `linux.cgroupsPath`."""


class FileSystemPlaces:
    """A directory for each container."""

    by_systemd = False

    def pod(self, sandbox_id: str, config: SandboxConfig) -> str:
        parent = config.cgroup_parent
        if not parent:
            return f"{_NO_PARENT}/{sandbox_id}"
        if parent.rstrip("/").endswith(".slice"):
            raise InvalidArgument(
                f"{_FIELD}: {parent!r} is a systemd slice, but this runtime drives cgroups by the file system: "
                "set `cgroupDriver: cgroupfs` in the kubelet's configuration"
            )
        if not parent.startswith("/"):
            raise InvalidArgument(f"{_FIELD}: {parent!r} is not an absolute path")
        return "/" + "/".join(part for part in parent.split("/") if part not in ("", "."))

    def container(self, sandbox: Sandbox, container_id: str) -> str:
        return f"{self.pod(sandbox.id, sandbox.config).rstrip('/')}/{container_id}"

    def oci_path(self, sandbox: Sandbox, container_id: str) -> str:
        return self.container(sandbox, container_id)


class SystemdPlaces:
    """A scope for each container, in the pod's slice."""

    by_systemd = True

    def pod(self, sandbox_id: str, config: SandboxConfig) -> str:
        try:
            return slice_path(pod_slice(sandbox_id, config), _FIELD)
        except SpecError as error:
            raise InvalidArgument(
                f"{error}, and this runtime's cgroup driver is systemd: set `cgroupDriver: systemd` in the kubelet's "
                "configuration"
            ) from error

    def container(self, sandbox: Sandbox, container_id: str) -> str:
        return f"{self.pod(sandbox.id, sandbox.config)}/{container_scope(sandbox, container_id).name}"

    def oci_path(self, sandbox: Sandbox, container_id: str) -> str:
        scope = container_scope(sandbox, container_id)
        prefix, _, name = scope.name.removesuffix(".scope").partition("-")
        return f"{scope.slice}:{prefix}:{name}"


_PLACES: Final[Mapping[str, Places]] = {CGROUPFS: FileSystemPlaces(), SYSTEMD: SystemdPlaces()}


def places_of(driver: str) -> Places:
    """Those of the cgroup driver with that name."""
    return _PLACES[driver]


def pod_cgroup(sandbox: Sandbox) -> str:
    """The cgroup that the pod's containers are in."""
    return places_of(sandbox.cgroup_driver).pod(sandbox.id, sandbox.config)


def container_cgroup(sandbox: Sandbox, container_id: str) -> str:
    """A container's own cgroup."""
    return places_of(sandbox.cgroup_driver).container(sandbox, container_id)


def pod_slice(sandbox_id: str, config: SandboxConfig) -> str:
    """The slice that a pod's containers go into: kubelet's, which gives its whole path, else one of the pod's own."""
    return config.cgroup_parent.rstrip("/").rpartition("/")[2] if config.cgroup_parent else f"crisp-{sandbox_id}.slice"


def container_scope(sandbox: Sandbox, container_id: str) -> Scope:
    """The unit that a container is for systemd."""
    return Scope(pod_slice(sandbox.id, sandbox.config), f"crisp-{container_id}.scope")
