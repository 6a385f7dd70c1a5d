"""Computes the cgroup paths of pods and containers. All functions are pure.

Each cgroup driver has its own naming, a `Places`. A pod keeps that of the driver at its creation.
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
        """Whether other OCI runtimes must let systemd make their cgroups (`--systemd-cgroup`)."""

    def pod(self, sandbox_id: str, config: SandboxConfig) -> str:
        """Return the cgroup of a pod's containers. Raises InvalidArgument for an unusable parent."""

    def container(self, sandbox: Sandbox, container_id: str) -> str:
        """Return a container's cgroup, below its pod's. Raises InvalidArgument."""

    def oci_path(self, sandbox: Sandbox, container_id: str) -> str:
        """Return a container's cgroup in the form of `linux.cgroupsPath`, for other OCI runtimes."""


class FileSystemPlaces:
    """Places of the cgroupfs driver: a directory for each container."""

    by_systemd = False

    def pod(self, sandbox_id: str, config: SandboxConfig) -> str:
        parent = config.cgroup_parent
        if not parent:
            return f"{_NO_PARENT}/{sandbox_id}"
        if parent.rstrip("/").endswith(".slice"):
            raise InvalidArgument(
                f"{_FIELD}: {parent!r} is a systemd slice, but this runtime drives cgroups by the file system: "
                "set `cgroupDriver: cgroupfs` in kubelet's configuration"
            )
        if not parent.startswith("/"):
            raise InvalidArgument(f"{_FIELD}: {parent!r} is not an absolute path")
        return "/" + "/".join(part for part in parent.split("/") if part not in ("", "."))

    def container(self, sandbox: Sandbox, container_id: str) -> str:
        return f"{self.pod(sandbox.id, sandbox.config).rstrip('/')}/{container_id}"

    def oci_path(self, sandbox: Sandbox, container_id: str) -> str:
        return self.container(sandbox, container_id)


class SystemdPlaces:
    """Places of the systemd driver: a scope for each container, in the pod's slice."""

    by_systemd = True

    def pod(self, sandbox_id: str, config: SandboxConfig) -> str:
        try:
            return slice_path(pod_slice(sandbox_id, config), _FIELD)
        except SpecError as error:
            raise InvalidArgument(
                f"{error}, and this runtime's cgroup driver is systemd: set `cgroupDriver: systemd` in kubelet's "
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
    """Return the places of the cgroup driver with that name."""
    return _PLACES[driver]


def pod_cgroup(sandbox: Sandbox) -> str:
    """Return the cgroup of a pod's containers."""
    return places_of(sandbox.cgroup_driver).pod(sandbox.id, sandbox.config)


def container_cgroup(sandbox: Sandbox, container_id: str) -> str:
    """Return a container's cgroup."""
    return places_of(sandbox.cgroup_driver).container(sandbox, container_id)


def pod_slice(sandbox_id: str, config: SandboxConfig) -> str:
    """Return the slice of a pod's containers: kubelet's (the last part of `cgroup_parent`), or one for this pod."""
    return config.cgroup_parent.rstrip("/").rpartition("/")[2] if config.cgroup_parent else f"crisp-{sandbox_id}.slice"


def container_scope(sandbox: Sandbox, container_id: str) -> Scope:
    """Return a container's systemd unit."""
    return Scope(pod_slice(sandbox.id, sandbox.config), f"crisp-{container_id}.scope")
